"""fold: an If on a constant becomes the body that runs."""

import numpy as np
import onnx
import pytest

from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.fold.fold import Fold
from onnx_lathe.passes.graph.model import export_model, import_model
from tests.support.builders import build, random, run
from tests.support.folding import fold, ops

RATE = """(float[1, 8] x) => (float[1, 4] y) {
    c = Equal (rate, wanted)
    y = If (c) <
        then_branch = a () => (float[1, 4] s) { k = Constant <value_float = 2.0> () t = MatMul (x, w) s = Mul (t, k) },
        else_branch = b () => (float[1, 4] s) { s = MatMul (x, v) }
    >
}"""
X = {"x": random(1, 8)}


def rates(rate: int) -> onnx.ModelProto:
    return build(RATE, rate=np.array(rate), wanted=np.array(16000), w=random(8, 4), v=random(8, 4))


@pytest.mark.parametrize("rate, left", [(16000, ["MatMul", "Mul"]), (8000, ["MatMul"])])
def test_the_body_that_runs_takes_the_place_of_the_branch(rate: int, left: list[str]) -> None:
    model = rates(rate)
    folded, report = fold(model)
    assert ops(folded) == left
    assert {"w", "v"} & {tensor.name for tensor in folded.graph.initializer} == {
        "w" if rate == 16000 else "v"
    }
    np.testing.assert_array_equal(run(folded, X)["y"], run(model, X)["y"])
    which = "then" if rate == 16000 else "else"
    assert f"its {which}_branch takes its place" in {edit.what for edit in report.edits}
    assert not report.skips


def test_branches_in_branches_with_the_same_names_and_what_bodies_behind_read() -> None:
    text = """(float[1, 4] x, bool d) => (float[1, 4] z) {
        p = If (yes) <
            then_branch = a () => (float[1, 4] s) {
                t = Mul (x, two)
                s = If (no) < then_branch = c () => (float[1, 4] q) { q = Abs (t) }, else_branch = e () => (float[1, 4] q) { q = Neg (t) } >
            },
            else_branch = b () => (float[1, 4] s) { s = Relu (x) }
        >
        y = If (yes) < then_branch = f () => (float[1, 4] s) { t = Add (p, two) s = Exp (t) }, else_branch = g () => (float[1, 4] s) { s = Identity (x) } >
        z = If (d) < then_branch = h () => (float[1, 4] s) { s = Neg (y) }, else_branch = i () => (float[1, 4] s) { s = Abs (p) } >
    }"""
    model = build(text, yes=np.array(True), no=np.array([False]), two=np.array(2, np.float32))
    folded, _ = fold(model)
    # what a body reads keeps its name, so an Identity stays in front of it
    assert [op for op in ops(folded) if op != "Identity"] == ["Mul", "Neg", "Add", "Exp", "If"]
    for flag in (True, False):
        feeds = {"x": random(1, 4), "d": np.array(flag)}
        np.testing.assert_array_equal(run(folded, feeds)["z"], run(model, feeds)["z"])


def test_a_body_that_gives_what_is_around_it() -> None:
    text = """(float[1, 4] x) => (float[1, 4] y, float[1, 4] r) {
        r = Relu (x)
        y = If (yes) < then_branch = a () => (float[1, 4] s) { s = Identity (r) }, else_branch = b () => (float[1, 4] s) { s = Neg (r) } >
    }"""
    model = build(text, yes=np.array(True))
    folded, _ = fold(model)
    assert ops(folded) == ["Relu", "Identity"]
    feeds = {"x": random(1, 4)}
    assert all(np.array_equal(run(folded, feeds)[name], run(model, feeds)[name]) for name in ("y", "r"))


def test_a_branch_that_a_caller_decides_stays() -> None:
    model = build(RATE.replace("float[1, 8] x", "float[1, 8] x, int64 rate"), wanted=np.array(16000), w=random(8, 4), v=random(8, 4))  # fmt: skip
    assert "If" in ops(fold(model)[0])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(8000), "rate"))
    assert "If" in ops(fold(model)[0])


def test_a_branch_that_is_to_be_left_alone_stays() -> None:
    graph = import_model(rates(16000))
    name = next(node.name for node in graph.nodes if node.op == "If")
    configure(Fold, {}).apply(graph, Context(spared=frozenset((name,))))
    assert "If" in ops(export_model(graph))
