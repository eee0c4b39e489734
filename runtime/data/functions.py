"""Data from the user's own code: `loader.py:function`, called anew for every reading."""

import inspect
import itertools
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from onnx_lathe.errors import DataError, LatheError, nearest
from onnx_lathe.runtime.data.arrays import LABELS, not_read
from onnx_lathe.runtime.data.fitting import feed, fit, without_samples
from onnx_lathe.runtime.data.preprocess import Feed, Preprocess
from onnx_lathe.runtime.data.source import Batch, DataSource, check_labels, check_values, fingerprint
from onnx_lathe.runtime.data.truth import Truth, read_truth
from onnx_lathe.runtime.files.signature import InputSpec
from onnx_lathe.runtime.user_code import import_file, shadowed

_END = object()


class FunctionSource(DataSource):
    """Batches of any size from the function, cut to the size that is asked for.

    The order is the function's own: seeds do nothing, and evaluation needs the same order at every call.
    The fingerprint is that of the file: what the function reads is not known.
    """

    count = None
    unread: Sequence[str] = ()
    """What is to be said of arrays that are not read."""

    def __init__(
        self,
        function: Callable[[], Any],
        guard: "UserCode",
        inputs: Sequence[InputSpec],
        options: Preprocess,
        classes: int | None,
        truth: Truth = Truth.CLASSES,
        fixed: frozenset[str] = frozenset(),
    ):
        """`truth`: labels may be of any form. `fixed`: names whose arrays are not read."""
        self.function, self.guard, self.inputs, self.options, self.classes, self.truth = (
            function,
            guard,
            inputs,
            options,
            classes,
            truth,
        )
        self.fixed = fixed
        self.feeds: dict[tuple[Any, ...], Feed] = {}
        self.last: Iterator[Any] | None = None
        first = next(self._stored(), None)
        if first is None:
            raise DataError(f"{guard.where} yields no batches")
        self.labelled = first.labels is not None
        self.has_labels = _has_labels(first)
        if self.last is not None and not inspect.isgeneratorfunction(function):
            # an iterator made once and returned again would be found empty in the middle of the run
            self._open()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what it was opened with: the function's file is imported again."""
        how = self.options, self.classes, self.truth, self.fixed
        opened = self.guard.path, self.guard.name, self.inputs, *how
        return open_function, opened

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        held: list[Batch] = []
        for batch in self._stored():
            if held and _shapes(held[0]) != _shapes(
                batch
            ):  # such as sentences of another length: cannot be one batch
                yield _joined(held)
                held = []
            held.append(batch)
            if sum(one.count for one in held) >= size:
                whole = _joined(held)
                full = whole.count - whole.count % size
                for start in range(0, full, size):
                    yield whole[start : start + size]
                held = [whole[full:]] if full < whole.count else []
        if held:
            yield _joined(held)

    def _open(self) -> Iterator[Any]:
        with self.guard:
            made = self.function()
        if isinstance(made, Mapping | tuple | str) or hasattr(made, "__array__") or made is None:
            raise DataError(
                f"{self.guard.where} returns {_a(made)}; it has to yield batches, or return a list or loader of them"
            )
        with self.guard:
            iterator = iter(made)
        if iterator is made:
            if made is self.last:
                raise DataError(
                    f"{self.guard.where} returns the same iterator at every call; make a new one in the function"
                )
            self.last = iterator
        return iterator

    def _stored(self) -> Iterator[Batch]:
        """The function's batches as they come, checked and ready to feed; empty ones left out."""
        iterator = self._open()
        labelled = None
        for number in itertools.count(1):
            with self.guard:
                item = next(iterator, _END)
            if item is _END:
                return
            where = f"{self.guard.where}: batch {number}"
            batch = self._ready(*self._parts(item, where), where)
            if batch is None:
                continue
            if labelled not in (None, _has_labels(batch)):
                raise DataError(
                    f"{where} has {'no ' if labelled else ''}labels, unlike those before; give all batches labels, or none"
                )
            labelled = _has_labels(batch)
            yield batch

    def _parts(self, item: Any, where: str) -> tuple[dict[str, np.ndarray], Any]:
        """(arrays by name, labels) of what the function yielded. Copies, because a loader may reuse its
        buffers.
        """
        names = [spec.name for spec in self.inputs]
        labels = None
        if isinstance(item, tuple | list):
            if len(item) != 2:
                raise DataError(
                    f"{where} is a {type(item).__name__} of {len(item)}; wanted is (inputs, labels)"
                )
            item, labels = item
        if not isinstance(item, Mapping):
            if len(names) > 1:
                raise DataError(f"{where} is {_a(item)}; this model needs a dict with {', '.join(names)}")
            item = {names[0]: item}
        if labels is None and LABELS not in names:
            labels = item.get(LABELS)
            item = {name: value for name, value in item.items() if name != LABELS}
        if held := sorted(self.fixed & item.keys()):
            self.unread = not_read(held)
            item = {name: value for name, value in item.items() if name not in held}
        with self.guard:
            arrays = {str(name): np.array(value) for name, value in item.items()}
            if labels is not None and not (self.truth and isinstance(labels, list | tuple)):
                labels = np.array(labels)
        for name in names:
            if name not in arrays:
                found = f"it has {', '.join(arrays)}" if arrays else "it is empty"
                raise DataError(f"{where} has no '{name}'{nearest(name, arrays)}; {found}")
        if extra := [name for name in arrays if name not in names]:
            raise DataError(
                f"{where} has '{extra[0]}', which is no input of the model; wanted are {', '.join(names)}"
            )
        return arrays, labels

    def _ready(self, arrays: dict[str, np.ndarray], labels: Any, where: str) -> Batch | None:
        """None for a batch without samples in any of its arrays."""
        shapes = {name: array.shape for name, array in arrays.items()}
        if without_samples(self.inputs, shapes) and (
            labels is None or not (np.size(labels) if isinstance(labels, np.ndarray) else len(labels))
        ):
            return None
        fitted = fit(self.inputs, shapes, lambda name: f"{where}: '{name}'")
        self.notes = self.notes or tuple(filter(None, [fitted.note(self.inputs), *self.unread]))
        ready = {}
        for spec in self.inputs:
            array, here = arrays[spec.name], f"{where}: '{spec.name}'"
            key = (spec.name, fitted.per_call, array.shape[1:], array.dtype)
            if key not in self.feeds:
                self.feeds[key] = feed(fitted, spec, array.shape, array.dtype, self.options, here)
            check_values(array, spec, here)
            ready[spec.name] = self.feeds[key](fitted.samples(spec.name, array))
        truth, said = None, f"{where}: the labels"
        if labels is not None and self.truth:
            truth, labels = read_truth(labels, fitted.count, self.classes, said, self.truth)
        elif labels is not None:
            labels = check_labels(labels, fitted.count, self.classes, said)
        return Batch(ready, labels, per_call=fitted.per_call, truth=truth)


