"""Sets a builder configuration as the options ask, in the builder's process; what this TensorRT cannot do is refused.

TensorRT's setters never raise: a flag that does not apply is dropped with a word in the log at most. So what can be
asked beforehand is asked, and the log is read afterwards.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx_lathe.runtime.targets.tensorrt import dla
from onnx_lathe.runtime.targets.tensorrt.cuda import has_gpu

OPTIONS = {
    "REFIT": "refit=any",
    "REFIT_IDENTICAL": "refit=same",
    "STRIP_PLAN": "strip",
    "VERSION_COMPATIBLE": "compatible",
    "EXCLUDE_LEAN_RUNTIME": "lean_runtime",
    "WEIGHT_STREAMING": "weight_streaming",
    "SPARSE_WEIGHTS": "sparse",
    "GPU_FALLBACK": "dla_fallback",
    "AMPERE_PLUS": "portable",
    "SAME_COMPUTE_CAPABILITY": "same_compute",
}
"""Name of a flag or level -> the option that asks for it."""

_NEED_A_GPU = ("STRIP_PLAN", "REFIT", "REFIT_IDENTICAL")
"""What TensorRT-RTX builds for an engine only where a driver is: it fails in its own compiler else."""


class RefusedError(Exception):
    """A request that TensorRT could not serve; the message is for the user."""


def apply(trt: Any, logger: Any, builder: Any, config: Any, request: Mapping[str, Any]) -> Any:
    """Returns the timing cache, which must outlive the build, or None. Raises RefusedError."""
    before = len(logger.records)
    if trt.__name__ == "tensorrt_rtx" and not has_gpu():
        asked = [OPTIONS[name] for name in _NEED_A_GPU if name in request["flags"]]
        if asked:
            raise RefusedError(
                f"option {asked[0]}: TensorRT-RTX builds such engines only where a GPU and its driver are; leave the "
                "option out, or build there"
            )
    for name in request["flags"]:
        config.set_flag(named(trt, "BuilderFlag", name))
    if hardware := request.get("hardware"):
        config.hardware_compatibility_level = named(trt, "HardwareCompatibilityLevel", hardware)
    if request.get("dla") is not None:
        _set_dla(trt, builder, config, request)
    cache = _read_cache(config, request["timing_cache"]) if request.get("timing_cache") else None
    if said := logger.errors(before):
        raise RefusedError("; ".join(said))
    return cache


def dropped(logger: Any, since: int, flags: Sequence[str]) -> None:
    """Raises RefusedError for a flag that TensorRT took back while it built, which only its log says."""
    for text in logger.errors(since):
        for name in flags:
            if f"k{name}" in text.replace(",", " ").split():
                raise RefusedError(f"option {OPTIONS.get(name, name)}: {text}")


def named(trt: Any, enumeration: str, name: str) -> Any:
    """The member of one of TensorRT's enumerations. Raises RefusedError where this version has none of that name."""
    members = getattr(trt, enumeration).__members__
    if name in members:
        return members[name]
    if name in OPTIONS:
        raise RefusedError(
            f"option {OPTIONS[name]}: TensorRT {trt.__version__} has no {name}; leave the option out, or take "
            "another version"
        )
    known = ", ".join(sorted(key.lower() for key in members if key not in ("NONE", "CURRENT")))
    raise RefusedError(f"this version has no {enumeration} {name}; it has {known}")


def _set_dla(trt: Any, builder: Any, config: Any, request: Mapping[str, Any]) -> None:
    core, cores = request["dla"], builder.num_DLA_cores
    if core >= cores:
        have = f"has {cores} DLA cores, 0 to {cores - 1}" if cores else "has no DLA"
        raise RefusedError(
            f"option dla: this machine {have} that TensorRT {trt.__version__} can use; DLA is on Jetson AGX Orin, "
            "Orin NX and Xavier, with TensorRT up to 10.7 or from 11.4.1 on"
        )
    for profile in request["profiles"]:
        for name, (least, _, greatest) in profile.items():
            if least != greatest:
                raise RefusedError(
                    f"option dla: DLA takes no dynamic sizes, and input '{name}' has some; give one size, such as "
                    "batch=1"
                )
    dla.configure(trt, config, core, request["quantized"])


def _read_cache(config: Any, path: str) -> Any:
    """The timing cache of the file, an empty one if there is none yet. It is written after the build, which may take
    an hour.
    """
    file = Path(path)
    if not file.parent.is_dir():
        raise RefusedError(
            f"option timing_cache: {path}: its folder does not exist; create it or choose another"
        )
    if not os.access(file.parent, os.W_OK):
        raise RefusedError(f"option timing_cache: {path}: its folder cannot be written; choose another")
    try:
        content = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise RefusedError(f"option timing_cache: {path} cannot be read: {error.strerror}") from error
    cache = config.create_timing_cache(content)
    if cache is None:
        raise RefusedError(f"option timing_cache: {path} is no timing cache of TensorRT; name another file")
    if not config.set_timing_cache(cache, False):
        raise RefusedError(
            f"option timing_cache: {path} is of another GPU or another version of TensorRT; name another file"
        )
    return cache


def write_cache(config: Any, path: str) -> None:
    Path(path).write_bytes(memoryview(config.get_timing_cache().serialize()))
