"""Each operator beside convolutions, lowered for LiteRT: equal outputs, and the Transposes that are left."""

import numpy as np
import pytest

from tests.support import layout_cases
from tests.support.channels_last import assert_same, lower, transposes
from tests.support.layout_cases import BEHIND, BETWEEN

IMAGE = {"x": np.random.default_rng(2).standard_normal((2, 4, 6, 8)).astype(np.float32)}


@pytest.mark.parametrize("name", BETWEEN)
def test_an_operator_between_convolutions(name: str) -> None:
    model, left = layout_cases.model(BETWEEN[name]), BETWEEN[name][-1]
    lowered = lower(model)
    assert left is None or len(transposes(lowered)) == left
    assert_same(model, lowered, IMAGE)


@pytest.mark.parametrize("name", BEHIND)
def test_an_operator_behind_a_convolution(name: str) -> None:
    model, left = layout_cases.model(BEHIND[name]), BEHIND[name][-1]
    lowered = lower(model)
    assert left is None or len(transposes(lowered)) == left
    assert_same(model, lowered, IMAGE)


@pytest.mark.parametrize("name", BETWEEN)
def test_channels_last_at_both_ends(name: str) -> None:
    """Then two Transposes fewer are left."""
    model, left = layout_cases.model(BETWEEN[name]), BETWEEN[name][-1]
    lowered = lower(model, "nhwc")
    assert left is None or len(transposes(lowered)) == left - 2
    assert_same(model, lowered, IMAGE, last=True)
