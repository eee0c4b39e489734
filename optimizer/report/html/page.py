"""The page around the data: one file with its style, its code and its libraries, that may fetch nothing.

The Content-Security-Policy names each script by its SHA-256, so that text of a model that would pass for a script is
not run, and refuses every request.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from onnx_lathe.optimizer.report.html.vendor import ASSETS, libraries

LIMIT_BYTES = 3_000_000
CODE = ("base.js", "charts.js", "graph.js", "report.js")


def render(document: dict[str, Any]) -> bytes:
    """The whole file. What would make it larger than LIMIT_BYTES is left out, and the page says so: histograms first,
    then the graphs, then the smallest layers.
    """
    for reduce in (lambda found: found, _without_detail, _without_graphs, _fewer_layers):
        document = reduce(document)
        page = _filled(document)
        if len(page) <= LIMIT_BYTES:
            break
    return page


def _without_detail(document: dict[str, Any]) -> dict[str, Any]:
    return _noted(
        document | {"detail": {}}, "histograms and spectra are left out, to keep this file below 3 MB"
    )


def _without_graphs(document: dict[str, Any]) -> dict[str, Any]:
    return _noted(document | {"graphs": None}, "the graphs are left out, to keep this file below 3 MB")


def _fewer_layers(document: dict[str, Any]) -> dict[str, Any]:
    layers = sorted(document["layers"], key=lambda row: -max(size or 0 for size in row["bytes"]))[:2000]
    details = [step | {"edits": step["edits"][:20]} for step in document["steps"]["details"]]
    fewer = document | {"layers": layers, "steps": document["steps"] | {"details": details}}
    return _noted(fewer, "the 2,000 largest layers are listed; report.json and optimize inspect have all")


def _noted(document: dict[str, Any], note: str) -> dict[str, Any]:
    return document | {"notes": [*document["notes"], note]}


def policy(scripts: Iterable[str]) -> str:
    """What a page may do: run these scripts, and fetch nothing."""
    hashes = " ".join(f"'sha256-{_digest(code)}'" for code in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _filled(document: dict[str, Any]) -> bytes:
    scripts = _scripts()
    parts = {
        "TITLE": html.escape(f"{document['title']}: {document['verdict']['text']}"),
        "POLICY": policy(scripts),
        "STYLE": asset("report.css"),
        "LICENCES": licences(),
        "DATA": embedded(document),
        "SCRIPTS": "\n".join(f"<script>{code}</script>" for code in scripts),
    }
    return re.sub(r"@@(\w+)@@", lambda match: parts[match[1]], asset("report.html")).encode()


def embedded(document: dict[str, Any]) -> str:
    """JSON that ends no script element and begins no comment: < and > are written as escapes."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@cache
def _scripts() -> tuple[str, ...]:
    """The libraries and the page's own code."""
    return tuple(script(name) for name in (*(one["file"] for one in libraries()), *CODE))


def script(name: str) -> str:
    """Of the assets; without a reference to a source map, which a browser would fetch."""
    return re.sub(r"(?m)^//# sourceMappingURL=.*$", "", asset(name))


def _digest(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()


@cache
def licences(files: tuple[str, ...] = ()) -> str:
    """Of all libraries, or of those in the files."""
    found = [
        f"{one['package']} {one['version']} ({one['licence']})\n\n{asset(one['licence_file']).strip()}"
        for one in libraries()
        if not files or one["file"] in files
    ]
    return html.escape("\n\n\n".join(found))


def asset(name: str, folder: Path = ASSETS) -> str:
    return (folder / name).read_text(encoding="utf-8")
