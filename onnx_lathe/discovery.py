"""Finds passes and targets: those of this package by the rule of the house, and others' by their entry
points.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points

from onnx_lathe.errors import UsageError


def load_all(group: str, package: str, path: Iterable[str]) -> None:
    """Imports whatever registers itself: the modules of `package`, then the plug-ins of the entry point
    group.

    `path` is the package's `__path__`. Raises UsageError naming a plug-in that cannot be imported.
    """
    for module in modules(package, path):
        importlib.import_module(module)
    for plugin in entry_points(group=group):
        try:
            plugin.load()
        except (Exception, SystemExit) as error:
            owner = f" of {plugin.dist.name}" if plugin.dist is not None else ""
            message = " ".join(str(error).split())
            raise UsageError(
                f"plug-in '{plugin.name}'{owner} ({group}: {plugin.value}) cannot be loaded: "
                f"{type(error).__name__}: {message}; mend it, or uninstall it"
            ) from error


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
