"""An input that takes a picture: Core ML decodes and resizes it, and the program scales its values."""

from collections.abc import Sequence
from dataclasses import dataclass

LAYOUTS = {"rgb": (3, "RGB"), "bgr": (3, "BGR"), "gray": (1, "GRAYSCALE")}
"""Option image -> channels, and Core ML's name of their order."""


@dataclass(frozen=True)
class Image:
    """`mean` and `std`: per channel, of values from 0 to 255."""

    input: str
    layout: str
    mean: Sequence[float]
    std: Sequence[float]
