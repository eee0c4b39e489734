"""Mutation testing, whose run takes an hour: what it changes, and that each module has tests of its own."""

import ast
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.house import ROOT

if sys.version_info < (3, 11):
    pytest.skip("contextlib.chdir is of Python 3.11", allow_module_level=True)


@pytest.fixture
def benchmark_modules(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import mutants
    import mutation

    loaded = {"mutants": mutants, "mutation": mutation}
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    return loaded


def faults(modules: Mapping[str, ModuleType], source: str) -> list[str]:
    """The source with each of its faults."""
    count = len(modules["mutants"].found(ast.parse(source)))
    texts = []
    for index in range(count):
        tree = ast.parse(source)
        modules["mutants"].found(tree)[index].apply()
        compile(tree, "faulty", "exec")
        texts.append(ast.unparse(tree))
    return texts


@pytest.mark.parametrize(
    "source, made",
    [
        ("a <= b", ["a < b", "a > b"]),
        ("a + b", ["a - b"]),
        ("not a", ["a"]),
        ("a and b", ["a or b"]),
        ("x = 3", ["x = 4"]),
        ("x = True", ["x = False"]),
        ("x = max(a, b)", ["x = min(a, b)"]),
        ("raise E", ["pass"]),
        ("f(a)", ["pass"]),
        ("[a for a in b if a]", ["[a for a in b if not a]"]),
        ("a if b else c", ["a if not b else c"]),
        ("x = 'text'", []),
        ("assert a < b", []),
        ("x: int | None", []),
        ("isinstance(a, int | None)", ["pass"]),
        ("def f(a: int = 0) -> int | None:\n    return a", ["def f(a: int=1) -> int | None:\n    return a"]),
    ],
)
def test_what_is_changed(
    benchmark_modules: Mapping[str, ModuleType], source: str, made: Sequence[str]
) -> None:
    found = faults(benchmark_modules, source)
    assert found[: len(made)] == [*made]
    assert source.startswith("def") or len(found) == len(made)


def test_a_fault_knows_its_function_and_its_lines(benchmark_modules: Mapping[str, ModuleType]) -> None:
    source = "class A:\n    @property\n    def f(self, a=1):\n        if (a\n            < 2):\n            return a + 1\n"
    found = benchmark_modules["mutants"].found(ast.parse(source))
    where = {(one.before, one.function, one.lines) for one in found}
    assert ("1", None, range(2, 4)) in {(name, function, range(2, 4)) for name, function, _ in where}
    assert ("a < 2", ("f", 2), range(4, 6)) in where
    assert ("a + 1", ("f", 2), range(6, 7)) in where


def test_every_module_has_tests_of_its_own(benchmark_modules: Mapping[str, ModuleType]) -> None:
    for name, (module, tests) in benchmark_modules["mutation"].subjects().items():
        assert ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py").is_file()
        assert tests, f"{name}: no test imports it; name one in THROUGH_OTHERS"
        assert all((ROOT / "tests" / test).is_file() for test in tests)


def test_the_table_judges_the_groups(benchmark_modules: Mapping[str, ModuleType], tmp_path: Path) -> None:
    def write(name: str, *states: str) -> None:
        results = ", ".join(f'{{"state": "{state}"}}' for state in states)
        (tmp_path / f"{name}.json").write_text(f'{{"mutants": 9, "results": [{results}]}}', encoding="utf-8")

    write("gate", "killed", "hung", "killed", "survived")
    write("sparsity.lamp", "killed")
    write("winograd", "unreached")
    text, least = benchmark_modules["mutation"].table(tmp_path)
    assert "| gate | 9 | 4 | 2 | 1 | 1 | 0 | 75.0% |" in text
    assert "| numerics | 18 | 2 | 1 | 0 | 0 | 1 | 50.0% |" in text
    assert least == 0.5
