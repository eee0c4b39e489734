"""Branches that the sizes of inputs decide, in what is written for LiteRT."""

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.lowering import lowered
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.runtime.targets.litert.litert import LiteRT
from tests.support.builders import build
from tests.support.litert import agree, codes, refusals

pytest.importorskip("ai_edge_litert")

BRANCH = """(float[N, C, 6] x) => (float[A, B, D] z) {
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


def for_litert(model: onnx.ModelProto, shapes: dict[str, str]) -> onnx.ModelProto:
    def apply(step: Pass, given: onnx.ModelProto) -> tuple[onnx.ModelProto, PassReport]:
        return apply_pass(step, given, Context())

    return lowered(LiteRT(), LiteRT.Config(shapes=shapes), model, apply)[0]


def test_the_body_that_runs_takes_the_place_of_the_branch() -> None:
    for size, has_neg in (("4", True), ("5", False)):
        shapes = {"x": f"1x{size}x6"}
        found = agree(for_litert(build(BRANCH, **STORED), shapes), shapes=shapes)
        assert ("NEG" in codes(found)) == has_neg


def test_a_branch_that_the_batch_decides_is_refused() -> None:
    model = build(BRANCH, **STORED | {"one": np.array(0), "number": np.array(1)})
    shapes = {"x": "1x4x6"}
    assert any("branches" in reason for reason in refusals(for_litert(model, shapes), shapes))
