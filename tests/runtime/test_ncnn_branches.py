"""Branches that the sizes of inputs decide, in what is written for ncnn."""

import numpy as np
import onnx
import pytest

from onnx_lathe.runtime.targets.core.further import further_values
from tests.support.builders import build, random
from tests.support.ncnn import agree, refusals, types

BRANCH = """(float[1, C, 6] x) => (float[A, B, D] z) {
    shape = Shape(x) size = Gather(shape, one) is_one = Equal(size, number) r = Relu(x)
    y = If (is_one) <
        then_branch = body () => (float[A, B, D] s) { t = Mul(r, two) s = Neg(t) },
        else_branch = other () => (float[A, B, D] s) { t = Mul(r, half) s = Identity(t) }
    >
    z = Add(y, r)
}"""
STORED = {
    "one": np.array(1),
    "number": np.array(4),
    "two": np.array(2.0, np.float32),
    "half": np.array(0.5, np.float32),
}


def branch() -> onnx.ModelProto:
    return build(BRANCH, **STORED)


def test_the_body_that_runs_takes_the_place_of_the_branch() -> None:
    assert "UnaryOp" in types(agree(branch(), {"x": (1, 4, 6)}))
    assert "UnaryOp" not in types(agree(branch(), {"x": (1, 5, 6)}))


def test_a_branch_that_is_the_same_at_all_sizes() -> None:
    """There is no dimension of 0."""
    model = build(BRANCH, **STORED | {"number": np.array(0)})
    agree(model, {"x": (1, 5, 6)}, {"x": (1, 7, 6)})


def test_a_branch_that_the_size_decides_is_refused() -> None:
    ((_, op, reason),) = refusals(branch(), {"x": (1, 4, 6)}, {"x": (1, 7, 6)})
    assert (op, reason) == ("If", "which of its branches runs depends on the size of the input")


PROBED = {"x": (1, 3, 224, 224)}, {"x": (1, 3, 256, 288)}


LIMITS = {"two": np.array(2), "limit": np.array(48), "zero": np.array(0)}


@pytest.mark.parametrize(
    "condition, taken",
    [
        ("c = Equal(h, limit)", False),
        ("k = Equal(h, limit) c = Not(k)", False),
        ("c = Less(h, limit)", False),
        ("c = LessOrEqual(limit, h)", False),
        ("m = Mod(h, limit) c = Equal(m, two)", False),
        ("m = Div(h, limit) c = Equal(m, two)", False),
        ("m = Max(h, limit) c = Equal(m, limit)", False),
        ("r = MaxPool <kernel_shape = [8, 8], strides = [8, 8]> (x) t = Shape(r) k = Gather(t, two) c = Equal(k, two)", False),
        ("c = Equal(h, zero)", True),
        ("c = Greater(h, zero)", True),
        ("k = Neg(h) c = Greater(h, k)", True),
    ],
)  # fmt: skip
def test_a_branch_that_one_size_decides_is_refused(condition: str, taken: bool) -> None:
    """At 24 to 768, where branches are looked at, nearly all of these are what they are at 224."""
    text = f"""(float[1, 3, H, W] x) => (float[1, 3, A, B] y) {{
        s = Shape(x) h = Gather(s, two) {condition}
        y = If (c) < then_branch = a () => (float[1, 3, A, B] p) {{ p = Neg(x) }}, else_branch = b () => (float[1, 3, A, B] q) {{ q = Relu(x) }} >
    }}"""
    model = build(text, **{name: value for name, value in LIMITS.items() if name in text})
    found = refusals(model, *PROBED)
    assert [op for _, op, _ in found] == ([] if taken else ["If"])
    assert all(reason.endswith("depends on the size of the input") for _, _, reason in found)
    agree(model, {"x": (1, 3, 48, 48)})


@pytest.mark.parametrize("size", [512, 128, 64, 900])
def test_a_branch_that_sizes_far_away_decide_is_refused(size: int) -> None:
    text = """(float[1, 3, H, W] x) => (float[1, 3, A, B] y) {
        s = Shape(x) h = Gather(s, two) c = Greater(h, limit)
        y = If (c) < then_branch = a () => (float[1, 3, A, B] p) { p = Neg(x) }, else_branch = b () => (float[1, 3, A, B] q) { q = Relu(x) } >
    }"""
    found = refusals(build(text, two=np.array(2), limit=np.array(size)), *PROBED)
    assert [op for _, op, _ in found] == ["If"]


