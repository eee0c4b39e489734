"""What is built of one source is the same to the bit, wherever, whenever and by whomever it is built."""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.house import ROOMS, ROOT
from tests.support.installations import built

pytest.importorskip("hatchling")

FILES = ("README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", ".gitignore")


def copied(folder: Path, mode: int, modified: int) -> Path:
    """The source in another folder, whose files have other rights, dates and order of creation."""
    for name in FILES:
        folder.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    for name in sorted([*ROOMS, "models/recipes"], reverse=bool(mode & 0o044)):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in folder.rglob("*"):
        path.chmod(mode | 0o111 if path.is_dir() else mode)
        os.utime(path, (modified, modified))
    return folder


def hashes(source: Path, out: Path, umask: int) -> Mapping[str, str]:
    out.mkdir()
    before = os.umask(umask)
    try:
        made = [built(hook, out, source) for hook in ("build_wheel", "build_sdist")]
    finally:
        os.umask(before)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in made}


@pytest.mark.skipif(os.name == "nt", reason="files have no such rights on Windows")
@pytest.mark.parametrize("epoch", [None, "1700000000"])
def test_wheel_and_source_are_the_same_to_the_bit(
    epoch: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {} if epoch is None else {"SOURCE_DATE_EPOCH": epoch}
    monkeypatch.setattr(
        "tests.support.installations.CLEAN",
        {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SOURCE_DATE"))}
        | environment,
    )
    first = hashes(copied(tmp_path / "one", 0o644, 1_500_000_000), tmp_path / "first", 0o022)
    second = hashes(copied(tmp_path / "a longer name", 0o600, 1_600_000_001), tmp_path / "second", 0o077)
    assert len(first) == 2
    assert first == second