class UserCode:
    """Turns whatever the user's code raises in the `with` block into one line with its type and place."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name, self.where = path, name, f"{path}:{name}"

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, LatheError) or not isinstance(error, Exception | SystemExit):
            return
        lines = [frame.lineno for frame in traceback.extract_tb(trace) if frame.filename == str(self.path)]
        if isinstance(error, SyntaxError) and error.filename == str(self.path):
            lines.append(error.lineno)
        place = f" in line {lines[-1]}" if lines else ""
        message = (" ".join(str(error).split()) or "no message") + shadowed(error, self.path.parent)
        raise DataError(f"{self.where}: {type(error).__name__}{place}: {message}") from error


def open_function(
    path: Path,
    name: str | None,
    inputs: Sequence[InputSpec],
    options: Preprocess,
    classes: int | None,
    truth: Truth = Truth.CLASSES,
    fixed: frozenset[str] = frozenset(),
) -> FunctionSource:
    """Imports the file and reads the function's first batch. Raises DataError with the type and line of
    what the user's code raises.
    """
    if not name:
        raise DataError(f"{path}: name the function too, such as {path}:batches")
    function, guard = load_named(path, name)
    source = FunctionSource(function, guard, inputs, options, classes, truth, fixed)
    source.fingerprint = fingerprint(guard.path.read_bytes(), name.encode(), repr(options).encode())
    where = f"{guard.path.name}:{name}"
    source.description = f"{'labelled' if source.has_labels else 'unlabelled'} batches of {where}"
    return source


def load_named(path: Path, name: str) -> tuple[Callable[..., Any], UserCode]:
    """(the function of a user's file, what turns its errors into one line). Raises DataError with the type and
    line of what importing raises, and for a name that is none of a function.
    """
    path = path.resolve()
    guard = UserCode(path, name)
    try:
        path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    with guard:
        module = import_file(path)
    function = getattr(module, name, None)
    if not callable(function):
        functions = [
            one
            for one, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        known = f"; it has {', '.join(functions)}" if functions else ""
        raise DataError(f"{path}: has no function '{name}'{nearest(name, functions)}{known}")
    return function, guard


def _shapes(batch: Batch) -> tuple[bool, dict[str, tuple[int, ...]]]:
    return batch.per_call, {name: array.shape[1:] for name, array in batch.inputs.items()}


def _has_labels(batch: Batch) -> bool:
    return batch.labels is not None or batch.truth is not None


def _joined(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    inputs = {name: np.concatenate([batch.inputs[name] for batch in batches]) for name in batches[0].inputs}
    labels = [batch.labels for batch in batches if batch.labels is not None]
    truth = [one for batch in batches for one in batch.truth or ()]
    whole = len(labels) == len(batches)  # of forms of which some could be class numbers
    return replace(
        batches[0],
        inputs=inputs,
        labels=np.concatenate(labels) if whole else None,
        truth=truth if batches[0].truth is not None else None,
    )


def _a(value: Any) -> str:
    return "None" if value is None else f"one {type(value).__name__}"
