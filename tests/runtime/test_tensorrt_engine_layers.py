"""What is read from TensorRT's descriptions of kernels, in each of their wordings, and what is not."""

import json
from types import SimpleNamespace

import pytest

from onnx_lathe.runtime.targets.tensorrt.engine_layers import Kernel, from_inspector, from_log
from onnx_lathe.runtime.targets.tensorrt.worker import make_logger
from tests.support.engine_descriptions import ELEVEN, NAMES_ONLY, RTX_LOG, TEN, eleven, layer, line, ten


def types(kernels: list[Kernel]) -> dict[str, str | None]:
    """ONNX node -> type, of the kernels that multiply."""
    return {name: kernel.type for kernel in kernels if kernel.multiplies for name in kernel.nodes}


def test_a_log() -> None:
    kernels = from_log(RTX_LOG)
    assert [kernel.kind for kernel in kernels] == [
        "shape_call", "kgen", "correlation", "correlation", "runtime_fusion",
    ]  # fmt: skip
    assert kernels[2] == Kernel(
        "conv1_myl0_2", "correlation", "__myelin_CASK_STUB", ("int8",), "int8", ("conv1", "image_DQ", "w1_DQ")
    )
    assert [kernel.multiplies for kernel in kernels] == [False, False, True, True, True]
    assert (kernels[2].type, kernels[3].type) == ("int8", "float32")


def test_a_fusion_that_decodes_its_input_is_not_int8() -> None:
    """__myl_CastMulCastCastMulFc reads INT8 and multiplies in float."""
    fusion = from_log(RTX_LOG)[-1]
    assert fusion.reads == ("int8",)
    assert fusion.type is None


@pytest.mark.parametrize("text", [TEN, ELEVEN], ids=["TensorRT 10", "TensorRT 11"])
def test_the_inspector(text: str) -> None:
    found = types(from_inspector(text))
    assert {node: found[node] for node in ("conv1", "conv2", "fc")} == {
        "conv1": "int8",
        "conv2": "float16",
        "fc": "int8",
    }


def test_separators_of_ten_do_not_split_a_line() -> None:
    text = line(
        "conv1_myl0_2", "correlation", ["Int8"], ["Int8"], "[ONNX Layer: conv1]\x1e[ONNX Layer: [0]/act]"
    )
    assert [kernel.nodes for kernel in from_log(text)] == [("conv1", "[0]/act")]


def test_a_line_break_in_a_name_does_not_split_a_kernel() -> None:
    first = line(
        "conv\n2_myl0_5", "correlation", ["Int8"], ["Int8"], "[ONNX Layer: conv\n2][ONNX Layer: w2_DQ]"
    )
    second = line("fc_myl0_6", "gemm", ["Int8"], ["Int8"], "[ONNX Layer: fc]")
    found = from_log(f"Layers:\n{first}\n{second}\n\nI/O Tensors:\n Name: image, IOMode: Input")
    assert [kernel.nodes for kernel in found] == [("conv\n2", "w2_DQ"), ("fc",)]
    assert found[0].named_after == ["conv\n2"]
    assert types(found) == {"conv\n2": "int8", "w2_DQ": "int8", "fc": "int8"}


def test_what_a_record_begins_with_is_no_end_of_the_one_before() -> None:
    """Names would be lost of a kernel whose metadata end with another record's title."""
    logger = make_logger(SimpleNamespace(ILogger=type("ILogger", (), {})), None)
    for name in ("conv1", "conv2"):
        kernel = line(f"{name}_myl0_5", "correlation", ["Int8"], ["Int8"], f"[ONNX Layer: {name}]")
        logger.log(SimpleNamespace(name="VERBOSE"), f"Layers:\n{kernel}")
    assert [kernel.nodes for kernel in from_log(logger.described())] == [("conv1",), ("conv2",)]


