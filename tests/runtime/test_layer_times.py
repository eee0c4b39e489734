"""Which nodes a kernel of ONNX Runtime computes: on its own graphs, and on ones written here."""

import onnx
import pytest

from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.layer_times import Kernel, kernels, main_node
from onnx_lathe.runtime.running.profiling import ModelProfiler
from tests.support.builders import build, random
from tests.support.quantized import lenet


def ran(model: onnx.ModelProto) -> list[tuple[str, list[str]]]:
    """Operators of each kernel's nodes, by ONNX Runtime's own name of it."""
    found = kernels(model.graph, *ModelProfiler(ort.random_feeds).executed(model))
    return [(kernel.op, [model.graph.node[place].op_type for place in kernel.nodes]) for kernel in found]


def hand(text: str) -> onnx.GraphProto:
    return onnx.parser.parse_graph(f"g {text}")


def named(graph: onnx.GraphProto, *names: str) -> onnx.GraphProto:
    for node, name in zip(graph.node, names, strict=True):
        node.name = name
    return graph


BLOCK = """(float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w)  b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, v)  d = Add (c, x)  e = Relu (d)  y = Softmax (e)
}"""


def test_a_convolution_with_its_relu() -> None:
    found = ran(build(BLOCK, w=random(16, 16, 3, 3), v=random(16, 16, 3, 3)))
    assert ["Conv", "Relu"] in [nodes for _, nodes in found]
    assert ("Softmax", ["Softmax"]) in found


def test_a_sum_behind_a_convolution() -> None:
    """ONNX Runtime calls the kernel by what it gave before the sum was fused, and its result by no name of the model."""
    model = hand(
        "(float[1] x) => (float[1] y) { a = Conv (x, w)  c = Conv (a, v)  d = Add (c, a)  e = Relu (d)  y = Softmax (e) }"
    )
    executed = named(
        hand("(float[1] x) => (float[1] y) { s = Conv (x, w)  t = Conv (s, v, s)  e = ReorderOutput (t)  y = Softmax (e) }"),
        "a_nchwc", "c_nchwc", "ReorderOutput", "@4@",
    )  # fmt: skip
    found = kernels(model, executed, {"a_nchwc": 1.0, "c_nchwc": 2.0, "@4@": 3.0})
    assert [kernel.nodes for kernel in found] == [(0,), (1, 2, 3), (4,)]


def test_integers() -> None:
    """Each layer's kernel is the layer's, whatever is done beside."""
    found = ran(lenet(codebook=False))
    owners = [nodes for _, nodes in found if {"Conv", "Gemm", "MatMul"} & set(nodes)]
    assert [len({"Conv", "Gemm", "MatMul"} & set(nodes)) for nodes in owners] == [1, 1, 1]


def test_no_time_is_lost_or_said_twice() -> None:
    model = build(BLOCK, w=random(16, 16, 3, 3), v=random(16, 16, 3, 3))
    executed, times = ModelProfiler(ort.random_feeds).executed(model)
    found = kernels(model.graph, executed, times)
    assert sum(kernel.ms for kernel in found) == pytest.approx(sum(times.values()))
    places = [place for kernel in found for place in kernel.nodes]
    assert sorted(places) == list(range(len(model.graph.node)))


def test_a_change_of_layout_is_of_the_kernel_before_it() -> None:
    model = hand("(float[1] x) => (float[1] y) { a = Conv (x, w)  b = Relu (a)  y = Softmax (b) }")
    executed = named(
        hand("(float[1] x) => (float[1] y) { t = Conv (x, w)  b = ReorderOutput (t)  y = Softmax (b) }"),
        "b_nchwc", "ReorderOutput", "@2@",
    )  # fmt: skip
    found = kernels(model, executed, {"b_nchwc": 3.0, "ReorderOutput": 1.0, "@2@": 2.0})
    assert found == [Kernel("Conv", 4.0, (0, 1)), Kernel("Softmax", 2.0, (2,))]


def test_a_pattern_that_becomes_one_kernel() -> None:
    model = hand(
        "(float[1] x) => (float[1] y) { m = MatMul (x, w)  d = Div (m, r)  e = Erf (d)  p = Add (e, o)  q = Mul (m, p)  y = Mul (q, h) }"
    )
    executed = named(hand("(float[1] x) => (float[1] y) { m = MatMul (x, w)  y = Gelu (m) }"), "@0@", "Gelu")
    assert kernels(model, executed, {"@0@": 1.0, "Gelu": 2.0}) == [
        Kernel("MatMul", 1.0, (0,)),
        Kernel("Gelu", 2.0, (1, 2, 3, 4, 5)),
    ]


def test_what_prepares_a_product_is_not_the_product() -> None:
    model = hand("(float[1] x) => (float[1] y) { y = Gemm (x, w) }")
    executed = named(
        hand("(float[1] x) => (float[1] y) { d = DequantizeLinear (w)  y = FusedGemm (x, d) }"),
        "@0@",
        "fused",
    )
    assert kernels(model, executed, {"@0@": 1.0, "fused": 2.0}) == [
        Kernel("DequantizeLinear", 1.0, ()),
        Kernel("FusedGemm", 2.0, (0,)),
    ]


def test_the_node_that_stands_for_a_kernel() -> None:
    assert main_node(Kernel("Conv", 1.0, (0, 1, 2)), [(5, 1), (0, 9), (0, 9)]) == 0
    assert main_node(Kernel("MaxPool", 1.0, (0, 1)), [(0, 4), (0, 0)]) == 0
    assert main_node(Kernel("Transpose", 1.0, ()), []) is None
