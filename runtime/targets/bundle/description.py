"""The description that lies beside a written file: docs/model.schema.json says its form."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.files.writing import replacing
from onnx_lathe.runtime.targets.bundle.pixels import Pixels
from onnx_lathe.runtime.targets.bundle.ports import Port, ports_from_json
from onnx_lathe.version import VERSION

FORMAT = 2


def describe(
    target: str,
    files: Sequence[Path],
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    pixels: Pixels | str,
    choices: Mapping[str, Any],
    *,
    classes: Sequence[str] = (),
    verified: Mapping[str, Any] | None = None,
    examples: Mapping[str, Any] | None = None,
    libraries: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The description as plain data.

    `files`: what the device loads, the first by name; a folder stands for all files in it. `choices`: what the target
    was told and what it chose, in its own words. `verified`: what came of running it here, `examples`: stored inputs
    and outputs (examples.py); None where there is none. `libraries`: versions of what wrote and ran it.
    """
    return {
        "format": FORMAT,
        "target": target,
        "file": files[0].name,
        "files": _digests(files),
        "inputs": [port.as_json() for port in inputs],
        "outputs": [port.as_json() for port in outputs],
        "preprocessing": None if isinstance(pixels, str) else pixels.as_json(),
        "classes": list(classes),
        "choices": dict(choices),
        "verified": None if verified is None else dict(verified),
        "examples": None if examples is None else dict(examples),
        "versions": {"lathe": VERSION, **(libraries or {})},
    }


def write(path: Path, described: Mapping[str, Any]) -> None:
    put(path, json.dumps(described, indent=1))


def put(path: Path, text: str) -> None:
    """Writes a text file whole or not at all, with one line end at its end."""
    with replacing(path) as file:
        file.write((text.rstrip("\n") + "\n").encode())


def read(path: Path, described: str, target: str) -> dict[str, Any]:
    """The description in a file, whose form and ports are checked. `described`: the name of the file that it is of,
    which `target` writes. Raises ModelError for one that is missing, or that Lathe did not write.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["format"] != FORMAT:
            raise ModelError(
                f"{path}: has format {table['format']}, this version of Lathe reads {FORMAT}; write {described} again: "
                f"optimize build MODEL --target {target}"
            )
        if table["target"] != target:
            raise ModelError(f"{path}: describes a file of target {table['target']}, not of {target}")
        ports_from_json(table)
    except OSError as error:
        raise ModelError(
            f"{path}: {error.strerror}; it says what goes in and out of {described}, and is written beside it: "
            f"optimize build MODEL --target {target}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: is not the description that Lathe writes beside {described}") from error
    return dict(table)


def _digests(files: Sequence[Path]) -> dict[str, Any]:
    """By name, with the folder's of what lies in one; "/" between, on any system."""
    found: dict[str, Any] = {}
    for path in files:
        inside = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        found |= {one.relative_to(path.parent).as_posix(): digest(one) for one in inside}
    return found


def digest(path: Path) -> dict[str, int | str]:
    """Size and SHA-256, as the description has them. Raises OSError."""
    with path.open("rb") as file:
        found = hashlib.sha256()
        while piece := file.read(1 << 20):
            found.update(piece)
        return {"bytes": file.tell(), "sha256": found.hexdigest()}
