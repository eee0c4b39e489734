"""Branches that the lowering for ncnn takes, told which way they go."""

import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.lowering import find_lowering
from tests.support.builders import build, random, run

NESTED = """(float[2, 3] x, bool c, bool k) => (float[2, 3] y) {
    t = Relu(x)
    s = If (c) <
        then_branch = first () => (float[2, 3] a) {
            u = Mul(t, w)
            a = If (k) <
                then_branch = inner () => (float[2, 3] b) { b = Neg(u) },
                else_branch = outer () => (float[2, 3] b) { v = Abs(u) b = Sub(v, t) }
            >
        },
        else_branch = second () => (float[2, 3] a) { a = Identity(x) }
    >
    u = Add(s, t) y = Neg(u)
}"""
"""`u` is a name of the first body too."""


def lowered(model: onnx.ModelProto, **branches: bool) -> tuple[onnx.ModelProto, PassReport]:
    instance = configure(find_lowering("ncnn"), {"branches": branches})
    after, report = apply_pass(instance, model, Context())
    onnx.checker.check_model(after, full_check=True)
    return after, report


def types(model: onnx.ModelProto) -> list[str]:
    return sorted(node.op_type for node in model.graph.node if node.op_type != "Identity")


@pytest.mark.parametrize(
    "c, k, wanted",
    [
        (True, True, ["Add", "Mul", "Neg", "Neg", "Relu"]),
        (True, False, ["Abs", "Add", "Mul", "Neg", "Relu", "Sub"]),
        (False, True, ["Add", "Neg", "Relu"]),
    ],
)
def test_the_body_that_runs_takes_the_place_of_the_branch(c: bool, k: bool, wanted: list[str]) -> None:
    model = build(NESTED, w=random(2, 3))
    after, report = lowered(model, c=c, k=k)
    assert types(after) == wanted
    assert [edit.what for edit in report.edits] == [
        f"its {'then' if one else 'else'}_branch takes its place" for one in ([c, k] if c else [c])
    ]
    feeds = {"x": random(2, 3), "c": np.array(c), "k": np.array(k)}
    np.testing.assert_array_equal(run(after, feeds)["y"], run(model, feeds)["y"])


def test_a_branch_that_nothing_is_said_of_stays() -> None:
    model = build(NESTED, w=random(2, 3))
    assert lowered(model, other=True)[0] is model
    after, _ = lowered(model, c=True)
    assert types(after) == ["Add", "If", "Mul", "Neg", "Relu"]
    assert types(lowered(model, k=True)[0]) == types(model)


def test_bodies_may_give_several_things_and_what_they_store() -> None:
    model = build(
        """(float[2, 3] x, bool c) => (float[2, 3] y, float[2, 3] z) {
            y, z = If (c) <
                then_branch = a () => (float[2, 3] r, float[2, 3] t) { r = Relu(x) t = Neg(r) },
                else_branch = b () => (float[2, 3] n, float[2, 3] m) { n = Neg(x) m = Identity(n) }
            >
        }"""
    )
    branch = next(node for node in model.graph.node if node.op_type == "If")
    stored = branch.attribute[1].g
    del stored.node[1:]
    stored.initializer.append(onnx.numpy_helper.from_array(random(2, 3), "kept"))
    stored.output[1].name = "kept"
    for c in (True, False):
        after, _ = lowered(model, c=c)
        feeds = {"x": random(2, 3), "c": np.array(c)}
        for name, value in run(model, feeds).items():
            np.testing.assert_array_equal(run(after, feeds)[name], value)


def test_what_was_declared_of_either_body_is_forgotten() -> None:
    """An If whose bodies give two ranks may be declared to have one of them."""
    model = build(
        """(float[2, 1, 3] x, bool c) => (float[A, B] y) {
            z = If (c) <
                then_branch = a () => (float[2, 3] p) { p = Squeeze(x, axes) },
                else_branch = b () => (float[2, 1, 3] q) { q = Neg(x) }
            >
            n = Neg(z) y = Relu(n)
        }""",
        axes=np.array([1]),
    )
    for name in "zn":
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, 1, [2, 1, 3]))
    feeds = {"x": random(2, 1, 3), "c": np.array(True)}
    after, _ = lowered(model, c=True)
    np.testing.assert_array_equal(run(after, feeds)["y"], run(model, feeds)["y"])


def test_sparse_weights_of_the_body_stay_named_and_others_are_no_more() -> None:
    model = build(
        """(float[2, 3] x, bool c) => (float[2, 3] y) {
            y = If (c) <
                then_branch = a () => (float[2, 3] p) { p = MatMul(x, w) },
                else_branch = b () => (float[2, 3] q) { q = MatMul(x, v) }
            >
        }""",
        w=random(3, 3),
        v=random(3, 3),
    )
    text = metadata.format_sparse({"w": "unstructured", "v": "unstructured"})
    model.metadata_props.add(key=metadata.SPARSE, value=text)
    after, _ = lowered(model, c=True)
    assert metadata.read_sparse(after.metadata_props) == {"w": "unstructured"}
    assert [tensor.name for tensor in after.graph.initializer] == ["w"]


def test_a_direction_is_true_or_false() -> None:
    with pytest.raises(UsageError, match="takes bool, not 'yes'"):
        configure(find_lowering("ncnn"), {"branches": {"c": "yes"}})
