"""The rule of the house: what is a pass or a target, that both are found without a list, and where type checkers look."""

import ast
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from onnx_lathe.layout import LAYOUT
from onnx_lathe.passes.core.registry import all_passes
from onnx_lathe.runtime.targets.core.registry import targets
from tests.support.house import FILES, ROOT, arrows, sources


def own_modules(folder: str) -> set[str]:
    """NAME.py and NAME/NAME.py of a folder, as modules."""
    beside = {path.stem for path in (ROOT / folder).glob("*.py") if path.stem != "__init__"}
    inside = {
        f"{path.stem}.{path.stem}" for path in (ROOT / folder).glob("*/*.py") if path.stem == path.parent.name
    }
    return {f"onnx_lathe.{folder.replace('/', '.')}.{name}" for name in beside | inside}


@pytest.mark.parametrize("name", sorted(all_passes()))
def test_every_option_is_documented(name: str) -> None:
    pass_class = all_passes()[name]
    assert dataclasses.fields(pass_class.Config) is not None
    assert pass_class.Config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    for field in dataclasses.fields(pass_class.Config):
        assert field.metadata.get("help"), f"{name}({field.name}) has no help"


def test_a_pass_stands_where_its_name_says() -> None:
    places = {name: found.__module__ for name, found in all_passes().items()}
    for name, module in places.items():
        assert module in (f"onnx_lathe.passes.{name}", f"onnx_lathe.passes.{name}.{name}")
    assert set(places.values()) == own_modules("passes")


def test_a_target_stands_where_the_rule_says() -> None:
    assert {found.__module__ for found in targets().values()} == own_modules("runtime/targets")


@pytest.mark.skipif(sys.platform == "win32", reason="a clone on Windows may have text files for links")
def test_type_checkers_see_every_file() -> None:
    """mypy says Success of the face alone, too: the links lead to all the files, and to nothing else."""
    links = ROOT / "typings" / "onnx_lathe"
    seen = {
        path.resolve()
        for folder in [links, *links.iterdir()]
        if folder.is_dir()
        for path in folder.rglob("*.py")
    }
    assert seen == {path.resolve() for path in FILES}


def test_what_an_installation_says_of_its_types() -> None:
    assert (ROOT / "onnx_lathe" / "py.typed").is_file()
    assert Path(ROOT / "typings" / "onnx_lathe" / "py.typed").is_file()


def files_with(*words: str) -> Iterator[tuple[str, str]]:
    """(Place, source) of the files in which all the words stand: the others need not be parsed."""
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        if all(word in source for word in words):
            yield path.relative_to(ROOT).as_posix(), source


def test_one_file_knows_how_initializers_are_stored() -> None:
    """onnx-graphsurgeon's `_values` is private: if a new version changes it, one file changes here."""
    users = {
        place
        for place, source in files_with("_values")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and node.attr == "_values"
    }
    assert users == {"passes/graph/initializers.py"}


def test_one_file_lists_the_operators_that_lay_out_anew() -> None:
    """Lists that begin alike drift apart: one that has all of LAYOUT is built of it."""
    places = {
        place
        for place, source in files_with(*LAYOUT)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Tuple | ast.List | ast.Set)
        and set(LAYOUT) <= {one.value for one in ast.walk(node) if isinstance(one, ast.Constant)}
    }
    assert places == {"onnx_lathe/layout.py"}


def rooms_that_use(unit: str, graph: Mapping[str, set[str]]) -> set[str]:
    """Who imports a file or folder of passes/graph, directly or by other files there: passes, core, the
    lowerings together, and the driver.
    """
    package = "onnx_lathe.passes.graph."
    pending, seen, users = [unit], {unit}, set()
    while pending:
        wanted = package + pending.pop()
        for name, imported in graph.items():
            if not any(module == wanted or module.startswith(f"{wanted}.") for module in imported):
                continue
            if not name.startswith(package):
                parts = name.split(".")
                users.add(parts[2] if parts[1] == "passes" else parts[1])
            elif (other := name.removeprefix(package).partition(".")[0]) not in seen:
                seen.add(other)
                pending.append(other)
    return users


@cache
def every_arrow() -> dict[str, set[str]]:
    return arrows(sources())


def units_of_graph() -> list[str]:
    inside = (ROOT / "passes" / "graph").glob("[!_]*")
    return sorted({path.stem for path in inside if path.is_dir() or path.suffix == ".py"})


@pytest.mark.parametrize("unit", units_of_graph())
def test_what_lies_in_graph_is_shared(unit: str) -> None:
    """A file lives with the only pass that uses it."""
    users = rooms_that_use(unit, every_arrow())
    assert len(users) > 1, f"passes/graph/{unit} is used by {users} alone"


def test_a_file_of_one_pass_is_found() -> None:
    graph = {
        "onnx_lathe.passes.fold.fold": {"onnx_lathe.passes.graph.gates"},
        "onnx_lathe.passes.fold.affine": {"onnx_lathe.passes.graph.gates"},
        "onnx_lathe.passes.graph.gates": {"onnx_lathe.passes.graph.coupling.state"},
        "onnx_lathe.passes.int4": {"onnx_lathe.passes.graph.pairs"},
        "onnx_lathe.passes.lowering.tensorrt": {"onnx_lathe.passes.graph.pairs"},
    }
    assert rooms_that_use("coupling", graph) == {"fold"}
    assert rooms_that_use("pairs", graph) == {"int4", "lowering"}


def test_no_source_lies_at_the_top_level() -> None:
    """A merge once left a copy of a module there."""
    assert not list(ROOT.glob("*.py"))
