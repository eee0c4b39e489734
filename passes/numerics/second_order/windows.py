"""What a convolution reads at some of its output positions, without the whole of im2col."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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

    def rows(self, sample: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
        """Of one sample [C, ...], the windows at `most` positions, or at all if they are no more: [group, positions,
        C / group * kernel], the channel first as in the weight [O, C / group, ...].
        """
        sizes = sample.shape[1:]
        padded = np.pad(sample, [(0, 0), *self.padding(sizes)])
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        outputs = tuple(
            max(0, (size - r) // s + 1)
            for size, r, s in zip(padded.shape[1:], reach, self.strides, strict=True)
        )
        positions = math.prod(outputs)
        chosen = (
            np.arange(positions) if positions <= most else generator.choice(positions, most, replace=False)
        )
        channels = padded.shape[0]
        view = np.lib.stride_tricks.sliding_window_view(padded, reach, tuple(range(1, padded.ndim)))
        read: tuple[Any, ...] = (..., *(slice(None, None, dilation) for dilation in self.dilations))
        view = view[read]
        places = np.unravel_index(chosen, outputs) if positions else (chosen,) * len(outputs)
        at = tuple(place * stride for place, stride in zip(places, self.strides, strict=True))
        index: tuple[Any, ...] = (slice(None), *at)
        found = view[index]
        moved = found.reshape(self.group, channels // self.group, len(chosen), -1).transpose(0, 2, 1, 3)
        return moved.reshape(self.group, len(chosen), -1)
