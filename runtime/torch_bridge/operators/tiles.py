"""Minimal filtering (Winograd) in half-precision arithmetic, to train a network for a processor that computes
its convolutions so.

    Y = A^T ((G g G^T) * (B^T d B)) A        per tile d of the data, g a kernel; summed over channels before A

The steps are those of onnx_lathe/tiles.py, each rounded to float16 once, as ncnn's kernels do; weights are transformed
in float32 and rounded once. Rounding passes gradients straight through, and what is left is linear: the gradient is
that of the convolution, at data and weights rounded to float16.
Source: Fernandez-Marques et al., "Searching for Winograd-aware Quantized Networks", MLSys 2020, section 3.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnx_lathe.tiles import TAPS, Program, Tiles

PIECE = 1 << 22
"""Numbers in the transformed data, or sums, of so many samples as are computed at once: what a cache holds."""


def tiled(x: Tensor, weight: Tensor, bias: Tensor | None, transform: Tiles, sides: Sequence[int]) -> Tensor:
    """Convolution of x [N, C, H, W] with weight [O, C, r, r], stride 1, in x's type. `sides` are the zeros around
    x as `torch.nn.functional.pad` takes them.
    """
    result: Tensor = _Tiled.apply(x, weight, bias, transform, list(sides))
    return result


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        transform: Tiles,
        sides: list[int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sides, ctx.has_bias = sides, bias is not None
        with torch.autocast(x.device.type, enabled=False):
            return _computed(x, weight, bias, transform, sides)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight = ctx.saved_tensors
        wide = torch.promote_types(x.dtype, torch.float32)
        padded = F.pad(_rounded(x).to(wide), ctx.sides)
        of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradients[0].to(wide), padded, _rounded(weight).to(wide), [len(weight)],
            (1, 1), (0, 0), (1, 1), False, (0, 0), 1, [*ctx.needs_input_grad[:2], ctx.has_bias],
        )  # fmt: skip
        if of_x is not None:
            of_x = F.pad(of_x, [-side for side in ctx.sides]).to(x.dtype)
        return of_x, None if of_weight is None else of_weight.to(weight.dtype), of_bias, None, None


def _rounded(x: Tensor) -> Tensor:
    return x.to(torch.float16)


def _computed(x: Tensor, weight: Tensor, bias: Tensor | None, transform: Tiles, sides: list[int]) -> Tensor:
    m, n, r = transform.m, transform.size, TAPS
    padded = F.pad(_rounded(x), sides)
    rows, columns = (size - r + 1 for size in padded.shape[2:])
    down, across = -(-rows // m), -(-columns // m)
    padded = F.pad(padded, [0, across * m + r - 1 - padded.shape[3], 0, down * m + r - 1 - padded.shape[2]])
    outputs, inputs = weight.shape[:2]
    kernels = weight.float().permute(2, 3, 0, 1).reshape(r, r, -1)
    filters = _rounded(_rows_first(transform.kernel, kernels)).reshape(n * n, outputs, inputs)
    form = (
        torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    )
    result = x.new_empty((len(x), outputs, rows, columns)).contiguous(memory_format=form)
    at_once = max(1, PIECE // (n * n * max(inputs, outputs) * down * across))
    for start in range(0, len(x), at_once):
        windows = (
            padded[start : start + at_once].unfold(2, n, m).unfold(3, n, m)
        )  # [N, C, down, across, n, n]
        count = len(windows)
        tiles = _rows_first(transform.data, windows.permute(4, 5, 1, 0, 2, 3).reshape(n, n, -1))
        sums = _summed(filters, tiles.reshape(n * n, inputs, -1))
        tile = _columns_first(transform.output, sums.view(n, n, -1))
        tile = tile.reshape(m, m, outputs, count, down, across)
        if bias is not None:
            tile += _rounded(bias).view(-1, 1, 1, 1)
        joined = tile.permute(3, 2, 4, 0, 5, 1).reshape(count, outputs, down * m, across * m)
        result[start : start + at_once] = joined[:, :, :rows, :columns]
    return result


def _summed(filters: Tensor, tiles: Tensor) -> Tensor:
    """Products of filters [P, O, C] and tiles [P, C, T], each added to the sum of those before: [P, O, T]."""
    sums = tiles.new_zeros((len(tiles), filters.shape[1], tiles.shape[2]))
    for channel in range(filters.shape[2]):
        # PyTorch computes addcmul of halves in float32, where their product is exact, and rounds once.
        sums.addcmul_(filters[:, :, channel, None], tiles[:, channel, None])
    return sums


def _rows_first(program: Program, blocks: Tensor) -> Tensor:
    """Blocks of the first two axes, transformed along their rows and then along their columns."""
    return _columns_first(program, blocks.transpose(0, 1)).transpose(0, 1)


def _columns_first(program: Program, blocks: Tensor) -> Tensor:
    down = torch.stack(_run(program, blocks.unbind(0)))
    return torch.stack(_run(program, down.unbind(1)), dim=1)


def _run(program: Program, given: Sequence[Tensor]) -> list[Tensor]:
    """The results of a program, each step rounded once, in the type of what it is given: float16 or float32."""
    values = list(given)
    for base, factor, term in program.steps:
        values.append(_fused(None if base is None else values[base], factor, values[term]))
    return [values[at] for at in program.results]


def _fused(base: Tensor | None, factor: float, term: Tensor) -> Tensor:
    """base + factor term. PyTorch computes it of halves in float32 and rounds once; float32 is widened here."""
    rounded = torch.tensor(factor, dtype=term.dtype, device=term.device)
    if term.dtype == torch.float16:
        return term * rounded if base is None else torch.addcmul(base, term, rounded)
    product = term.double() * rounded.double()
    return (product if base is None else base.double() + product).to(term.dtype)
