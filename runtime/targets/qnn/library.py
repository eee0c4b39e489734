"""The package onnxruntime-qnn: whether it can be used here, and the options that it is given.

Qualcomm's libraries in it come under the AI Stack License, which whoever installs them accepts; Lathe carries none of
them, and its own packages do not ask for them without `[qnn]`.
"""

import importlib.util
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version

from onnx_lathe.runtime.targets.qnn.chips import Chip

PACKAGE = "onnxruntime_qnn"
LICENSE = "Qualcomm's AI Stack License"
LICENSE_FILE = "onnxruntime_qnn/Qualcomm_LICENSE.pdf"
MISSING = (
    "the package onnxruntime-qnn is not installed: pip install 'onnx-lathe[qnn]' (Python 3.11 or later); installing it "
    f"accepts {LICENSE}, {LICENSE_FILE} in the package"
)
X86_64 = ("x86_64", "AMD64")
PARTLY = ("fallback to CPU EP has been explicitly disabled", "an invalid node while compiling")
"""In what ONNX Runtime says of a model of which some node is left to the CPU; it names none."""


def is_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


def installed() -> str:
    """What does the work, with its version."""
    return f"onnxruntime-qnn {version('onnxruntime-qnn')}"


def unavailable() -> str | None:
    """Why nothing can be compiled here; None if it can."""
    if not is_installed():
        return MISSING
    if platform.machine() not in X86_64:
        return f"models are compiled on x86-64 processors, and this one is {platform.machine()}"
    return None


def simulates() -> bool:
    """Whether the package for this machine has the simulator of the processor."""
    return sys.platform == "linux" and platform.machine() in X86_64 and is_installed()


def provider_options(
    chips: Sequence[Chip], vtcm_mb: int | None = None, optimization: int | None = None
) -> dict[str, str]:
    """Options of the provider QNN for these chips; names and values that it does not know it takes in silence."""
    found = {
        "soc_model": ",".join(str(chip.soc_model) for chip in chips),
        "htp_arch": ",".join(str(chip.htp_arch) for chip in chips),
        # whether the first quantizer and the last dequantizer go to the CPU, which a whole graph on the chip leaves there
        "offload_graph_io_quantization": "0",
        "enable_htp_fp16_precision": "1",  # versions differ in the default
    }
    if vtcm_mb is not None:
        found["vtcm_mb"] = str(vtcm_mb)
    if optimization is not None:
        found["htp_graph_finalization_optimization_mode"] = str(optimization)
    return found


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("onnxruntime", "onnxruntime-qnn")}
