"""Layers of Core ML's programs in NumPy: convolutions, pooling, normalizations, recurrent layers, sampling."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Amounts = list[tuple[int, int]]


def amounts(
    x: np.ndarray, kernel: Sequence[int], strides: Any, pad_type: str, pad: Any, dilations: Any
) -> Amounts:
    """What is added before and after each spatial axis."""
    if pad_type == "custom":
        return [(int(before), int(after)) for before, after in np.reshape(pad, (-1, 2))]
    found = []
    for size, taps, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = (
            0
            if pad_type == "valid"
            else max((-(-size // stride) - 1) * stride + dilation * (taps - 1) + 1 - size, 0)
        )
        small, large = total // 2, total - total // 2
        found.append((large, small) if pad_type == "same_lower" else (small, large))
    return found


def windows(x: np.ndarray, kernel: Sequence[int], strides: Any, dilations: Any) -> np.ndarray:
    """[N, C, *outputs, *kernel]."""
    spatial = len(kernel)
    extent = [int(d) * (int(k) - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    found = np.lib.stride_tricks.sliding_window_view(x, extent, axis=tuple(range(2, 2 + spatial)))
    steps = tuple(slice(None, None, int(stride)) for stride in strides)
    gaps = tuple(slice(None, None, int(dilation)) for dilation in dilations)
    return found[(slice(None), slice(None), *steps, *gaps)]


def padded(x: np.ndarray, pads: Amounts, value: float) -> np.ndarray:
    return np.pad(x, [(0, 0), (0, 0), *pads], constant_values=value)


def conv(
    x: np.ndarray,
    weight: np.ndarray,
    strides: Any,
    pad_type: str,
    dilations: Any,
    groups: Any,
    bias: Any = None,
    pad: Any = None,
) -> np.ndarray:
    kernel, group = weight.shape[2:], int(groups)
    wide = padded(x, amounts(x, kernel, strides, pad_type, pad, dilations), 0)
    spatial = len(kernel)
    parts = []
    for own, filters in zip(np.split(wide, group, axis=1), np.split(weight, group), strict=True):
        taken = windows(own, kernel, strides, dilations)
        over = (1, *range(2 + spatial, 2 + 2 * spatial))
        product = np.tensordot(taken, filters, axes=(over, tuple(range(1, 2 + spatial))))
        parts.append(np.moveaxis(product, -1, 1))
    found = np.concatenate(parts, axis=1)
    return found if bias is None else found + np.reshape(bias, (1, -1, *[1] * spatial))


def conv_transpose(
    x: np.ndarray,
    weight: np.ndarray,
    strides: Any,
    dilations: Any,
    groups: Any,
    pad_type: str,
    bias: Any = None,
    pad: Any = None,
    **other: Any,
) -> np.ndarray:
    """Each value adds its multiple of the kernel."""
    kernel, group, spatial = weight.shape[2:], int(groups), x.ndim - 2
    sizes = [
        int(s) * (size - 1) + int(d) * (k - 1) + 1
        for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
    ]
    whole = np.zeros((x.shape[0], weight.shape[1] * group, *sizes), x.dtype)
    inputs, outputs = x.shape[1] // group, weight.shape[1]
    for taps in np.ndindex(*kernel):
        place = tuple(
            slice(int(d) * tap, int(d) * tap + int(s) * (size - 1) + 1, int(s))
            for tap, d, s, size in zip(taps, dilations, strides, x.shape[2:], strict=True)
        )
        for number in range(group):
            own = x[:, number * inputs : (number + 1) * inputs]
            filters = weight[(slice(number * inputs, (number + 1) * inputs), slice(None), *taps)]
            added = np.moveaxis(np.tensordot(own, filters, axes=(1, 0)), -1, 1)
            whole[(slice(None), slice(number * outputs, (number + 1) * outputs), *place)] += added
    pads = np.reshape(pad, (-1, 2)) if pad_type == "custom" else np.zeros((spatial, 2), int)
    kept = tuple(
        slice(int(before), size - int(after)) for (before, after), size in zip(pads, sizes, strict=True)
    )
    found = whole[(slice(None), slice(None), *kept)]
    return found if bias is None else found + np.reshape(bias, (1, -1, *[1] * spatial))


def pool(function: Callable[..., Any], edge: float, counted: bool = False) -> Callable[..., np.ndarray]:
    def evaluate(
        x: np.ndarray,
        kernel_sizes: Any,
        strides: Any,
        pad_type: str,
        ceil_mode: Any,
        pad: Any = None,
        exclude_padding_from_average: Any = False,
    ) -> np.ndarray:
        assert not ceil_mode
        ones = [1] * len(kernel_sizes)
        pads = amounts(x, kernel_sizes, strides, pad_type, pad, ones)
        over = tuple(range(x.ndim, 2 * x.ndim - 2))
        taken = windows(padded(x.astype(np.float64), pads, edge), kernel_sizes, strides, ones)
        if exclude_padding_from_average:
            there = windows(padded(np.ones(x.shape), pads, 0), kernel_sizes, strides, ones)
            return (taken.sum(axis=over) / there.sum(axis=over)).astype(x.dtype)
        return np.asarray(function(taken, axis=over), x.dtype)

    return evaluate


def batch_norm(x: np.ndarray, mean: Any, variance: Any, gamma: Any, beta: Any, epsilon: Any) -> np.ndarray:
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean, variance, gamma, beta = (
        np.reshape(one, shape).astype(np.float64) for one in (mean, variance, gamma, beta)
    )
    return ((x - mean) / np.sqrt(variance + epsilon) * gamma + beta).astype(x.dtype)


def normalized(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    wide = x.astype(np.float64)
    apart = wide - wide.mean(axis=axes, keepdims=True)
    return apart / np.sqrt(np.square(apart).mean(axis=axes, keepdims=True) + epsilon)


def instance_norm(x: np.ndarray, gamma: Any, beta: Any, epsilon: Any) -> np.ndarray:
    shape = (1, -1, *[1] * (x.ndim - 2))
    found = normalized(x, tuple(range(2, x.ndim)), epsilon)
    return (found * np.reshape(gamma, shape) + np.reshape(beta, shape)).astype(x.dtype)


def layer_norm(x: np.ndarray, axes: Any, epsilon: Any, gamma: Any = 1.0, beta: Any = 0.0) -> np.ndarray:
    return (normalized(x, tuple(int(axis) for axis in axes), epsilon) * gamma + beta).astype(x.dtype)


def local_response_norm(x: np.ndarray, size: Any, alpha: Any, beta: Any, k: Any) -> np.ndarray:
    half = int(size) // 2
    square = np.pad(np.square(x.astype(np.float64)), [(0, 0), (half, half), *[(0, 0)] * (x.ndim - 2)])
    total = sum(square[:, start : start + x.shape[1]] for start in range(int(size)))
    return (x / (k + alpha / int(size) * total) ** beta).astype(x.dtype)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm(
    x: np.ndarray,
    initial_h: np.ndarray,
    initial_c: np.ndarray,
    weight_ih: Any,
    weight_hh: Any,
    direction: str,
    bias: Any = 0.0,
    **other: Any,
) -> tuple[np.ndarray, ...]:
    assert direction == "forward"
    hidden, cell, steps = initial_h, initial_c, []
    for now in x:
        i, f, o, g = np.split(now @ weight_ih.T + hidden @ weight_hh.T + bias, 4, axis=1)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        steps.append(hidden)
    return tuple(one.astype(x.dtype) for one in (np.stack(steps), hidden, cell))


def rnn(
    x: np.ndarray,
    initial_h: np.ndarray,
    weight_ih: Any,
    weight_hh: Any,
    direction: str,
    bias: Any = 0.0,
    **other: Any,
) -> tuple[np.ndarray, ...]:
    assert direction == "forward"
    hidden, steps = initial_h, []
    for now in x:
        hidden = np.tanh(now @ weight_ih.T + hidden @ weight_hh.T + bias).astype(x.dtype)
        steps.append(hidden)
    return np.stack(steps), hidden


def resample(
    x: np.ndarray,
    coordinates: np.ndarray,
    sampling_mode: str,
    padding_mode: str,
    align_corners: Any,
    **other: Any,
) -> np.ndarray:
    """Of coordinates (x, y) between -1 and 1."""
    height, width = x.shape[2:]
    places = []
    for axis, size in ((1, height), (0, width)):
        at = coordinates[..., axis].astype(np.float64)
        places.append((at + 1) / 2 * (size - 1) if align_corners else ((at + 1) * size - 1) / 2)
    if padding_mode == "border":
        places = [np.clip(at, 0, size - 1) for at, size in zip(places, (height, width), strict=True)]
    found = np.zeros((x.shape[0], x.shape[1], *coordinates.shape[1:3]))
    starts = [np.rint(at) if sampling_mode == "nearest" else np.floor(at) for at in places]
    for down in (0, 1):
        for right in (0, 1):
            rows, columns = (
                start.astype(int) + step for start, step in zip(starts, (down, right), strict=True)
            )
            share = np.ones(rows.shape)
            for at, start, step in ((places[0], starts[0], down), (places[1], starts[1], right)):
                rest = np.zeros_like(at) if sampling_mode == "nearest" else at - start
                share = share * (rest if step else 1 - rest)
            inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
            taken = x[
                np.arange(len(x))[:, None, None], :, rows.clip(0, height - 1), columns.clip(0, width - 1)
            ]
            found += np.moveaxis(taken, -1, 1) * (share * inside)[:, None]
    return found.astype(x.dtype)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "max_pool": pool(np.max, -np.inf),
    "avg_pool": pool(np.mean, 0.0),
    **{
        one.__name__: one
        for one in (
            batch_norm, conv, conv_transpose, instance_norm, layer_norm, local_response_norm, lstm, resample, rnn,
        )
    },
}  # fmt: skip
