"""What callers in Python give, checked: a wrong type is one line that names the argument."""

from collections.abc import Sequence
from pathlib import Path

import onnx

from onnx_lathe.errors import UsageError


def texts(given: str | Sequence[str], what: str) -> tuple[str, ...]:
    """One text, or several. Raises UsageError for anything else under the argument's name `what`."""
    found = (given,) if isinstance(given, str) else given
    if not isinstance(found, Sequence) or not all(isinstance(text, str) for text in found):
        raise UsageError(f"{what} takes a text or a list of texts, not {given!r}")
    return tuple(found)


def path(given: str | Path, what: str) -> Path:
    """Raises UsageError for what is no path under the argument's name `what`."""
    if not isinstance(given, str | Path):
        raise UsageError(f"{what} takes a path, not {type(given).__name__}")
    return Path(given)


def model(given: onnx.ModelProto | str | Path) -> onnx.ModelProto | Path:
    """A model in memory, or the path of one. Raises UsageError."""
    if isinstance(given, onnx.ModelProto):
        return given
    if not isinstance(given, str | Path):
        raise UsageError(f"model is a path or a model, not {type(given).__name__}")
    return Path(given)


def whole(given: int, what: str) -> int:
    """Raises UsageError for what is no whole number under the argument's name `what`."""
    if not isinstance(given, int) or isinstance(given, bool):
        raise UsageError(f"{what} takes a whole number, not {given!r}")
    return given
