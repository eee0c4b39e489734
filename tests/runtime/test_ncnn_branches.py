"""Branches that the sizes of inputs decide, in what is written for ncnn."""

import numpy as np
import onnx

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
    agree(branch(), {"x": (1, 5, 6)}, {"x": (1, 7, 6)})


def test_a_branch_that_the_size_decides_is_refused() -> None:
    ((_, op, reason),) = refusals(branch(), {"x": (1, 4, 6)}, {"x": (1, 7, 6)})
    assert (op, reason) == ("If", "which of its branches runs depends on the size of the input")


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
