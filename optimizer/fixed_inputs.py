"""Inputs that a user wants as constants: as `--fix-input NAME=VALUE`, as a table of a recipe, or from Python."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnx_lathe.errors import UsageError

OPTION = "--fix-input"
EXAMPLE = "sr=16000, flag=true or sizes=[640, 480]"


def parse_fixed(texts: Sequence[str] | None) -> dict[str, Any]:
    """The values by name of `NAME=VALUE` texts. Raises UsageError."""
    found: dict[str, Any] = {}
    for text in texts or ():
        name, equal, value = (part.strip() for part in text.partition("="))
        if not name or not equal or not value:
            raise UsageError(f"{OPTION} '{text}': write NAME=VALUE, such as {EXAMPLE}")
        if name in found:
            raise UsageError(f"{OPTION}: '{name}' is there twice")
        found[name] = _value(value, text)
    return checked_fixed(found, OPTION)


def checked_fixed(values: object, where: str) -> dict[str, Any]:
    """A table of numbers, booleans and lists of them, arrays as lists. Raises UsageError that begins with `where`."""
    if not isinstance(values, Mapping):
        raise UsageError(f"{where} takes values by the names of inputs, not {values!r}")
    found = {}
    for name, value in values.items():
        plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        if not isinstance(name, str) or not _is_plain(plain):
            raise UsageError(
                f"{where}: '{name}' takes a number, true or false, or a list of them, not {value!r}"
            )
        found[name] = plain
    return found


def _value(text: str, whole: str) -> Any:
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except (ValueError, RecursionError):
        raise UsageError(f"{OPTION} '{whole}': '{text}' is no number or list; write {EXAMPLE}") from None


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float)
