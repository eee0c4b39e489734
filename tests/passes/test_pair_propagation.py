"""INT8 pairs load in a plain ONNX Runtime session at every opset, whatever moves their values on."""

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
    values |= {name: value for name, value in known.items() if name in words}
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
