"""How long files, functions and lines may get."""

import ast
from pathlib import Path

import pytest

from tests.support.house import FILES, ROOT

LINES = 400
FUNCTION_LINES = 60
WIDTH = 110
WIDE_SHARE = 0.02
LONGER: dict[str, str] = {
    "tests/support/pack_reference.py": "a second decoder of the packed format, that imports nothing of the first",
}
"""Files over 400 lines, whose functions may be longer too, each with its reason."""

EVERY_FILE = sorted(
    {
        *FILES,
        *(
            path
            for folder in ("tests", "benchmarks", "models", "docs")
            for path in (ROOT / folder).rglob("*.py")
        ),
    }
)


@pytest.mark.parametrize("path", EVERY_FILE, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT).as_posix()
    assert len(source.splitlines()) <= LINES or name in LONGER
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES or name in LONGER, node.name


def test_exceptions_are_needed() -> None:
    for name, reason in LONGER.items():
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) > LINES, f"{name} is short now"
        assert reason


def test_few_lines_are_wide() -> None:
    widths = [len(line) for path in EVERY_FILE for line in path.read_text(encoding="utf-8").splitlines()]
    assert sum(width > WIDTH for width in widths) < WIDE_SHARE * len(widths)


def test_every_file_says_what_it_is_for() -> None:
    assert not [
        str(path) for path in FILES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
