"""Writes the texts that `optimize gate` leaves for CI."""

import os
from pathlib import Path

from onnx_lathe.errors import LatheError, UsageError
from onnx_lathe.runtime.files.writing import replacing

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"
"""Names the file of GitHub Actions to which every command of a step adds its part."""


def check_text(path: Path) -> None:
    """Raises UsageError, before anything runs, for a place that cannot be written to."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path}: {path.parent} is no folder that can be written to; make it first")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all. Raises UsageError with the reason if it cannot be written."""
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except LatheError as error:
        raise UsageError(str(error)) from error


def write_summary(path: Path, text: str) -> None:
    """As `write_text`, but behind what the summary of a step of GitHub Actions holds already."""
    summary = os.environ.get(STEP_SUMMARY)
    before = ""
    if summary and path.resolve() == Path(summary).resolve() and path.is_file():
        before = path.read_text(encoding="utf-8")
    write_text(path, before + ("\n" if before and not before.endswith("\n\n") else "") + text)
