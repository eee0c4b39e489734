"""Convolutions as a runtime's kernels compute them, rounding by rounding: direct, and by the programs of
onnx_lathe/tiles.py.

A step is rounded once, as a fused multiply-add is: it is computed in a wider type, where the product is exact, and
rounded. (In float32 the sum of halves is rounded there first, which moves one in some thousands of results by a bit.)
"""

from collections.abc import Iterable, Sequence

import numpy as np

from onnx_lathe.tiles import TAPS, Program, Tiles

WIDER: dict[type[np.floating], type[np.floating]] = {np.float16: np.float32, np.float32: np.float64}
PACKS = (16, 8, 4)
"""Channels that lie together in memory, where their number allows it."""


def run(program: Program, given: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The results of a program, in the type of what it is given. Factors are rounded to it first."""
    values = list(given)
    for base, factor, term in program.steps:
        values.append(
            fused(None if base is None else values[base], values[term].dtype.type(factor), values[term])
        )
    return [values[at] for at in program.results]


def fused(base: np.ndarray | None, left: np.ndarray | np.floating, right: np.ndarray) -> np.ndarray:
    """base + left right in the type of `right`, rounded once; float64 as NumPy does it."""
    kind = right.dtype.type
    wide = WIDER.get(kind, kind)
    product = left.astype(wide) * right.astype(wide)
    return (product if base is None else base.astype(wide) + product).astype(kind)


def matrix(program: Program) -> np.ndarray:
    """The matrix that a program multiplies by, [results, inputs], float64."""
    return np.stack(run(program, list(np.eye(program.inputs))))


def matrices(tiles: Tiles) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(A^T, G, B^T)."""
    return matrix(tiles.output), matrix(tiles.kernel), matrix(tiles.data)


def by_tiles(image: np.ndarray, weight: np.ndarray, tiles: Tiles) -> np.ndarray:
    """Results [O, H - 2, W - 2] of image [C, H, W], in its type, and weight [O, C, 3, 3], float32 or float64."""
    kind, m, n = image.dtype.type, tiles.m, tiles.size
    rows, columns = (size - TAPS + 1 for size in image.shape[1:])
    down, across = -(-rows // m), -(-columns // m)
    padded = np.zeros((len(image), down * m + TAPS - 1, across * m + TAPS - 1), kind)
    padded[:, : image.shape[1], : image.shape[2]] = image
    windows = np.lib.stride_tricks.sliding_window_view(padded, (n, n), (1, 2))[:, ::m, ::m]
    blocks = rows_first(tiles.data, windows.transpose(3, 4, 0, 1, 2))  # [n, n, C, down, across]
    filters = rows_first(tiles.kernel, weight.transpose(2, 3, 0, 1)).astype(kind)  # [n, n, O, C]
    summed = np.zeros((n, n, len(weight), down, across), kind)
    for channel in range(len(image)):
        summed = fused(summed, filters[:, :, :, channel, None, None], blocks[:, :, None, channel])
    results = columns_first(tiles.output, summed)  # [m, m, O, down, across]
    joined = results.transpose(2, 3, 0, 4, 1).reshape(len(weight), down * m, across * m)
    return joined[:, :rows, :columns]


def rows_first(program: Program, blocks: np.ndarray) -> np.ndarray:
    """Blocks of the first two axes, transformed along their rows and then along their columns."""
    return columns_first(program, blocks.swapaxes(0, 1)).swapaxes(0, 1)


def columns_first(program: Program, blocks: np.ndarray) -> np.ndarray:
    down = np.stack(run(program, list(blocks)))
    return np.stack(run(program, list(down.swapaxes(0, 1)))).swapaxes(0, 1)


def direct(image: np.ndarray, weight: np.ndarray, lanes: int) -> np.ndarray:
    """Results of image [C, H, W], in its type, and weight [O, C, r, r], rounded to it: one sum of all products, over
    packs of at most `lanes` channels, in a pack over taps, and at a tap over its channels.

    Source: ncnn, src/layer/arm/convolution_3x3_pack8_fp16s.h, convolution_im2col_gemm_fp16s.h (K of pa, maxk, inch/pa).
    """
    kind, taps = image.dtype.type, weight.shape[-1]
    kernels = weight.astype(kind)
    rows, columns = (size - taps + 1 for size in image.shape[1:])
    summed = np.zeros((len(weight), rows, columns), kind)
    for channel, down, across in _order(len(image), taps, lanes):
        window = image[channel, down : down + rows, across : across + columns]
        summed = fused(summed, kernels[:, channel, down, across, None, None], window)
    return summed


def _order(channels: int, taps: int, lanes: int) -> Iterable[tuple[int, int, int]]:
    """(channel, row, column) of each product."""
    pack = next((pack for pack in PACKS if pack <= lanes and channels % pack == 0), 1)
    return (
        (first + lane, down, across)
        for first in range(0, channels, pack)
        for down in range(taps)
        for across in range(taps)
        for lane in range(pack)
    )
