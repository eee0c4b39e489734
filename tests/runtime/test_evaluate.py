"""Quality metrics on outputs known by hand, and latency measured in turn."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import DataError, ModelError
from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.evaluate import OriginalComparer, evaluate, reference


def scaling(weight: np.ndarray, batch: int | str = "n") -> onnx.ModelProto:
    """y = x @ weight, weight [4, 4]."""
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [value("x", 1, [batch, 4])],
        [value("y", 1, [batch, 4])],
        [onnx.numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


class Rows(DataSource):
    """Each sample is one row of `values`."""

    fingerprint = description = "rows"

    def __init__(self, values: np.ndarray, labels: np.ndarray | None = None) -> None:
        self.values, self.labels, self.count = values.astype(np.float32), labels, len(values)
        self.labelled = labels is not None

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        for start in range(0, self.count, 3):
            part = slice(start, start + 3)
            yield Batch(
                inputs={"x": self.values[part]}, labels=None if self.labels is None else self.labels[part]
            )


def measured(
    base: np.ndarray, candidate: np.ndarray, data: Rows, batch: int | str = "n"
) -> tuple[dict[str, float], dict[str, float]]:
    original = reference(ort.session(scaling(base, batch)), data, lambda text: None)
    return original.metrics, evaluate(
        ort.session(scaling(candidate, batch)), data, original, lambda text: None
    )


@pytest.mark.parametrize(
    "original, candidate, said",
    [
        ("n", 2, "input 'x' of the candidate takes batches of 2 alone, the original's any batch"),
        (4, 2, "input 'x' of the candidate takes batches of 2 alone, the original's batches of 4 alone"),
        (2, "n", "input 'x' of the candidate takes any batch, the original's batches of 2 alone"),
    ],
)
def test_batches_of_another_size_are_named(original: int | str, candidate: int | str, said: str) -> None:
    data = Rows(np.eye(4))
    known = reference(ort.session(scaling(np.eye(4), original)), data, lambda text: None)
    with pytest.raises(
        DataError, match=said + ".*; export or build both with the same batch, or leave it open"
    ):
        evaluate(ort.session(scaling(np.eye(4), candidate)), data, known, lambda text: None)


def test_accuracy_and_agreement() -> None:
    swapped = np.eye(4)[[1, 0, 2, 3]]
    base, found = measured(np.eye(4), swapped, Rows(np.eye(4), np.array([0, 1, 2, 0])))
    assert base["top1"] == 0.75
    assert base["agreement"] == 1.0
    assert found["top1"] == 0.25
    assert found["agreement"] == 0.5


def test_sqnr_in_decibels() -> None:
    base, found = measured(np.eye(4), 1.1 * np.eye(4), Rows(np.eye(4)))
    assert math.isinf(base["sqnr"])
    assert found["sqnr"] == pytest.approx(20.0, abs=1e-4)
    assert "top1" not in found


def test_a_fixed_batch_counts_every_sample_once() -> None:
    base, found = measured(
        np.eye(4), np.eye(4), Rows(np.eye(4)[[0, 1, 2, 3, 0]], np.array([0, 1, 2, 3, 1])), batch=2
    )
    assert base["top1"] == found["top1"] == 0.8


def test_data_that_changes_between_readings_is_refused() -> None:
    data = Rows(np.eye(4), np.array([0, 1, 2, 3]))
    original = reference(ort.session(scaling(np.eye(4))), data, lambda text: None)
    for changed in (
        Rows(np.eye(4)[:3]),
        Rows(np.eye(4), np.array([0, 1, 2, 2])),
        Rows(np.eye(4)[[0, 1, 2, 3, 0, 1, 2]]),
    ):
        with pytest.raises(DataError, match="must yield the same each time"):
            evaluate(ort.session(scaling(np.eye(4))), changed, original, lambda text: None)


def test_an_output_that_is_not_finite_has_no_sqnr() -> None:
    _, found = measured(np.eye(4), np.full((4, 4), np.inf), Rows(np.eye(4) + 1))
    assert "sqnr" not in found


def test_latency_is_measured_in_turn() -> None:
    small, large = ort.session(scaling(np.eye(4)), threads=1), ort.session(scaling(np.eye(4)), threads=1)
    one, other = ort.latency_pair(small, large, {"x": np.zeros((1, 4), np.float32)}, budget_s=0.05)
    assert 0 < one < 50
    assert 0 < other < 50


def test_a_model_that_does_not_load_says_why() -> None:
    broken = scaling(np.eye(4))
    broken.graph.node[0].op_type = "Nope"
    with pytest.raises(ModelError, match=r"cannot load the model: .*Nope"):
        ort.session(broken)


def test_feeds_that_do_not_fit_say_why() -> None:
    with pytest.raises(ModelError, match="cannot run the model"):
        ort.run(ort.session(scaling(np.eye(4))), {"x": np.zeros((1, 5), np.float32)})


def test_large_samples_are_run_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample counts once, whatever the pieces."""
    values, labels = np.random.default_rng(0).standard_normal((7, 4)), np.array([0, 1, 2, 3, 0, 1, 2])
    whole = measured(np.eye(4), np.roll(np.eye(4), 1, axis=1), Rows(values, labels))
    seen: list[int] = []
    run = ort.run
    monkeypatch.setattr(
        ort, "run", lambda session, feeds: seen.append(len(feeds["x"])) or run(session, feeds)
    )
    monkeypatch.setattr("onnx_lathe.runtime.running.evaluate.PIECE_BYTES", 2 * 16)
    for found, expected in zip(
        measured(np.eye(4), np.roll(np.eye(4), 1, axis=1), Rows(values, labels)), whole, strict=True
    ):
        assert found == pytest.approx(expected)
    together_and_alone = [3, 1, 1, 1]  # whether samples have to do with one another
    assert seen == together_and_alone + [2, 1, 2, 1, 1] * 2


