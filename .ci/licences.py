"""Writes docs/licences.md: every package of the locks and PyTorch, with the licence that its own metadata names.

    python .ci/licences.py [--check] [FOLDER ...]

FOLDER: a site-packages folder besides this Python's own. A package that is installed in none of them (another system's, an
older Python's) keeps the row that the page has, and one without a row ends the script. --check writes nothing and says what
is out of date: a package that is missing or too many, or another licence in the version that the page names.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
LOCKS = (ROOT / ".ci" / "dev.lock", ROOT / ".ci" / "docs.lock")
UNLOCKED = ("torch",)
CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.1-or-later",
    "GNU Library or Lesser General Public License (LGPL)": "LGPL",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Other/Proprietary License": "proprietary",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}
WORDS = {
    "apache 2.0": "Apache-2.0",
    "apache license v2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd-3": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "mit license": "MIT",
    "lgpl with exceptions": "LGPL-3.0 with exceptions",
}
BESIDES = {"onnxruntime-qnn": "MIT, with libraries under Qualcomm's own licence"}
"""Packages whose metadata does not tell of all that they hold."""
COPYLEFT = re.compile(r"\b(A?GPL|LGPL|MPL|EPL|CDDL|EUPL)\b", re.IGNORECASE)
PROPRIETARY = re.compile(r"proprietary|nvidia|qualcomm|licenseref", re.IGNORECASE)
HEAD = """# Licences of what Lathe uses

Lathe itself is under Apache-2.0 and its wheel holds no other package's code but Plotly and dagre, which draw `report.html` (MIT;
their texts lie beside them in `optimizer/report/html/assets`). What pip installs with it, and what development and this
documentation need, is listed here as each package's own metadata says it; `python .ci/licences.py` writes this page, and a test
fails when it is out of date.

**copyleft**: changes of that package must be published under its licence when it is passed on; using it as a library asks nothing
of Lathe or of your models. **proprietary**: read its terms before you pass it on. Both are marked; everything else asks for the
notice to be kept. **not said**: the metadata name none; ask there.

| package | version | licence | needed for | |
|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    name: str
    version: str
    licence: str
    use: str

    def __str__(self) -> str:
        mark = (
            "**copyleft**"
            if COPYLEFT.search(self.licence)
            else "**proprietary**"
            if PROPRIETARY.search(self.licence)
            else "**not said**"
            if self.licence == "not said"
            else ""
        )
        return f"| {self.name} | {self.version} | {self.licence} | {self.use} | {mark} |"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, set[str]]:
    """Package -> the versions that the locks have of it."""
    found: dict[str, set[str]] = {}
    for lock in LOCKS:
        for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", lock.read_text(encoding="utf-8"), re.M):
            found.setdefault(normal(name), set()).add(version)
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for name in UNLOCKED:
        found[name] = set(re.findall(rf"^{name}==([^\s;]+)", constraints, re.M))
    return found


def licence(package: Distribution) -> str:
    """As the metadata says it: the SPDX expression, the classifiers, or the first line of the text."""
    told = package.metadata
    if besides := BESIDES.get(normal(told["Name"])):
        return besides
    if expression := told.get("License-Expression"):
        return expression
    named = [
        one.rpartition(" :: ")[2] for one in told.get_all("Classifier", []) if one.startswith("License ::")
    ]
    known = [CLASSIFIERS.get(one, one) for one in named if one != "OSI Approved"]
    if known and known != ["BSD"]:
        return " OR ".join(dict.fromkeys(known))
    lines = [line.strip() for line in (told.get("License") or "").splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return WORDS.get(text.lower(), text if 0 < len(text) < 60 else (known or ["not said"])[0]).replace(
        "|", "/"
    )


def page() -> dict[str, Row]:
    """The rows that the page has."""
    if not PAGE.exists():
        return {}
    cells = re.findall(
        r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| [^|]*\|$", PAGE.read_text(encoding="utf-8"), re.M
    )
    rows = [Row(*(one.strip() for one in row)) for row in cells if row[0] != "package"]
    return {row.name: row for row in rows}


def requirements(texts: Iterable[str]) -> set[str]:
    return {normal(re.split(r"[^\w.-]", text, maxsplit=1)[0]) for text in texts}


def uses(installed: Mapping[str, Distribution], names: Iterable[str]) -> dict[str, str]:
    """Package -> `every use`, or the extra of pyproject.toml that first asks for it, directly or not."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    blocks = {"every use": re.findall(r"^dependencies = \[(.*?)^\]", project, re.M | re.S)[0]}
    optional = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    blocks |= {
        name: body
        for name, body in re.findall(r"^(\w+) = \[(.*?)\](?= *#|\n)", optional, re.M | re.S)
        if name != "gpu"
    }
    found: dict[str, str] = {}
    for use, block in blocks.items():
        pending = list(requirements(re.findall(r'"([^"]+)"', re.sub(r"#.*", "", block))))
        while pending:
            name = pending.pop()
            if name in found:
                continue
            found[name] = use
            asked = (
                [one for one in (installed[name].requires or ()) if "extra ==" not in one]
                if name in installed
                else []
            )
            pending += requirements(asked)
    return {name: found.get(name, "indirectly, or elsewhere") for name in names}


def rows(folders: Iterable[str]) -> dict[str, Row]:
    """The page as it should be. Raises SystemExit if a package is neither installed nor on the page."""
    names, old = locked(), page()
    installed = {normal(one.metadata["Name"]): one for one in distributions(path=[*sys.path, *folders])}
    found: dict[str, Row] = {}
    used = uses(installed, names)
    for name, versions in sorted(names.items()):
        package = installed.get(name)
        version = package.version.partition("+")[0] if package else ""
        if package and version in versions:
            use = old[name].use if name in old and used[name] == "indirectly, or elsewhere" else used[name]
            found[name] = Row(name, version, licence(package), use)
        elif name in old and old[name].version in versions:
            found[name] = old[name]
        else:
            raise SystemExit(
                f"{name}: {' or '.join(sorted(versions))} is not installed here, and the page has no row of it"
            )
    return found


def stale(folders: Iterable[str]) -> list[str]:
    """What the page says otherwise than the locks and the packages that are installed in the version it names."""
    names, old = locked(), page()
    wrong = [f"{name} has no row" for name in names.keys() - old.keys()]
    wrong += [f"{name} is in no lock" for name in old.keys() - names.keys()]
    wrong += [
        f"{name} {row.version} is not the locks' version"
        for name, row in old.items()
        if name in names and row.version not in names[name]
    ]
    for package in distributions(path=[*sys.path, *folders]):
        row = old.get(normal(package.metadata["Name"]))
        if row and row.version == package.version.partition("+")[0] and row.licence != licence(package):
            wrong.append(f"{row.name} {row.version} is under {licence(package)}, not {row.licence}")
    return sorted(set(wrong))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("folders", nargs="*")
    arguments = parser.parse_args()
    if arguments.check:
        if wrong := stale(arguments.folders):
            raise SystemExit("docs/licences.md is out of date:\n" + "\n".join(wrong))
        return
    lines = [str(row) for row in rows(arguments.folders).values()]
    PAGE.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
