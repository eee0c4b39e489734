"""passes/numerics/quantization/rounding.py: the levels next to each value, windows of convolutions, and the
bounded sample.
"""

import numpy as np
import pytest

from onnx_lathe.passes.numerics.quantization import affine
from onnx_lathe.passes.numerics.quantization.rounding import Axis, Reservoir, crops, neighbours
from tests.support.builders import build, random, run


def test_the_nearest_level_is_one_of_the_two() -> None:
    values = random(6, 4, 3, 3)
    scale = affine.channel_scale(values, 0)
    exact, low, high = neighbours(values, scale.reshape(6, 1, 1, 1))
    nearest = affine.quantize(values, scale, 0)
    assert np.isin(high.astype(int) - low, (0, 1)).all()
    assert ((nearest == low) | (nearest == high)).all()
    assert (low <= exact + 1e-4).all()
    assert (exact <= high + 1e-4).all()
    assert {levels.dtype for levels in (low, high)} == {np.dtype(np.int8)}


def test_a_value_on_a_level_or_beyond_the_last_has_no_choice() -> None:
    _, low, high = neighbours(np.float32([[0.0, 0.5, 3.0, 9.9, -9.9]]), np.float32([[1.0]]), largest=7)
    assert low.tolist() == [[0, 0, 3, 7, -7]]
    assert high.tolist() == [[0, 1, 3, 7, -7]]


@pytest.mark.parametrize("kind", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("size, kernel, stride", [(8, 3, 1), (7, 3, 2), (9, 2, 3), (8, 4, 2)])
def test_padding_by_name_is_that_of_onnx_runtime(kind: str, size: int, kernel: int, stride: int) -> None:
    before, after = Axis(kernel, stride, 1).same_padding(size, kind == "SAME_UPPER")
    text, weight, feeds = (
        "(float[N, 2, L] x) => (float[N, 4, P] y) {{ y = Conv <{}> (x, w) }}",
        random(4, 2, kernel),
        {"x": random(3, 2, size)},
    )
    named = build(text.format(f'auto_pad = "{kind}", strides = [{stride}]'), w=weight)
    numbered = build(text.format(f"pads = [{before}, {after}], strides = [{stride}]"), w=weight)
    np.testing.assert_allclose(run(named, feeds)["y"], run(numbered, feeds)["y"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size, stride, dilation", [(8, 1, 1), (7, 2, 1), (8, 2, 2), (9, 3, 1)])
def test_a_window_gives_what_the_whole_convolution_gives_there(size: int, stride: int, dilation: int) -> None:
    weight, feeds, axis = random(4, 2, 3, 3), {"x": random(5, 2, size, size)}, Axis(3, stride, dilation)
    text = "(float[N, 2, H, W] x) => (float[N, 4, P, Q] y) {{ y = Conv <strides = [{0}, {0}], dilations = [{1}, {1}] {2}> (x, w) }}"
    whole = run(build(text.format(stride, dilation, ", pads = [1, 2, 2, 1]"), w=weight), feeds)["y"]
    padded = np.pad(feeds["x"], [(0, 0), (0, 0), (1, 2), (2, 1)])
    source, marked, target = crops(padded, [-whole, whole], [axis, axis], 2, np.random.default_rng(0))
    assert target.shape == (5, 4, 2, 2)
    np.testing.assert_array_equal(marked, -target)
    cut = run(build(text.format(stride, dilation, ""), w=weight), {"x": source})["y"]
    np.testing.assert_allclose(cut, target, rtol=0, atol=1e-5)


def test_windows_lie_anywhere_in_the_image() -> None:
    image = np.arange(36, dtype=np.float32).reshape(1, 1, 6, 6).repeat(400, 0)
    source, target = crops(image, [image], [Axis(1, 1, 1)] * 2, 2, np.random.default_rng(0))
    assert set(target[:, 0, 0, 0]) == {6 * row + column for row in range(5) for column in range(5)}
    np.testing.assert_array_equal(source, target)


def test_a_small_image_is_taken_whole() -> None:
    image = random(3, 2, 4, 1)
    source, target = crops(image, [image], [Axis(1, 1, 1)] * 2, 8, np.random.default_rng(0))
    np.testing.assert_array_equal(source, image)
    np.testing.assert_array_equal(target, image)


def test_a_reservoir_keeps_everything_while_there_is_room() -> None:
    reservoir, rows = Reservoir(1 << 20, 100, seed=0), random(7, 3)
    for part in (rows[:4], rows[4:4], rows[4:]):
        reservoir.add([part, -part])
    kept, mirrored = reservoir.sample
    np.testing.assert_array_equal(kept, rows)
    np.testing.assert_array_equal(mirrored, -rows)


@pytest.mark.parametrize("limit_bytes, most", [(50 * 8, 1000), (1 << 20, 50)], ids=["by size", "by number"])
def test_a_reservoir_is_bounded_and_each_unit_as_likely(limit_bytes: int, most: int) -> None:
    taken = np.zeros(1000)
    for seed in range(400):
        reservoir = Reservoir(limit_bytes, most, seed)
        for rows in np.arange(1000, dtype=np.float32).reshape(20, 50, 1):
            reservoir.add([rows, -rows])
        kept, mirrored = reservoir.sample
        assert len(kept) == 50
        np.testing.assert_array_equal(mirrored, -kept)
        taken[kept.astype(int)[:, 0]] += 1
    by_batch = taken.reshape(20, 50).sum(1) / (400 * 50)
    np.testing.assert_allclose(by_batch, 1 / 20, rtol=0, atol=0.01)


def test_a_reservoir_leaves_out_what_is_shaped_otherwise() -> None:
    reservoir, rows = Reservoir(1 << 20, 100, seed=0), random(3, 4, 4)
    for part in (rows, random(3, 4, 2), random(3, 4, 4)[:0]):
        reservoir.add([part])
    np.testing.assert_array_equal(reservoir.sample[0], rows)


def test_an_empty_reservoir_has_no_arrays() -> None:
    assert Reservoir(100, 10, seed=0).sample == []
