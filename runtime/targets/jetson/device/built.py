"""What model.engine.json says of the engine beside it: of which network and for which device it was built."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx_lathe.runtime.targets.jetson.device.checksums import SUMS, digest, listed
from onnx_lathe.runtime.targets.jetson.device.refusal import WRONG_USE, RefusedError

ENGINE = "model.engine"
SIDECAR = f"{ENGINE}.json"
KEPT = ("version", "gpu", "build_seconds", "weights_bytes", "inputs", "outputs", "on_gpu", "warnings")
"""Of the builder's answer, what is kept."""
ANY_BUILD = "python3 build.py or ./build.sh"


def network(folder: Path, model: str) -> dict[str, str]:
    """SHA-256 of the network's files, as SHA256SUMS has them: `model`, and its weights where they are apart."""
    return {
        name: wanted for name, wanted in listed(folder / SUMS).items() if name in (model, f"{model}.data")
    }


def described(
    engine: Path, request: Mapping[str, Any], answer: Mapping[str, Any], files: Mapping[str, str]
) -> str:
    """Text of the description. `files`: of the network, as `network` gives them."""
    found = {
        "engine": ENGINE,
        "engine_bytes": engine.stat().st_size,
        "engine_sha256": digest(engine),
        "model_sha256": files,
        "library": request["library"],
        "dla": request["dla"],
    }
    found |= {key: answer[key] for key in KEPT if key in answer}
    return json.dumps(found, indent=1) + "\n"


def check(folder: Path, request: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Raises RefusedError where the engine that is there is not the one that is asked for."""
    again = f"build it again: {ANY_BUILD}"
    try:
        said = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
        wanted, model, core = said["engine_sha256"], said["model_sha256"], said["dla"]
        library = said["library"]
    except OSError as error:
        raise RefusedError(
            f"{SIDECAR}, which says of what {ENGINE} was built, cannot be read ({error.strerror}); {again}",
            WRONG_USE,
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(
            f"{SIDECAR} does not say of what {ENGINE} was built; {again}", WRONG_USE
        ) from error
    if digest(folder / ENGINE) != wanted:
        raise RefusedError(f"{ENGINE} is not the one that {SIDECAR} is of; {again}", WRONG_USE)
    if model != files:
        raise RefusedError(f"{ENGINE} was built of another network than the one here; {again}", WRONG_USE)
    if library != request["library"]:
        raise RefusedError(
            f"{ENGINE} was built by {library}, not {request['library']}; build it again: python3 build.py --library {request['library']}",
            WRONG_USE,
        )
    if core != request["dla"]:
        raise RefusedError(
            f"{ENGINE} was built {place(core)}, and asked for is one {place(request['dla'])}; build that one first "
            f"({_command(request)}), or ask for the one that is there",
            WRONG_USE,
        )


def place(core: int | None) -> str:
    """Where an engine runs, in words."""
    return "for the GPU" if core is None else f"for DLA core {core}"


def _command(request: Mapping[str, Any]) -> str:
    return "python3 build.py --gpu" if request["dla"] is None else "python3 build.py"
