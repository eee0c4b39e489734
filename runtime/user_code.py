"""Imports a user's Python file, a retraining hook or a function that yields data, and keeps its names apart
from others'.
"""

import ast
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

FORMER = {name: f"onnx_lathe.{name}" for name in ("optimizer", "passes", "runtime")} | {"lathe": "onnx_lathe"}
"""What Lathe's parts were imported as before version 0.2 -> as what they are imported now."""

_FOLDERS: list[str] = []
"""What this module put on sys.path."""


def import_file(path: Path, anew: bool = False) -> ModuleType:
    """The file as a module, imported once for as long as it stays as it is, or, `anew`, at every call. Its
    folder comes first on the path, as for a script, and stays there.

    Two files never share a module, whatever they are called. A module beside another user's file, which
    another call imported, gives way to one of the same name beside this file.
    Raises whatever the file raises, and ImportError if it is no Python file, or would get another module
    than the one beside it.
    """
    source = path.read_bytes()
    mark = hashlib.sha256(str(path).encode() + b"\0" + source).hexdigest()[:16]
    name = f"{path.stem.replace('.', '_')}_{mark}" + ("_anew" if anew else "")
    if name in sys.modules and not anew:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    _forget_other_users(path.parent)
    _refuse_mixed_up(source, path.parent)
    _put_first(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # worker processes and dataclasses look a function's module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def search_path() -> list[str]:
    """Where this process imports from, apart from the folders of users' files: for a child to do the same."""
    paths = [os.path.abspath(entry) for entry in sys.path]
    for folder in _FOLDERS:
        if folder in paths:
            paths.remove(folder)
    return paths


def shadowed(error: BaseException, folder: Path) -> str:
    """What to add to the message of an import that found another file than the one in `folder`; nothing
    otherwise.
    """
    name = _module_of(error)
    if name is None:
        return ""
    top = name.partition(".")[0]
    beside = _beside(top, folder)
    if beside is not None:
        return _other_than(top, beside)
    if top in FORMER:
        return f"; if Lathe's is meant, it is '{FORMER[top]}'"
    return ""


class _StandardFirst:
    """Finds Python's own modules where they are, not in a user's folder: libraries import them when they need
    them, which may be after that folder came first, and a queue.py there must not break them.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None or name not in sys.stdlib_module_names:
            return None
        return PathFinder.find_spec(
            name, [entry for entry in sys.path if os.path.abspath(entry) not in _FOLDERS]
        )


def _put_first(folder: str) -> None:
    if not _FOLDERS:
        at = sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else 0
        sys.meta_path.insert(at, _StandardFirst())
    if folder in _FOLDERS:
        _FOLDERS.remove(folder)
        if folder in sys.path:
            sys.path.remove(folder)
    sys.path.insert(0, folder)
    _FOLDERS.append(folder)


def _refuse_mixed_up(source: bytes, folder: Path) -> None:
    """Raises ImportError if the file imports a module beside it, but one of that name is there from
    elsewhere, such as from the folder of another hook: the file would get that one without a word.
    """
    for top in _imported(source):
        if top in sys.stdlib_module_names or top == "onnx_lathe":
            continue
        beside = _beside(top, folder)
        # a folder without __init__.py gives way to a module elsewhere in a script, too
        if beside is None or not (beside.is_file() or (beside / "__init__.py").is_file()):
            continue
        if message := _other_than(top, beside):
            raise ImportError(message.removeprefix("; "))


def _forget_other_users(folder: Path) -> None:
    """Modules that lie beside another user's file give way to those of the same name in `folder`.

    Who has imported one keeps it; the next import finds the one in `folder`.
    """
    others = {Path(other) for other in _FOLDERS} - {folder}
    for top in {name.partition(".")[0] for name in sys.modules}:
        file = getattr(sys.modules.get(top), "__file__", None)
        if file is None:
            continue
        place = Path(file).parent
        if Path(file).name == "__init__.py":
            place = place.parent
        if place in others and _beside(top, folder) is not None:
            for name in [name for name in sys.modules if name.partition(".")[0] == top]:
                del sys.modules[name]


def _beside(top: str, folder: Path) -> Path | None:
    """What Python takes for the module of that name in the folder: a package, a file, or any folder."""
    if (folder / top / "__init__.py").is_file():
        return folder / top
    return next((path for path in (folder / f"{top}.py", folder / top) if path.exists()), None)


def _imported(source: bytes) -> Iterator[str]:
    """First names of the modules that the source imports."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # importing the file says what is wrong with it
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _other_than(top: str, beside: Path) -> str:
    """Says that the imported module is another than `beside`; nothing if it is that one, or none."""
    module = sys.modules.get(top)
    if module is None:
        return ""
    found = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    if found is not None and Path(found).resolve().is_relative_to(beside.resolve()):
        return ""
    if top in sys.stdlib_module_names:
        return f"; '{top}' is Python's own module, not {beside}: give your file another name"
    return f"; '{top}' was found in {found}, not in {beside}: give one of them another name"


def _module_of(error: BaseException) -> str | None:
    """The module that an import, or a look into a module, was about."""
    if isinstance(error, ImportError):
        return error.name
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        return error.obj.__name__
    return None
