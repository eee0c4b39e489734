"""Writes the texts that `optimize gate` leaves for CI."""

import os
from collections.abc import Sequence
from pathlib import Path

from onnx_lathe.errors import LatheError, UsageError
from onnx_lathe.runtime.files.writing import replacing

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"
"""Names the file of GitHub Actions to which every command of a step adds its part."""


def check_text(path: Path, read: Sequence[str]) -> None:
    """Raises UsageError, before anything runs, for a place that cannot be written to, or a file that is `read`, perhaps
    with a part or a function behind a colon.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is a device, not a file; choose another name")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path}: {path.parent} is no folder that can be written to; make it first")
    for text in read:
        if same_file(path, Path(text)) or same_file(path, Path(text.rpartition(":")[0])):
            raise UsageError(f"{path}: is read as {text}; write to another file")


def same_file(one: Path, other: Path) -> bool:
    """Of files that need not be there."""
    return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))


def write_text(path: Path, text: str, before: bytes = b"") -> None:
    """Whole or not at all, behind `before`. Raises UsageError with the reason if it cannot be written."""
    try:
        with replacing(path) as file:
            file.write(before + text.encode())
    except LatheError as error:
        raise UsageError(str(error)) from error


def write_summary(path: Path, text: str) -> None:
    """As `write_text`, but behind what the summary of a step of GitHub Actions holds already, in whatever encoding."""
    summary = os.environ.get(STEP_SUMMARY)
    before = b""
    if summary and same_file(path, Path(summary)) and path.is_file():
        before = path.read_bytes()
    gap = "" if before.endswith((b"\n\n", b"\r\n\r\n")) or not before else "\n"
    write_text(path, gap + text, before)
