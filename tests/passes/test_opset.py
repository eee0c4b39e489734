"""Raising the opset: models with bodies compute what they did, and keep what they say."""

import numpy as np
import onnx
import pytest

from onnx_lathe.passes.graph.bodies import graph_protos
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.graph.opset import raise_opset
from tests.support.bodies import branches, feeds, loop, scan, stored
from tests.support.builders import build, random, run

MANY = """(float[2, 3, 8, 8] x, bool c) => (float[P, Q, R] y) {
    u = Unsqueeze <axes = [0]> (x)
    y = If (c) <
        then_branch = yes () => (float[P, Q, R] a) {
            s = Squeeze <axes = [0]> (u) q = Resize <mode = "linear"> (s, none, scales) f = Softmax <axis = 1> (q)
            k = ReduceSum <axes = [1], keepdims = 0> (f) l = ReduceMean <axes = [1]> (k) d = Dropout (l)
            p, p2 = Split <axis = 2> (d) a = LogSoftmax <axis = 1> (p)
        },
        else_branch = no () => (float[P, Q, R] b) {
            s2 = Squeeze <axes = [0]> (u) v = AveragePool <kernel_shape = [2, 2]> (s2) w = Pad (v, pads)
            z = ReduceMax <axes = [1], keepdims = 0> (w)
            h = If (c) <
                then_branch = inner () => (float[P, Q, R] i) { i = Hardmax <axis = 1> (z) },
                else_branch = other () => (float[P, Q, R] j) {
                    t = ReduceL2 <axes = [0]> (z) t2 = Unsqueeze <axes = [0]> (t) j = Squeeze <axes = [0]> (t2)
                }
            >
            b = Clip (h, least)
        }
    >
}"""
"""Operators that later opsets say otherwise: by inputs in place of attributes, or about other axes."""


def raised(model: onnx.ModelProto, wanted: int) -> onnx.ModelProto:
    graph = import_model(model)
    assert raise_opset(graph, wanted) is None
    after = export_model(graph)
    onnx.checker.check_model(after, full_check=True)
    assert after.opset_import[0].version == wanted
    return after


@pytest.mark.parametrize("wanted", [13, 19, 21])
@pytest.mark.parametrize("way", [True, False])
def test_bodies_compute_what_they_did(wanted: int, way: bool) -> None:
    model = build(
        MANY,
        11,
        none=np.zeros(8, np.float32),
        scales=np.array([1, 1, 2, 2], np.float32),
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        least=np.array(0.1, np.float32),
    )
    after = raised(model, wanted)
    given = {"x": random(2, 3, 8, 8), "c": np.array(way)}
    np.testing.assert_allclose(run(after, given)["y"], run(model, given)["y"], rtol=1e-6)
    squeezed = [node for part in graph_protos(after.graph) for node in part.node if node.op_type == "Squeeze"]
    assert {len(node.input) for node in squeezed} == {2}


@pytest.mark.parametrize("make", [branches, loop, scan])
@pytest.mark.parametrize("opset", [11, 17])
def test_weights_of_bodies_stay_where_they_are(make, opset: int) -> None:
    model = make(opset)
    after = raised(model, 21)
    assert stored(after) == stored(model)
    for way in (True, False):
        given = feeds(model, way)
        assert np.array_equal(run(after, given)["y"], run(model, given)["y"])


def test_a_large_weight_that_a_body_alone_reads_stays_in_the_main_graph() -> None:
    model = build(
        """(float[N, 80] x, bool c) => (float[N, 80] y) { y = If (c) <
            then_branch = yes () => (float[N, 80] a) { a = MatMul (x, w) },
            else_branch = no () => (float[N, 80] b) { b = Neg (x) }
        > }""",
        w=random(80, 80),
    )
    after = raised(model, 21)
    assert stored(after) == [["w"], [], []]
    given = {"x": random(3, 80), "c": np.array(True)}
    assert np.array_equal(run(after, given)["y"], run(model, given)["y"])


def test_what_a_body_says_stays() -> None:
    model = loop()
    body = graph_protos(model.graph)[1]
    body.doc_string = "one step"
    body.metadata_props.add(key="from", value="a recurrence")
    body.node[0].doc_string = "the only layer"
    body.node[0].metadata_props.add(key="from", value="an exporter")
    found = graph_protos(raised(model, 21).graph)[1]
    assert (found.doc_string, found.node[0].doc_string) == ("one step", "the only layer")
    assert found.metadata_props == body.metadata_props
    assert found.node[0].metadata_props == body.node[0].metadata_props
    assert list(found.input) == list(body.input)
    assert list(found.output) == list(body.output)
