"""F(m, r): exact against direct convolution, with the multiplications that theory promises."""

from fractions import Fraction

import numpy as np
import pytest

from onnx_lathe.passes.numerics import winograd
from onnx_lathe.passes.numerics.winograd import cook_toom, filter_1d, filter_2d, least_error_points

SIZES = [(2, 3), (4, 3), (6, 3), (3, 2), (2, 5), (1, 3), (4, 1)]


def correlated(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[O, H - r + 1, W - r + 1], in float64."""
    windows = np.lib.stride_tricks.sliding_window_view(image.astype(np.float64), weight.shape[2:], (1, 2))
    return np.einsum("chwij,ocij->ohw", windows, weight.astype(np.float64))


@pytest.mark.parametrize("m, r", SIZES)
def test_exact_in_rational_arithmetic(m: int, r: int) -> None:
    """Not a rounding error is left: the identity holds for every pair of unit vectors."""
    transform = cook_toom(m, r)
    for tap in range(r):
        for at in range(transform.size):
            products = [transform.kernel[i][tap] * transform.data[i][at] for i in range(transform.size)]
            found = [sum(a * p for a, p in zip(row, products, strict=True)) for row in transform.output]
            assert found == [Fraction(int(at == result + tap)) for result in range(m)]


def test_lavins_f_2_3() -> None:
    """4 multiplications in place of 6; the matrices of Lavin and Gray, equation 8, but for signs of rows."""
    output, kernel, data = cook_toom(2, 3).arrays()
    assert len(kernel) == 4
    np.testing.assert_array_equal(np.abs(output), [[1, 1, 1, 0], [0, 1, 1, 1]])
    np.testing.assert_array_equal(np.abs(kernel), [[1, 0, 0], [0.5] * 3, [0.5] * 3, [0, 0, 1]])
    np.testing.assert_array_equal(np.abs(data), [[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1]])


@pytest.mark.parametrize(
    "m, dimensions, saved", [(2, 1, 6 / 4), (2, 2, 36 / 16), (4, 2, 4.0), (6, 2, 324 / 64)]
)
def test_multiplications(m: int, dimensions: int, saved: float) -> None:
    assert winograd.multiplications_saved(m, 3, dimensions) == saved


@pytest.mark.parametrize("m, factor", [(2, 16 / 9), (4, 36 / 9), (6, 64 / 9)])
def test_memory(m: int, factor: float) -> None:
    assert winograd.memory_factor(m, 3) == factor


@pytest.mark.parametrize("m, r", SIZES)
@pytest.mark.parametrize("length", [7, 12, 25])
def test_one_dimension(m: int, r: int, length: int) -> None:
    signal, kernel = (
        np.random.default_rng(0).standard_normal(length),
        np.random.default_rng(1).standard_normal(r),
    )
    found = filter_1d(signal, kernel, cook_toom(m, r))
    np.testing.assert_allclose(found, np.correlate(signal, kernel), rtol=0, atol=1e-12)


@pytest.mark.parametrize("m, r", SIZES)
@pytest.mark.parametrize("size", [(7, 9), (8, 8), (13, 6)])
def test_two_dimensions(m: int, r: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    image, weight = rng.standard_normal((3, *size)), rng.standard_normal((4, 3, r, r))
    found = filter_2d(image, weight, cook_toom(m, r))
    np.testing.assert_allclose(found, correlated(image, weight), rtol=0, atol=1e-11)


def test_points_of_least_error() -> None:
    """For F(4, 3) those that Barabasz et al. found, or their mirror image; for F(6, 3) Lavin's own."""
    assert set(map(abs, least_error_points(4, 3))) == {0, 1, 2, Fraction(1, 2)}
    assert set(least_error_points(6, 3)) == set(map(Fraction, winograd.LAVIN[:7]))
    assert least_error_points(2, 3) == (0, 1, -1)
    assert least_error_points(1, 1) == ()


def test_they_round_more_finely() -> None:
    """Measured in float32, with float64 as truth."""
    rng = np.random.default_rng(4)
    image, weight = rng.standard_normal((16, 26, 26)), rng.standard_normal((16, 16, 3, 3))
    wanted = correlated(image, weight)
    lavin, found = (
        np.sqrt(np.square(filter_2d(image.astype(np.float32), weight, transform) - wanted).mean())
        for transform in (cook_toom(4, 3), cook_toom(4, 3, least_error_points(4, 3)))
    )
    assert found < 0.95 * lavin


@pytest.mark.parametrize("m", [2, 4, 6])
def test_the_error_is_within_its_bound(m: int) -> None:
    """One tile: unit roundoffs times the amplification, and a few for the sums."""
    rng = np.random.default_rng(5)
    transform = cook_toom(m, 3)
    data, kernel = rng.standard_normal((200, transform.size)), rng.standard_normal((200, 3))
    bound = winograd.amplification(transform.arrays(), 1) * 2.0**-24 * (transform.size + 4)
    for row, taps in zip(data, kernel, strict=True):
        found = filter_1d(row.astype(np.float32), taps.astype(np.float32), transform)
        wanted = np.correlate(row.astype(np.float32).astype(np.float64), taps.astype(np.float32))
        assert np.abs(found - wanted).max() <= bound * np.linalg.norm(row) * np.linalg.norm(taps)


@pytest.mark.parametrize("points", [(0, 1), (0, 1, 1), (0, 1, -1, 2)])
def test_wrong_points(points: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"F\(2, 3\) takes 3 different points"):
        cook_toom(2, 3, points)