def test_the_log_of_ten_states_format_and_type_together() -> None:
    text = (
        "Name: conv1 + relu1, LayerType: CaskConvolution, Inputs: [ { Name: x, Location: Device, Dimensions: "
        "[1,3,8,8], Format/Datatype: Thirty-two wide channel vectorized row major Int8 format }], Outputs: [ { Name: y, "
        "Format/Datatype: Row major linear FP32 }], ParameterType: Convolution, Kernel: [3,3], Weights: {Type: Int8, "
        "Count: 9408}, TacticName: sm80_xmma, StreamId: 0, Metadata: [ONNX Layer: conv1]"
    )
    (kernel,) = from_log(text)
    assert (kernel.type, kernel.weight, kernel.nodes) == ("int8", "int8", ("conv1",))
    assert kernel.named_after == ["conv1", "relu1"]


def test_an_int8_input_with_a_float_weight_is_not_int8() -> None:
    (kernel,) = from_log(line("c_myl0_1", "correlation", ["Int8"], ["Half"], "[ONNX Layer: c]"))
    assert kernel.type == "float16"


def test_a_product_of_two_constants() -> None:
    (kernel,) = from_log(line("c_myl0_1", "gemm", [], ["Int8", "Int8", "Float"], "[ONNX Layer: c]"))
    assert (kernel.type, kernel.weight) == ("int8", "int8")


@pytest.mark.parametrize("sizes", ["1,50,1,1", "1"], ids=["scales of channels", "alpha of a product"])
def test_a_weight_that_is_decoded_at_run_time_is_the_second_input(sizes: str) -> None:
    text = line("c_myl0_3", "correlation", ["Int8", "Int8"], ["Float"] * 2, "[ONNX Layer: c]", sizes=sizes)
    (kernel,) = from_log(text)
    assert (kernel.type, kernel.weight) == ("int8", "int8")
    (kernel,) = from_log(text.replace("Datatype: Int8", "Datatype: Half"))
    assert (kernel.type, kernel.weight) == ("float16", "float16")


def test_the_inspectors_dimensions_tell_scales_from_the_weight() -> None:
    int8, scales = {"Datatype": "Int8"}, {"Datatype": "Float", "Dimensions": [1, 50, 1, 1]}
    decoded = layer("c", "correlation", [int8, int8], "[ONNX Layer: c]", Constants=[scales])
    weight = {"Datatype": "Int8", "Dimensions": [50, 20, 5, 5]}
    stored = layer("d", "correlation", [int8], "[ONNX Layer: d]", Constants=[scales, weight])
    assert types(from_inspector(eleven([decoded, stored]))) == {"c": "int8", "d": "int8"}


def test_a_weight_of_one_column_is_still_the_weight() -> None:
    text = line("c_myl0_3", "gemm", ["Int8"], ["Half", "Float"], "[ONNX Layer: c]", sizes="64,1")
    assert from_log(text)[0].weight == "float16"


def test_a_type_that_is_not_stated() -> None:
    unstated = [{"Format/Datatype": "N/A due to dynamic shapes"}]
    (kernel,) = from_inspector(ten([layer("c", "CaskConvolution", unstated, "[ONNX Layer: c]")]))
    assert kernel.type is None
    by_tactic = layer(
        "c", "CaskConvolution", unstated, "[ONNX Layer: c]", TacticName="sm80_xmma_fprop_i8i8_i8i32"
    )
    assert from_inspector(ten([by_tactic]))[0].type == "int8"


@pytest.mark.parametrize("text", [NAMES_ONLY, "", "no JSON", "[]", json.dumps({"Layers": None})])
def test_an_inspector_that_says_nothing_of_types(text: str) -> None:
    assert from_inspector(text) == []


def test_a_log_in_other_words() -> None:
    assert (
        from_log("Layer(CaskConvolution): conv1, Tactic: 0x1, x (Int8[1,3,8,8]) -> y (Int8[1,8,8,8])") == []
    )
    assert from_log(RTX_LOG.replace("LayerType", "Layer type")) == []
