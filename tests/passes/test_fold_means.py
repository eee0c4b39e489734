"""fold: the mean over all places becomes a GlobalAveragePool."""

import numpy as np
import pytest

from tests.support.builders import build
from tests.support.folding import difference, fold, ops


@pytest.mark.parametrize(("keeps", "shape", "found"), [(1, "N, 4, 1, 1", []), (0, "N, 4", ["Flatten"])])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]], ids=str)
@pytest.mark.parametrize("opset", [17, 18])
def test_a_mean_of_an_image_becomes_a_pool(
    opset: int, axes: list[int], keeps: int, shape: str, found: list[str]
) -> None:
    given = f"ReduceMean <axes = {axes}, keepdims = {keeps}> (x)"
    text = given if opset < 18 else f"ReduceMean <keepdims = {keeps}> (x, axes)"
    constants = {} if opset < 18 else {"axes": np.array(axes, np.int64)}
    before = build(f"(float[N, 4, 6, 7] x) => (float[{shape}] y) {{ y = {text} }}", opset, **constants)
    after, report = fold(before)
    assert ops(after) == ["GlobalAveragePool", *found]
    assert [edit.what for edit in report.edits] == ["became a GlobalAveragePool"]
    assert difference(before, after) < 1e-6


@pytest.mark.parametrize("axes", [[1], [2], [1, 2, 3]], ids=str)
def test_another_mean_stays(axes: list[int]) -> None:
    text = f"(float[N, 4, 6, 7] x) => (float[A, B, C, D] y) {{ y = ReduceMean <axes = {axes}> (x) }}"
    assert ops(fold(build(text))[0]) == ["ReduceMean"]


def test_types_are_asked_behind_a_node_that_was_taken_out() -> None:
    text = "(float[N, 4, 6, 7] x) => (float[N, 4, 1, 1] y) { d = Dropout (x)  y = ReduceMean <axes = [2, 3]> (d) }"
    assert ops(fold(build(text, 13))[0]) == ["GlobalAveragePool"]
