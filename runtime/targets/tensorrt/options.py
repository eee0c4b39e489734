"""Options of the targets `tensorrt` and `tensorrt-rtx`, checked when they are made."""

import re
from dataclasses import dataclass, field

from onnx_lathe.errors import UsageError
from onnx_lathe.runtime.targets.core.base import Target, option
from onnx_lathe.runtime.targets.tensorrt.shapes import USUAL_BATCH, parse_batch, parse_shapes

LARGEST_WORKSPACE_MB = 1 << 20
"""1 TiB, which no GPU has; TensorRT's number of bytes has 64 bits."""


@dataclass(frozen=True)
class BuildConfig(Target.Config):
    """Options of both TensorRT targets."""

    batch: int | str | None = option(
        None,
        f"sizes of a dynamic first dimension: MIN:OPT:MAX, or one for all; none: {USUAL_BATCH}, or 1 where only that builds",
        "samples",
    )
    shapes: dict[str, int | str] = field(
        default_factory=dict,
        metadata={
            "help": "dynamic input -> shape, or MIN:OPT:MAX shapes, such as 1x3x32x32:1x3x64x64:8x3x128x128; "
            "N is the batch; of several with | between, as of batch, each is a profile",
            "unit": "",
        },
    )
    prefer: str = option(
        "speed",
        "a codebook of up to 16 values in front of an INT8 layer: INT8 weights, or 4 bits, decoded at every run",
        choices=("speed", "size"),
    )
    level: int | None = option(
        None, "builder optimization level, 0 (fast build) to 5 (fast engine); none: TensorRT's own default"
    )
    workspace_mb: int | None = option(
        None, "GPU memory that a layer may use for scratch; none: TensorRT's own default", "MiB"
    )
    speed: str = field(
        default="keep",
        metadata={
            "help": "keep: what takes longer in INT8 than in float goes back to float, by times on the GPU if there is one here, else by rules; any: it stays",
            "unit": "",
            "choices": ("keep", "any"),
        },
    )
    time_limit: float | None = option(3600.0, "end a build that takes longer; none: never", "s")
    log: bool = option(
        False, "write the builder's whole log, with the layers that it chose, beside the engine"
    )

    sparse: str = option(
        "auto",
        "let TensorRT use kernels for weights with 2 zeros in each 4: where prune_nm made some, always, or never",
        choices=("auto", "yes", "no"),
    )
    refit: str = option(
        "no",
        "weights that can be replaced in the finished engine: none, by any others, or by the same alone, which is faster",
        choices=("no", "any", "same"),
    )
    strip: bool = option(
        False,
        "leave the weights out of the engine, and write the model that they are refitted from beside it",
    )
    compatible: bool = option(False, "an engine that later versions of TensorRT can load too; may be slower")
    lean_runtime: bool = option(
        True, "with compatible: the engine carries the runtime that loads it; false: the device has one"
    )
    weight_streaming: bool = option(
        False, "an engine that can keep a part of its weights in the host's memory, at a price in speed"
    )

    def flags(self) -> list[str]:
        """Names of BuilderFlag that the options ask for, without what a model's weights decide."""
        refit = {"no": "REFIT_IDENTICAL" if self.strip else "", "any": "REFIT", "same": "REFIT_IDENTICAL"}
        wanted = {
            "STRIP_PLAN": self.strip,  # first: what is missing is told by the first option that asks for it
            refit[self.refit]: True,
            "VERSION_COMPATIBLE": self.compatible,
            "EXCLUDE_LEAN_RUNTIME": self.compatible and not self.lean_runtime,
            "WEIGHT_STREAMING": self.weight_streaming,
        }
        return [name for name, asked in wanted.items() if name and asked]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lean_runtime and not self.compatible:
            raise UsageError(
                "option lean_runtime=false needs compatible=true: only such an engine carries one"
            )
        parse_batch(self.batch)
        parse_shapes(self.shapes)
        if self.level is not None and not 0 <= self.level <= 5:
            raise UsageError(f"option level must be 0 to 5, not {self.level}")
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise UsageError(f"option workspace_mb must be at least 1, not {self.workspace_mb}")
        if self.workspace_mb is not None and self.workspace_mb > LARGEST_WORKSPACE_MB:
            raise UsageError(
                f"option workspace_mb is in MiB, and must be at most {LARGEST_WORKSPACE_MB}, not {self.workspace_mb}"
            )
        if self.time_limit is not None and self.time_limit <= 0:
            raise UsageError(f"option time_limit must be positive, not {self.time_limit:g}")


@dataclass(frozen=True)
class RTXConfig(BuildConfig):
    """Options of `tensorrt-rtx`."""

    compute: str = option("sm86", "GPU architectures in one engine, joined by +, such as sm86+sm89")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compatible and self.lean_runtime:
            raise UsageError(
                "option compatible: TensorRT-RTX has no lean runtime to put into the engine; add lean_runtime=false"
            )
        names = self.compute.lower().split("+")
        if not all(re.fullmatch(r"sm\d+", name) for name in names) or len(set(names)) != len(names):
            raise UsageError(
                f"option compute takes different GPU architectures joined by +, such as sm86+sm89, not '{self.compute}'"
            )


@dataclass(frozen=True)
class TensorRTConfig(BuildConfig):
    """Options of `tensorrt`."""

    portable: bool = option(
        False, "an engine that also runs on other desktop GPUs from Ampere on, slower; not on a Jetson"
    )
    same_compute: bool = option(
        False,
        "an engine that also runs on other GPUs of the same compute capability; TensorRT 10.13 or later",
    )
    timing_cache: str | None = option(
        None,
        "file with times of kernels, read if it is there and written after the build; the next is faster",
    )
    dla: int | None = option(None, "core of the deep learning accelerator of a Jetson that runs it", low=0)
    dla_fallback: bool = option(
        True, "with dla: layers that it cannot run go to the GPU; false: the build fails then"
    )

    def flags(self) -> list[str]:
        return super().flags() + (["GPU_FALLBACK"] if self.dla is not None and self.dla_fallback else [])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.portable and self.same_compute:
            raise UsageError(
                "options portable and same_compute: an engine has one of them; portable is the wider one"
            )
        if self.dla is None and not self.dla_fallback:
            raise UsageError("option dla_fallback=false needs dla=CORE, such as dla=0")
        if self.dla is not None and (self.portable or self.same_compute):
            raise UsageError(
                "option dla: an engine for DLA runs on this kind of device alone; leave portable out"
            )
