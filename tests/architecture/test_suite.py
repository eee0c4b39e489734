"""The tests themselves: each stands alone, and what several of them share is in tests/support."""

import ast
import random as python_random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support import seeds
from tests.support.builders import random
from tests.support.house import ROOT, imports

TESTS = sorted((ROOT / "tests").rglob("*.py"))
SUPPORT = "tests.support"
GENERATORS = {"default_rng", "RandomState", "Random", "Generator"}
DRAWN = random(3)
seen: list[bytes] = []


def outside_support(source: str) -> list[str]:
    """Imports of tests, or of conftest, other than of tests/support."""
    return [
        f"line {found.line} imports {found.module}"
        for found in imports(source, {})
        if found.module.partition(".")[0] in ("tests", "conftest")
        and not f"{found.module}.{found.name}".startswith(SUPPORT)
    ]


def kept_generators(source: str) -> Iterator[str]:
    """Generators that live as long as their module: what one test draws would depend on the tests before."""
    named = any(name in source for name in GENERATORS)  # the others need not be parsed
    for node in ast.parse(source).body if named else ():
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Call):
            function = value.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name in GENERATORS:
                yield f"line {node.lineno} keeps a generator"


def in_tests(check: Callable[[str], Iterable[str]], *spared: Path) -> list[str]:
    """What the check finds in the source of each file."""
    return [
        f"{path.relative_to(ROOT)}: {found}"
        for path in TESTS
        if path not in spared
        for found in check(path.read_text(encoding="utf-8"))
    ]


def test_no_test_file_imports_another() -> None:
    assert in_tests(outside_support) == []


@pytest.mark.parametrize(
    "source",
    [
        "from tests.passes.test_fold import fold",
        "def f():\n    from tests.passes import test_fold",
        "import tests.conftest",
        "from tests import conftest",
        "import conftest",
    ],
)
def test_an_import_of_another_test_file_is_found(source: str) -> None:
    assert outside_support(source)


def test_support_may_be_imported() -> None:
    assert not outside_support("from tests.support import seeds\nfrom tests.support.builders import random")


def test_no_generator_is_shared() -> None:
    assert in_tests(kept_generators, Path(seeds.__file__)) == []  # but the one that every test begins anew


def test_a_shared_generator_is_found() -> None:
    assert list(kept_generators("import numpy as np\nRANDOM = np.random.default_rng(0)"))
    assert not list(kept_generators("import numpy as np\nX = np.random.default_rng(0).random(3)"))


def first_values(seed: int, count: int = 3) -> np.ndarray:
    """What `random` gives first after this seed."""
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def everything() -> bytes:
    """The first values of all generators, as the running test gets them."""
    return random(4).tobytes() + np.random.rand(4).tobytes() + str(python_random.random()).encode()


@pytest.mark.parametrize("place", ["first", "second", "third"])
def test_random_values_are_those_of_a_test_that_runs_alone(place: str) -> None:
    """Each of the three draws, and none sees that another did."""
    seen.append(everything())
    assert set(seen) == {seen[0]}
    assert seen[0].startswith(first_values(seeds.TEST, 4).tobytes())


@pytest.fixture(scope="module")
def shared() -> np.ndarray:
    return random(3)


@pytest.mark.parametrize("place", ["first", "second"])
def test_a_shared_fixture_neither_moves_the_generator_nor_depends_on_it(
    shared: np.ndarray, place: str
) -> None:
    np.testing.assert_array_equal(random(3), first_values(seeds.TEST))
    np.testing.assert_array_equal(shared, first_values(seeds.FIXTURE))


def test_values_of_a_file_are_its_own() -> None:
    """They do not depend on which files were imported before, and no test draws them again."""
    np.testing.assert_array_equal(DRAWN, first_values(seeds.FILE))
    assert not np.array_equal(DRAWN, random(3))


def test_slow_tests_can_be_left_out(pytestconfig: pytest.Config) -> None:
    assert any(line.startswith("slow:") for line in pytestconfig.getini("markers"))
