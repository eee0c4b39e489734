"""What a convolution reads at some of its output positions, without the whole of im2col."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """Of a convolution over len(kernel) axes: [N, C, ...] in C / group channels a window. `auto_pad` as in ONNX."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    """Begins, then ends."""
    auto_pad: str = "NOTSET"
    group: int = 1

    def padding(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """(before, after) for each axis of these sizes."""
        if self.auto_pad in ("", "NOTSET"):
            half = len(self.kernel)
            return list(zip(self.pads[:half], self.pads[half:], strict=True))
        if self.auto_pad == "VALID":
            return [(0, 0)] * len(self.kernel)
        found = []
        for size, kernel, stride, dilation in zip(
            sizes, self.kernel, self.strides, self.dilations, strict=True
        ):
            outputs = -(-size // stride)
            total = max(0, (outputs - 1) * stride + (kernel - 1) * dilation + 1 - size)
            less, more = total // 2, total - total // 2
            found.append((more, less) if self.auto_pad == "SAME_LOWER" else (less, more))
        return found

    def positions(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """How many outputs there are along each axis of a sample of these sizes."""
        return tuple(
            max(0, (before + size + after - (kernel - 1) * dilation - 1) // stride + 1)
            for size, (before, after), kernel, stride, dilation in zip(
                sizes, self.padding(sizes), self.kernel, self.strides, self.dilations, strict=True
            )
        )

    def rows(self, sample: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
        """Of one sample [C, ...], the windows at `most` positions, or at all if they are no more: as `rows_at`."""
        return self.rows_at(sample, chosen(math.prod(self.positions(sample.shape[1:])), most, generator))

    def rows_at(self, sample: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Of one sample [C, ...], the windows of these outputs, counted along its axes: [group, places, C / group *
        kernel], the channel first as in the weight [O, C / group, ...].
        """
        sizes = sample.shape[1:]
        if all(one == 1 for one in (*self.kernel, *self.strides)) and not any(self.pads):
            pixels = sample.reshape(self.group, -1, math.prod(sizes))[:, :, places]
            return np.ascontiguousarray(pixels.transpose(0, 2, 1))
        padded = np.pad(sample, [(0, 0), *self.padding(sizes)])
        outputs, channels = self.positions(sizes), padded.shape[0]
        axes = np.unravel_index(places, outputs) if math.prod(outputs) else (places,) * len(outputs)
        inside = np.unravel_index(np.arange(math.prod(self.kernel)), self.kernel)
        at = np.zeros((len(places), 1), np.int64)
        steps = zip(axes, self.strides, inside, self.dilations, padded.shape[1:], strict=True)
        for place, stride, offset, dilation, size in steps:
            at = at * size + (place * stride)[:, None] + offset * dilation
        found = padded.reshape(channels, -1).take(at, axis=1)
        moved = found.reshape(self.group, channels // self.group, len(places), -1).transpose(0, 2, 1, 3)
        return moved.reshape(self.group, len(places), -1)


def chosen(count: int, most: int, generator: np.random.Generator) -> np.ndarray:
    """At most so many places of `count`."""
    return np.arange(count) if count <= most else generator.choice(count, most, replace=False)
