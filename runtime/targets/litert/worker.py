"""Loads and runs a file in a process of its own, which LiteRT may end: a line of JSON in, one out (process.py)."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lathe.errors import LatheError
from onnx_lathe.runtime.targets.litert.running import Opened
from onnx_lathe.runtime.targets.litert.session import content_of


def main() -> None:
    request = json.loads(sys.stdin.readline())
    try:
        answer: dict[str, Any] = {"done": _run(request)}
    except LatheError as error:
        answer = {"refusal": str(error)}
    print(json.dumps(answer), flush=True)


def _run(request: dict[str, Any]) -> dict[str, str]:
    """Kernels -> why they do not run the file with the feeds of another; empty if they do."""
    path = Path(request["path"])
    content = content_of(path)
    with np.load(request["feeds"]) as feeds:
        given = {name: feeds[f"input{place}"] for place, name in enumerate(request["names"])}
    found = {}
    for kernels in request["kernels"]:
        try:
            Opened(content, str(path), request["threads"], kernels).run(given)
            found[kernels] = ""
        except LatheError as error:
            found[kernels] = str(error)
    return found


if __name__ == "__main__":
    main()
