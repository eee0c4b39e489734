"""A checkpoint that ONNX Runtime by itself refuses is loaded with help, and the report says so."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnx_lathe.optimizer.cli import main
from tests.support.builders import build

REFUSAL = onnxruntime.capi.onnxruntime_pybind11_state.Fail
HEAD = "{ c = Conv (x, w)  p = MaxPool <kernel_shape = [2, 2]> (c)  r = Reshape (p, s)  y = Transpose <perm = [0, 2, 1]> (r) }"


def test_help_in_loading_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data, out = tmp_path / "model.onnx", tmp_path / "data.npz", tmp_path / "out"
    weights = {"w": np.ones((4, 3, 1, 1), np.float32), "s": np.array([0, 4, 49])}
    onnx.save(build(f"(float[N, 3, 8, 8] x) => (float[N, 49, 4] y) {HEAD}", 21, **weights), model)
    np.savez(data, x=np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32))
    more = ["--calibration", str(data), "--target", "ort", "--no-latency", "--out", str(out)]
    assert main([str(model), "--passes", "fold,int8", *more]) == 0
    assert "QDQPropagationTransformer" in capsys.readouterr().out
    with pytest.raises(REFUSAL):  # once it loads, the help can go
        onnxruntime.InferenceSession(str(out / "steps" / "02-int8.onnx"), providers=["CPUExecutionProvider"])
    onnxruntime.InferenceSession(str(out / "model.ort.onnx"), providers=["CPUExecutionProvider"])
