"""Operators of LiteRT between pairs of QuantizeLinear and DequantizeLinear: on integers where it has a kernel, else in float
between a DEQUANTIZE and a QUANTIZE.
"""

import numpy as np
import onnx
import pytest

from onnx_lathe.runtime.running import ort
from tests.support.builders import build, random
from tests.support.litert_operators import converted, packed, run

pytest.importorskip("ai_edge_litert")

INPUT, OTHER = (0.0512347, -7), (0.0337219, 11)
SIGMOID, TANH = (1 / 256, -128), (1 / 128, 0)
KEPT = INPUT
"""The scale of operators that hand levels on."""


def stored(
    body: str, result: tuple[float, int], shape: str = "2, 6, 8, 4", second: bool = False, **more: np.ndarray
) -> onnx.ModelProto:
    """x (and z) are quantized, y = body of their values a (and b), and y is quantized to `result`."""
    text = f"""(float[{shape}] x{f", float[{shape}] z" if second else ""}) => (float[?] y) {{
        xq = QuantizeLinear(x, sx, zx) a = DequantizeLinear(xq, sx, zx)
        {"zq = QuantizeLinear(z, sz, zz) b = DequantizeLinear(zq, sz, zz)" if second else ""}
        {body} yq = QuantizeLinear(r, sy, zy) y = DequantizeLinear(yq, sy, zy) }}"""
    values = {"sx": INPUT, "sz": OTHER, "sy": result}
    scales = {name: np.float32(scale) for name, (scale, _) in values.items() if second or name != "sz"}
    points = {f"z{name[1]}": np.int8(point) for name, (_, point) in values.items() if second or name != "sz"}
    model = build(text.replace("float[?] y", "float y"), 19, **scales, **points, **more)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def most_steps(model: onnx.ModelProto, result: tuple[float, int]) -> tuple[list[str], int, float]:
    """(codes, the largest difference in steps, the share of values that differ), with XNNPACK."""
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in model.graph.input}
    feeds = {name: random(*shape) * np.float32(2) for name, shape in shapes.items()}
    found = converted(model, shapes)
    got = run(packed(found), feeds)["y"]
    wanted = ort.run(ort.session(model, optimized=False), feeds)["y"]
    assert got.shape == wanted.shape
    steps = np.abs(np.rint((got - wanted) / result[0]))
    return [one.code for one in found.network.operators], int(steps.max()), float((steps > 0).mean())


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


MOVES = {
    "r = Reshape(a, s)": ("RESHAPE", {"s": ints(2, -1, 4)}),
    "r = Flatten(a)": ("RESHAPE", {}),
    "r = Unsqueeze(a, s)": ("RESHAPE", {"s": ints(1)}),
    "r = Transpose<perm = [0, 3, 1, 2]>(a)": ("TRANSPOSE", {}),
    "r = Slice(a, b, e, c)": ("STRIDED_SLICE", {"b": ints(1), "e": ints(5), "c": ints(2)}),
    "r = Slice(a, b, e, c, d)": (
        "STRIDED_SLICE",
        {"b": ints(-1), "e": ints(-9), "c": ints(2), "d": ints(-2)},
    ),
    "r = Pad(a, p)": ("PAD", {"p": ints(0, 1, 2, 0, 0, 1, 0, 0)}),
    "r = Pad(a, p, v)": ("PADV2", {"p": ints(0, 1, 2, 0, 0, 1, 0, 0), "v": np.float32(1.5)}),
    'r = Pad<mode = "reflect">(a, p)': ("MIRROR_PAD", {"p": ints(0, 1, 2, 0, 0, 1, 0, 0)}),
    'r = Pad<mode = "edge">(a, p)': ("GATHER", {"p": ints(0, 1, 0, 0, 0, 1, 0, 0)}),
    "r = Concat<axis = 3>(a, a)": ("CONCATENATION", {}),
    "r = Gather<axis = 1>(a, i)": ("GATHER", {"i": ints(0, -1)}),
    "r = Tile(a, i)": ("TILE", {"i": ints(1, 1, 2, 1)}),
    'r = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(a, e, f)': (
        "RESIZE_NEAREST_NEIGHBOR",
        {"e": np.zeros(0, np.float32), "f": np.array([1, 2, 2, 1], np.float32)},
    ),
}


@pytest.mark.parametrize("body", MOVES)
def test_levels_are_handed_on(body: str) -> None:
    code, more = MOVES[body]
    codes, steps, _ = most_steps(stored(body, KEPT, **more), KEPT)
    assert codes == ["QUANTIZE", code, "DEQUANTIZE"]
    assert steps == 0


