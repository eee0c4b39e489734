"""What a run ran on: when, with which libraries, on which processor. Figures of two reports can be compared then."""

import os
import platform
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from onnx_lathe.runtime import threads

LIBRARIES = ("onnx", "onnxruntime", "numpy", "onnx-graphsurgeon")
LOADED = {"torch": "torch", "tensorrt_rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}
"""Module -> package, of libraries that are named where they were used."""
FLAGS = (
    "sse4_2", "avx", "fma", "f16c", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
"""Instruction sets that decide how fast, and how exactly, networks run; as Linux spells them."""


def now() -> str:
    """ISO 8601, in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def libraries(used: tuple[str, ...] = ()) -> dict[str, str]:
    """Package -> version: those that every run uses, and of the others those that are loaded or `used`."""
    wanted = [*LIBRARIES, *(package for module, package in LOADED.items() if module in sys.modules), *used]
    return {name: version for name in dict.fromkeys(wanted) if (version := _version(name)) is not None}


def processor() -> dict[str, Any]:
    """Name, cores that this process may use, the limit of --threads (0: none), and instruction sets."""
    stated = _stated()
    names = [stated.get("model name"), stated.get("Model"), platform.processor(), platform.machine()]
    flags = set((stated.get("flags") or stated.get("Features") or "").split())
    return {
        "name": next(name for name in (*names, "unknown") if name),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cores": cores(),
        "threads": threads.limit(),
        "flags": [flag for flag in FLAGS if flag in flags],
    }


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _stated() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _version(package: str) -> str | None:
    """None if it is not installed; onnxruntime has several packages with one module."""
    names = (package, "onnxruntime-gpu") if package == "onnxruntime" else (package,)
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
