"""The structure of the code as a test can see it: files, the rooms they stand in, and who imports whom."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("onnx_lathe", "optimizer", "passes", "runtime")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


@dataclass(frozen=True)
class Import:
    """One imported name: the module it comes from, and the line."""

    module: str
    line: int
    name: str = ""


def module_name(path: Path) -> str:
    """`passes/fold/fold.py` -> onnx_lathe.passes.fold.fold; a package's __init__ bears the package's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "onnx_lathe" else ("onnx_lathe", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def room(module: str) -> str:
    """face, optimizer, passes or runtime; leaf: the part of the face that every other room may import."""
    parts = module.split(".")
    if len(parts) > 1 and parts[1] in ROOMS:
        return parts[1]
    return "face" if module in ("onnx_lathe", "onnx_lathe.__main__") else "leaf"


def imports(source: str, known: Mapping[str, Path] = MODULES) -> Iterator[Import]:
    """Every import of the source, in functions too; of `from package import module`, the module."""
    for found in _written(source):
        whole = f"{found.module}.{found.name}"
        yield Import(whole, found.line) if found.name and whole in known else found


@cache
def _written(source: str) -> tuple[Import, ...]:
    """As the source says them. Parsing all files takes seconds, and many tests ask."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [Import(node.module, node.lineno, alias.name) for alias in node.names]
    return tuple(found)


def arrows(files: Mapping[str, str]) -> dict[str, set[str]]:
    """Module -> modules of the house that it imports. `files`: source by module name."""
    known = {name: Path() for name in files}
    return {
        name: {
            found.module for found in imports(source, known) if found.module in files and found.module != name
        }
        for name, source in files.items()
    }


def sources() -> dict[str, str]:
    return {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Modules that import each other in a loop: strongly connected components of more than one (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in graph:
        if name not in index:
            visit(name)
    return found


def inner_rooms(graph: Mapping[str, set[str]], package: str) -> dict[str, set[str]]:
    """Arrows between what stands directly in a package: its files, and its folders each as one room."""

    def place(module: str) -> str | None:
        inside = module.removeprefix(f"{package}.")
        return None if inside == module else inside.partition(".")[0]

    found: dict[str, set[str]] = {}
    for name, others in graph.items():
        here = place(name)
        if here is not None:
            found.setdefault(here, set()).update(
                there for other in others if (there := place(other)) not in (None, here)
            )
    return found
