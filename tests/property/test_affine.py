"""Symmetric INT8 arithmetic, for any finite weight."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from onnx_lathe.passes.numerics.quantization import affine

VALUES = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
MATRICES = arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=VALUES)
ANY_TIME = settings(deadline=None)  # a busy machine may take any time
ROUNDING = 1 + 1e-5  # float32 rounds the scale, the quotient and the product


@ANY_TIME
@given(MATRICES, st.data())
def test_the_error_is_at_most_half_a_step(weight: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, weight.ndim - 1))
    scale = affine.channel_scale(weight, axis)
    levels = affine.quantize(weight, scale, axis)
    restored = affine.dequantize(levels, scale, axis)
    step = np.moveaxis(np.broadcast_to(scale, np.moveaxis(weight, axis, -1).shape), -1, axis)
    assert (
        np.abs(restored.astype(np.float64) - weight) <= step * 0.5 * ROUNDING + np.abs(weight) * 1e-6
    ).all()
    assert np.abs(levels.astype(int)).max() <= affine.LEVELS
    assert not levels[weight == 0].any()


@ANY_TIME
@given(MATRICES, st.data())
def test_quantizing_twice_changes_nothing(weight: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, weight.ndim - 1))
    scale = affine.channel_scale(weight, axis)
    levels = affine.quantize(weight, scale, axis)
    np.testing.assert_array_equal(
        affine.quantize(affine.dequantize(levels, scale, axis), scale, axis), levels
    )


@ANY_TIME
@given(VALUES, VALUES, st.lists(st.floats(0, 1), min_size=1))
def test_values_inside_a_range_are_not_clipped(first: float, second: float, positions: list[float]) -> None:
    low, high = min(first, second), max(first, second)
    values = np.array([low + (high - low) * position for position in positions], np.float32)
    scale = affine.range_scale(low, high)
    assert scale > 0
    error = np.abs(affine.dequantize(affine.quantize(values, scale), scale).astype(np.float64) - values)
    assert (error <= scale * 0.5 * ROUNDING + np.abs(values) * 1e-6).all()


@ANY_TIME
@given(MATRICES)
def test_negation_only_negates(weight: np.ndarray) -> None:
    scale = affine.channel_scale(weight, 0)
    np.testing.assert_array_equal(affine.quantize(-weight, scale, 0), -affine.quantize(weight, scale, 0))
