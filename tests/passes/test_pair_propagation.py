"""INT8 pairs load in a plain ONNX Runtime session at every opset, whatever moves their values on."""

import re
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest

from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.graph.opset import raise_opset
from onnx_lathe.passes.graph.quantization.propagation import MOVING, keep_loadable
from onnx_lathe.placement import CANONICAL, Placement
from onnx_lathe.runtime.targets.ort.ort import PLACEMENT
from tests.support.builders import build, random
from tests.support.placement import kernels, lowered, quantized, relative

OPSETS = (13, 17, 20, 21, 23)
REFUSAL = onnxruntime.capi.onnxruntime_pybind11_state.Fail
PAIR = "q = QuantizeLinear (x, scale, zero)  d = DequantizeLinear (q, scale, zero)"
MOVES = {
    "DepthToSpace": "DepthToSpace <blocksize = 2> ({})",
    "Flatten": "Flatten ({})",
    "Gather": "Gather <axis = 1> ({}, picked)",
    "MaxPool": "MaxPool <kernel_shape = [2, 2]> ({})",
    "Pad": "Pad ({}, pads)",
    "Reshape": "Reshape ({}, rows)",
    "Slice": "Slice ({}, start, end)",
    "Split": "Split <axis = 1> ({}, whole)",
    "Squeeze": "Squeeze ({}, first)",
    "Tile": "Tile ({}, times)",
    "Transpose": "Transpose <perm = [0, 2, 3, 1]> ({})",
    "Unsqueeze": "Unsqueeze ({}, first)",
}
INTEGERS = {
    "first": [0], "whole": [4], "pads": [0, 0, 1, 0, 0, 0, 1, 0], "picked": [2, 0], "rows": [0, -1],
    "start": [1], "end": [3], "times": [1, 1, 2, 1],
}  # fmt: skip
SHAPES = {"Squeeze": "1, 4, 6, 6"}


def model(text: str, opset: int, x: str = "3, 4, 6, 6", y: str = "", **values: np.ndarray) -> onnx.ModelProto:
    """What `text` makes of x; with the constants that it names, besides `values`."""
    words = set(text.replace(",", " ").replace(")", " ").replace("(", " ").split())
    known = {name: np.array(value, np.int64) for name, value in INTEGERS.items()}
    known |= {"scale": np.float32(0.03), "zero": np.int8(0)}
    values = {name: value for name, value in known.items() if name in words} | values
    made = build(f"(float[{x}] x) => (float y{y}) {{ {text} }}", opset, **values)
    for output in made.graph.output:
        output.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(made)


def session(made: onnx.ModelProto, optimized: bool = True) -> onnxruntime.InferenceSession:
    """As a user opens it; or one that computes what the graph says, operator by operator."""
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])


def kept(made: onnx.ModelProto) -> onnx.ModelProto:
    graph = import_model(made)
    keep_loadable(graph)
    result = export_model(graph)
    onnx.checker.check_model(result, full_check=True)
    return result


def exported(made: onnx.ModelProto) -> onnx.ModelProto:
    return export_model(import_model(made))


