"""Finds passes: modules and folders of `passes/` are imported once, and @register collects the classes.

A folder that holds a file of its own name is a pass; so is a file beside them. Other packages add theirs by
the entry point group `onnx_lathe.passes` (docs/passes.md).
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_lathe.discovery import load_all
from onnx_lathe.errors import UsageError, nearest

if TYPE_CHECKING:
    from onnx_lathe.passes.core.base import Pass

_REGISTERED: dict[str, "type[Pass]"] = {}


def register(pass_class: "type[Pass]") -> "type[Pass]":
    """Class decorator: makes the pass known under its `name`. Raises ValueError if another pass has it, or
    it has none.
    """
    if not hasattr(pass_class, "name"):
        raise ValueError(f"pass {pass_class.__name__} has no 'name'")
    if _REGISTERED.setdefault(pass_class.name, pass_class) is not pass_class:
        raise ValueError(f"two passes are named '{pass_class.name}'")
    return pass_class


@cache
def all_passes() -> dict[str, "type[Pass]"]:
    """Every pass by name, sorted. Lowerings are not among them: a target names its own."""
    load_all("onnx_lathe.passes", "onnx_lathe.passes", [str(Path(__file__).parents[1])], _REGISTERED)
    return dict(sorted(_REGISTERED.items()))


def find(name: str) -> "type[Pass]":
    """The pass of that name. Raises UsageError with the nearest right name."""
    known = all_passes()
    if name not in known:
        raise UsageError(f"there is no pass '{name}'{nearest(name, known)}; see: optimize passes")
    return known[name]
