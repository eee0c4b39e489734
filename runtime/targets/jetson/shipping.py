"""The files that run on the device, as a bundle holds them: modules of Lathe that need nothing of it, in one folder.

`onnx_lathe.runtime.targets.tensorrt.worker` becomes `parts.worker`, and so on: only the names of modules change.
"""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

FOLDER = "parts"
ENTRY = "onnx_lathe.runtime.targets.jetson.device.build"
HOMES = ("onnx_lathe.runtime.targets.jetson.device", "onnx_lathe.runtime.targets.tensorrt")
_OURS = re.compile("|".join(map(re.escape, HOMES)))
_FROM = re.compile(
    rf"^\s*from ({'|'.join(map(re.escape, HOMES))})(\.\w+)? import (\([^)]*\)|.*)", re.MULTILINE
)


def parts() -> dict[str, str]:
    """Name of a file in the bundle -> its text: the command and all that it imports, in turn."""
    found: dict[str, str] = {}
    pending = [ENTRY]
    while pending:
        module = pending.pop()
        last = module.rpartition(".")[2]
        name = f"{last}.py" if module == ENTRY else f"{FOLDER}/{last}.py"
        if name not in found:
            source = _source(module)
            found[name] = _OURS.sub(FOLDER, source)
            pending += imported(source)
    return {**found, f"{FOLDER}/__init__.py": ""}


def imported(source: str) -> Iterator[str]:
    """Modules of HOMES that the source imports."""
    for found in _FROM.finditer(source):
        home, module, names = found.groups()
        if module:
            yield home + module
        else:
            yield from (f"{home}.{name}" for name in re.findall(r"\w+", names))


def _source(module: str) -> str:
    """Not by importing it: the command's own file does its work then."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")
