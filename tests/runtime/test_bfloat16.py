"""Inputs and outputs of bfloat16, which ONNX Runtime's Python binding gives no arrays for."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.errors import ModelError
from onnx_lathe.optimizer.observing import write_arrays
from onnx_lathe.runtime.running import memory, ort
from tests.support.builders import build, random
from tests.support.ncnn import refusals

ROUNDED = "(float[N, 8] x) => (bfloat16[N, 4] y) { h = MatMul (x, w)  y = Cast <to = 16> (h) }"
BOTH = "(bfloat16[N, 8] x) => (bfloat16[N, 8] y, float[N, 8] z) { z = Cast <to = 1> (x)  y = Identity (x) }"
X = random(3, 8)


def rounded(values: np.ndarray) -> np.ndarray:
    return values.astype(ml_dtypes.bfloat16).astype(np.float32)


def test_an_output_comes_as_float32() -> None:
    model = build(ROUNDED, w=random(8, 4))
    found = ort.run(ort.session(model), {"x": X})["y"]
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    assert found.dtype == np.float32
    assert np.array_equal(found, rounded(found))
    np.testing.assert_allclose(found, X @ weight, rtol=2**-8, atol=1e-6)
    assert ort.run(ort.session(model), {"x": X[:0]})["y"].shape == (0, 4)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_an_input_is_rounded(dtype: type) -> None:
    session = ort.session(build(BOTH))
    found = ort.run(session, {"x": X.astype(dtype)})
    assert np.array_equal(found["y"], rounded(X))
    assert np.array_equal(found["z"], rounded(X))
    assert ort.random_feeds(session)["x"].any()
    assert ort.times([session], {"x": X}, budget_s=0.0).shape[1] == 1


def test_a_constant_is_not_stored_in_another_type() -> None:
    model = build("() => (bfloat16[2, 4] y) { y = Cast <to = 16> (w) }", w=random(2, 4))
    with pytest.raises(ModelError, match="bfloat16"):
        ort.OneTimeEvaluator().evaluate(model, {})


@pytest.mark.parametrize("text", [ROUNDED, BOTH])
def test_a_model_goes_through(text: str, tmp_path: Path) -> None:
    """Its reference for a Jetson holds what the device compares with, which has NumPy alone."""
    model = build(text, **({"w": random(8, 4)} if text == ROUNDED else {}))
    record = onnx_lathe.optimize(model, "fold", data={"x": random(64, 8)}, targets="jetson", out=tmp_path)
    assert record.outcome == "done"
    with np.load(tmp_path / "model.jetson" / "reference.npz", allow_pickle=False) as stored:
        assert {stored[key].dtype for key in stored.files} == {np.dtype(np.float32)}
        assert stored["0.out0"].any()


def test_ncnn_names_what_it_neither_takes_nor_gives() -> None:
    reason = "it is bfloat16, which ncnn neither takes nor gives: make it float32"
    found = refusals(build(BOTH.replace("N", "1")))
    assert found == [("x", "Input", reason), ("y", "Output", reason)]


def test_arrays_go_through_a_file_to_another_process(tmp_path: Path) -> None:
    """NumPy would store them as bytes of no type, which it reads back as such."""
    feeds = {"x": X.astype(ml_dtypes.bfloat16)}
    onnx.save(build(BOTH), tmp_path / "model.onnx")
    assert memory.peak_bytes(tmp_path / "model.onnx", feeds) >= 0
    write_arrays(tmp_path / "stored.npz", feeds)
    with np.load(tmp_path / "stored.npz", allow_pickle=False) as stored:
        assert np.array_equal(stored["x"], rounded(X))
