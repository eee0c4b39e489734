"""Loads and runs a network in a process of its own, which ncnn may end: a line of JSON in, one out (process.py)."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lathe.errors import LatheError
from onnx_lathe.runtime.targets.ncnn.running import Opened, Settings
from onnx_lathe.runtime.targets.ncnn.session import Session, ports_from_json


def main() -> None:
    request = json.loads(sys.stdin.readline())
    try:
        answer: dict[str, Any] = {"done": _run(request)}
    except LatheError as error:
        answer = {"refusal": str(error)}
    print(json.dumps(answer), flush=True)


def _run(request: dict[str, Any]) -> str:
    """Runs the feeds of a file, and writes the outputs to another. Returns ncnn's version."""
    inputs, outputs = ports_from_json(request["ports"])
    opened = Opened(
        Path(request["param"]), Path(request["weights"]), inputs, outputs, Settings(**request["settings"])
    )
    with np.load(request["feeds"]) as feeds:
        given = {port.tensor: feeds[f"input{place}"] for place, port in enumerate(inputs)}
    session = Session(inputs, outputs, opened)
    values = session.run(None, given)
    arrays: dict[str, Any] = {f"output{place}": value for place, value in enumerate(values)}
    np.savez(request["results"], **arrays)
    return str(opened.ncnn.__version__)


if __name__ == "__main__":
    main()
