"""Opens an engine that was built earlier: the file is checked against what was written beside it, and loaded by the
library that built it.
"""

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx_lathe.errors import ModelError, TargetError
from onnx_lathe.runtime.targets.core.base import Reopened
from onnx_lathe.runtime.targets.tensorrt.engine_process import EngineProcess
from onnx_lathe.runtime.targets.tensorrt.session import EngineSession

TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
EXTRAS = {"tensorrt": "gpu", "tensorrt_rtx": "rtx"}


def reopen(engine: Path) -> Reopened:
    """Raises ModelError for a file without its description or one that is damaged, TargetError for one that this machine
    cannot run.
    """
    said = description(engine)
    check_file(engine, said)
    session = open_engine(engine, said)
    return Reopened(session, _library(said, session.process), engine.stat().st_size, _device(session.process))


def open_engine(engine: Path, said: Mapping[str, Any]) -> EngineSession:
    """Raises TargetError where it cannot be run. `said`: what the file beside it has of library, version, GPU and DLA."""
    library = said["library"]
    if said.get("strip"):
        raise TargetError(
            f"{engine}: holds no weights, and computes nothing right before it is refitted; build it without strip to run it"
        )
    if importlib.util.find_spec(library) is None:
        raise TargetError(
            f"{engine}: {library} is not installed, whose {TITLES[library]} {said['version']} built it; "
            f"pip install 'onnx-lathe[{EXTRAS[library]}]'"
        )
    try:
        process = EngineProcess(library)
    except TargetError as error:
        raise TargetError(f"{engine}: cannot be run here: {error}") from error
    try:
        return EngineSession(process, engine, said.get("dla"))
    except (ModelError, TargetError) as error:
        process.close()
        raise TargetError(
            f"{engine}: {_library(said, process)} does not load it on {_device(process)}: {error}{_why(said, process)}"
        ) from error


def description(engine: Path) -> dict[str, Any]:
    """What NAME.engine.json says of NAME.engine. Raises ModelError for one that is missing, or that Lathe did not
    write.
    """
    if not engine.is_file():
        raise ModelError(f"{engine}: no such file" if not engine.exists() else f"{engine}: is no file")
    path = engine.with_name(f"{engine.name}.json")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        known = table["library"] in TITLES and isinstance(table["version"], str)
        sizes = isinstance(table["engine_bytes"], int) and isinstance(table["engine_sha256"], str)
    except OSError as error:
        raise ModelError(
            f"{path}: {error.strerror}; it says which library runs {engine.name}, and is written beside it: optimize "
            "build MODEL --target tensorrt"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: is not the description that Lathe writes beside {engine.name}") from error
    if not known or not sizes:
        raise ModelError(f"{path}: is not the description that Lathe writes beside {engine.name}")
    return dict(table)


def check_file(engine: Path, said: Mapping[str, Any]) -> None:
    """TensorRT takes a damaged engine for what it is not. Raises ModelError for one."""
    with engine.open("rb") as file:
        found, size = hashlib.sha256(), 0
        while piece := file.read(1 << 20):
            found.update(piece)
            size += len(piece)
    if size != said["engine_bytes"]:
        reason = f"has {size:,} bytes, not {said['engine_bytes']:,}"
    elif found.hexdigest() != said["engine_sha256"]:
        reason = "holds other bytes"
    else:
        return
    raise ModelError(
        f"{engine}: {reason}, so it was not written with {engine.name}.json, or not copied whole; copy both again, or "
        "build it again"
    )


def _library(said: Mapping[str, Any], process: EngineProcess) -> str:
    return f"{TITLES[said['library']]} {process.version}"


def _device(process: EngineProcess) -> str:
    return f"{process.gpu} ({process.compute})"


def _why(said: Mapping[str, Any], process: EngineProcess) -> str:
    """What of the description does not fit this machine."""
    built = said.get("gpu")
    wanted = list(said.get("compute") or ([built["compute"]] if isinstance(built, dict) else []))
    reasons = []
    if said["version"] != process.version:
        reasons.append(f"by {TITLES[said['library']]} {said['version']}")
    if wanted and process.compute not in wanted:
        reasons.append(f"for {'+'.join(wanted)}")
    return f"; it was built {' and '.join(reasons)}: build it again for this machine" if reasons else ""
