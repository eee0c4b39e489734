"""Gets at what TensorRT says of an engine's kernels: from the engine inspector where this machine can load the engine,
else from the log of its build.
"""

from collections.abc import Sequence
from pathlib import Path

from onnx_lathe.errors import TargetError
from onnx_lathe.runtime.targets.tensorrt import process
from onnx_lathe.runtime.targets.tensorrt.engine_layers import Kernel, from_inspector, from_log
from onnx_lathe.runtime.targets.tensorrt.promise import Promise
from onnx_lathe.runtime.targets.tensorrt.proof import Proof, prove, unreadable

INSPECTOR = "the engine inspector"
LOG = "the builder's log"
LOADING_S = 300.0
"""After which loading an engine for the inspector is given up; the log is there then."""


def proven(
    library: str,
    engine: Path,
    log: str,
    promised: Sequence[Promise],
    scratch: Path,
    core: int | None = None,
) -> Proof:
    """What the engine computes its layers in. log: the records of the build that describe kernels; scratch: an empty
    folder, or one that an earlier process worked in; core: of the DLA that the engine is for.

    TensorRT builds on the device that runs the engine, and its inspector says more than its log does. An engine of
    TensorRT-RTX can be loaded only where such a GPU is, which then compiles it first; its log says as much.
    """
    for kernels, source in _descriptions(library, engine, log, scratch, core):
        if any(kernel.nodes for kernel in kernels):
            return prove(promised, kernels, source)
    return unreadable(promised)


def _descriptions(
    library: str, engine: Path, log: str, scratch: Path, core: int | None
) -> Sequence[tuple[list[Kernel], str]]:
    read = from_log(log)
    if library != "tensorrt":
        return [(read, LOG)]
    return [(_inspected(library, engine, scratch, core), INSPECTOR), (read, LOG)]


def _inspected(library: str, engine: Path, scratch: Path, core: int | None) -> list[Kernel]:
    """In a process of its own: the engine is built, and must not be lost if loading it ends the process."""
    request = {"library": library, "inspect": str(engine), "dla": core}
    try:
        answer = process.ask(request, scratch, lambda text: None, LOADING_S)
    except TargetError:
        return []
    return from_inspector(answer.get("layers") or "")
