"""Parts of a graph as it was, taken after it has changed: as `model_up_to` has them, and without a copy of the rest."""

import numpy as np
import onnx

from onnx_lathe.passes.graph import Constant
from onnx_lathe.passes.graph.ancestors import model_up_to
from onnx_lathe.passes.graph.macs import sized_shapes
from onnx_lathe.passes.graph.model import Snapshot, export_model, import_model
from tests.support.builders import build, random, run

WIDE = 128
"""So few elements that a skeleton keeps their data, and so many bytes that a snapshot does not."""


def chain() -> onnx.ModelProto:
    weights = {f"w{number}": random(WIDE, WIDE) for number in range(3)}
    weights["shape"] = np.array([-1, WIDE // 2, 2], np.int64)
    return build(
        "(float[n, 128] x) => (float[n, a, b] y) { h0 = MatMul(x, w0) h1 = MatMul(h0, w1) h2 = MatMul(h1, w2) y = Reshape(h2, shape) }",
        **weights,
    )


def test_a_part_of_a_changed_graph_is_the_one_it_had() -> None:
    model = chain()
    graph = import_model(model)
    before = export_model(graph)
    snapshot = Snapshot(graph)
    graph.nodes[1].inputs[1] = Constant("other", np.zeros((WIDE, WIDE), np.float32))
    part = snapshot.up_to(["h1"])
    assert part == model_up_to(before, ["h1"])
    x = {"x": random(2, WIDE)}
    np.testing.assert_array_equal(run(part, x)["h1"], run(model_up_to(model, ["h1"]), x)["h1"])
    assert not run(Snapshot(graph).up_to(["h1"]), x)["h1"].any()


def test_shapes_are_inferred_without_the_data() -> None:
    snapshot = Snapshot(import_model(chain()))
    assert sized_shapes(snapshot.frame, {})["y"] == (1, WIDE // 2, 2)
    stored = {tensor.name: tensor for tensor in snapshot.frame.graph.initializer}
    assert all(not stored[f"w{number}"].raw_data for number in range(3))
    assert stored["shape"].raw_data or stored["shape"].int64_data


def test_a_weight_inside_a_body_is_filled_in() -> None:
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 17]>
        m (bool c, float[1, 128] x) => (float[1, 128] y) {
            y = If(c) <then_branch = t () => (float[1, 128] a) { a = MatMul(x, w) },
                       else_branch = e () => (float[1, 128] b) { b = Neg(x) }>
        }""")
    weight = onnx.numpy_helper.from_array(random(WIDE, WIDE), "w")
    model.graph.node[0].attribute[0].g.initializer.append(weight)
    x = {"c": np.array(True), "x": random(1, WIDE)}
    part = Snapshot(import_model(model)).up_to(["y"])
    np.testing.assert_array_equal(run(part, x)["y"], run(model, x)["y"])
