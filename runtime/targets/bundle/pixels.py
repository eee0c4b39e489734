"""How a picture becomes an input: out = (pixel - mean) * norm, per channel, of pixels 0..255."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_lathe.errors import UsageError
from onnx_lathe.runtime.data.preprocess import Preprocess, channel_axis, parse
from onnx_lathe.runtime.files.signature import InputSpec
from onnx_lathe.runtime.targets.bundle.ports import Port

ORDERS = {1: "GRAY", 3: "RGB", 4: "RGBA"}
"""Channels of an input -> what they are in pictures as the data loader decodes them."""


@dataclass(frozen=True)
class Pixels:
    """`input`: the model's tensor, with its channels in axis `channel_axis`. `resized`: of the shorter side, or (height,
    width); `made`: (height, width) of the middle that is taken then. Without these, the picture keeps its size.
    """

    input: str
    order: str
    mean: Sequence[float]
    norm: Sequence[float]
    resized: int | tuple[int, int] | None
    made: tuple[int, int] | None
    channel_axis: int = 1

    def as_json(self) -> dict[str, Any]:
        return {
            "input": self.input,
            "channels": self.order,
            "mean": list(self.mean),
            "norm": list(self.norm),
            "resize": self.resized,
            "crop": self.made,
        }


def pixels_of(text: str, inputs: Sequence[Port]) -> Pixels | str:
    """What --preprocess says, or why no function for pixels can do it. Raises UsageError for a text that does not fit
    the network.
    """
    asked = parse(text)
    if not asked.scales:
        return "it is not known how pixels are scaled: no mean, std or scale is given"
    if len(inputs) != 1:
        return f"the network has {len(inputs)} inputs"
    (port,) = inputs
    axis = channel_axis(InputSpec(port.tensor, np.dtype(np.float32), port.tensor_shape))
    if axis is None or port.tensor_shape[axis + 1] not in ORDERS or not {1, 2, 3} <= set(port.axes):
        shown = ", ".join("?" if size is None else str(size) for size in port.declared)
        return f"input '{port.tensor}' [{shown}] is no picture of 1, 3 or 4 channels"
    if port.tensor_type != "float32":
        return f"input '{port.tensor}' does not take float values"
    channels = port.tensor_shape[axis + 1] or 0
    mean, std = (_per_channel(values, channels) for values in (asked.mean, asked.std))
    height, width = port.tensor_shape[2:] if axis == 0 else port.tensor_shape[1:3]
    resized, made = _frame(asked, height, width)
    if isinstance(resized, int) and made is not None and max(made) > resized:
        return "crop may be larger than what resize leaves of a picture, which adds black"
    return Pixels(port.tensor, ORDERS[channels], mean, [1 / value for value in std], resized, made, axis + 1)


def _per_channel(values: Sequence[float], channels: int) -> list[float]:
    if len(values) not in (1, channels):
        raise UsageError(
            f"option preprocess gives {len(values)} values per channel, but the input has {channels} channels"
        )
    return [*values] if len(values) == channels else [*values] * channels


def _frame(
    asked: Preprocess, height: int | None, width: int | None
) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None]:
    """As runtime/data/images.py frames pictures."""
    if asked.frames:
        resized = asked.resize or min(asked.crop or (0,))
        return resized, asked.crop or ((resized, resized) if isinstance(resized, int) else resized)
    if height is None or width is None:
        return None, None
    return (height, width), (height, width)
