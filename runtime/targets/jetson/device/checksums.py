"""Whether the files of a bundle are those that were written."""

import hashlib
from pathlib import Path

from onnx_lathe.runtime.targets.jetson.device.refusal import WRONG_USE, RefusedError

SUMS = "SHA256SUMS"


def check(folder: Path) -> None:
    """Compares every file with SHA256SUMS. Raises RefusedError that names all that are missing or changed."""
    try:
        expected = listed(folder / SUMS)
    except OSError as error:
        raise RefusedError(f"{folder / SUMS}: {error.strerror}; copy the folder again", WRONG_USE) from error
    if not expected:
        raise RefusedError(f"{folder / SUMS}: lists no file; copy the folder again", WRONG_USE)
    wrong = [said for name, wanted in expected.items() if (said := _difference(folder / name, wanted))]
    if wrong:
        raise RefusedError(f"{folder}: {', '.join(wrong)}; copy the folder again", WRONG_USE)


def listed(path: Path) -> dict[str, str]:
    """Name -> SHA-256, of a file SHA256SUMS."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {name: wanted for wanted, name in (line.split("  ", 1) for line in lines if "  " in line)}


def sums(folder: Path) -> str:
    """SHA256SUMS of all files below the folder but itself, as `sha256sum --check` reads them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    return "".join(f"{digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths)


def digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


def _difference(path: Path, expected: str) -> str:
    try:
        return "" if digest(path) == expected else f"{path.name} is not as it was written"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