def assert_kept(made: onnx.ModelProto, *shape: int) -> onnx.ModelProto:
    """The model loads in the form and gives what it gave, to the bit where nothing is fused."""
    result = kept(made)
    x = random(*(shape or [dim.dim_value for dim in made.graph.input[0].type.tensor_type.shape.dim]))
    wanted = session(made, optimized=False).run(None, {"x": x})
    for one, other in zip(wanted, session(result, optimized=False).run(None, {"x": x}), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(wanted, session(result).run(None, {"x": x}), strict=True):
        assert relative(one, other) < 1e-5
    return result


@pytest.mark.parametrize("move", MOVES)
def test_what_onnxruntime_refuses_is_known(move: str) -> None:
    """Once it loads the others too, the form can go."""
    made = model(f"{PAIR}  m = {MOVES[move].format('d')}  y = Neg (m)", 21, SHAPES.get(move, "3, 4, 6, 6"))
    if move in MOVING:
        with pytest.raises(REFUSAL, match="output_dtype INT8"):
            session(made)
    else:
        session(made)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize(
    "behind, outputs",
    [
        ("m = {move}  y = Neg (m)", ""),
        ("y = {move}", ""),
        ("m = {move}  y = Neg (m)  a = QuantizeLinear (m, scale, zero)  z = DequantizeLinear (a, scale, zero)", ", float z"),
        ("m = {move}  y = Neg (m)  a = QuantizeLinear (m, wide, zero)  z = DequantizeLinear (a, wide, zero)", ", float z"),
        ("y = {move}  a = QuantizeLinear (y, scale, zero)  z = DequantizeLinear (a, scale, zero)", ", float z"),
        ("m = {move}  r = Relu (d)  y = Neg (m)  z = Neg (r)", ", float z"),
    ],
    ids=["read in float", "an output", "and read quantized", "and read in other steps", "an output read quantized", "read unmoved, too"],
)  # fmt: skip
def test_moved_pairs_load(behind: str, outputs: str, move: str, opset: int) -> None:
    text = f"{PAIR}  {behind.format(move=MOVES[move].format('d'))}"
    wide = {"wide": np.float32(0.07)} if "wide" in behind else {}
    made = model(text, opset, SHAPES.get(move, "3, 4, 6, 6"), outputs, **wide)
    result = assert_kept(made)
    added = len(result.graph.node) - len(made.graph.node)
    assert added == (2 if move in MOVING and opset >= 21 else 0)


def test_values_are_followed_as_far_as_they_are_moved() -> None:
    text = f"{PAIR}  m = Reshape (d, rows)  n = Unsqueeze (m, first)  k = MaxPool <kernel_shape = [2]> (n)  y = Neg (k)  z = Relu (m)"
    result = assert_kept(model(text, 21, y=", float z"))
    assert Counter(node.op_type for node in result.graph.node)["QuantizeLinear"] == 4
    assert len({node.input[1] for node in result.graph.node if node.op_type == "QuantizeLinear"}) == 1


TAKEN_OUT = {
    "Identity": "Identity ({})",
    "Dropout": "Dropout ({})",
    "Dropout with a ratio": "Dropout ({}, ratio)",
    "Dropout that says it does not train": "Dropout ({}, ratio, no)",
    "Cast": "Cast <to = 1> ({})",
}


@pytest.mark.parametrize("taken_out", TAKEN_OUT.values(), ids=TAKEN_OUT)
@pytest.mark.parametrize(
    "behind, shape, added",
    [
        ("i = {}  m = Reshape (i, rows)  y = Exp (m)", "3, 4, 6, 6", 2),
        ("i = {}  m = Transpose (i)  y = Exp (m)", "3, 4, 6, 6", 2),
        ("m = Reshape (d, rows)  i = {}  y = Exp (i)", "3, 4, 6, 6", 2),
        ("i = {}  p = MatMul (i, w)  y = Add (p, b)", "2, 6, 8", 0),
        ("p = MatMul (d, w)  i = {}  y = Add (b, i)", "2, 6, 8", 0),
    ],
    ids=[
        "before a Reshape",
        "before a Transpose",
        "behind a Reshape",
        "before a product",
        "behind a product",
    ],
)
def test_what_onnxruntime_takes_out_is_looked_through(
    behind: str, shape: str, added: int, taken_out: str
) -> None:
    source = "d" if behind.startswith("i = ") else behind[0]
    values = {"ratio": np.float32(0.3), "no": np.array(False), "w": random(8, 16), "b": random(16)}
    text = f"{PAIR}  {behind.format(taken_out.format(source))}"
    used = {name: value for name, value in values.items() if re.search(rf"\b{name}\b", text)}
    made = model(text, 21, shape, **used)
    with pytest.raises(REFUSAL, match="output_dtype INT8"):
        session(made)
    assert len(assert_kept(made).graph.node) == len(made.graph.node) + added


@pytest.mark.parametrize(
    "behind",
    ["i = Cast <to = 10> (d)  m = Transpose (i)  h = Exp (m)  y = Cast <to = 1> (h)",
     "i, mask = Dropout (d)  m = Transpose (i)  y = Where (mask, d, d)  z = Exp (m)",
     "m = Reshape (d, rows)  i = Identity (m)  a = QuantizeLinear (i, scale, zero)  y = DequantizeLinear (a, scale, zero)"],
    ids=["a Cast that changes the type", "a Dropout whose mask is read", "read quantized alone"],
)  # fmt: skip
def test_no_pair_is_written_where_onnxruntime_writes_none(behind: str) -> None:
    made = model(f"{PAIR}  {behind}", 21, y=", float z" if " z = " in behind else "")
    session(made)
    assert kept(made).graph.node == exported(made).graph.node


CONSTANTS = {
    "an INT32 bias": ("d = DequantizeLinear (codes, scale, zero)", np.int32),
    "an INT8 weight": ("d = DequantizeLinear (codes, scale, zero)", np.int8),
    "a pair behind a weight": (
        "q = QuantizeLinear (floats, scale, zero)  d = DequantizeLinear (q, scale, zero)",
        np.int8,
    ),
}


@pytest.mark.parametrize("move", ["Reshape (d, rows)", "Unsqueeze (d, first)", "Transpose (d)"])
@pytest.mark.parametrize("pair, kind", CONSTANTS.values(), ids=CONSTANTS)
def test_constants_are_left_alone(pair: str, kind: type, move: str) -> None:
    """They load as they are, and a QuantizeLinear writes no INT32."""
    codes = np.arange(-18, 18).reshape(6, 6)
    stored = {"codes": codes.astype(kind)} if "codes" in pair else {"floats": codes.astype(np.float32)}
    graph = import_model(model(f"{pair}  m = {move}  y = Add (x, m)", 17, zero=np.zeros((), kind), **stored))
    count = len(graph.nodes)
    assert raise_opset(graph, 21) is None
    assert len(graph.nodes) == count
    raised = export_model(graph)
    onnx.checker.check_model(raised, full_check=True)
    if kind != np.int32 or "Transpose" not in move:  # which ONNX Runtime refuses at every opset
        session(raised)


@pytest.mark.parametrize("kind", [np.int16, np.uint16])
def test_wider_activations_are_left_alone(kind: type) -> None:
    made = model(f"{PAIR}  m = Transpose (d)  y = Exp (m)", 21, zero=np.zeros((), kind))
    session(made)
    assert len(kept(made).graph.node) == 4


def test_a_body_reads_the_moved_values_by_their_name() -> None:
    text = (
        f"{PAIR}  m = Reshape (d, rows)  y = If (c) <"
        "then_branch = left () => (float[3, 144] l) { l = Neg (m) }, else_branch = right () => (float[3, 144] r) { r = Abs (m) }>"
    )
    made = model(text, 21, c=np.array(True))
    assert_kept(made)


def test_unsigned_pairs_are_left_alone() -> None:
    made = model(f"{PAIR.replace('zero', 'low')}  m = Reshape (d, rows)  y = Neg (m)", 21, low=np.uint8(0))
    assert len(assert_kept(made).graph.node) == 4


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("shape", ["8", "6, 8", "2, 6, 8", "2, 3, 2, 8", "N, 6, 8"])
@pytest.mark.parametrize("bias", ["b", "computed", "shared"])
def test_a_bias_behind_a_product_gets_an_axis(bias: str, shape: str, opset: int) -> None:
    product = f"{PAIR}  w = DequantizeLinear <axis = 1> (levels, scales)  p = MatMul (d, w)"
    text = {
        "b": f"{product}  s = Add (b, p)  y = Relu (s)",
        "computed": f"c = Relu (b)  {product}  s = Add (p, c)  y = Relu (s)",
        "shared": f"{product}  s = Add (p, b)  y = Mul (s, b)",
    }[bias]
    levels = np.random.default_rng(0).integers(-127, 128, (8, 16)).astype(np.int8)
    weight = {"levels": levels, "scales": np.full(16, 0.01, np.float32), "b": random(16)}
    made = model(text, opset, shape, **weight)
    sizes = [2 if size == "N" else int(size) for size in shape.split(", ")]
    result = assert_kept(made, *sizes)
    biases = {
        tensor.name: list(tensor.dims)
        for tensor in result.graph.initializer
        if list(tensor.dims)[-1:] == [16]
    }
    add = next(node for node in result.graph.node if node.output[0] == "s")
    becomes_gemm = opset >= 21 and len(sizes) != 2 and "N" not in shape
    assert add.op_type == ("Sum" if becomes_gemm and len(sizes) == 1 else "Add")
    if not becomes_gemm or len(sizes) == 1:
        read = [sorted([*node.input] for node in one.graph.node) for one in (made, result)]
        assert read[0] == read[1]
    elif bias == "computed":
        assert [node.op_type for node in result.graph.node].count("Unsqueeze") == 1
    elif bias == "shared":
        assert biases["b"] == [16]
        assert biases[next(name for name in add.input if name != "p")] == [1, 16]
    else:
        assert biases["b"] == [1, 16]


NETWORK = "c = Conv (x, w)  m = {move}  t = Tanh (m)  f = Flatten (m)  y = Gemm (f, g)  z = Tanh (t)"


@pytest.mark.parametrize("placement", [CANONICAL, PLACEMENT | CANONICAL], ids=["canonical", "for ort"])
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("move", MOVES)
def test_what_int8_writes_loads(move: str, opset: int, placement: Placement) -> None:
    """A convolution's result is moved, and then read by a layer and in float."""
    shape = SHAPES.get(move, "3, 4, 6, 6")
    text = NETWORK.format(move=MOVES[move].format("c"))
    probe = model(text.split("  f = ")[0] + "  y = Flatten (m)", opset, shape, w=random(4, 4, 1, 1))
    rows = session(probe).run(None, {"x": random(*map(int, shape.split(", ")))})[0].shape[1]
    weights = {"w": random(4, 4, 1, 1), "g": random(rows, 5)}
    made = model(text, opset, shape, ", float z", **weights)
    data = random(*map(int, shape.split(", ")))
    result, report = quantized(made, placement, data=data)
    assert not report.skips
    opened, wanted = session(result), session(made).run(None, {"x": data})
    for one, other, exact in zip(
        wanted,
        opened.run(None, {"x": data}),
        session(result, optimized=False).run(None, {"x": data}),
        strict=True,
    ):
        assert relative(one, other) < 0.05
        assert relative(exact, other) < 0.02
    for_ort, _ = lowered(result)
    for one, other in zip(wanted, session(for_ort).run(None, {"x": data}), strict=True):
        assert relative(one, other) < 0.05


def test_a_raised_opset_keeps_pairs_loadable() -> None:
    graph = import_model(model(f"{PAIR}  m = Reshape (d, rows)  y = Neg (m)", 17))
    assert raise_opset(graph, 21) is None
    session(export_model(graph))


@pytest.mark.parametrize("before", ["t = Transpose <perm = [0, 2, 1]> (d)", "t = Unsqueeze (d, first)"])
def test_a_product_behind_what_is_moved_gets_its_axis_at_once(before: str) -> None:
    made = model(f"{PAIR}  {before}  p = MatMul (t, w)  y = Add (p, b)", 17, "2, 8, 8", w=random(8, 16), b=random(16))  # fmt: skip
    graph = import_model(made)
    assert raise_opset(graph, 21) is None
    once = export_model(graph)
    assert_kept(once, 2, 8, 8)
    session(once)
    assert kept(once) == exported(once)


@pytest.mark.parametrize(
    "text",
    [
        "m = Reshape (d, rows)  i = Identity (m)  n = Transpose (i)  y = Exp (n)  z = Neg (m)",
        "i = Identity (d)  m = MaxPool <kernel_shape = [2, 2]> (i)  y = Exp (m)  z = Relu (d)",
        "p = MatMul (d, w)  y = Add (p, b)  t = Transpose (d)  z = Exp (t)",
    ],
)
def test_the_form_stays_as_it_is(text: str) -> None:
    values = {"w": random(6, 16), "b": random(16)} if "MatMul" in text else {}
    once = assert_kept(model(f"{PAIR}  {text}", 21, y=", float z", **values))
    assert kept(once) == exported(once)


def former(made: onnx.ModelProto) -> onnx.ModelProto:
    """The pairs of activations without a zero-point, as int8 once wrote them."""
    result = onnx.ModelProto.FromString(made.SerializeToString())
    quantizers = [node for node in result.graph.node if node.op_type == "QuantizeLinear"]
    codes = {node.output[0] for node in quantizers}
    for node in quantizers:
        node.attribute.append(onnx.helper.make_attribute("output_dtype", onnx.TensorProto.INT8))
    for node in result.graph.node:
        if node in quantizers or (node.op_type == "DequantizeLinear" and node.input[0] in codes):
            del node.input[2:]
    onnx.checker.check_model(result, full_check=True)
    return result


def quantizers(made: onnx.ModelProto) -> list[tuple[str, str, bool]]:
    """Operator, type of the integers and whether an `output_dtype` is named, of each pair of activations."""
    zeros = {
        tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in made.graph.initializer
    }
    written = {node.output[0] for node in made.graph.node if node.op_type == "QuantizeLinear"}
    return sorted(
        (node.op_type, zeros.get(node.input[2], "") if len(node.input) > 2 else "", any(a.name == "output_dtype" for a in node.attribute))
        for node in made.graph.node
        if node.op_type == "QuantizeLinear" or (node.op_type == "DequantizeLinear" and node.input[0] in written)
    )  # fmt: skip


def test_pairs_without_a_zero_point_get_it_stated() -> None:
    """By the lowering for TensorRT, and by int8."""
    made = model(
        "c = Conv (x, w)  r = Relu (c)  m = Conv (r, w)  f = Flatten (m)  y = Tanh (f)",
        21,
        w=random(4, 4, 1, 1),
    )
    data = random(3, 4, 6, 6)
    placed, _ = quantized(made, CANONICAL, data=data)
    old = former(placed)
    assert {kind for _, kind, _ in quantizers(old)} == {""}
    for one, other in (
        (lowered(placed, "tensorrt", CANONICAL)[0], lowered(old, "tensorrt", CANONICAL)[0]),
        (placed, quantized(old, CANONICAL, data=data)[0]),
    ):
        assert quantizers(one) == quantizers(other)
        np.testing.assert_array_equal(
            session(one).run(None, {"x": data})[0], session(other).run(None, {"x": data})[0]
        )


def test_the_form_for_ort_is_the_same_at_every_opset() -> None:
    """A product with a bias becomes one kernel there, which writes integers for the next."""
    text = "p = MatMul (x, w)  s = Add (p, b)  r = Relu (s)  o = MatMul (r, v)  y = Add (o, c)"
    data, found = random(2, 16, 32), []
    weights = {"w": random(32, 64), "b": random(64), "v": random(64, 32), "c": random(32)}
    for opset in (20, 21):
        placed = quantized(model(text, opset, "2, 16, 32", **weights), data=data)[0]
        found.append(kernels(lowered(placed)[0]))
    assert found[0] == found[1]
    assert found[1]["QGemm"] == 2
