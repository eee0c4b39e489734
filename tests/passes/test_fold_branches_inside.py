"""fold: an If on a constant inside bodies, on a constant that others read, and on a size."""

import numpy as np
import onnx
import pytest

from onnx_lathe.passes.graph.bodies import parts
from onnx_lathe.passes.graph.model import import_model
from tests.support.builders import build, random, run
from tests.support.folding import fold

CHOICE = """If (c) < then_branch = a () => (float[2, 4] q) { q = Neg (v) }, else_branch = b () => (float[2, 4] r) { r = Exp (v) } >"""
IN_LOOP = f"""(float[2, 4] x) => (float[2, 4] y) {{
    c = Constant <value = bool {{1}}> () n = Constant <value = int64 {{3}}> ()
    y = Loop (n, c, x) < body = l (int64 i, bool go, float[2, 4] v) => (bool on, float[2, 4] w) {{
        on = Identity (go) u = {CHOICE} w = Abs (u) }} > }}"""
IN_BRANCH = f"""(float[2, 4] x, bool d) => (float[2, 4] y) {{
    c = Constant <value = bool {{0}}> () v = Relu (x)
    y = If (d) < then_branch = t () => (float[2, 4] p) {{ u = {CHOICE} p = Abs (u) }}, else_branch = e () => (float[2, 4] s) {{ s = Sin (v) }} > }}"""
OUTPUT = (
    f"""(float[2, 4] v) => (float[2, 4] y, bool c) {{ c = Constant <value = bool {{1}}> () y = {CHOICE} }}"""
)
CAPTURED = f"""(float[2, 4] v, bool d) => (float[2, 4] y, bool z) {{
    c = Constant <value = bool {{1}}> () y = {CHOICE}
    z = If (d) < then_branch = t () => (bool p) {{ p = Not (c) }}, else_branch = e () => (bool s) {{ s = Identity (c) }} > }}"""
SIZE = f"""(float[2, 4] v) => (float[2, 4] y) {{
    n = Size (v) k = Constant <value = int64 {{8}}> () c = Equal (n, k) y = {CHOICE} }}"""


@pytest.mark.parametrize(
    "text, left, gone",
    [
        (IN_LOOP, 0, "Exp"),
        (IN_BRANCH, 1, "Neg"),
        (OUTPUT, 0, "Exp"),
        (CAPTURED, 1, "Exp"),
        (SIZE, 0, "Exp"),
    ],
    ids=["loop", "branch", "output", "captured", "size"],
)
def test_the_body_that_runs_takes_the_place(text: str, left: int, gone: str) -> None:
    model = build(text)
    folded, _ = fold(model)
    onnx.checker.check_model(folded, full_check=True)
    found = [node.op for part in parts(import_model(folded)) for node in part.graph.nodes]
    assert (found.count("If"), found.count(gone)) == (left, 0)
    data = model.graph.input[0].name
    for asked in (False, True):
        feeds = {data: random(2, 4)} | ({"d": np.array(asked)} if "bool d)" in text else {})
        before, after = run(model, feeds), run(folded, feeds)
        assert all(np.array_equal(after[name], value) for name, value in before.items())
