"""What lies between quantized layers and only moves values hands integers on: no operator is left in float."""

import numpy as np
import onnx
import pytest

from onnx_lathe.runtime.running import ort
from tests.support.builders import build, random
from tests.support.placement import kernels, lowered, output, quantized, relative

TEXT = "(float[N, 8, 8, 8] x) => (float[N, C, P, Q] y) {{ a = Conv (x, w)  r = Relu (a)  {moves}  b = Conv ({last}, v)  y = Conv (b, o) }}"
CASES = {
    "Pad of 2": ("m = Pad (r, pads, two)", "m", 8),
    "Pad of -inf": (
        "m = Pad (r, pads, inf)  k = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (m)",
        "k",
        8,
    ),
    "Pad by reflection": ('m = Pad <mode = "reflect"> (r, pads)', "m", 8),
    "Slice": ("m = Slice (r, start, end, axis)", "m", 4),
    "Gather": ("m = Gather <axis = 1> (r, picked)", "m", 3),
    "Split": ("m, k = Split <axis = 1> (r)  s = Add (m, k)", "s", 4),
    "Split and Concat": ("m, k = Split <axis = 1> (r)  s = Concat <axis = 1> (k, m)", "s", 8),
    "Split and a layer": (
        "m, k = Split <axis = 1> (r)  c = Conv (m, h)  s = Concat <axis = 1> (c, k)",
        "s",
        8,
    ),
    "DepthToSpace": ("m = DepthToSpace <blocksize = 2> (r)", "m", 2),
    "SpaceToDepth": ("m = SpaceToDepth <blocksize = 2> (r)", "m", 32),
    "shuffled channels": (
        "c = Reshape (r, apart)  t = Transpose <perm = [0, 2, 1, 3, 4]> (c)  m = Reshape (t, together)",
        "m",
        8,
    ),
    "Tile": ("m = Tile (r, times)", "m", 8),
}


def case(name: str, opset: int) -> onnx.ModelProto:
    moves, last, channels = CASES[name]
    known = {
        "pads": np.array([0, 0, 1, 0, 0, 0, 1, 2], np.int64), "two": np.float32(2), "inf": np.float32(-np.inf),
        "start": np.array([2], np.int64), "end": np.array([6], np.int64), "axis": np.array([1], np.int64),
        "picked": np.array([5, 0, 3], np.int64), "h": random(4, 4, 1, 1),
        "apart": np.array([0, 2, 4, 8, 8], np.int64), "together": np.array([0, 8, 8, 8], np.int64),
        "times": np.array([1, 1, 2, 1], np.int64),
    }  # fmt: skip
    words = set(moves.replace(",", " ").replace(")", " ").replace("(", " ").split())
    used = {key: value for key, value in known.items() if key in words}
    if opset >= 18:
        moves = moves.replace("Split <axis = 1>", "Split <axis = 1, num_outputs = 2>")
    weights = {"w": random(8, 8, 1, 1), "v": random(6, channels, 1, 1), "o": random(4, 6, 1, 1)}
    return build(TEXT.format(moves=moves, last=last), opset, **used, **weights)


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("name", CASES)
def test_integers_are_moved(name: str, opset: int) -> None:
    model, data = case(name, opset), random(8, 8, 8, 8)
    result, _ = lowered(quantized(model, data=data)[0])
    counts = kernels(result)
    assert counts["QLinearConv"] == (3 if "layer" in name else 2)
    assert counts["QuantizeLinear"] == 1
    assert counts["DequantizeLinear"] == 1  # the last layer's input: its result is an output
    assert relative(output(model, data), output(result, data)) < 0.05


def test_a_pad_is_given_the_level_of_its_value() -> None:
    result, report = lowered(quantized(case("Pad of 2", 17), data=random(8, 8, 8, 8))[0])
    pad = next(node for node in result.graph.node if node.op_type == "Pad")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in result.graph.initializer}
    decode = next(node for node in result.graph.node if node.input[0] == pad.output[0])
    scale, zero = (stored[name] for name in decode.input[1:])
    level = stored[pad.input[2]]
    assert level.dtype == np.uint8
    assert abs((float(level) - float(zero)) * float(scale) - 2) <= float(scale) / 2 + 1e-6
    assert any(edit.what == "moves integers" for edit in report.edits)


