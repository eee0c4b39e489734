"""SHA-256 of the files of a bundle. The command itself compares them (build.py), before it imports this file."""

import hashlib
from pathlib import Path

SUMS = "SHA256SUMS"


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
