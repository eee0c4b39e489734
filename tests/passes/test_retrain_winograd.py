"""retrain(winograd=float16): what the trainer is told, what is learned, and what is said where it does not pay."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.metadata import CONV_ALGORITHM
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.retrain import Retrain
from onnx_lathe.protocols import TrainResult
from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup
from onnx_lathe.runtime.training.parallel.request import parse_launch
from onnx_lathe.tiles import F63
from tests.support.builders import build, random, run
from tests.support.tiles import TILES, Levels, choose, detector, sqnr

torch = pytest.importorskip("torch")
from onnx_lathe.runtime.torch_bridge import GraphModule  # noqa: E402

LEARNS: dict[str, Any] = {"epochs": 8, "rate": 1e-4, "batch": 32, "winograd": "float16"}


class Told:
    """A trainer that changes nothing, and notes what it was told."""

    def __init__(self, **metrics: float) -> None:
        self.metrics = metrics

    def train(
        self, model: onnx.ModelProto, settings: Any, shaping: Any = None, tiles: Any = None
    ) -> TrainResult:
        self.tiles = tiles
        return TrainResult({}, self.metrics)


def retrained(
    model: onnx.ModelProto, trainer: Any = None, **options: Any
) -> tuple[onnx.ModelProto, PassReport]:
    trainer = trainer or TorchTrainer(TrainingSetup(Levels(), model))
    return apply_pass(configure(Retrain, options), model, Context(trainer=trainer))


def by_tiles(model: onnx.ModelProto, pictures: np.ndarray) -> np.ndarray:
    module = GraphModule(model)
    module.tile(TILES)
    with torch.no_grad():
        return module(torch.from_numpy(pictures)).numpy()


def test_the_trainer_gets_the_transforms_that_convolutions_carry() -> None:
    text = "(float[n, 8, h, v] x) => (float[n, 8, p, q] y) { [first] a = Conv(x, u)  [second] b = Conv(a, v)  [third] y = Conv(b, w) }"
    model = choose(build(text, **{name: random(8, 8, 3, 3) for name in "uvw"}), "winograd63")
    choose(choose(model, "winograd63", 1), "direct", 2)
    trainer = Told()
    _, report = retrained(model, trainer, winograd="float16")
    assert list(trainer.tiles) == ["winograd63"]
    assert trainer.tiles["winograd63"] is F63
    assert (report.metrics["winograd63_layers"], report.warnings) == (2, [])
    retrained(model, trainer)
    assert trainer.tiles == {}


@pytest.mark.parametrize("algorithm", [None, "direct"])
def test_without_a_choice_it_says_what_to_run_first(algorithm: str | None) -> None:
    model = build("(float[n, 3, h, v] x) => (float[n, 2, p, q] y) { y = Conv(x, w) }", w=random(2, 3, 3, 3))
    if algorithm:
        choose(model, algorithm)
    trainer = Told()
    _, report = retrained(model, trainer, winograd="float16")
    assert trainer.tiles == {}
    (warning,) = report.warnings
    assert "no convolution carries a choice of Winograd" in warning
    assert "run the pass winograd first" in warning


def test_the_network_learns_to_stand_what_half_precision_does_to_it() -> None:
    model, fresh = detector("winograd43"), Levels(256, seed=9).pictures
    wanted = run(model, {"x": fresh})["y"]
    before = sqnr(wanted, by_tiles(model, fresh))
    after, report = retrained(model, **LEARNS | {"rate": 3e-5})
    found = sqnr(wanted, by_tiles(after, fresh))
    assert before < 57
    assert found > before + 2  # dB, on pictures that it was not trained on
    assert report.metrics["winograd_sqnr_after"] > report.metrics["winograd_sqnr_before"] + 2
    assert report.metrics["winograd_sqnr_before"] == pytest.approx(before, abs=0.5)
    assert report.warnings == []
    onnx.checker.check_model(after, full_check=True)
    assert [(node.op_type, list(node.input)) for node in after.graph.node] == [
        (node.op_type, list(node.input)) for node in model.graph.node
    ]
    assert {entry.key: entry.value for entry in after.graph.node[0].metadata_props}[
        CONV_ALGORITHM
    ] == "winograd43"
    plain, _ = retrained(model, **LEARNS | {"rate": 3e-5, "winograd": None})
    assert sqnr(wanted, by_tiles(plain, fresh)) == pytest.approx(before, abs=0.1)


def test_farther_from_the_original_than_before_is_said() -> None:
    worse = Told(winograd_sqnr_before=38.21, winograd_sqnr_after=34.3)
    _, report = retrained(detector(), worse, winograd="float16")
    (warning,) = report.warnings
    assert "farther from the original after training (34.3 dB) than before (38.2 dB)" in warning
    _, report = retrained(
        detector(), Told(winograd_sqnr_before=38.2, winograd_sqnr_after=41.0), winograd="float16"
    )
    assert report.warnings == []


def test_a_convolution_beyond_float16_is_refused() -> None:
    model = detector()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1e4), tensor.name)
        )
    with pytest.raises(
        PassError, match=r"beyond float16 on the training data; choose others by winograd\(by=error"
    ):
        retrained(model, **LEARNS)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UsageError, match=r"winograd=...\) must be one of float16, not 'float32'"):
        configure(Retrain, {"winograd": "float32"})
    with pytest.raises(UsageError, match="leave precision out"):
        configure(Retrain, {"winograd": "float16", "precision": "bfloat16"})
    with pytest.raises(UsageError, match="holdout"):
        configure(Retrain, {"patience": 2})


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(build(
        "(float[n, 3, 14, 14] x) => (float[n, 32, 1, 1] y) { [conv] a = Conv <pads = [1, 1, 1, 1]> (x, w)  y = GlobalAveragePool(a) }",
        w=random(32, 3, 3, 3),
    ), tmp_path / "model.onnx")  # fmt: skip
    np.savez(tmp_path / "data.npz", x=random(64, 3, 14, 14))

    def optimize(*passes: str) -> tuple[int, str]:
        command = [
            str(tmp_path / "model.onnx"),
            "--passes",
            ",".join(passes),
            "--data",
            str(tmp_path / "data.npz"),
        ]
        code = main([*command, "--out", str(tmp_path / "out"), "--force"])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    code, said = optimize(
        "winograd(layers={conv: winograd63})", "retrain(winograd=float16, epochs=1, rate=1e-5)"
    )
    assert code == 0, said
    assert "winograd63_layers" in (tmp_path / "out" / "report.json").read_text()
    code, said = optimize("retrain(winograd=half)")
    assert code == 2
    assert "must be one of float16, not 'half'" in said


def test_two_workers_learn_the_same(tmp_path: Path) -> None:
    def values(launch: str | None, batch: int) -> dict[str, np.ndarray]:
        setup = TrainingSetup(
            Levels(),
            detector(),
            device="cpu",
            log=tmp_path / "retrain.log",
            launch=launch and parse_launch(launch),
        )
        after, _ = retrained(detector(), TorchTrainer(setup), **LEARNS | {"batch": batch, "epochs": 2})
        return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer}

    several, alone = values("--nproc-per-node=2", 16), values(None, 32)
    start = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in detector().graph.initializer}
    for name, value in alone.items():
        assert (value != start[name]).any()
        np.testing.assert_allclose(several[name], value, rtol=0, atol=1e-5)


def test_going_on_gives_the_same_bits(tmp_path: Path) -> None:
    class Interrupted(Levels):
        epochs = 0

        def batches(self, size: int, shuffle_seed: int | None = None):
            self.epochs += shuffle_seed is not None
            if self.epochs == 3:
                raise KeyboardInterrupt
            yield from super().batches(size, shuffle_seed)

    def values(data: Levels, state: Path | None) -> list[bytes]:
        trainer = TorchTrainer(TrainingSetup(data, detector(), state=state))
        after, report = retrained(detector(), trainer, **LEARNS | {"epochs": 4})
        resumed.append(report.metrics.get("resumed_after", 0))
        return [tensor.SerializeToString(deterministic=True) for tensor in after.graph.initializer]

    resumed: list[float] = []
    whole = values(Levels(), None)
    with pytest.raises(KeyboardInterrupt):
        values(Interrupted(), tmp_path / "training.state")
    assert values(Levels(), tmp_path / "training.state") == whole
    assert resumed == [0, 2]


def test_what_lies_behind_a_node_without_gradient_is_trained_so() -> None:
    text = """(float[n, 3, 14, 14] x) => (float[n, 8, 1, 1] y) {
        s = ReduceSum <keepdims = 0> (x)  c = Greater (s, zero)
        [choice] t = If (c) <then_branch = yes () => (float[n, 3, 14, 14] p) { p = Abs (x) },
                             else_branch = no () => (float[n, 3, 14, 14] q) { q = Neg (x) }>
        [conv] a = Conv <pads = [1, 1, 1, 1]> (t, w)  y = GlobalAveragePool(a) }"""
    model = build(text, zero=np.float32(0), w=random(8, 3, 3, 3))
    _, report = retrained(choose(model, "winograd63", 3), **LEARNS | {"epochs": 1})
    assert report.metrics["winograd63_layers"] == 1
    assert [edit.node for edit in report.edits] == ["conv"]
    assert "choice" in {skip.node for skip in report.skips}
