"""INT8 layers in ncnn: scales as the model has them, integers handed on where that is the same, numbers near ONNX Runtime's."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.runtime.targets.core.distances import with_half_weights
from onnx_lathe.runtime.targets.ncnn import verify
from onnx_lathe.runtime.targets.ncnn.dialect import Layer
from onnx_lathe.runtime.targets.ncnn.ncnn import Ncnn
from onnx_lathe.runtime.targets.ncnn.requantize import count_requantized, is_int8
from tests.support.builders import build
from tests.support.ncnn import agree, converted, refusals, types

ONE_LEVEL = 0.02
"""Of the largest value: a value half-way between two levels may be rounded to either, here and there."""


def net(body: str, outputs: str = "float[1, 8, 10, 10] y", **more: np.ndarray) -> onnx.ModelProto:
    """A model with INT8 weights w1, w2 [8, 8, 3, 3] and d [8, 1, 3, 3], and scales s, t of activations."""
    generator = np.random.default_rng(0)
    constants = {
        "s": np.float32(0.03), "t": np.float32(0.05), "z": np.int8(0),
        "ws": generator.uniform(0.001, 0.002, 8).astype(np.float32), "wz": np.zeros(8, np.int8),
        "b": generator.standard_normal(8).astype(np.float32),
        "q1": generator.integers(-127, 128, (8, 8, 3, 3)).astype(np.int8),
        "q2": generator.integers(-127, 128, (8, 8, 3, 3)).astype(np.int8),
        "qd": generator.integers(-127, 128, (8, 1, 3, 3)).astype(np.int8),
    } | more  # fmt: skip
    decode = """
        w1 = DequantizeLinear <axis = 0> (q1, ws, wz)
        w2 = DequantizeLinear <axis = 0> (q2, ws, wz)
        wd = DequantizeLinear <axis = 0> (qd, ws, wz)"""
    used = [name for name in ("w1", "w2", "wd") if name in body]
    lines = "\n".join(line for line in decode.splitlines() if any(f"{name} =" in line for name in used))
    text = f"(float[1, 8, 10, 10] x) => ({outputs}) {{ {lines} {body} }}"
    kept = {name: value for name, value in constants.items() if f"{name}," in text or f"{name})" in text}
    return build(text, **kept)


def pair(source: str, scale: str, result: str) -> str:
    return f"{result}_q = QuantizeLinear({source}, {scale}, z) {result} = DequantizeLinear({result}_q, {scale}, z)"


def checked(model: onnx.ModelProto) -> Sequence[Layer]:
    return agree(model, tolerance=ONE_LEVEL)


def test_a_layer_quantizes_what_it_reads() -> None:
    model = net(f"{pair('x', 's', 'xq')} y = Conv <pads = [1, 1, 1, 1]> (xq, w1, b)")
    (layer,) = [one for one in checked(model) if one.type == "Convolution"]
    assert layer.params[8] == 2
    codes, bias, weight_scales, bottom = (one.stored.values for one in layer.weights)
    assert codes.dtype == np.int8
    np.testing.assert_allclose(weight_scales, 1 / net_scales(model), rtol=1e-6)
    np.testing.assert_allclose(bottom, [1 / 0.03], rtol=1e-6)
    assert bias.size == 8


def net_scales(model: onnx.ModelProto) -> np.ndarray:
    (found,) = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer if one.name == "ws"]
    return found


def test_integers_go_straight_to_the_next_layer() -> None:
    model = net(
        f"{pair('x', 's', 'xq')} a = Conv <pads = [1, 1, 1, 1]> (xq, w1, b) r = Relu(a) "
        f"{pair('r', 't', 'rq')} y = Conv <pads = [1, 1, 1, 1]> (rq, w2)"
    )
    layers = checked(model)
    assert types(layers) == ["Convolution", "Convolution"]
    assert [layer.params.get(8) for layer in layers if is_int8(layer)] == [102, 2]
    assert layers[1].params[9] == 1
    np.testing.assert_allclose(layers[1].weights[-1].stored.values, [1 / 0.05], rtol=1e-6)
    assert count_requantized(layers) == 1


def test_a_depthwise_layer_has_a_scale_for_each_group() -> None:
    model = net(
        f"{pair('x', 's', 'xq')} a = Conv <pads = [1, 1, 1, 1], group = 8> (xq, wd, b) "
        f"{pair('a', 't', 'aq')} y = Conv <pads = [1, 1, 1, 1]> (aq, w2)"
    )
    layers = checked(model)
    assert [layer.params.get(8) for layer in layers if is_int8(layer)] == [101, 2]
    depthwise = next(layer for layer in layers if layer.type == "ConvolutionDepthWise")
    assert depthwise.weights[2].stored.values.shape == (8,)


@pytest.mark.parametrize(
    "behind, outputs, why",
    [
        ("y = Conv <pads = [1, 1, 1, 1]> (rq, w2) o = Sigmoid(r)", "float[1, 8, 10, 10] y, float[1, 8, 10, 10] o", "another reader"),
        ("y = Conv <pads = [1, 1, 1, 1]> (rq, w2) c = Conv <pads = [1, 1, 1, 1]> (uq, w1) o = Neg(c)",
         "float[1, 8, 10, 10] y, float[1, 8, 10, 10] o", "another scale"),
        ("y = Conv <pads = [1, 1, 1, 1]> (rq, w2)", "float[1, 8, 10, 10] y, float[1, 8, 10, 10] r", "an output"),
    ],
)  # fmt: skip
def test_floats_are_handed_on_where_others_read_them(behind: str, outputs: str, why: str) -> None:
    other = pair("r", "s", "uq") if "uq" in behind else ""
    model = net(
        f"{pair('x', 's', 'xq')} a = Conv <pads = [1, 1, 1, 1]> (xq, w1, b) r = Relu(a) {pair('r', 't', 'rq')} {other} {behind}",
        outputs,
    )
    assert count_requantized(checked(model)) == 0, why


def test_two_readers_with_one_scale_both_get_integers() -> None:
    model = net(
        f"{pair('x', 's', 'xq')} a = Conv <pads = [1, 1, 1, 1]> (xq, w1, b) {pair('a', 't', 'aq')} "
        "c = Conv <pads = [1, 1, 1, 1]> (aq, w2) e = Conv <pads = [1, 1, 1, 1]> (aq, w1) y = Add(c, e)"
    )
    layers = checked(model)
    assert count_requantized(layers) == 1
    assert "Split" in types(layers)


def test_a_pair_in_front_of_no_layer_rounds_in_float() -> None:
    model = net(f"{pair('x', 's', 'xq')} y = Relu(xq)")
    layers = agree(model, feeds={"x": np.linspace(-5, 5, 800, dtype=np.float32).reshape(1, 8, 10, 10)})
    assert types(layers) == ["BinaryOp", "UnaryOp", "Clip", "BinaryOp", "ReLU"]


def rounded(
    zero: onnx.TensorProto, other: onnx.TensorProto | None, first: Sequence[float]
) -> onnx.ModelProto:
    """A pair around `zero` and `other`, the second's zero-point."""
    second = ["q", "t"] + (["o"] if other is not None else [])
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1),
        onnx.helper.make_node("DequantizeLinear", second, ["y"], "decoded"),
    ]
    scales = [
        onnx.numpy_helper.from_array(np.array(value, np.float32), name)
        for name, value in (("s", first if len(first) > 1 else first[0]), ("t", 0.1))
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "pair",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3])],
        [*scales, zero, *([other] if other is not None else [])],
    )
    opsets = [onnx.helper.make_opsetid("", 21)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def point(name: str, kind: str, *values: int) -> onnx.TensorProto:
    shape = [len(values)] if len(values) > 1 else []
    return onnx.helper.make_tensor(name, getattr(onnx.TensorProto, kind), shape, values)


@pytest.mark.parametrize("kind, value", [("INT8", 0), ("UINT8", 128), ("INT16", 5), ("UINT16", 300)])
def test_a_pair_alone_is_written_in_float(kind: str, value: int) -> None:
    agree(rounded(point("z", kind, value), point("o", kind, value), [0.1]))


@pytest.mark.parametrize(
    "zero, other, first, reason",
    [
        (point("z", "INT4", 0), point("o", "INT4", 0), [0.1], "it reads int4; of integers, those of 8 and 16 bits are written"),
        (point("z", "UINT8", 128), point("o", "UINT8", 127), [0.1], "its zero-point is not that of QuantizeLinear"),
        (point("z", "UINT8", 128), None, [0.1], "its zero-point is not that of QuantizeLinear"),
        (point("z", "INT8", 0, 0, 0), point("o", "INT8", 0), [0.1, 0.2, 0.3], "the scale of the activation is not one number"),
        (point("z", "FLOAT8E4M3FN", 0), point("o", "FLOAT8E4M3FN", 0), [0.1], "it reads float8_e4m3fn; of integers, those of 8 and 16 bits are written"),
    ],
)  # fmt: skip
def test_a_pair_that_is_not_one_of_8_or_16_bits_is_refused(
    zero: onnx.TensorProto, other: onnx.TensorProto | None, first: Sequence[float], reason: str
) -> None:
    assert refusals(rounded(zero, other, first)) == [("decoded", "DequantizeLinear", reason)]


@pytest.mark.parametrize("group, kind", [(1, "Convolution"), (8, "ConvolutionDepthWise")])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("window", ["pads = [2, 0]", 'auto_pad = "SAME_LOWER"'])
def test_one_dimension_is_a_row_of_two(window: str, stride: int, group: int, kind: str) -> None:
    """ncnn's Convolution1D has no INT8."""
    generator = np.random.default_rng(0)
    constants = {
        "s": np.float32(0.03), "z": np.int8(0), "ws": generator.uniform(0.001, 0.002, 8).astype(np.float32),
        "wz": np.zeros(8, np.int8), "q": generator.integers(-127, 128, (8, 8 // group, 3)).astype(np.int8),
        "b": generator.standard_normal(8).astype(np.float32),
    }  # fmt: skip
    model = build(
        f"""(float[N, 8, L] x) => (float[N, 8, M] y) {{ {pair("x", "s", "xq")}
        w = DequantizeLinear <axis = 0> (q, ws, wz)
        [conv] c = Conv <{window}, strides = [{stride}], group = {group}> (xq, w, b) y = Relu(c) }}""",
        **constants,
    )
    sizes, others = {"x": (1, 8, 20)}, {"x": (1, 8, 31)}
    layers = agree(model, sizes=sizes, others=others, tolerance=ONE_LEVEL)
    assert [(layer.type, layer.name) for layer in layers if is_int8(layer)] == [(kind, "conv")]


def test_rounding_counts_beside_weights_in_float16(tmp_path: Path) -> None:
    """INT8 rounds as it does with float32 weights: here all that is stored in float16 holds the same values."""
    model = net(f"{pair('x', 's', 'xq')} y = Conv <pads = [1, 1, 1, 1]> (xq, w1)", s=np.float32(0.3))
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    options = Ncnn.Config(storage="float16")
    artifact = Ncnn().build(path, tmp_path, options, lambda text: None)
    generator = np.random.default_rng(1)
    feeds = {"x": generator.standard_normal((1, 8, 10, 10)).astype(np.float32)}
    near = onnx.ModelProto()
    near.CopyFrom(model)
    (scale,) = [one for one in near.graph.initializer if one.name == "s"]
    scale.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.33), "s"))  # another network
    allowed = {
        half: verify.agreement(near, converted(model), artifact.paths[:2], feeds, half).allowed["y"]
        for half in (False, True)
    }
    assert allowed[True] == allowed[False] > verify.QUANTIZED


def test_scales_are_no_weights_in_float16() -> None:
    model = net(f"{pair('x', 's', 'xq')} y = Conv <pads = [1, 1, 1, 1]> (xq, w1, b)")
    near = with_half_weights(model)
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in near.graph.initializer}
    assert np.array_equal(stored["ws"], net_scales(model))
    assert np.array_equal(stored["b"], stored["b"].astype(np.float16))
