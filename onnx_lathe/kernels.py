"""What a processor's convolution kernels can do, and what they cost there: said once, for the pass that chooses
between algorithms and the target that writes the choice down.

Rules are those of ncnn (source of July 2026: convolution_x86.cpp, convolution_arm.cpp, convolution_arm_asimdhp.cpp),
whose kernels phones run. Costs: products, additions of the transforms and bytes of weights per nanosecond on one
core. Those of x86 reproduce measured times of layers of 64 to 512 channels within a third; ARM's are the same, since
only proportions decide, and were not measured.
"""

from collections.abc import Callable
from dataclasses import dataclass

DIRECT = 1
"""Written as F(1, 3): 9 products per result."""
NAMES = {DIRECT: "direct", 2: "winograd23", 4: "winograd43", 6: "winograd63"}
"""m of F(m, 3) -> what `lathe.conv_algorithm` says."""


@dataclass(frozen=True)
class Profile:
    """`default`: the runtime's own choice for (input channels, output channels), as m. `others`: what it can be
    made to take instead, layer by layer. `arithmetic`: the type that products and sums are rounded to.
    """

    default: Callable[[int, int], int]
    others: tuple[int, ...]
    arithmetic: str | None
    """Name of the dtype; None where sums are exact: integers."""
    products: float = 45.0
    additions: float = 20.0
    weight_bytes: float = 22.0
    depthwise_int8: bool = False
    """Whether a depthwise convolution gains from INT8: on x86 it takes twice the time of float."""


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


PROFILES = {
    "x86": Profile(_x86, (DIRECT, 2), "float32"),
    "arm64-fp32": Profile(_arm(8), (DIRECT,), "float32"),
    "arm64-fp16": Profile(_arm(16), (DIRECT,), "float16"),
    "arm64-int8": Profile(_arm_int8, (DIRECT,), None, depthwise_int8=True),
}
"""x86 takes F(2, 3) through a hint of the layer's shape, where its table agrees. ARM's stock runtime can switch a
layer to direct, and no other way.
"""
