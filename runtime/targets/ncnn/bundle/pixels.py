"""How a picture becomes an input, in ncnn's terms: out = (pixel - mean) * norm, per channel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from onnx_lathe.errors import UsageError
from onnx_lathe.runtime.data.preprocess import Preprocess, parse
from onnx_lathe.runtime.targets.ncnn.convert import Port

ORDERS = {1: "GRAY", 3: "RGB", 4: "RGBA"}
"""Channels of an input -> what they are in pictures as the data loader decodes them, and what ncnn calls that."""


@dataclass(frozen=True)
class Pixels:
    """`resized`: of the shorter side, or (height, width); `made`: (height, width) of the middle that is taken then.
    Without these, the picture keeps its size.
    """

    input: str
    order: str
    mean: Sequence[float]
    norm: Sequence[float]
    resized: int | tuple[int, int] | None
    made: tuple[int, int] | None

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
    """What --preprocess says, or why ncnn's functions for pixels cannot do it. Raises UsageError for a text that does
    not fit the network.
    """
    asked = parse(text)
    if not asked.scales:
        return "it is not known how pixels are scaled: no mean, std or scale is given"
    if len(inputs) != 1:
        return f"the network has {len(inputs)} inputs"
    (port,) = inputs
    if tuple(port.axes) != (1, 2, 3) or port.shape[1] not in ORDERS:
        shown = ", ".join("?" if size is None else str(size) for size in port.declared)
        return f"input '{port.tensor}' [{shown}] is no picture with its channels first"
    if port.element != onnx.TensorProto.FLOAT:
        return f"input '{port.tensor}' does not take float values"
    channels = port.shape[1]
    mean, std = (_per_channel(values, channels) for values in (asked.mean, asked.std))
    resized, made = _frame(asked, port)
    if isinstance(resized, int) and made is not None and max(made) > resized:
        return "crop may be larger than what resize leaves of a picture, which adds black"
    return Pixels(port.tensor, ORDERS[channels], mean, [1 / value for value in std], resized, made)


def _per_channel(values: Sequence[float], channels: int) -> list[float]:
    if len(values) not in (1, channels):
        raise UsageError(
            f"option preprocess gives {len(values)} values per channel, but the input has {channels} channels"
        )
    return [*values] if len(values) == channels else [*values] * channels


def _frame(asked: Preprocess, port: Port) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None]:
    """As runtime/data/images.py frames pictures."""
    if asked.frames:
        resized = asked.resize or min(asked.crop or (0,))
        return resized, asked.crop or ((resized, resized) if isinstance(resized, int) else resized)
    height, width = port.shape[2:]
    if height is None or width is None:
        return None, None
    return (height, width), (height, width)
