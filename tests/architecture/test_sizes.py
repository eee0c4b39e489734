"""How long files, functions and lines may get."""

import ast
from collections.abc import Iterator

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


def too_long(source: str) -> Iterator[str]:
    """The file if it is, and its functions that are."""
    lines = len(source.splitlines())
    if lines > LINES:
        yield f"has {lines} lines"
    for node in ast.walk(ast.parse(source)) if lines >= FUNCTION_LINES else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield f"{node.name} has {lines} lines"


def test_files_and_functions_stay_short() -> None:
    read = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in EVERY_FILE}
    assert [
        f"{name}: {what}" for name, source in read.items() if name not in LONGER for what in too_long(source)
    ] == []


def test_what_is_too_long_is_found() -> None:
    function = "def f():\n" + "    x = 1\n" * (FUNCTION_LINES - 1)
    assert list(too_long(function)) == []
    assert list(too_long(function + "    y = 1\n")) == [f"f has {FUNCTION_LINES + 1} lines"]
    assert list(too_long("x = 1\n" * LINES)) == []
    assert list(too_long("x = 1\n" * (LINES + 1))) == [f"has {LINES + 1} lines"]


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
