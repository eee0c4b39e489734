"""Finds targets: modules and folders of `runtime/targets/` are imported once, and @register collects the
classes.

A folder that holds a file of its own name is a target; so is a file beside them. Other packages add theirs
by the entry point group `onnx_lathe.targets` (docs/targets.md).
"""

from functools import cache
from pathlib import Path

from onnx_lathe.discovery import load_all
from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.runtime.targets.core.base import Target

_REGISTERED: dict[str, type[Target]] = {}


def register(target: type[Target]) -> type[Target]:
    """Class decorator: makes the target known under its `name`. Raises ValueError if another target has it,
    or the class lacks what every target has to say.
    """
    name = getattr(target, "name", None)
    if _REGISTERED.get(name or "", target) is not target:
        raise ValueError(f"two targets are named '{name}'")
    for wanted in ("name", "help", "outputs"):
        if not hasattr(target, wanted):
            raise ValueError(f"target {target.__name__} has no '{wanted}'")
    _REGISTERED[target.name] = target
    return target


@cache
def targets() -> dict[str, type[Target]]:
    """Every target by name, sorted."""
    load_all(
        "onnx_lathe.targets", "onnx_lathe.runtime.targets", [str(Path(__file__).parents[1])], _REGISTERED
    )
    return dict(sorted(_REGISTERED.items()))


def find(name: str) -> type[Target]:
    """The target of that name. Raises UsageError with the nearest right name."""
    known = targets()
    if name not in known:
        raise UsageError(f"there is no target '{name}'{nearest(name, known)}; see: optimize targets")
    return known[name]
