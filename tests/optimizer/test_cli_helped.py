"""What ONNX Runtime by itself refuses of INT8 from opset 21 on: int8 writes a form that loads, and other people's
models are loaded with help, which the report says.
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnx_lathe.optimizer.cli import main
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.graph.quantization.pairs import omit_zero_points, state_zero_points
from tests.support.builders import build

REFUSAL = onnxruntime.capi.onnxruntime_pybind11_state.Fail
POOLED = "{ c = Conv (x, w)  r = Relu (c)  g = GlobalAveragePool (r)  y = Flatten (g) }"
HEAD = "{ c = Conv (x, w)  p = MaxPool <kernel_shape = [2, 2]> (c)  r = Reshape (p, s)  y = Transpose <perm = [0, 2, 1]> (r) }"
FOREIGN = """(float[N, 2, 4] x) => (float[M, 4] y) {
    q = QuantizeLinear (x, scale, zero)  d = DequantizeLinear (q, scale, zero)  r = Reshape (d, s)  [mm] y = MatMul (r, w)
}"""


IN_FLOAT = FOREIGN.replace("[mm] y = MatMul (r, w)", "y = Neg (r)").replace("float[M, 4]", "float[M, 8]")


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


def test_zero_points_that_are_left_out_are_stated_again(tmp_path: Path) -> None:
    constants = {name: array for name, array in _constants().items() if name != "w"}
    graph = import_model(build(IN_FLOAT, 21, **constants))
    quantizer = next(node for node in graph.nodes if node.op == "QuantizeLinear")
    quantizer.metadata["lathe.range"] = "[-1, 1]"
    before = export_model(graph)
    omit_zero_points(graph)
    assert {node.op: len(node.inputs) for node in graph.nodes if "Linear" in node.op} == {
        "QuantizeLinear": 2,
        "DequantizeLinear": 2,
    }
    omitted = export_model(graph)
    onnx.checker.check_model(omitted, full_check=True)
    x = np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)
    found = onnxruntime.InferenceSession(omitted.SerializeToString()).run(None, {"x": x})[0]
    wanted = onnx.reference.ReferenceEvaluator(before).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    state_zero_points(graph)
    stated = export_model(graph)
    assert [len(node.input) for node in stated.graph.node] == [len(node.input) for node in before.graph.node]
    assert not [one for node in stated.graph.node for one in node.attribute if one.name == "output_dtype"]


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
