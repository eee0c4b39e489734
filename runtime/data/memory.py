"""Data that a Python caller has in memory: arrays by name, or a function that yields batches."""

import hashlib
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx_lathe.runtime.data.arrays import IN_MEMORY, arrays_in_memory, not_read
from onnx_lathe.runtime.data.functions import FunctionSource, UserCode
from onnx_lathe.runtime.data.preprocess import Preprocess
from onnx_lathe.runtime.data.source import DataSource, fingerprint
from onnx_lathe.runtime.data.truth import Truth, content
from onnx_lathe.runtime.files.signature import InputSpec

FINGERPRINT_BATCH, FINGERPRINT_BATCHES = 64, 4
"""How much of what a function yields tells it from another, for `resume`."""

DataSpec = str | Path | Mapping[str, Any] | Callable[[], Any]
"""What names data: a text as --data takes it, arrays by name, or a function that yields batches."""


class LiveFunction(FunctionSource):
    """A function of this process: there is no file from which another process could import it."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(f"{self.guard.where} is a function of this process")


def named(spec: DataSpec) -> str:
    """What a report calls the data."""
    if isinstance(spec, Mapping):
        return IN_MEMORY
    return f"function {getattr(spec, '__name__', spec)}" if callable(spec) else str(spec)


def open_memory(
    spec: Mapping[str, Any] | Callable[[], Any],
    inputs: Sequence[InputSpec],
    options: Preprocess,
    classes: int | None,
    truth: Truth = Truth.CLASSES,
    fixed: frozenset[str] = frozenset(),
) -> DataSource:
    """Raises DataError naming the array, or the batch of the function, that does not fit the model."""
    if isinstance(spec, Mapping):
        held = sorted(fixed & spec.keys())
        arrays = {name: array for name, array in spec.items() if name not in fixed}
        found = arrays_in_memory(arrays, inputs, options, classes, truth)
        found.notes = (*found.notes, *not_read(held))
        return found
    name = getattr(spec, "__name__", type(spec).__name__)
    guard = UserCode(
        Path(inspect.getsourcefile(spec) or "memory") if inspect.isfunction(spec) else Path("memory"), name
    )
    source = LiveFunction(spec, guard, inputs, options, classes, truth, fixed)
    source.fingerprint = fingerprint(name.encode(), _content(source), repr(options).encode())
    source.description = f"{'labelled' if source.has_labels else 'unlabelled'} batches of the function {name}"
    return source


def _content(source: DataSource) -> bytes:
    """The first batches: a function says nothing of what it reads and what it was made with."""
    found = []
    for batch in itertools.islice(source.batches(FINGERPRINT_BATCH), FINGERPRINT_BATCHES):
        found += [array.tobytes() for array in batch.inputs.values()]
        found += [] if batch.labels is None else [batch.labels.tobytes()]
        found += (
            [] if batch.truth is None or batch.labels is not None else [str(content(batch.truth)).encode()]
        )
    return b"".join(hashlib.sha256(part).digest() for part in found)
