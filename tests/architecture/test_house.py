"""The rule of the house: what is a pass or a target, that both are found without a list, and where type checkers look."""

import ast
import dataclasses
from pathlib import Path

import pytest

from onnx_lathe.passes.core.registry import all_passes
from onnx_lathe.runtime.targets.core.registry import targets
from tests.support.house import FILES, ROOT


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


def test_one_file_knows_how_initializers_are_stored() -> None:
    """onnx-graphsurgeon's `_values` is private: a new version may change it, and then one file changes here."""
    users = {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "_values"
    }
    assert users == {"passes/graph/initializers.py"}
