"""INT8 levels whose products with UINT8 add up in pairs in 16 bits."""

import numpy as np
import pytest

from onnx_lathe.passes.numerics.quantization import affine, pair_sums
from tests.support.builders import random
from tests.support.seeds import generator


def largest_pair(levels: np.ndarray) -> int:
    """The largest magnitude that two products of neighbours with activations of 0 to 255 add up to."""
    even = np.pad(levels.astype(int), ((0, 0), (0, levels.shape[1] % 2)))
    first, second = even[:, 0::2], even[:, 1::2]
    high = 255 * (np.maximum(first, 0) + np.maximum(second, 0))
    low = 255 * (np.minimum(first, 0) + np.minimum(second, 0))
    return int(max(high.max(), (-1 - low).max()))


@pytest.mark.parametrize("columns", [1, 2, 27, 64, 577])
def test_no_pair_saturates(columns: int) -> None:
    rows = random(40, columns)
    levels, scale = pair_sums.without_saturation(rows, affine.channel_scale(rows, 0))
    assert largest_pair(levels) <= np.iinfo(np.int16).max
    assert not pair_sums.saturates(levels).any()
    assert (scale <= 2.0001 * affine.channel_scale(rows, 0)).all()


def test_the_worst_levels_are_seen_and_mended() -> None:
    rows = np.array([[127, 127, 3], [-128, -1, 0], [64, 64, 1], [127, -128, 9]], np.float32)
    assert pair_sums.saturates(rows.astype(np.int8)).tolist() == [True, True, False, False]
    levels, _ = pair_sums.without_saturation(rows, np.ones(4, np.float32))
    assert largest_pair(levels) <= np.iinfo(np.int16).max


def test_a_row_that_cannot_saturate_is_rounded_to_the_nearest() -> None:
    rows = np.array([[100, 20, -90, -30], [120, 120, 1, 1]], np.float32)
    levels, scale = pair_sums.without_saturation(rows, np.ones(2, np.float32))
    assert levels[0].tolist() == [100, 20, -90, -30]
    assert scale[0] == 1
    assert scale[1] > 1


def test_zeros_stay_zero() -> None:
    rows = random(30, 50) * (generator().random((30, 50)) < 0.5)
    levels, _ = pair_sums.without_saturation(rows, affine.channel_scale(rows, 0))
    assert not levels[rows == 0].any()


def test_less_is_lost_than_by_7_bits() -> None:
    rows = random(64, 576)
    scale = affine.channel_scale(rows, 0)
    levels, wider = pair_sums.without_saturation(rows, scale)
    halves = affine.quantize(rows, 2 * scale, 0)
    ours = affine.signal_to_noise_db(rows, affine.dequantize(levels, wider, 0))
    seven = affine.signal_to_noise_db(rows, affine.dequantize(halves, 2 * scale, 0))
    eight = affine.signal_to_noise_db(rows, affine.dequantize(affine.quantize(rows, scale, 0), scale, 0))
    assert seven + 3 < ours < eight
    assert eight - ours < 3
