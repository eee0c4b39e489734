"""Weight scales by least squared error, and channels that an outlier spoils."""

import numpy as np
import pytest

from onnx_lathe.passes.numerics.quantization import affine
from onnx_lathe.passes.numerics.quantization.scale_search import crushed_channels, least_error_scale
from tests.support.builders import build
from tests.support.int8 import CONV, Form, quantize

WEIGHT = np.random.default_rng(2).standard_normal((6, 40, 5)).astype(np.float32)


def errors(weight: np.ndarray, scale: np.ndarray, axis: int) -> np.ndarray:
    restored = affine.dequantize(affine.quantize(weight, scale, axis), scale, axis)
    return np.square(weight.astype(np.float64) - restored).sum(
        axis=tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    )


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_no_channel_is_worse_than_with_its_largest_weight(axis: int) -> None:
    scale = least_error_scale(WEIGHT, axis)
    assert (scale.dtype, scale.shape) == (np.float32, (WEIGHT.shape[axis],))
    found, largest = errors(WEIGHT, scale, axis), errors(WEIGHT, affine.channel_scale(WEIGHT, axis), axis)
    assert (found <= largest * (1 + 1e-6)).all()
    assert found.sum() < largest.sum()


def test_an_outlier_is_clipped() -> None:
    """A range R costs n (R/127)^2 / 12 in rounding and (30 - R)^2 in clipping. For n = 200,000 they are
    least together at R = 14.8; that is half of what R = 30 costs.
    """
    weight = np.random.default_rng(3).standard_normal((2, 200_000)).astype(np.float32)
    weight[1, 7] = 30
    scale = least_error_scale(weight, 0)
    assert 11 < scale[1] * 127 < 19
    assert errors(weight, scale, 0)[1] < 0.6 * errors(weight, affine.channel_scale(weight, 0), 0)[1]


def test_a_channel_of_zeros_has_the_smallest_scale() -> None:
    weight = WEIGHT.copy()
    weight[3] = 0
    assert least_error_scale(weight, 0)[3] == affine.SMALLEST_SCALE
    assert crushed_channels(weight, weight, 0) == 0


def test_channels_that_an_outlier_spoils_are_counted() -> None:
    weight = np.random.default_rng(4).standard_normal((6, 4, 3, 3)).astype(np.float32)
    weight[1, 0, 0, 0] = 1000
    weight[4] = 0
    model = build(CONV.format(nodes="y = Conv (x, w)"), w=weight)
    for scales in ("max", "mse"):
        result, report = quantize(model, weights=scales)
        assert report.edits[-1].what.endswith(
            "; 1 channels have an outlier beside which most weights round to zero"
        )
        assert Form(result).constants["w_scale"][4] == affine.SMALLEST_SCALE


def test_the_option_writes_these_scales() -> None:
    model = build(
        CONV.format(nodes="y = Conv (x, w)"), w=WEIGHT[:, :36].reshape(6, 4, 3, 3, 5)[..., 0].copy()
    )
    weight = Form(model).constants["w"]
    np.testing.assert_array_equal(
        Form(quantize(model, weights="mse")[0]).constants["w_scale"], least_error_scale(weight, 0)
    )
