"""The house rules that a machine can hold: who imports whom, how long a file gets, that every pass is documented."""

import ast
import dataclasses
from pathlib import Path

import pytest

from passes.registry import all_passes

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("optimizer", "passes", "runtime")
ALLOWED = {"optimizer": {"passes", "runtime"}, "passes": set(), "runtime": set(), "lathe": set()}
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")) + [ROOT / "lathe.py"]
LINES = 400


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0].removesuffix(".py")
    forbidden = (set(PACKAGES) - ALLOWED[package] - {package}) & imported(path)
    assert not forbidden, f"{package} must not import {forbidden}"


def test_only_the_bridge_and_training_import_torch() -> None:
    places = {path.parent.name for path in FILES if "torch" in imported(path)}
    assert places <= {"torch_bridge", "operators", "training"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES


def test_every_file_says_what_it_is_for() -> None:
    silent = [str(path) for path in FILES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not silent


@pytest.mark.parametrize("name", sorted(all_passes()))
def test_every_option_is_documented(name: str) -> None:
    pass_class = all_passes()[name]
    assert dataclasses.fields(pass_class.Config) is not None
    assert pass_class.Config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    for field in dataclasses.fields(pass_class.Config):
        assert field.metadata.get("help"), f"{name}({field.name}) has no help"


def test_a_pass_is_one_file_of_its_name() -> None:
    for name, pass_class in all_passes().items():
        assert pass_class.__module__ == f"passes.{name}"
