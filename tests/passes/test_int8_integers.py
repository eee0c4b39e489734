"""Models that compute on integers: said by name, and stripped to the float network they came from."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime import quantization

from onnx_lathe import PassReport
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from tests.support.builders import build, random, run

FLOAT_OPS = {
    "Conv",
    "Relu",
    "Clip",
    "MaxPool",
    "AveragePool",
    "Add",
    "Concat",
    "Flatten",
    "Gemm",
    "MatMul",
    "Sigmoid",
}
NET = """(float[N,3,12,12] x) => (float[N,5] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a) m = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r)
    c = Conv<pads=[1,1,1,1]>(m, w2, b2) s = Sigmoid(c) d = Add(c, m) e = Concat<axis=1>(d, s)
    p = AveragePool<kernel_shape=[3,3],strides=[3,3]>(e) f = Flatten(p) y = Gemm(f, w3, b3)
}"""


def network(opset: int = 17) -> onnx.ModelProto:
    return build(
        NET,
        opset,
        w1=random(8, 3, 3, 3) / 4,
        b1=random(8) / 8,
        w2=random(8, 8, 3, 3) / 8,
        b2=random(8) / 8,
        w3=random(64, 5) / 8,
        b3=random(5) / 8,
    )


class Samples(quantization.CalibrationDataReader):
    def __init__(self, x: np.ndarray) -> None:
        self.left: Iterator[dict[str, np.ndarray]] = iter([{"x": x}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def qoperator(model: onnx.ModelProto, x: np.ndarray, folder: Path, **options: object) -> onnx.ModelProto:
    onnx.save(model, folder / "float.onnx")
    quantization.quantize_static(
        folder / "float.onnx",
        folder / "q.onnx",
        Samples(x),
        quant_format=quantization.QuantFormat.QOperator,
        **options,
    )
    return onnx.load(folder / "q.onnx")


def dynamic(model: onnx.ModelProto, folder: Path, **options: object) -> onnx.ModelProto:
    onnx.save(model, folder / "float.onnx")
    quantization.quantize_dynamic(folder / "float.onnx", folder / "q.onnx", **options)
    return onnx.load(folder / "q.onnx")


def strip(model: onnx.ModelProto, existing: str = "strip") -> tuple[onnx.ModelProto, PassReport]:
    options = {"existing": existing, "layers": {"*": False}}
    after, report = apply_pass(configure(find("int8"), options), model, Context())
    if report.edits:
        contract.check_structure(model, after, "int8")
    return after, report


def ops(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


def sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    error = expected.astype(np.float64) - found
    return float(10 * np.log10(np.square(expected).sum() / max(np.square(error).sum(), 1e-30)))


@pytest.mark.parametrize("kind", [quantization.QuantType.QUInt8, quantization.QuantType.QInt8])
def test_qoperator_networks_become_float(tmp_path: Path, kind: quantization.QuantType) -> None:
    model, x = network(), random(16, 3, 12, 12)
    per_channel = kind == quantization.QuantType.QInt8
    quantized = qoperator(model, x, tmp_path, per_channel=per_channel, activation_type=kind, weight_type=kind)
    assert any(op.startswith("QLinearConv") for op in ops(quantized))
    after, report = strip(quantized)
    assert ops(after) <= FLOAT_OPS | {"Identity"}, report.skips
    expected, found = run(model, {"x": x})["y"], run(after, {"x": x})["y"]
    assert sqnr(expected, found) > 28
    if not per_channel:  # ONNX Runtime has no kernel for the QGemm that its quantizer writes of INT8
        assert sqnr(expected, found) > sqnr(expected, run(quantized, {"x": x})["y"])


@pytest.mark.parametrize(
    "options", [{}, {"per_channel": True}, {"weight_type": quantization.QuantType.QUInt8}]
)
def test_dynamic_networks_become_float(tmp_path: Path, options: dict[str, object]) -> None:
    model = build(
        "(float[N,24] x) => (float[N,6] y) { a = MatMul(x, w1) b = Add(a, b1) r = Relu(b) y = Gemm(r, w2, b2) }",
        w1=random(24, 32),
        b1=random(32),
        w2=random(32, 6),
        b2=random(6),
    )
    quantized = dynamic(model, tmp_path, **options)
    assert "MatMulInteger" in ops(quantized)
    after, report = strip(quantized)
    assert ops(after) <= {"MatMul", "Add", "Relu", "Gemm", "Reshape"}, report.skips
    x = random(16, 24)
    expected, found = run(model, {"x": x})["y"], run(after, {"x": x})["y"]
    assert sqnr(expected, found) > 30


def test_dynamic_convolutions_become_float(tmp_path: Path) -> None:
    model, x = network(), random(4, 3, 12, 12)
    quantized = dynamic(model, tmp_path)
    assert "ConvInteger" in ops(quantized)
    after, report = strip(quantized)
    assert "ConvInteger" not in ops(after), report.skips
    assert "DynamicQuantizeLinear" not in ops(after)
    assert sqnr(run(model, {"x": x})["y"], run(after, {"x": x})["y"]) > 30


@pytest.mark.parametrize("recipe", ["prune", "codebook", "svd", "int4", "prune_nm", "tensor_train", "tucker"])
def test_other_passes_say_what_they_cannot_read(recipe: str, tmp_path: Path) -> None:
    quantized = qoperator(network(), random(8, 3, 12, 12), tmp_path)
    _, report = apply_pass(configure(find(recipe), {}), quantized, Context())
    said = [skip.reason for skip in report.skips if "computes on integers" in skip.reason]
    assert said
    assert all("int8(existing=strip)" in reason for reason in said)


def test_int8_says_so_too(tmp_path: Path) -> None:
    quantized = qoperator(network(), random(8, 3, 12, 12), tmp_path)
    after, report = apply_pass(configure(find("int8"), {"activations": False}), quantized, Context())
    assert after is quantized
    said = {skip.reason.split()[0] for skip in report.skips if "computes on integers" in skip.reason}
    assert {"QLinearConv", "QGemm", "QLinearAdd"} <= said


def test_a_layer_of_onnx_runtime_without_float_form_is_named() -> None:
    model = build("(float[2,4] x) => (float[2,4] y) { y = MatMul(x, w) }", w=random(4, 4))
    model.graph.node[0].op_type = "QLinearWhatever"
    model.graph.node[0].domain = "com.microsoft"
    _, report = strip(model)
    (skip,) = [skip for skip in report.skips if "computes on integers" in skip.reason]
    assert skip.reason == "QLinearWhatever computes on integers, and stays: there is no float form of it here"


def test_complete_makes_canonical_pairs_of_qoperators(tmp_path: Path) -> None:
    model, x = network(), random(16, 3, 12, 12)
    quantized = qoperator(model, x, tmp_path, per_channel=True)
    after, report = strip(quantized, "complete")
    assert "QLinearConv" not in ops(after), report.skips
    assert "DequantizeLinear" in ops(after)
    assert sqnr(run(model, {"x": x})["y"], run(after, {"x": x})["y"]) > 20


def test_a_bias_that_was_rounded_at_run_time_comes_back() -> None:
    """As older versions of onnxruntime's quantize_dynamic wrote convolutions."""
    weight, bias = random(8, 3, 3, 3), random(8)
    scale = np.abs(weight).max() / np.float32(127)
    model = build(
        """(float[N,3,8,8] x) => (float[N,8,6,6] y) {
            q, s, z = DynamicQuantizeLinear(x) u = Mul(s, ws) d = Div(b, u) f = Floor(d) i = Cast<to=6>(f)
            c = ConvInteger(q, w, z, wz) r = Reshape(i, shape) a = Add(c, r) l = Cast<to=1>(a) y = Mul(l, u)
        }""",
        ws=scale,
        w=np.round(weight / scale).astype(np.int8).view(np.uint8) ^ np.uint8(128),
        wz=np.array(128, np.uint8),
        b=bias,
        shape=np.array([1, 8, 1, 1]),
    )
    after, report = strip(model)
    assert ops(after) == {"Conv"}, report.skips
    x = random(2, 3, 8, 8)
    assert sqnr(run(model, {"x": x})["y"], run(after, {"x": x})["y"]) > 35
    plain = build("(float[N,3,8,8] x) => (float[N,8,6,6] y) { y = Conv(x, w, b) }", w=weight, b=bias)
    assert sqnr(run(plain, {"x": x})["y"], run(after, {"x": x})["y"]) > 35


@pytest.mark.parametrize("options", [{}, {"per_channel": True, "weight_type": quantization.QuantType.QInt8}])
def test_dynamic_recurrent_layers_become_float(tmp_path: Path, options: dict[str, object]) -> None:
    model = build(
        """(float[7,N,12] x) => (float[7,1,N,16] y) {
            y = LSTM<hidden_size=16>(x, w, r, b)
        }""",
        w=random(1, 64, 12) / 3,
        r=random(1, 64, 16) / 4,
        b=random(1, 128) / 4,
    )
    quantized = dynamic(model, tmp_path, **options)
    assert "DynamicQuantizeLSTM" in ops(quantized)
    after, report = strip(quantized)
    assert ops(after) == {"LSTM"}, report.skips
    x = random(7, 3, 12)
    assert sqnr(run(model, {"x": x})["y"], run(after, {"x": x})["y"]) > 30
