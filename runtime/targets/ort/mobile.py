"""The model in ONNX Runtime's own format, for phones, and the operators that a reduced build of it needs.

`python -m onnxruntime.tools.convert_onnx_models_to_ort --optimization_style Fixed --target_platform arm
--enable_type_reduction` writes the same two files. Its other style, Runtime, saves fusions for later; ONNX Runtime
1.32 refuses to write that of quantized models ("sum of input arg count"), and replays them only where the
application asks for it.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnx_lathe.errors import ModelError, TargetError
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.writing import replacing
from onnx_lathe.runtime.processes import environment, running
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.settings import MOBILE

FILE = "model.ort"
CONFIG = "model.ort.required_operators_and_types.config"
WORKER = "onnx_lathe.runtime.targets.ort.operators_worker"

LIMIT_BYTES = 2**31 - 1
"""Of an `.ort` file: the offsets of flatbuffers. ONNX Runtime fails above it, and above 4 GiB writes a file that it
cannot load (seen in 1.32)."""

LIMIT_ERROR = 0.03
"""Of outputs, relative: what sums in another order cost is far below, where they push integers over an edge too."""

_TIME_LIMIT_S = 600

_ADVICE = "leave mobile out: ONNX Runtime on a phone loads model.ort.onnx too"

_HEAD = f"""\
# The operators of {FILE}, with the types that they are used on.
# For a reduced build of ONNX Runtime: build.py --include_ops_by_config THIS_FILE --minimal_build;
# --enable_reduced_operator_type_support leaves out other types too.
"""

Operators = list[tuple[str, int, list[str]]]
"""Domain, version, and operators of that version, each with its types as JSON behind it."""


@dataclass(frozen=True)
class Mobile:
    paths: tuple[Path, Path]
    size_bytes: int
    operators: int
    """How many different ones, versions apart."""


def check_size(model: Path) -> None:
    """Raises TargetError if the format cannot hold the model: at once, where loading it takes minutes."""
    size = model_file.inspect_file(model).size_bytes
    if size > LIMIT_BYTES:
        raise TargetError(
            f"{FILE}: the format holds 2.1 GB, and the model has {size / 1e9:.1f} GB; make it smaller, or {_ADVICE}"
        )


def write(model: Path, directory: Path) -> Mobile:
    """Writes both files, or none. Raises TargetError if ONNX Runtime refuses to write the format or to load
    what it wrote, or does not survive either.
    """
    path, config = directory / FILE, directory / CONFIG
    with replacing(path) as partial:
        written = Path(partial.name)
        _convert(model, written)
        operators = _operators(written)
        size = written.stat().st_size
        with replacing(config) as file:
            file.write(_text(operators).encode())
    return Mobile((path, config), size, sum(len(names) for _, _, names in operators))


def error(model: Path, written: Path, feeds: Mapping[str, np.ndarray]) -> float | None:
    """How far the worst output of `written`, a `model.ort`, is from that of the model's file: root mean square,
    relative to the values, or the share of classes and the like that differ. None where the model does not
    repeat itself, as with random numbers.

    Raises TargetError for an output of float numbers above LIMIT_ERROR.
    """
    opened = ort.as_opened(model)
    expected, again, found = (ort.run(session, feeds) for session in (opened, opened, ort.as_opened(written)))
    if any(_relative(values, again.get(name)) for name, values in expected.items()):
        return None
    errors = {name: _relative(values, found.get(name)) for name, values in expected.items()}
    for name, value in errors.items():
        # others are picked from numbers, and flip where two of these are nearly equal
        if value > LIMIT_ERROR and np.issubdtype(expected[name].dtype, np.floating):
            raise TargetError(f"{FILE}: its output '{name}' is off by {value:.2g} of the model's; {_ADVICE}")
    return max(errors.values(), default=0.0)


def _relative(expected: np.ndarray, found: np.ndarray | None) -> float:
    if found is None or found.shape != expected.shape:
        return np.inf
    if not np.issubdtype(expected.dtype, np.floating):
        return float(np.mean(expected != found)) if expected.size else 0.0
    first, second = expected.astype(np.float64), found.astype(np.float64)
    differ = ~((first == second) | (np.isnan(first) & np.isnan(second)))
    if not differ.any():
        return 0.0
    if not np.isfinite([first[differ], second[differ]]).all():
        return np.inf
    scale = np.square(first[np.isfinite(first)]).sum()
    return float(np.sqrt(np.square(first[differ] - second[differ]).sum() / scale)) if scale else np.inf


def _convert(model: Path, path: Path) -> None:
    try:
        ort.write_optimized(model, path, MOBILE)
        ort.check_ort_format(path)
    except ModelError as error:
        reason = str(error).replace(str(model), "the model").replace(str(path), "what it wrote")
        raise TargetError(f"{FILE}: {reason}; {_ADVICE}") from error


def _operators(path: Path) -> Operators:
    """As onnxruntime.tools finds them, bodies included, in a process of its own (operators_worker.py)."""
    command = [sys.executable, "-m", WORKER, str(path)]
    with tempfile.TemporaryFile() as errors:
        try:
            with running(command, environment(), _TIME_LIMIT_S, stderr=errors) as child:
                assert child.process.stdout is not None
                answer = child.process.stdout.read()
                child.process.wait()
        except OSError as error:
            raise TargetError(f"{CONFIG}: cannot start {sys.executable}: {error.strerror}") from error
        if child.process.returncode == 0:
            found: Operators = json.loads(answer)
            return found
        errors.seek(0)
        words = errors.read().decode("utf-8", "replace").split("\n")
    last = next((line for line in reversed(words) if line.strip()), f"code {child.process.returncode}")
    raise TargetError(
        f"{CONFIG}: ONNX Runtime's tools cannot list the operators of {FILE}: {last}; {_ADVICE}"
    )


def _text(operators: Operators) -> str:
    lines = [f"{domain};{version};{','.join(names)}\n" for domain, version, names in operators]
    return "".join([_HEAD, *lines])
