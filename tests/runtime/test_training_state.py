"""An interrupted training goes on after its last whole epoch, and ends as if it had not been interrupted."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import LatheError, PassError
from onnx_lathe.passes.numerics.clustering.codebook_pools import Clustered, CodebookGroup, Piece
from onnx_lathe.passes.numerics.clustering.kmeans import Rule
from onnx_lathe.passes.numerics.sparsity.gradual import Gradual
from onnx_lathe.passes.numerics.sparsity.weight_choice import Budget
from onnx_lathe.protocols import Shaping
from onnx_lathe.runtime.data.arrays import open_arrays
from onnx_lathe.runtime.data.preprocess import parse
from onnx_lathe.runtime.files import writing
from onnx_lathe.runtime.files.signature import model_inputs
from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup
from tests.support.training import CLASSES, Points, accuracy, model, options, updated

torch = pytest.importorskip("torch")
from onnx_lathe.runtime.training.loop.holdout import held_out  # noqa: E402
from onnx_lathe.runtime.training.state import JobState  # noqa: E402


class Interrupted(Points):
    """Ctrl-C in the middle of the epoch with this number."""

    def __init__(self, epoch: int, **more) -> None:
        super().__init__(**more)
        self.last, self.epochs = epoch, 0

    def batches(self, size: int, shuffle_seed: int | None = None):
        training = size > 2 and shuffle_seed is not None
        self.epochs += training
        for number, batch in enumerate(super().batches(size, shuffle_seed)):
            if training and self.epochs == self.last and number == 3:
                raise KeyboardInterrupt
            yield batch


def gradual() -> Gradual:
    return Gradual([Budget(("w", "v"), 60)], [0], [], "magnitude", "cubic", 20, 0.6, 0.8, True)


def clustered() -> Clustered:
    pools = [CodebookGroup(4, False, (Piece(name),)) for name in ("w", "v")]
    return Clustered([(pool, Rule(tradeoff=0.01)) for pool in pools], every=3, freeze=0.7)


@pytest.mark.parametrize("shaping", [None, gradual, clustered], ids=["plain", "gradual", "clustered"])
@pytest.mark.parametrize(
    "settings", [{"optimizer": "adamw"}, {"optimizer": "sgd", "decay": "onecycle"}], ids=["adamw", "onecycle"]
)
def test_going_on_gives_the_same_bits(tmp_path: Path, shaping, settings: Mapping[str, object]) -> None:
    def train(data, state: Path | None, shaped: Shaping | None) -> Mapping[str, np.ndarray]:
        setup = TrainingSetup(data, model(seed=3), progress=lines.append, state=state)
        result = TorchTrainer(setup).train(
            model(), options(epochs=6, batch=32, rate=0.02, **settings), shaped
        )
        metrics.append(result.metrics)
        return result.values

    lines: list[str] = []
    metrics: list[Mapping[str, float]] = []
    make = shaping or (lambda: None)
    whole = make()
    expected = train(Points(), None, whole)
    path = tmp_path / "training.state"
    for last in (5, 1):  # the second one is interrupted in epoch 5
        with pytest.raises(KeyboardInterrupt):
            train(Interrupted(last), path, make())
    again = make()
    after = train(Points(), path, again)
    assert [line for line in lines if line.startswith("going on")] == [
        "going on after epoch 4",
        "going on after epoch 4",
    ]
    assert metrics[-1]["resumed_after"] == 4
    for name, value in expected.items():
        np.testing.assert_array_equal(after[name], value)
    assert {key: metrics[0][key] for key in ("first_loss", "last_loss", "epochs")} == {
        key: metrics[-1][key] for key in ("first_loss", "last_loss", "epochs")
    }
    if whole is not None:
        assert whole.state().keys() == again.state().keys()
        for name, array in whole.state().items():
            np.testing.assert_array_equal(again.state()[name], array)


def test_another_job_or_a_damaged_file_begins_anew(tmp_path: Path) -> None:
    def resumed(start: onnx.ModelProto, **changes) -> bool:
        trainer = TorchTrainer(TrainingSetup(Points(), state=path))
        return "resumed_after" in trainer.train(start, options(**{"epochs": 2} | changes)).metrics

    path = tmp_path / "training.state"
    assert not resumed(model())
    assert resumed(model())  # all its epochs are done
    for change in ({"rate": 0.001}, {"epochs": 3}, {"seed": 1}):
        assert not resumed(model(), **change)
    assert not resumed(model(seed=1), seed=1)
    assert resumed(model(seed=1), seed=1)
    whole = path.read_bytes()
    for damaged in (b"", b"nothing", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(damaged)
        assert not resumed(model(seed=1), seed=1)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_state_is_data_and_runs_no_code(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self):
            return (print, ("ran",))

    class Nothing:
        def state(self):
            return {}

        def restore(self, state) -> None:
            raise AssertionError("restored")

    path = tmp_path / "training.state"
    torch.save({"identity": "me", "state": {}, "shape": Bad()}, path)
    assert JobState(path, "me", Nothing()).load() is None


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    class Nothing:
        def state(self):
            return {}

        def restore(self, state) -> None:
            pass

    state = JobState(tmp_path / "training.state", "me", Nothing())
    with pytest.raises(PassError, match=r"job.state.save takes tensors, .*; state\['a'\]\[1\] is float32"):
        state.save({"a": [1, np.float32(2)]})
    assert list(tmp_path.iterdir()) == []
    state.save({"a": [1, 2.0, None, {"b": torch.ones(2)}], "c": "text"})
    assert state.load()["a"][:3] == [1, 2.0, None]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch raises RuntimeError for what the file refused."""

    class Nothing:
        def state(self):
            return {}

    path = tmp_path / "training.state"
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(writing, "open", lambda *given: full, raising=False)
        with pytest.raises(LatheError, match=r"training.state: cannot be written: the disk is full"):
            JobState(path, "me", Nothing()).save({"a": torch.ones(40_000)})
    assert not list(tmp_path.iterdir())


def arrays(tmp_path: Path, count: int = 400, labels=None):
    points = Points(count)
    path = tmp_path / "data.npz"
    np.savez(path, x=points.points.astype(np.float32), labels=points.labels if labels is None else labels)
    return open_arrays(path, None, model_inputs(model()), parse(None), CLASSES)


def test_held_out_samples_choose_the_epoch_and_end_the_training(tmp_path: Path) -> None:
    rest, chosen = held_out(arrays(tmp_path), 0.25, seed=1)
    assert (rest.count, chosen.count) == (300, 100)
    everything = np.concatenate([next(part.batches(400)).inputs["x"] for part in (rest, chosen)])
    assert len(np.unique(everything, axis=0)) == 400
    lines: list[str] = []
    start = model()
    trainer = TorchTrainer(TrainingSetup(arrays(tmp_path), progress=lines.append))
    result = trainer.train(start, options(epochs=200, rate=0.05, batch=32, holdout=0.25, patience=3))
    assert result.metrics["samples"] == 300
    assert 3 < result.metrics["epochs"] < 200
    assert result.metrics["epochs"] - result.metrics["best_epoch"] == 3
    assert accuracy(updated(start, result.values)) > 0.9
    assert sum("held-out data: top-1" in line for line in lines) == result.metrics["epochs"] + 1
