"""Options of the targets `tensorrt` and `tensorrt-rtx`, checked when they are made."""

import re
from dataclasses import dataclass, field
from typing import Any

from onnx_lathe.errors import UsageError
from onnx_lathe.runtime.targets.core.base import Target
from onnx_lathe.runtime.targets.tensorrt.shapes import parse_batch, parse_shapes


def _option(default: Any, help: str, unit: str = "") -> Any:
    return field(default=default, metadata={"help": help, "unit": unit})


@dataclass(frozen=True)
class BuildConfig(Target.Config):
    """Options of both TensorRT targets."""

    batch: int | str = _option(
        "1:1:32", "sizes of a dynamic first dimension: MIN:OPT:MAX, or one for all", "samples"
    )
    shapes: dict[str, int | str] = field(
        default_factory=dict,
        metadata={
            "help": "dynamic input -> shape, or MIN:OPT:MAX shapes, such as 1x3x32x32:1x3x64x64:8x3x128x128",
            "unit": "",
        },
    )
    level: int | None = _option(
        None, "builder optimization level, 0 (fast build) to 5 (fast engine); none: TensorRT's own default"
    )
    workspace_mb: int | None = _option(
        None, "GPU memory that a layer may use for scratch; none: TensorRT's own default", "MiB"
    )
    time_limit: float | None = _option(3600.0, "end a build that takes longer; none: never", "s")
    log: bool = _option(
        False, "write the builder's whole log, with the layers that it chose, beside the engine"
    )

    def __post_init__(self) -> None:
        parse_batch(self.batch)
        parse_shapes(self.shapes)
        if self.level is not None and not 0 <= self.level <= 5:
            raise UsageError(f"option level must be 0 to 5, not {self.level}")
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise UsageError(f"option workspace_mb must be at least 1, not {self.workspace_mb}")
        if self.time_limit is not None and self.time_limit <= 0:
            raise UsageError(f"option time_limit must be positive, not {self.time_limit:g}")


@dataclass(frozen=True)
class RTXConfig(BuildConfig):
    """Options of `tensorrt-rtx`."""

    compute: str = _option("sm86", "GPU architectures in one engine, joined by +, such as sm86+sm89")

    def __post_init__(self) -> None:
        super().__post_init__()
        names = self.compute.lower().split("+")
        if not all(re.fullmatch(r"sm\d+", name) for name in names) or len(set(names)) != len(names):
            raise UsageError(
                f"option compute takes different GPU architectures joined by +, such as sm86+sm89, not '{self.compute}'"
            )


@dataclass(frozen=True)
class TensorRTConfig(BuildConfig):
    """Options of `tensorrt`."""

    portable: bool = _option(
        False, "an engine that also runs on other desktop GPUs from Ampere on, slower; not on a Jetson"
    )
