"""passes/graph/answers/blocks.py: where a block of a network begins and ends."""

import numpy as np
import onnx
import pytest

from onnx_lathe.passes.graph.answers.blocks import MOST_LAYERS, blocks_of
from tests.support.builders import build, random


def found(model: onnx.ModelProto) -> list[tuple[str, str, list[str]]]:
    layers = {
        node.output[0]: any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul")
    }
    return [(block.source, block.answer, block.layers) for block in blocks_of(model, layers)]


HEAD = "(float[N, 4, 9, 9] x) => (float[N, O, P, Q] y) {{ {} }}"
NETWORKS = {
    "single layers": (
        "a = Conv (x, w)  b = Relu (a)  c = Conv (b, w)  y = Relu (c)",
        [("x", "b", ["a"]), ("b", "y", ["c"])],
    ),
    "residual block": (
        "a = Conv (x, w)  b = Relu (a)  c = Conv (b, w)  s = Add (c, x)  t = Relu (s)  y = Conv (t, w)",
        [("x", "t", ["a", "c"]), ("t", "y", ["y"])],
    ),
    "two branches": (
        "a = Conv (x, w)  b = Conv (x, w)  s = Add (a, b)  t = Relu (s)  y = Conv (t, w)",
        [("x", "t", ["a", "b"]), ("t", "y", ["y"])],
    ),
    "inverted residuals without addition": (
        "a = Conv (x, w)  b = Relu (a)  c = Conv <group = 4> (b, d)  e = Relu (c)  f = Conv (e, w)"
        "  g = Conv (f, w)  h = Conv <group = 4> (g, d)  y = Conv (h, w)",
        [("x", "f", ["a", "c", "f"]), ("f", "y", ["g", "h", "y"])],
    ),
    "separable convolutions": (
        "a = Conv <group = 4> (x, d)  b = Conv (a, w)  c = Conv <group = 4> (b, d)  y = Conv (c, w)",
        [("x", "b", ["a", "b"]), ("b", "y", ["c", "y"])],
    ),
    "sizes are no values": (
        "n = Shape (x)  a = Conv (x, w)  b = Relu (a)  c = Conv (b, w)  y = Reshape (c, n)",
        [("x", "b", ["a"]), ("b", "c", ["c"])],
    ),
    "probabilities": ("r = Relu (x)  a = Conv (r, w)  b = Relu (a)  y = Softmax (b)", [("r", "b", ["a"])]),
}


@pytest.mark.parametrize("nodes, blocks", NETWORKS.values(), ids=NETWORKS)
def test_blocks_end_where_all_depends_on_one_tensor(
    nodes: str, blocks: list[tuple[str, str, list[str]]]
) -> None:
    assert found(build(HEAD.format(nodes), w=random(4, 4, 1, 1), d=random(4, 1, 1, 1))) == blocks


def test_where_a_block_would_be_long_each_layer_is_one() -> None:
    count = MOST_LAYERS + 1
    chain = "  ".join(f"h{i + 1} = Conv (h{i}, w)" for i in range(count))
    model = build(HEAD.format(f"h0 = Relu (x)  {chain}  y = Add (h{count}, x)"), w=random(4, 4, 1, 1))
    assert found(model) == [(f"h{i}", f"h{i + 1}", [f"h{i + 1}"]) for i in range(count)]


def test_two_inputs_begin_no_block_together() -> None:
    text = "(float[N, 4] x, float[N, 4] z) => (float[N, 4] y) { a = MatMul (x, w)  b = MatMul (z, w)  c = Add (a, b)  y = MatMul (c, w) }"
    assert found(build(text, w=np.eye(4, dtype=np.float32))) == [
        ("x", "a", ["a"]),
        ("z", "b", ["b"]),
        ("c", "y", ["y"]),
    ]