def test_parts_are_split_and_joined_on_integers() -> None:
    body = """p, q = Split<axis = 1, num_outputs = 2>(a)
        pq = QuantizeLinear(p, sy, zy) pd = DequantizeLinear(pq, sy, zy)
        qq = QuantizeLinear(q, sy, zy) qd = DequantizeLinear(qq, sy, zy) r = Concat<axis = 1>(qd, pd)"""
    codes, steps, _ = most_steps(stored(body, KEPT), KEPT)
    assert codes == ["QUANTIZE", "SPLIT", "CONCATENATION", "DEQUANTIZE"]
    assert steps == 0


@pytest.mark.parametrize(
    "body, code, result, share",
    [
        ("r = Sigmoid(a)", "LOGISTIC", SIGMOID, 0.02),
        ("r = Tanh(a)", "TANH", TANH, 0.02),
        ("r = Relu(a)", "RELU", (0.0253, -128), 0.02),
        ("r = HardSwish(a)", "HARD_SWISH", (0.0247, -90), 0.03),
        ("r = LeakyRelu<alpha = 0.1>(a)", "LEAKY_RELU", (0.0291, -110), 0.03),
        ("r = PRelu(a, c)", "PRELU", (0.0291, -60), 0.03),
        ("r = Softmax(a)", "SOFTMAX", SIGMOID, 0.02),
        ("r = ReduceMean(a, e)", "MEAN", (0.0113, 3), 0.02),
        ('r = Resize<mode = "linear">(a, e, f)', "RESIZE_BILINEAR", KEPT, 0.2),
    ],
)  # fmt: skip
def test_integer_kernels(body: str, code: str, result: tuple[float, int], share: float) -> None:
    more = {}
    if "(a, e, f)" in body:
        more = {"e": np.zeros(0, np.float32), "f": np.array([1, 2, 2, 1], np.float32)}
    if "PRelu" in body:
        body = "c = DequantizeLinear(w, sw, zw) " + body
        more = {"w": np.array([[[12, -90, 33, 127]]], np.int8), "sw": np.float32(0.00391), "zw": np.int8(0)}
    if "ReduceMean" in body:
        more = {"e": ints(1, 2)}
    model = stored(body, result, **more)
    codes, steps, differing = most_steps(model, result)
    assert codes == ["QUANTIZE", code, "DEQUANTIZE"]
    assert steps <= 1
    assert differing <= share


@pytest.mark.parametrize("op, code", [("Add", "ADD"), ("Sub", "SUB"), ("Mul", "MUL")])
def test_pairs(op: str, code: str) -> None:
    result = (0.1017, -3) if op == "Mul" else (0.0713, 5)
    codes, steps, differing = most_steps(stored(f"r = {op}(a, b)", result, second=True), result)
    assert codes == ["QUANTIZE", "QUANTIZE", code, "DEQUANTIZE"]
    assert steps <= 1
    assert differing <= 0.02


def test_softmax_along_another_axis_stays_on_integers() -> None:
    codes, steps, _ = most_steps(stored("r = Softmax<axis = 1>(a)", SIGMOID), SIGMOID)
    assert codes == ["QUANTIZE", "TRANSPOSE", "SOFTMAX", "TRANSPOSE", "DEQUANTIZE"]
    assert steps <= 1


@pytest.mark.parametrize(
    "body",
    [
        "r = Exp(a)",
        "r = Div(a, b)",
        "r = Max(a, b)",
        "r = Erf(a)",
        "r = Elu<alpha = 0.5>(a)",
        "r = LogSoftmax(a)",
    ],
)
def test_what_has_no_integer_kernel_is_computed_in_float(body: str) -> None:
    result = (0.0713, 5)
    codes, steps, _ = most_steps(stored(body, result, second="b)" in body), result)
    assert {"QUANTIZE", "DEQUANTIZE"} <= set(codes)
    assert codes.count("DEQUANTIZE") >= 2
    assert steps <= 1


def test_levels_of_another_scale_are_brought_to_it_first() -> None:
    result = (0.0713, 5)
    codes, steps, _ = most_steps(stored("r = Transpose<perm = [0, 3, 1, 2]>(a)", result), result)
    assert codes == ["QUANTIZE", "QUANTIZE", "TRANSPOSE", "DEQUANTIZE"]
    assert steps <= 1
