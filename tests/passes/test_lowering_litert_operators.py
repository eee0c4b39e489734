"""Each operator beside convolutions, lowered for LiteRT: equal outputs, and the Transposes that are left."""

import numpy as np
import pytest

from tests.support import layout_cases
from tests.support.builders import build, random
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


def test_a_crop_keeps_its_axes() -> None:
    """Its region of interest has two numbers for each of them."""
    model = build(
        """(float[2, 4, 6, 8] x) => (float[2, 4, 3, 3] y) {
        c = Conv (x, w)
        y = Resize <mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize", axes = [2, 3]> (c, roi, "", s)
        }""",
        18,
        w=random(4, 4, 1, 1),
        roi=np.array([0.2, 0.1, 0.8, 0.9], np.float32),
        s=np.array([3, 3], np.int64),
    )
    assert_same(model, lower(model), IMAGE)
