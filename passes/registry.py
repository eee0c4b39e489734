"""Finds passes: every module of this folder is imported once, and @register collects the classes."""

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

import passes
from lathe import UsageError, nearest

if TYPE_CHECKING:
    from passes.base import Pass

_REGISTERED: dict[str, "type[Pass]"] = {}


def register(pass_class: "type[Pass]") -> "type[Pass]":
    """Class decorator: makes the pass known under its `name`."""
    if _REGISTERED.setdefault(pass_class.name, pass_class) is not pass_class:
        raise ValueError(f"two passes are named '{pass_class.name}'")
    return pass_class


@cache
def all_passes() -> dict[str, "type[Pass]"]:
    """Every pass by name, sorted. Lowerings are not among them: a target names its own."""
    for module in pkgutil.iter_modules(passes.__path__):
        if not module.ispkg:
            importlib.import_module(f"passes.{module.name}")
    return dict(sorted(_REGISTERED.items()))


def find(name: str) -> "type[Pass]":
    """The pass of that name. Raises UsageError with the nearest right name."""
    known = all_passes()
    if name not in known:
        raise UsageError(f"there is no pass '{name}'{nearest(name, known)}; see: optimize passes")
    return known[name]
