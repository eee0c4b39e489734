"""Imports a user's Python file: a retraining hook, or a function that yields data."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FORMER = ("lathe", "optimizer", "passes", "runtime")
"""What Lathe itself was imported as before version 0.2."""


def import_file(path: Path, name: str) -> ModuleType:
    """The file as the module `name`, imported once. Its folder comes first on the path, as for a script.

    Raises whatever the file raises, and ImportError if it is no Python file.
    """
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # worker processes and dataclasses look a function's module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def shadowed(error: BaseException, folder: Path) -> str:
    """What to add to the message of an import that found another file than the one in `folder`; nothing
    otherwise.
    """
    name = _module_of(error)
    if name is None:
        return ""
    top = name.partition(".")[0]
    beside = next((path for path in (folder / f"{top}.py", folder / top) if path.exists()), None)
    found = getattr(sys.modules.get(top), "__file__", None)
    if (
        beside is not None
        and found is not None
        and not Path(found).resolve().is_relative_to(beside.resolve())
    ):
        return f"; '{top}' was found in {found}, not in {beside}: give one of them another name"
    if top in FORMER and beside is None:
        return f"; '{top}' is not Lathe's any more: import it from onnx_lathe"
    return ""


def _module_of(error: BaseException) -> str | None:
    """The module that an import, or a look into a module, was about."""
    if isinstance(error, ImportError):
        return error.name
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        return error.obj.__name__
    return None