@pytest.mark.parametrize(
    "body",
    [
        "m = Min(h, limit) f = Cast <to = 1> (m) y = Mul(x, f)",
        "m = Min(h, limit) e = Concat <axis = 0> (m, w) y = Slice(x, zeros, e, axes)",
        "r = Relu(x) t = Shape(r) k = Gather(t, two) m = Min(k, limit) f = Cast <to = 1> (m) y = Mul(x, f)",
    ],
)
def test_what_is_the_same_at_sizes_nearby_alone_is_refused(body: str) -> None:
    text = f"(float[1, 3, H, W] x) => (float[A, B, C, D] y) {{ s = Shape(x) h = Gather(s, two) w = Gather(s, three) {body} }}"
    stored = {
        "two": np.array([2]),
        "three": np.array([3]),
        "limit": np.array([150]),
        "zeros": np.array([0, 0]),
        "axes": np.array([2, 3]),
    }
    model = build(
        text, **{name: value for name, value in stored.items() if name in body or name in "two three"}
    )
    ((_, _, reason),) = refusals(model, *PROBED)
    assert "depends on the size of the input" in reason
    assert not refusals(model, PROBED[0], PROBED[0])


def test_sizes_that_the_model_does_not_fit_say_nothing() -> None:
    """Positions are known up to 12: at three times 12 it cannot run, at half of 9 it can."""
    text = """(float[1, N] x) => (float[1, N] y) {
        s = Shape(x) n = Gather(s, one) p = Slice(table, zero, n, one) a = Add(x, p)
        m = Max(n, limit) f = Cast <to = 1> (m) y = Mul(a, f)
    }"""
    stored = {"one": np.array([1]), "zero": np.array([0]), "limit": np.array([20]), "table": random(1, 12)}
    found = further_values(build(text, **stored), {"x": (1, 9)}, {"x": (1, 12)}, ["f"])
    assert [values["f"].tolist() for values in found] == [[20.0]]


POOLED = """(float[1, 1, W] x) => (float[A, B] y) {{
    r = MaxPool <kernel_shape = [16], strides = [16]> (x) s = Shape(r) k = Gather(s, two) c = Equal(k, one)
    t = If (c) <
        then_branch = a () => (float[A, B] p) {{ p = Squeeze(r, two) }},
        else_branch = b () => (float[A, B, C] q) {{ q = Identity(r) }}
    >
    y = {reader}
}}"""


def pooled(reader: str) -> onnx.ModelProto:
    return build(
        POOLED.format(reader=reader),
        one=np.array(1),
        two=np.array([2]),
        w=random(1, 3),
        flat=np.array([1, -1]),
    )


def test_a_body_that_other_sizes_do_not_fit_says_nothing_of_them() -> None:
    """At 72 there are four windows, and a third axis that the first body does not give."""
    model = pooled("Reshape(t, flat)")
    sizes = {"x": (1, 1, 16)}, {"x": (1, 1, 24)}
    assert [bool(values["c"][0]) for values in further_values(model, *sizes, ["c"])] == [True, False]
    ((_, op, reason),) = refusals(model, *sizes)
    assert (op, reason) == ("If", "which of its branches runs depends on the size of the input")


def test_sizes_that_do_not_fit_behind_the_body_that_runs_say_nothing() -> None:
    """At 72 the other body gives a third axis, which Gemm refuses."""
    model = pooled("Gemm(t, w)")
    (below,) = further_values(model, {"x": (1, 1, 16)}, {"x": (1, 1, 24)}, ["c"])
    assert below["c"]


def test_branches_within_branches_and_names_that_are_taken() -> None:
    text = """(float[1, 3, 4] x) => (float[A, B] z) {
        c = Equal(a, a) t = Relu(x)
        y = If (c) <
            then_branch = first () => (float[A, B, D] s) {
                u = Mul(t, w) k = Equal(a, b)
                s = If (k) <
                    then_branch = inner () => (float[A, B, D] q) { q = Neg(u) },
                    else_branch = outer () => (float[A, B, D] q) { v = Abs(u) q = Sub(v, t) }
                >
            },
            else_branch = second () => (float[A, B, D] s) { s = Neg(t) }
        >
        u = Sigmoid(y) z = Squeeze(u, axis)
    }"""
    agree(build(text, a=np.array(1), b=np.array(2), w=random(4), axis=np.array([0])))


def test_a_branch_that_data_decides_is_refused() -> None:
    text = """(float[1, 3] x) => (float[A, B] y) {
        m = ReduceMax <keepdims = 0> (x) c = Greater(m, v)
        y = If (c) < then_branch = a () => (float[A, B] s) { s = Neg(x) }, else_branch = b () => (float[A, B] s) { s = Abs(x) } >
    }"""
    ((_, op, reason),) = refusals(build(text, v=np.array(0.0, np.float32)))
    assert (op, reason) == ("If", "ncnn runs no branches and no loops")


def test_a_branch_that_an_input_with_a_default_value_decides_is_refused() -> None:
    """A caller of the model may give another value."""
    text = """(float[1, 3] x, bool[1] flag) => (float[1, 3] y) {
        c = Not (flag)
        y = If (c) < then_branch = a () => (float[1, 3] s) { s = Neg(x) }, else_branch = b () => (float[1, 3] s) { s = Abs(x) } >
    }"""
    model = build(text, flag=np.array([True]))
    ((_, op, reason),) = refusals(model)
    assert op == "If"
    assert "an input with a default value" in reason
    del model.graph.input[1]
    agree(model)
