"""What ONNX Runtime by itself refuses of INT8 from opset 21 on: int8 writes a form that loads, and other people's
models are loaded with help, which the report says.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnx_lathe.optimizer.cli import main
from tests.support.builders import build

REFUSAL = onnxruntime.capi.onnxruntime_pybind11_state.Fail
POOLED = "{ c = Conv (x, w)  r = Relu (c)  g = GlobalAveragePool (r)  y = Flatten (g) }"
HEAD = "{ c = Conv (x, w)  p = MaxPool <kernel_shape = [2, 2]> (c)  r = Reshape (p, s)  y = Transpose <perm = [0, 2, 1]> (r) }"
FOREIGN = """(float[N, 2, 4] x) => (float[M, 4] y) {
    q = QuantizeLinear (x, scale, zero)  d = DequantizeLinear (q, scale, zero)  r = Reshape (d, s)  [mm] y = MatMul (r, w)
}"""


def opened(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("opset", [17, 21, 23])
@pytest.mark.parametrize("shape, text", [("N, 49, 4", HEAD), ("N, 4", POOLED)])
def test_what_int8_writes_loads_by_itself(
    shape: str, text: str, opset: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data, out = tmp_path / "model.onnx", tmp_path / "data.npz", tmp_path / "out"
    weights = {"w": np.ones((4, 3, 1, 1), np.float32), "s": np.array([0, 4, 49])}
    weights = {name: array for name, array in weights.items() if f", {name})" in text}
    onnx.save(build(f"(float[N, 3, 8, 8] x) => (float[{shape}] y) {text}", opset, **weights), model)
    np.savez(data, x=np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32))
    more = ["--calibration", str(data), "--target", "onnx,ort", "--no-latency", "--out", str(out)]
    assert main([str(model), "--passes", "fold,int8", *more]) == 0
    assert "QDQPropagationTransformer" not in capsys.readouterr().out
    for name in ("model.onnx", "model.ort.onnx", "steps/02-int8.onnx"):
        opened(out / name)


def test_help_in_loading_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tmp_path / "model.onnx", tmp_path / "out"
    onnx.save(build(FOREIGN, 21, **_constants()), model)
    assert main([str(model), "--passes", "prune", "--no-latency", "--out", str(out)]) == 0
    assert "QDQPropagationTransformer" in capsys.readouterr().out
    with pytest.raises(REFUSAL):  # once it loads, the help can go
        opened(out / "model.onnx")


def _constants() -> dict[str, np.ndarray]:
    weight = np.random.default_rng(1).standard_normal((8, 4)).astype(np.float32)
    return {"scale": np.float32(0.1), "zero": np.int8(0), "s": np.array([-1, 8]), "w": weight}