def test_the_original_is_compared_in_the_session_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "original.onnx"
    onnx.save(scaling(np.eye(4)), path)
    comparer = OriginalComparer(path, lambda: onnx.load(path), Rows(np.eye(4)))
    assert comparer.sqnr(scaling(np.eye(4))) == math.inf
    assert comparer.sqnr(scaling(1.1 * np.eye(4))) == pytest.approx(20, abs=0.01)
    monkeypatch.setattr(ort, "plain_session", lambda model: ort.session(scaling(1.01 * np.eye(4))))
    assert comparer.sqnr(scaling(np.eye(4)), plain=True) == pytest.approx(40, abs=0.1)


def test_what_a_plain_session_refuses_is_infinitely_far_from_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: onnx.ModelProto) -> None:
        raise ModelError("no")

    path = tmp_path / "original.onnx"
    onnx.save(scaling(np.eye(4)), path)
    monkeypatch.setattr(ort, "plain_session", refuse)
    assert (
        OriginalComparer(path, lambda: onnx.load(path), Rows(np.eye(4))).sqnr(scaling(np.eye(4)), plain=True)
        == -math.inf
    )


def test_what_loads_and_does_not_run_is_infinitely_far_from_the_original(tmp_path: Path) -> None:
    path = tmp_path / "original.onnx"
    onnx.save(scaling(np.eye(4)), path)
    failing = scaling(np.eye(4))
    failing.graph.node[0].output[0] = "z"
    failing.graph.node.append(onnx.helper.make_node("Reshape", ["z", "shape"], ["y"]))
    failing.graph.initializer.append(onnx.numpy_helper.from_array(np.array([7, 4]), "shape"))
    del failing.graph.output[0].type.tensor_type.shape.dim[:]
    ort.plain_session(failing)
    comparer = OriginalComparer(path, lambda: onnx.load(path), Rows(np.eye(4)))
    assert comparer.sqnr(failing) == comparer.sqnr(failing, plain=True) == -math.inf


def test_data_that_is_another_each_time_compares_nothing(tmp_path: Path) -> None:
    class Changing(Rows):
        def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
            self.values = self.values + 1
            return super().batches(size, shuffle_seed)

    path = tmp_path / "original.onnx"
    onnx.save(scaling(np.eye(4)), path)
    comparer = OriginalComparer(path, lambda: onnx.load(path), Changing(np.eye(4)))
    assert comparer.sqnr(scaling(np.eye(4))) is None
