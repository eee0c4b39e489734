"""What is said in several files is said alike, as the version and the project's address; and once in each."""

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.house import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ADDRESS = PROJECT["urls"]["Repository"]
ADDRESSED = ("pyproject.toml", "CITATION.cff", "mkdocs.yml")
"""The files that may say the address: the others link by relative paths."""


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_said_alike() -> None:
    version = re.escape(PROJECT["version"])
    assert re.search(rf"^version: {version}$", text("CITATION.cff"), re.MULTILINE)
    released = re.search(rf"^## {version} - (\d{{4}}-\d\d-\d\d)$", text("CHANGELOG.md"), re.MULTILINE)
    assert released, "CHANGELOG.md has no heading `## VERSION - DATE` for the version of pyproject.toml"
    assert f'date-released: "{released[1]}"' in text("CITATION.cff")


def test_the_address_is_said_alike() -> None:
    assert f"\nrepository-code: {ADDRESS}\n" in text("CITATION.cff")
    assert f"\nrepo_url: {ADDRESS}\n" in text("mkdocs.yml")
    assert all(url.startswith(ADDRESS) for url in PROJECT["urls"].values())


@pytest.mark.parametrize("pattern", ["*.md", "docs/**/*", "benchmarks/*", "models/*/*.md", ".github/**/*"])
def test_other_files_link_by_relative_paths(pattern: str) -> None:
    paths = [path for path in ROOT.glob(pattern) if path.suffix in (".md", ".py", ".yml", ".json")]
    assert paths
    assert not [
        path.name
        for path in paths
        if ADDRESS in path.read_text(encoding="utf-8") and path.name not in ADDRESSED
    ]


def test_every_document_is_in_the_navigation() -> None:
    """`make docs` fails too, but this needs no MkDocs."""
    site = text("mkdocs.yml")
    assert not [path.name for path in (ROOT / "docs").glob("*.md") if f" {path.name}\n" not in site]
    assert not [
        path.name for path in (ROOT / "models").glob("*/README.md") if f"{path.parent.name}.md" not in site
    ]


def test_no_change_is_told_twice() -> None:
    """As merges do: by whole entries, and by the words that entries of one version begin with."""
    versions = re.split(r"^## ", text("CHANGELOG.md"), flags=re.MULTILINE)[1:]
    entries = [re.findall(r"^- (.*)$", version, re.MULTILINE) for version in versions]
    every = [entry for version in entries for entry in version]
    assert sorted(set(every)) == sorted(every)
    begins = [" ".join(entry.split()[:12]) for entry in entries[0] if len(entry.split()) > 12]
    assert sorted(set(begins)) == sorted(begins)


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_no_heading_occurs_twice_in_a_page(path: Path) -> None:
    """Merging two branches that moved one section leaves it twice."""
    prose = re.sub(r"(?ms)^```.*?^```", "", path.read_text(encoding="utf-8"))
    headings = re.findall(r"(?m)^#+ .*$", prose)
    assert headings
    assert [heading for heading, count in Counter(headings).items() if count > 1] == []
