"""What adaptive rounding chooses from, and the bounded sample of a layer's inputs and outputs that it is
chosen on.

Source of the sample: Vitter, "Random Sampling with a Reservoir", ACM TOMS 1985, algorithm R.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.numerics.quantization import affine


def neighbours(
    values: np.ndarray, step: np.ndarray, largest: int = affine.LEVELS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(exact, low, high): `values` in steps, float32, and the INT8 levels next to each, all shaped alike;
    `step` broadcasts to `values`.

    low and high are equal, so that there is nothing to choose, for a value on a level (such as a zero) or
    beyond -largest..largest.
    """
    # float32, as affine.quantize divides: the nearest level is one of the two
    exact: np.ndarray = values.astype(np.float32) / step
    low, high = (
        np.clip(rounded, -largest, largest).astype(np.int8) for rounded in (np.floor(exact), np.ceil(exact))
    )
    return exact, low, high


@dataclass(frozen=True)
class Axis:
    """How a convolution walks along one axis of its input."""

    kernel: int
    stride: int
    dilation: int

    @property
    def reach(self) -> int:
        """Input elements from the first that one output sees to the last."""
        return (self.kernel - 1) * self.dilation + 1

    def span(self, outputs: int) -> int:
        """Input elements that so many neighbouring outputs see."""
        return (outputs - 1) * self.stride + self.reach

    def same_padding(self, size: int, upper: bool) -> tuple[int, int]:
        """Zeros before and after `size` elements under auto_pad=SAME_UPPER or SAME_LOWER."""
        total = max(self.span(-(-size // self.stride)) - size, 0)
        return (total // 2, total - total // 2) if upper else (total - total // 2, total // 2)


def crops(
    source: np.ndarray,
    results: Sequence[np.ndarray],
    axes: Sequence[Axis],
    edge: int,
    generator: np.random.Generator,
) -> list[np.ndarray]:
    """A random window of at most `edge` outputs along each axis from every image: what the convolution
    sees, and what becomes of it.

    `source` is the padded input [N, C, ...], `results` are arrays [N, O, ...] over the positions of its
    output. Returns the windows of the source, then those of each result, each stacked along the first axis.
    """
    sizes = results[0].shape[2:]
    edges = [min(edge, size) for size in sizes]
    starts = [
        generator.integers(size - length, size=len(source), endpoint=True)
        for size, length in zip(sizes, edges, strict=True)
    ]
    cut: list[list[np.ndarray]] = [[] for _ in range(1 + len(results))]
    for image, corner in enumerate(zip(*starts, strict=True)):
        places = list(zip(axes, corner, edges, strict=True))
        seen = [
            slice(start * axis.stride, start * axis.stride + axis.span(length))
            for axis, start, length in places
        ]
        made = [slice(start, start + length) for _, start, length in places]
        cut[0].append(source[image][(..., *seen)])
        for windows, result in zip(cut[1:], results, strict=True):
            windows.append(result[image][(..., *made)])
    return [np.stack(windows) for windows in cut]


class Reservoir:
    """A uniform sample, at most `limit_bytes` large, of a stream of units; a unit is a row of each of
    several arrays.
    """

    def __init__(self, limit_bytes: int, most: int, seed: int) -> None:
        self.limit_bytes, self.most = limit_bytes, most
        self.seen = 0
        self._generator = np.random.default_rng(seed)
        self._kept: list[np.ndarray] = []

    def add(self, arrays: Sequence[np.ndarray]) -> None:
        """Float arrays [units, ...] of equal first dimension. Units shaped otherwise than the first, as of
        a small image, are left out.
        """
        count = len(arrays[0])
        if not count or (
            self._kept
            and any(kept.shape[1:] != array.shape[1:] for kept, array in zip(self._kept, arrays, strict=True))
        ):
            return
        if not self._kept:
            unit = sum(4 * array[0].size for array in arrays)
            capacity = max(min(self.limit_bytes // unit, self.most), 1)
            self._kept = [np.empty((capacity, *array.shape[1:]), np.float32) for array in arrays]
        capacity = len(self._kept[0])
        numbers = np.arange(self.seen, self.seen + count)
        places = np.where(numbers < capacity, numbers, self._generator.integers(0, numbers, endpoint=True))
        chosen = np.flatnonzero(places < capacity)
        for kept, array in zip(self._kept, arrays, strict=True):
            kept[places[chosen]] = array[chosen]
        self.seen += count

    @property
    def sample(self) -> list[np.ndarray]:
        """The units kept, float32, one array for each that `add` was given; empty if it was given no unit."""
        return [kept[: self.seen] for kept in self._kept]
