"""Finds passes and targets: those of this package by the rule of the house, and others' by their entry
points.
"""

import gc
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_lathe.errors import UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


@contextmanager
def uncollected() -> Iterator[None]:
    """Many modules are imported inside; looking for garbage meanwhile takes a tenth of the time, and finds none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def load_all(group: str, package: str, path: Iterable[str], registered: dict[str, Any]) -> None:
    """Imports whatever registers itself: the modules of `package`, then the plug-ins of the entry point
    group.

    `path` is the package's `__path__`. What a plug-in that fails has put into `registered` goes again.
    Raises UsageError naming a plug-in that cannot be imported.
    """
    with uncollected():
        for module in modules(package, path):
            importlib.import_module(module)
    for plugin in _plugins(group):
        before = dict(registered)
        try:
            plugin.load()
        except (Exception, SystemExit) as error:
            registered.clear()
            registered.update(before)
            owner = f" of {plugin.dist.name}" if plugin.dist is not None else ""
            message = " ".join(str(error).split())
            raise UsageError(
                f"plug-in '{plugin.name}'{owner} ({group}: {plugin.value}) cannot be loaded: "
                f"{type(error).__name__}: {message}; mend it, or uninstall it"
            ) from error


def _plugins(group: str) -> "Iterable[EntryPoint]":
    """Entry points of the group.

    importlib.metadata takes 50 ms to import, so it is asked only if a distribution names the group at all, or
    if one may be in an archive.
    """
    entries = [Path(entry) for entry in sys.path]
    if not any(entry.is_file() or _names(entry, group) for entry in entries):
        return ()
    from importlib.metadata import entry_points

    return entry_points(group=group)


def _names(folder: Path, group: str) -> bool:
    """Whether a distribution installed in this folder of the path has entry points of the group."""
    for pattern in ("*.dist-info/entry_points.txt", "*.egg-info/entry_points.txt"):
        for file in folder.glob(pattern):
            if f"[{group}]" in file.read_text(encoding="utf-8", errors="replace"):
                return True
    return False


def modules(package: str, path: Iterable[str]) -> Iterator[str]:
    """Full names of the modules that are a pass or a target: every file beside the others, and every
    NAME/NAME.py.
    """
    for found in pkgutil.iter_modules(path):
        name = f"{package}.{found.name}"
        if not found.ispkg:
            yield name
        elif importlib.util.find_spec(f"{name}.{found.name}") is not None:
            yield f"{name}.{found.name}"
