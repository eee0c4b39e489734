"""What a processor's convolution kernels can do, and what they cost there: said once, for the pass that chooses
between algorithms and the target that writes the choice down.

Rules are those of ncnn (source of July 2026: convolution_x86.cpp, convolution_arm.cpp, convolution_arm_asimdhp.cpp),
whose kernels phones run; tiles.py says what they compute. Costs: products, additions of the transforms and bytes of
weights per nanosecond on one core. Those of x86 reproduce measured times of layers of 64 to 512 channels within a
third. ARM's were not measured: there arithmetic alone is counted, and the runtime's own choice is left only where
it is `worth` times as much.
"""

from collections.abc import Callable
from dataclasses import dataclass

from onnx_lathe import x86_hints

DIRECT = 1
"""Written as F(1, 3): 9 products per result."""
NAMES = {DIRECT: "direct", 2: "winograd23", 4: "winograd43", 6: "winograd63"}
"""m of F(m, 3) -> what `lathe.conv_algorithm` says."""


@dataclass(frozen=True)
class Speeds:
    """Per nanosecond on one core."""

    products: float
    additions: float
    weight_bytes: float


@dataclass(frozen=True)
class Profile:
    """`default`: the runtime's own choice for (input channels, output channels), as m; `int8`: that of a layer on
    integers. `arithmetic`: the type that products and sums are rounded to.
    """

    default: Callable[[int, int], int]
    int8: Callable[[int, int], int]
    arithmetic: str
    """Name of the dtype; layers on integers have exact sums."""
    hinted: Callable[[int, int, int, int], int] | None = None
    """What the runtime takes for (input channels, output channels, height, width) if it is told the size; None if
    it does not ask.
    """
    lanes: int = 4
    """Numbers of the arithmetic in a register: channels that its kernels keep together."""
    speeds: Speeds | None = None
    """None where times were not measured."""
    worth: float = 2.0
    """by=cost leaves the runtime's own choice only for an estimate that is so many times as fast."""
    sums: str | None = None
    """The type that a layer can be told to sum in, by direct convolution alone; it reads, and hands on, `arithmetic`."""
    depthwise_int8: bool = False
    """Whether a depthwise convolution gains from INT8: on x86 it takes twice the time of float."""

    def own(self, inputs: int, outputs: int, int8: bool = False) -> int:
        """m of what the runtime takes by itself."""
        return (self.int8 if int8 else self.default)(inputs, outputs)

    def by_hint(self, inputs: int, outputs: int, height: int, width: int, int8: bool = False) -> int:
        """m of what it takes if it is told the size of the result."""
        own = self.own(inputs, outputs, int8)
        if self.hinted is None or int8 or own == DIRECT:
            return own
        return self.hinted(inputs, outputs, height, width)

    def able(self, inputs: int, outputs: int, height: int, width: int, int8: bool = False) -> tuple[int, ...]:
        """What it can be made to take, its own choice first."""
        hint = self.by_hint(inputs, outputs, height, width, int8)
        return tuple(dict.fromkeys((self.own(inputs, outputs, int8), hint, DIRECT)))


def _x86(inputs: int, outputs: int) -> int:
    if max(inputs, outputs) <= 8:
        return DIRECT
    return 6 if max(inputs, outputs) <= 32 else 4


def _arm(fewest: int) -> Callable[[int, int], int]:
    def choice(inputs: int, outputs: int) -> int:
        if max(inputs, outputs) < fewest:
            return DIRECT
        if max(inputs, outputs) <= 128:
            return 6
        return 4 if min(inputs, outputs) >= fewest else 2

    return choice


def _arm_int8(inputs: int, outputs: int) -> int:
    return 4 if min(inputs, outputs) >= 8 else DIRECT


def _x86_int8(inputs: int, outputs: int) -> int:
    return DIRECT if max(inputs, outputs) <= 8 else 4


PROFILES = {
    "x86": Profile(_x86, _x86_int8, "float32", x86_hints.hinted, 16, Speeds(45.0, 20.0, 22.0), worth=1.1),
    "arm64-fp32": Profile(_arm(8), _arm_int8, "float32"),
    "arm64-fp16": Profile(_arm(16), _arm_int8, "float16", lanes=8, sums="float32"),
    "arm64-int8": Profile(_arm(16), _arm_int8, "float16", lanes=8, sums="float32", depthwise_int8=True),
}
"""x86 looks up a layer's size in a table, where it is told the size. ARM's stock runtime can switch a layer to direct,
and no other way; with the dot product of ARMv8.2 it computes integers so by itself. arm64-int8 is arm64-fp16 where
layers on integers are wanted: what is left in float is in float16 there, too.
"""