def test_a_part_that_is_read_in_float_too_is_decoded_for_it() -> None:
    text = (
        "(float[N, 8, 8, 8] x) => (float[N, 6, 8, 8] y, float[N, 4, 8, 8] e) { a = Conv (x, w)  r = Relu (a)  "
        "m, k = Split <axis = 1> (r)  e = Exp (k)  b = Conv (m, v)  y = Conv (b, o) }"
    )
    model = build(text, w=random(8, 8, 1, 1), v=random(6, 4, 1, 1), o=random(6, 6, 1, 1))
    data = random(8, 8, 8, 8) * np.float32(0.3)
    result, _ = lowered(quantized(model, data=data)[0])
    assert kernels(result)["QLinearConv"] == 2
    assert relative(output(model, data), output(result, data)) < 0.05


def test_a_table_is_not_quantized_for_what_is_gathered_from_it() -> None:
    model = build(
        "(int64[N] x) => (float[N, 5] y) { e = Gather (table, x)  h = MatMul (e, m)  y = MatMul (h, n) }",
        table=random(20, 8), m=random(8, 6), n=random(6, 5),
    )  # fmt: skip
    result, _ = lowered(quantized(model, data=np.arange(20))[0])
    table = next(tensor for tensor in result.graph.initializer if tensor.name == "table")
    readers = [node.op_type for node in result.graph.node if "table" in node.input]
    assert (table.data_type, readers) == (onnx.TensorProto.FLOAT, ["Gather"])


def test_parts_of_one_tensor_are_quantized_once() -> None:
    """The steps of an unrolled recurrent cell: one tensor, no layer's own result, handed to several layers."""
    text = """(float[N, 3, 4, 8] x) => (float[N, 8] y) {
        e = Tanh (x)  s = Shape (e)  t = Transpose <perm = [2, 0, 1, 3]> (e)  r = Reshape (t, flat)
        a = Gather <axis = 0> (r, zero)  b = Gather <axis = 0> (r, one)  c = Gather <axis = 0> (r, two)
        p = MatMul (a, w)  q = MatMul (b, w)  o = MatMul (c, w)  n = Sum (p, q, o)
        z = Gather <axis = 0> (s, zero)  f = Cast <to = 1> (z)  y = Mul (n, f) }"""
    constants = {"flat": np.array([4, -1, 24])} | {
        name: np.array(index) for index, name in enumerate(("zero", "one", "two"))
    }
    data = random(4, 3, 4, 8)
    model = build(text.replace("float[N, 8] y", "float[N, 5] y"), w=random(24, 5), **constants)
    result, _ = lowered(quantized(model, data=data)[0])
    found = kernels(result)
    assert found["QuantizeLinear"] == 1
    assert found["MatMulIntegerToFloat"] == 3
    assert relative(output(model, data), output(result, data)) < 0.02


def test_parts_of_unlike_ranges_keep_their_own() -> None:
    """Halves of one tensor, of which one is 200 times as large: each rounded as finely as it can be."""
    text = """(float[N, 64] x) => (float[N, 8] y, float[N, 8] z) {
        a, b = Split <axis = 1> (x)  y = MatMul (a, w)  z = MatMul (b, v) }"""
    model = build(text, w=random(32, 8), v=random(32, 8))
    data = random(32, 64) * np.repeat([100, 0.5], 32).astype(np.float32)
    result, _ = lowered(quantized(model, data=data)[0])
    wanted, found = (ort.run(ort.session(one, threads=1), {"x": data}) for one in (model, result))
    assert relative(wanted["y"], found["y"]) < 0.02
    assert relative(wanted["z"], found["z"]) < 0.02


def test_a_part_that_is_read_as_an_addend_is_no_part() -> None:
    """A Gemm's C stays float, whatever range the other parts have."""
    text = """(float[N, 24] x) => (float[N, 8] y, float[N, 8] z) {
        a, b, c = Split <axis = 1> (x)  y = Gemm (a, w, b)  z = Gemm (c, v) }"""
    data = random(32, 24) * np.repeat([1, 50, 1], 8).astype(np.float32)
    model = build(text, w=random(8, 8), v=random(8, 8))
    result, _ = lowered(quantized(model, data=data)[0])
    wanted, found = (ort.run(ort.session(one, threads=1), {"x": data}) for one in (model, result))
    assert relative(wanted["y"], found["y"]) < 0.05
