"""The child of guard.py: loads the models that it is told of, and says that it is still there.

A request is a line of JSON: "settings", the fields of Settings, and "path", a file, or "size", the number of
bytes behind it. An answer has two bytes, one before the model is loaded and one after. It ends when its
standard input does.
"""

import json
import os
import signal
import sys
from contextlib import suppress

import onnxruntime

from onnx_lathe.runtime.running.settings import Settings, create


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides what an interrupt ends
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what ONNX Runtime prints is no answer
    while line := requests.readline():
        request = json.loads(line)
        content = requests.read(request["size"]) if "size" in request else request["path"]
        answers.write(b"r")
        _load(content, Settings(**request["settings"]))
        answers.write(b"s")


def _load(model: str | bytes, settings: Settings) -> None:
    """As the caller will, but on one thread. A refusal is for the caller to meet."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if settings.written:
        options.optimized_model_filepath = os.devnull
    with suppress(Exception):
        create(model, settings, options)


if __name__ == "__main__":
    main()
