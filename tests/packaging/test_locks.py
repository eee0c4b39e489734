"""What is installed for development, and under which licences it stands: the locks of .ci/ and docs/licences.md."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.house import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
LOCKS = ("dev.lock", "docs.lock", "uv.lock")
WITHOUT_HASH = {"torch"}
"""Its build is the user's choice, of an index with other files: .ci/lock says so."""


def entries(lock: str) -> dict[tuple[str, str], int]:
    """(Package, version) -> how many hashes the lock has of it."""
    text = (ROOT / ".ci" / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip()]
    found = {}
    for line in lines:
        pinned = re.match(r"([\w.-]+)==([^\s;]+)", line)
        assert pinned, f"{lock}: {line[:80]} pins nothing"
        found[normal(pinned[1]), pinned[2]] = len(re.findall(r"--hash=sha256:[0-9a-f]{64}(?=\s|$)", line))
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def licences() -> ModuleType:
    """The script that writes the page."""
    spec = importlib.util.spec_from_file_location("licences", ROOT / ".ci" / "licences.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["licences"] = module  # its dataclass asks for it
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["licences"]
    return module


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_of_a_lock_has_its_hashes(lock: str) -> None:
    found = entries(lock)
    assert found
    assert [pin for pin, hashes in found.items() if not hashes] == []


@pytest.mark.parametrize("lock", LOCKS[:2])
def test_locks_have_the_versions_of_constraints(lock: str) -> None:
    known = {
        (normal(name), version) for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", CONSTRAINTS, re.M)
    }
    names = {name for name, _ in known}
    assert [pin for pin in entries(lock) if pin not in known and pin[0] in names] == []


def test_every_dependency_is_in_a_lock() -> None:
    extras = {name: asked for name, asked in PROJECT["optional-dependencies"].items() if name != "gpu"}
    asked = [*PROJECT["dependencies"], *(one for each in extras.values() for one in each)]
    names = {normal(re.split(r"[^\w.-]", one, maxsplit=1)[0]) for one in asked}
    locked = {name for lock in LOCKS for name, _ in entries(lock)}
    assert names - locked == WITHOUT_HASH
    assert not [name for name in locked if name in WITHOUT_HASH or name.startswith("nvidia-")]


def test_every_dependency_has_a_lower_bound() -> None:
    asked = [
        *PROJECT["dependencies"],
        *(one for each in PROJECT["optional-dependencies"].values() for one in each),
    ]
    assert [one for one in asked if ">=" not in one.partition(";")[0]] == []


def test_the_list_of_licences_is_not_stale() -> None:
    assert licences().stale([]) == [], "run `python .ci/licences.py`"


def test_a_stale_list_of_licences_is_found(tmp_path: Path) -> None:
    module = licences()
    rows = module.PAGE.read_text(encoding="utf-8").splitlines()
    rows = [
        row.replace("| MIT |", "| GPL-3.0 |") if row.startswith("| onnxruntime ") else row for row in rows
    ]
    rows = [row for row in rows if not row.startswith("| numpy ")]
    module.PAGE = tmp_path / "licences.md"
    module.PAGE.write_text("\n".join([*rows, "| nothing | 1.0 | MIT | dev |  |"]), encoding="utf-8")
    wrong = module.stale([])
    assert "numpy has no row" in wrong
    assert "nothing is in no lock" in wrong
    if sys.version_info >= (3, 11):  # whose version the page names
        assert any(one.startswith("onnxruntime ") and "not GPL-3.0" in one for one in wrong)


def test_copyleft_is_marked() -> None:
    module = licences()
    marked = [name for name, row in module.page().items() if "copyleft" in str(row)]
    assert {"shtab", "certifi"} <= set(marked)
    assert str(module.Row("a", "1", "LGPL-3.0", "dev")).endswith("**copyleft** |")
    assert str(module.Row("a", "1", "MIT", "dev")).endswith("|  |")
