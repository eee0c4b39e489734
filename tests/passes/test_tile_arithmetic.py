"""Convolutions as ncnn's kernels compute them: exact in float64, and as coarse as measured in float16."""

import numpy as np
import pytest

from onnx_lathe.kernels import DIRECT, NAMES
from onnx_lathe.passes.numerics.tile_arithmetic import by_tiles, direct, fused, matrices
from onnx_lathe.passes.numerics.winograd import cook_toom
from onnx_lathe.tiles import NCNN

SQ2 = np.sqrt(2)
MEASURED = {1: (2e-3, 1.2e-2), 2: (1.3e-3, 6e-3), 4: (6e-3, 2.6e-2), 6: (3.7e-2, 8.7e-2)}
"""Errors of ncnn's own ARM kernels in float16 arithmetic, run under emulation on layers of 64 to 512 channels: of the
largest result. Networks and weights differ, and extremes do: `WITHIN`.
"""
WITHIN = 1.6


def exact(image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(image.astype(np.float64), (3, 3), (1, 2))
    return np.einsum("chwij,ocij->ohw", windows, weight.astype(np.float64), optimize=True)


def layer(inputs: int, seed: int, size: int = 26) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = np.maximum(rng.standard_normal((inputs, size, size)), 0)
    return image.astype(np.float32), (rng.standard_normal((16, inputs, 3, 3)) / np.sqrt(9 * inputs)).astype(
        np.float32
    )


@pytest.mark.parametrize("m", NCNN)
@pytest.mark.parametrize("size", [(26, 26), (7, 9), (8, 13), (3, 3)])
def test_they_are_convolution_in_float64(m: int, size: tuple[int, int]) -> None:
    """F(4, 3) interpolates at roots of two, which float64 has to its last place."""
    rng = np.random.default_rng(0)
    image, weight = rng.standard_normal((5, *size)), rng.standard_normal((4, 5, 3, 3))
    wanted = exact(image, weight)
    assert np.abs(by_tiles(image, weight, NCNN[m]) - wanted).max() <= 1e-12
    assert np.abs(direct(image, weight, 8) - wanted).max() <= 1e-12


def test_the_matrices_of_f_4_3() -> None:
    """As ncnn's comments write them (src/layer/arm/convolution_3x3_winograd_fp16s.h, 3041, 3141, 3736)."""
    output, kernel, data = matrices(NCNN[4])
    np.testing.assert_allclose(
        kernel,
        [
            [1, 0, 0],
            [-2 / 3, -SQ2 / 3, -1 / 3],
            [-2 / 3, SQ2 / 3, -1 / 3],
            [1 / 6, SQ2 / 6, 1 / 3],
            [1 / 6, -SQ2 / 6, 1 / 3],
            [0, 0, 1],
        ],
        rtol=0,
        atol=1e-15,
    )
    np.testing.assert_allclose(
        data,
        [
            [1, 0, -2.5, 0, 1, 0],
            [0, -SQ2, -2, SQ2 / 2, 1, 0],
            [0, SQ2, -2, -SQ2 / 2, 1, 0],
            [0, -SQ2 / 2, -0.5, SQ2, 1, 0],
            [0, SQ2 / 2, -0.5, -SQ2, 1, 0],
            [0, 1, 0, -2.5, 0, 1],
        ],
        rtol=0,
        atol=1e-15,
    )
    np.testing.assert_allclose(
        output,
        [
            [1, 1, 1, 1, 1, 0],
            [0, SQ2 / 2, -SQ2 / 2, SQ2, -SQ2, 0],
            [0, 0.5, 0.5, 2, 2, 0],
            [0, SQ2 / 4, -SQ2 / 4, SQ2 * 2, -SQ2 * 2, 1],
        ],
        rtol=0,
        atol=1e-15,
    )


@pytest.mark.parametrize("m", [2, 6])
def test_the_others_are_at_lavins_points(m: int) -> None:
    """Products of rows are those of Cook-Toom's matrices: rows are only scaled against each other."""
    ours, theirs = (
        np.einsum("ap,pk,pd->pakd", *parts) for parts in (matrices(NCNN[m]), cook_toom(m, 3).arrays())
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("m", NAMES, ids=NAMES.get)
@pytest.mark.parametrize("inputs", [64, 128, 256, 512])
def test_errors_in_half_precision_are_those_measured(m: int, inputs: int) -> None:
    if m == 6 and inputs > 128:
        pytest.skip("ARM's kernels take F(6 x 6) for at most 128 channels")
    image, weight = layer(inputs, seed=inputs)
    half, wanted = image.astype(np.float16), exact(image, weight)
    found = direct(half, weight, 8) if m == DIRECT else by_tiles(half, weight, NCNN[m])
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    low, high = MEASURED[m]
    assert low / WITHIN <= error <= high * WITHIN


def test_a_step_is_rounded_once() -> None:
    """A product of halves has 22 digits: rounded by itself it would be 1, and nothing be left."""
    small = np.float16(2.0**-11)
    left = np.float16(1) + np.float16(2.0**-10)
    product = np.array([np.float16(1) - small], np.float16)
    assert fused(np.array([-1], np.float16), left, product).item() == np.float16(
        float(left) * float(product[0]) - 1
    )
    assert fused(None, left, product).item() == 1.0


def test_half_precision_rounds_every_sum() -> None:
    """2048 + 1 is 2048 there, however many ones follow; a sum over 65504 is infinite, whatever comes after."""
    ones = np.ones((1, 1, 3, 3), np.float32)
    image = np.zeros((1, 3, 3), np.float16)
    image[0, 0] = 2048, 1, 1
    assert direct(image, ones, 8).item() == 2048
    assert direct(image.astype(np.float32), ones, 8).item() == 2050
    signs = np.float32([[[[1, 1, -1], [0, 0, 0], [0, 0, 0]]]])
    with np.errstate(over="ignore"):
        assert np.isinf(direct(np.full((1, 3, 3), 6e4, np.float16), signs, 8).item())


def test_direct_adds_packs_of_channels() -> None:
    """Eight channels at a tap before the next tap; where eight do not fit, one channel after another."""
    image = np.zeros((8, 3, 3), np.float16)
    image[0, 0, 0], image[0, 0, 1], image[7, 0, 0] = 2048, 1, 1.5
    # the 1.5 first: 2050, and then the tie at 2051 goes to 2052; the 1 first: the tie at 2049 goes to 2048, and then 2050
    assert direct(image, np.ones((1, 8, 3, 3), np.float32), 8).item() == 2052
    odd = np.concatenate([image, np.zeros((1, 3, 3), np.float16)])
    assert direct(odd, np.ones((1, 9, 3, 3), np.float32), 8).item() == 2050
