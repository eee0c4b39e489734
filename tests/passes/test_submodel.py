"""A part of a model computes what the whole does, from the tensors that it is given."""

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import ModelError
from onnx_lathe.passes.extraction.submodel import RESULT, flow, reads_of, submodel
from tests.support.builders import build, random, run

FLOAT = np.dtype(np.float32)
CHAIN = """(float[n, 4] x) => (float[n, 4] y) {
    s = Add(k, k)
    a = Mul(x, s)
    b = Relu(a)
    c = Add(b, a)
    y = Mul(c, w)
}"""


def chain() -> onnx.ModelProto:
    return build(CHAIN, k=random(4), w=random(4))


def test_a_part_is_what_its_outputs_need() -> None:
    model = chain()
    x = random(3, 4)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in "abc")
    whole = run(model, {"x": x})
    del model.graph.output[1:]
    part = submodel(model, flow(model), ["y"], {"b": FLOAT, "a": FLOAT})
    assert [node.op_type for node in part.model.graph.node] == ["Add", "Mul"]
    assert list(part.inputs) == ["a", "b"]
    assert [tensor.name for tensor in part.model.graph.initializer] == ["w"]
    found = run(part.model, {"a": whole["a"], "b": whole["b"]})
    np.testing.assert_array_equal(found["y"], whole["y"])
    assert part.nodes == [3, 4]


def test_an_output_that_is_given_is_computed_all_the_same() -> None:
    """`b` is fed to one node, and what the part computes of `b` is an output beside it."""
    model = chain()
    part = submodel(model, flow(model), ["b", "c"], {"a": FLOAT, "b": FLOAT})
    assert part.outputs == {f"b{RESULT}": "b", "c": "c"}
    a, b = random(2, 4), random(2, 4)
    found = run(part.model, {"a": a, "b": b})
    np.testing.assert_array_equal(found[f"b{RESULT}"], np.maximum(a, 0))
    np.testing.assert_array_equal(found["c"], a + b)


def test_types_and_shapes_make_it_checkable() -> None:
    model = chain()
    shapes = {"a": (2, 4), "b": (2, 4)}
    part = submodel(model, flow(model), ["b"], {"a": FLOAT, "b": FLOAT}, shapes)
    onnx.checker.check_model(part.model, full_check=True)
    assert [dim.dim_value for dim in part.model.graph.input[0].type.tensor_type.shape.dim] == [2, 4]


def test_what_bodies_read_around_them_is_read_by_their_node() -> None:
    model = build(
        """(float[n, 4] x, bool f) => (float[n, 4] y) {
            a = Relu(x)
            y = If (f) <then_branch = g1 () => (float[n, 4] t) { t = Exp(a) }, else_branch = g2 () => (float[n, 4] e) { e = Mul(x, k) }>
        }""",
        k=random(4),
    )
    assert reads_of(model.graph.node[1]) == ("f", "a", "x", "k")
    part = submodel(model, flow(model), ["y"], {"a": FLOAT})
    assert list(part.inputs) == ["a", "f", "x"]
    a = random(2, 4)
    found = run(part.model, {"a": a, "x": a, "f": np.array(True)})
    np.testing.assert_allclose(found["y"], np.exp(a), rtol=1e-5)


def test_constants_and_random_values_are_told_apart() -> None:
    model = build(
        "(float[n, 4] x) => (float[n, 4] y) { s = Add(k, k)\n r = RandomNormalLike(k)\n t = Add(x, r)\n y = Add(t, s) }",
        k=random(4),
    )
    assert flow(model).varying == {"x", "r", "t", "y"}


def test_an_output_that_nobody_computes_is_refused() -> None:
    model = chain()
    with pytest.raises(ModelError, match="no node computes 'k'"):
        submodel(model, flow(model), ["k"], {})
