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


def _run(request: dict[str, Any]) -> list[str]:
    """Runs the feeds of a file, and writes the outputs to another. Returns their names."""
    path = Path(request["path"])
    opened = Opened(content_of(path), str(path), request["threads"])
    with np.load(request["feeds"]) as feeds:
        given = {name: feeds[f"input{place}"] for place, name in enumerate(request["names"])}
    found = opened.run(given)
    arrays: dict[str, Any] = {f"output{place}": value for place, value in enumerate(found.values())}
    np.savez(request["results"], **arrays)
    return list(found)


if __name__ == "__main__":
    main()
