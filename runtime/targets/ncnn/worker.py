"""Loads and runs networks in a process of its own, which ncnn may end: a line of JSON in, one out (process.py)."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lathe.errors import LatheError
from onnx_lathe.runtime.targets.ncnn.running import Opened, Settings
from onnx_lathe.runtime.targets.ncnn.session import Session, ports_from_json
from onnx_lathe.runtime.targets.ncnn.stopwatch import time_layers, time_whole


def main() -> None:
    request = json.loads(sys.stdin.readline())
    try:
        answer: dict[str, Any] = {"done": _time(request) if "budget" in request else _run(request)}
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
    session = Session(opened)
    values = session.run(None, given)
    arrays: dict[str, Any] = {f"output{place}": value for place, value in enumerate(values)}
    np.savez(request["results"], **arrays)
    return str(opened.ncnn.__version__)


def _time(request: dict[str, Any]) -> Any:
    """Milliseconds of several networks that read the same weights (stopwatch.py)."""
    inputs, outputs = ports_from_json(request["ports"])
    settings = Settings(**request["settings"])
    nets = [
        Opened(Path(param), Path(request["weights"]), inputs, outputs, settings)
        for param in request["params"]
    ]
    with np.load(request["feeds"]) as feeds:
        given = {port.tensor: feeds[f"input{place}"] for place, port in enumerate(inputs)}
    if request["layers"] is None:
        return time_whole(nets, given, request["budget"])
    return time_layers(nets, request["layers"], given, request["budget"])


if __name__ == "__main__":
    main()
