"""What int8 and int4 say of layers whose input ONNX Runtime rounds, beside what ONNX Runtime makes of them."""

from pathlib import Path

import onnx
import onnxruntime
import pytest

from onnx_lathe.optimizer.recipe import parse_calls
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from tests.support.builders import build, random

NETWORK = "(float[N, 64] x) => (float[N, 48] y) {{ y = {layer} }}"


def quantized(model: onnx.ModelProto, passes: str) -> tuple[onnx.ModelProto, PassReport]:
    (call,) = parse_calls(passes, "passes")
    return apply_pass(configure(find(call.name), call.options), model, Context())


def operators(model: onnx.ModelProto, folder: Path) -> set[str]:
    """Of ONNX Runtime's own graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    return {node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node}


@pytest.mark.parametrize(
    ("layer", "shape", "passes", "rounded"),
    [
        ("MatMul(x, w)", (64, 48), "int8(activations=false)", True),
        ("Gemm(x, w)", (64, 48), "int8(activations=false)", True),
        ("Gemm<transB = 1>(x, w)", (48, 64), "int8(activations=false)", False),
        ("MatMul(x, w)", (64, 48), "int4(group=32)", True),
        ("MatMul(x, w)", (64, 48), "int4(group=64)", True),
    ],
)
def test_the_warning_names_what_onnx_runtime_rounds(
    layer: str, shape: tuple[int, int], passes: str, rounded: bool, tmp_path: Path
) -> None:
    model, report = quantized(build(NETWORK.format(layer=layer), w=random(*shape)), passes)
    assert ("MatMulNBits" in operators(model, tmp_path)) == rounded
    assert any("MatMulNBits" in warning for warning in report.warnings) == rounded


def test_a_group_that_is_no_power_of_two_is_decoded_whole(tmp_path: Path) -> None:
    model, report = quantized(
        build("(float[N, 96] x) => (float[N, 48] y) { y = MatMul(x, w) }", w=random(96, 48)), "int4(group=48)"
    )
    assert "MatMulNBits" not in operators(model, tmp_path)
    assert not report.warnings
