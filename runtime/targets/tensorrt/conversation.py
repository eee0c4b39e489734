"""What a process that TensorRT runs in says to the one that started it: lines of JSON, and how it ended.

Needs nothing but Python: a bundle for a Jetson carries this file.
"""

import json
import signal
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

from onnx_lathe.runtime.targets.tensorrt.messages import NOISE

SILENCE = " and said nothing; log=true shows how far it came"


def converse(
    process: subprocess.Popen[bytes], request: Mapping[str, Any], progress: Callable[[str], None]
) -> dict[str, Any]:
    """The worker's last message, which is empty if it died without one."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        return {}
    for line in process.stdout:
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:  # killed while it wrote
            return {}
        if "progress" not in message:
            return message
        progress(message["progress"])
    return {}


def ending(code: int) -> str:
    """An exit status in words: `signal SIGSEGV`, `exit code 3`."""
    if code >= 0:
        return f"exit code {code}" if code < 1 << 16 else f"exit code {code:#x}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def last_words(errors: bytes, none: str = SILENCE) -> str:
    """What a process said last, for the end of a message; `none` if it said nothing."""
    lines = [
        line for line in errors.decode("utf-8", "replace").splitlines() if line.strip() and NOISE not in line
    ]
    return f"; its last words: {' '.join(lines[-1].split())}" if lines else none
