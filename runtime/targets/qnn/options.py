"""Options of the target `qnn`, checked when they are made: the library accepts any text in silence."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnx_lathe.errors import UsageError
from onnx_lathe.runtime.data import preprocess
from onnx_lathe.runtime.targets.core.base import Target, option
from onnx_lathe.runtime.targets.qnn.chips import Chip, chips_of
from onnx_lathe.runtime.targets.qnn.sizes import parse_shapes

OPTIMIZATIONS = (1, 2, 3)

MOVED: Mapping[str, str] = {
    "batch": "the chip takes one size alone; say it with shapes={input: 4x3x224x224}",
    "chip": "it is called soc",
    "htp_arch": "it follows from soc",
    "soc_model": "it follows from soc, which takes a chip's name",
    "performance": "the application sets htp_performance_mode where it opens the file: it changes nothing in the file",
    "htp_performance_mode": "the application sets it where it opens the file: it changes nothing in the file",
    "precision": "layers that int8 quantized run on integers, all others in float16",
    "activation_bits": "it is an option of the pass: int8(activation_bits=16)",
}
"""Options that users of the library, or of other targets, look for."""


@dataclass(frozen=True)
class QnnConfig(Target.Config):
    soc: str = option(
        "SM8650", "the chip that it is compiled for, such as SM8650; several with + between, in one file"
    )
    shapes: dict[str, int | str] = field(
        default_factory=dict,
        metadata={
            "help": "input -> the size that it is compiled for, such as 1x3x224x224; none: the data's, one sample of it",
            "unit": "",
        },
    )
    vtcm_mb: int | None = option(
        None, "memory beside the processor that the model may take; none: the compiler's choice", "MiB", low=1
    )
    optimization: int | None = option(
        None,
        "how long the compiler looks for a better order of the work: 1 (short) to 3 (long); none: its own default",
        low=1,
    )
    embed: bool = option(False, "one file, with the compiled model inside the .onnx")
    simulate: bool = option(
        True,
        "compare the file with ONNX Runtime in the chip's simulator, and judge it there; false: the lowered model is judged",
    )
    preprocess: str = option(
        "", "how pixels become input, as --preprocess says it, for the description; a run's own if it has one"
    )
    time_limit: float | None = option(3600.0, "end a compilation that takes longer; none: never", "s")

    @property
    def chips(self) -> list[Chip]:
        return chips_of(self.soc)

    def __post_init__(self) -> None:
        super().__post_init__()
        chips = self.chips
        parse_shapes(self.shapes)
        preprocess.parse(self.preprocess)
        if self.optimization is not None and self.optimization not in OPTIMIZATIONS:
            raise UsageError(f"option optimization must be 1 to 3, not {self.optimization}")
        if self.time_limit is not None and self.time_limit <= 0:
            raise UsageError(f"option time_limit must be positive, not {self.time_limit:g}")
        if self.vtcm_mb is not None:
            _check_memory(self.vtcm_mb, chips)


def _check_memory(vtcm_mb: int, chips: list[Chip]) -> None:
    if vtcm_mb < 1:
        raise UsageError(f"option vtcm_mb must be at least 1, not {vtcm_mb}")
    least: Any = min((chip for chip in chips if chip.vtcm_mb), key=lambda chip: chip.vtcm_mb, default=None)
    if least is not None and vtcm_mb > least.vtcm_mb:
        raise UsageError(f"option vtcm_mb: {least.name} has {least.vtcm_mb} MiB, not {vtcm_mb}")
