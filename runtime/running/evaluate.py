"""Quality of a model on evaluation data: accuracy against labels, and closeness of every output to the
original model's.

Metrics are fractions 0..1 (`top1`, `top5`, `agreement`), cosines or decibels (`sqnr`), and those of tasks/ that are
asked for. What the data cannot tell is left out of the result.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime

from onnx_lathe.errors import DataError, ModelError
from onnx_lathe.runtime.data import Batch, DataSource, take
from onnx_lathe.runtime.data.truth import content
from onnx_lathe.runtime.files.signature import fixed_batch
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.closeness import Slices
from onnx_lathe.runtime.running.content import model_fingerprint
from onnx_lathe.runtime.running.fed import fed
from onnx_lathe.runtime.running.joins import Join, joins
from onnx_lathe.runtime.running.judged import Judged, Tasks
from onnx_lathe.runtime.running.mixing import mixed_output
from onnx_lathe.runtime.running.scores import Outputs, Scores, is_float
from onnx_lathe.runtime.running.tasks.samples import Measured

BATCH = 250
PIECE_BYTES = 2 << 20
"""Inputs that are run at once: activations take many times as much."""
COMPARED_SAMPLES = 128
"""On which forms of one model are compared with the original, to choose the nearest."""
KEPT_BYTES = 256 << 20
"""The original's outputs are kept up to this size, so that it runs once; for samples beyond it, it runs again."""


NO_TASKS = Tasks()

Heard = Callable[[Outputs, int, bool], None]
"""Called with outputs, of how many samples they are, and whether these are one call without a batch."""


def unheard(outputs: Outputs, count: int, alone: bool) -> None:
    """Nobody wants them."""


@dataclass
class Reference:
    """The original's outputs on the evaluation data, batch by batch; None where they were not kept, and
    `session` computes them again.
    """

    metrics: dict[str, float]
    outputs: list[Outputs | None] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    """Fingerprint of each batch: data that is not the same when it is read again would judge two models on
    different samples.
    """
    joins: Mapping[str, Sequence[Join]] = field(default_factory=dict)
    slices: Mapping[str, Slices] = field(default_factory=dict)
    labelled: str | None = None
    """The output that labels belong to."""
    has_floats: bool = False
    mixed: str | None = None
    """An output in which the samples of a batch have to do with one another: they are judged one by one."""
    session: onnxruntime.InferenceSession | None = None
    tasks: Tasks = NO_TASKS
    sampled: Mapping[str, Measured] = field(default_factory=dict)
    """Metrics sample by sample, by name."""
    batch: int | None = None
    """The only size of a batch that the original takes, if it takes only one."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Float outputs that cannot be compared even with themselves, and why."""

    @property
    def note(self) -> str | None:
        """What a reader of the metrics should know of how they were found."""
        if self.mixed is None:
            return None
        return f"output '{self.mixed}' of a sample depends on the other samples of its batch: samples are judged one by one"


class Quality(dict[str, float]):
    """Metrics by name; `reasons`: float outputs that could not be compared, and why; `sampled`: what is known
    sample by sample.
    """

    reasons: Mapping[str, str] = MappingProxyType({})
    sampled: Mapping[str, Measured] = MappingProxyType({})


def reference(
    session: onnxruntime.InferenceSession,
    data: DataSource,
    progress: Callable[[str], None],
    model: onnx.ModelProto | None = None,
    heard: Heard = unheard,
    tasks: Tasks = NO_TASKS,
) -> Reference:
    """Evaluates the original and keeps its outputs for `evaluate`. The session's `model` tells which outputs
    are joined of parts. `heard` gets the outputs of each call. `tasks`: what is measured of all models against labels.
    """
    joined = {} if model is None else joins(model)
    mixed: list[str | None] = []

    def one_by_one(batch: Batch) -> bool:
        if not mixed and batch.count > 1:  # one sample tells nothing
            mixed.append(mixed_output(session, batch))
        return any(name is not None for name in mixed)

    kept: list[Outputs | None] = []
    batches: list[int] = []
    total, has_floats = 0, False
    scores = Scores(joined)
    judged = Judged(scores, tasks, session)
    for outputs, piece in _outputs(session, data, progress, one_by_one):
        batches.append(_fingerprint(piece))
        heard(outputs, piece.count, piece.alone)
        judged.add(outputs, outputs, *piece.judged_by())
        total += sum(output.nbytes for output in outputs.values())
        kept.append(outputs if total <= KEPT_BYTES else None)
        has_floats = has_floats or any(map(is_float, outputs.values()))
    again = session if any(one is None for one in kept) else None
    metrics, sampled = judged.results() if batches else ({}, {})
    return Reference(
        metrics,
        kept,
        batches,
        joined,
        scores.slices(),
        scores.labelled(),
        has_floats,
        next(iter(mixed), None),
        again,
        tasks,
        sampled,
        _batch(session),
        scores.reasons(),
    )


def evaluate(
    session: onnxruntime.InferenceSession,
    data: DataSource,
    original: Reference,
    progress: Callable[[str], None],
    heard: Heard = unheard,
) -> Quality:
    """Metrics of a candidate on the same data. `sqnr` is infinite when every output is equal; an output that
    cannot be compared has none, and `reasons` says why. `heard` gets the outputs of each call.

    Raises DataError if the data is not the same as it was for the original, or comes in batches of another size,
    which the candidate has fixed.
    """
    scores = Scores(original.joins, original.slices, original.labelled)
    judged = Judged(scores, original.tasks, session)
    seen = 0
    for outputs, piece in _outputs(session, data, progress, lambda batch: original.mixed is not None):
        if seen == len(original.batches) or original.batches[seen] != _fingerprint(piece):
            raise _unpaired(session, data, original, "differs from one reading to the next")
        wanted = original.outputs[seen]
        if wanted is None and original.session is not None:
            wanted = piece.cut(ort.run(original.session, piece.inputs))
        heard(outputs, piece.count, piece.alone)
        judged.add(outputs, wanted or {}, *piece.judged_by())
        seen += 1
    if seen < len(original.batches):
        raise _unpaired(session, data, original, "ended early when it was read again")
    metrics, sampled = judged.results() if seen else ({}, {})
    found = Quality(metrics)
    found.reasons, found.sampled = scores.reasons(), sampled
    return found


def _batch(session: onnxruntime.InferenceSession) -> int | None:
    return fixed_batch([value.shape for value in session.get_inputs()])


def _unpaired(
    session: onnxruntime.InferenceSession, data: DataSource, original: Reference, how: str
) -> DataError:
    """Why the calls of a candidate are not those of the original: `how` the data would have to differ."""
    batch = _batch(session)
    if batch == original.batch:
        return DataError(f"{data.description}: evaluation data {how}; it must yield the same each time")
    name = session.get_inputs()[0].name
    takes, took = (f"batches of {size} alone" if size else "any batch" for size in (batch, original.batch))
    return DataError(
        f"input '{name}' of the candidate takes {takes}, the original's {took}, so their outputs do not pair up; "
        "export or build both with the same batch, or leave it open in both"
    )


class OutputComparer:
    """Compares models on at most `limit` samples of one source. Implements Runner of passes/core/services.py.

    The outputs of a base are kept until another one comes, so that comparing many candidates with it runs
    it once.
    """

    def __init__(
        self, data: DataSource, limit: int, progress: Callable[[str], None] = lambda text: None
    ) -> None:
        self.data, self.progress = take(data, limit), progress
        self._known: tuple[str, Reference] | None = None

    def compare(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> dict[str, float]:
        """`sqnr` of the worst output or slice in dB (inf when all are equal, -inf when nothing of the base is
        left) and, for classifiers, `agreement`.

        Raises DataError if there is no data, or if no output holds floats.
        """
        content = model_fingerprint(base)
        if self._known is None or self._known[0] != content:
            self._known = None
            self._known = content, reference(ort.session(base), self.data, self.progress, base)
        original = self._known[1]
        if not original.outputs:
            raise DataError(f"{self.data.description}: there are no samples to compare outputs on")
        if not original.has_floats:
            raise DataError(
                "outputs cannot be compared: no output of the model holds floats; cut off the ArgMax (or what else makes integers)"
            )
        found = evaluate(ort.session(candidate), self.data, original, self.progress)
        return {"sqnr": float("-inf")} | {
            name: found[name] for name in ("sqnr", "agreement") if name in found
        }


class OriginalComparer:
    """Compares models with the original on samples spread over one source. Implements Fidelity of
    passes/core/services.py.
    """

    def __init__(
        self,
        original: Path,
        read: Callable[[], onnx.ModelProto],
        data: DataSource,
        progress: Callable[[str], None] = lambda text: None,
        fixed: Mapping[str, np.ndarray] = MappingProxyType({}),
    ) -> None:
        """`read` opens the file `original`, to tell which outputs are joined of parts; `fixed`: values of inputs that
        it alone has.
        """
        self.original, self.read, self.progress, self.fixed = original, read, progress, fixed
        self.data = take(data, COMPARED_SAMPLES)
        self._reference: Reference | None = None

    def sqnr(self, model: onnx.ModelProto, plain: bool = False) -> float | None:
        """Of the worst output or slice, in dB; None if no output can be compared, or the data is another each
        time. `plain`: in the session that a user opens, instead of an exact one. -inf if the session cannot load
        or run the model.
        """
        if self._reference is None:
            opened = fed(ort.session(self.original), self.fixed)
            self._reference = reference(opened, self.data, self.progress, self.read())
        try:
            opened = ort.plain_session(model) if plain else ort.session(model)
            return evaluate(opened, self.data, self._reference, self.progress).get("sqnr")
        except ModelError:
            return float("-inf")
        except DataError:  # it yields others each time, which calibrates as well
            return None


def _outputs(
    session: onnxruntime.InferenceSession,
    data: DataSource,
    progress: Callable[[str], None],
    one_by_one: Callable[[Batch], bool],
) -> Iterator[tuple[Outputs, "_Piece"]]:
    """Outputs and what they are of, piece by piece."""
    seen = 0
    for batch in data.batches(BATCH):
        for piece in _pieces(session, batch, one_by_one(batch)):
            outputs = piece.cut(ort.run(session, piece.inputs))
            seen += piece.count
            progress(
                f"evaluating: {seen} samples"
                if data.count is None
                else f"evaluating: {seen} of {data.count} samples"
            )
            yield outputs, piece


@dataclass(frozen=True)
class _Piece:
    """What one call is fed: `count` samples, and repeats of the last up to the `size` of a fixed batch; or one
    sample that is no part of a batch, `alone`.
    """

    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray | None
    count: int
    size: int
    alone: bool = False
    truth: Sequence[Any] | None = None

    def judged_by(self) -> tuple[Any, ...]:
        """(inputs, labels, labels of any form, samples, whether it is one call), without repeats."""
        return self.cut(self.inputs), self.labels, self.truth, self.count, self.alone

    def cut(self, outputs: Outputs) -> dict[str, np.ndarray]:
        """Without the repeats, where the first axis is that of samples."""
        return {
            name: output[: self.count]
            if self.count < self.size and output.ndim and len(output) == self.size
            else output
            for name, output in outputs.items()
        }


def _fingerprint(piece: _Piece) -> int:
    arrays = [*piece.inputs.values(), *([] if piece.labels is None else [piece.labels])]
    known = zlib.crc32(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))
    return known if piece.truth is None else zlib.crc32(str(content(piece.truth)).encode(), known)


def _pieces(session: onnxruntime.InferenceSession, batch: Batch, one_by_one: bool) -> Iterator[_Piece]:
    """A model with a fixed batch gets just that size."""
    inputs, count = batch.inputs, batch.count
    if batch.per_call:
        for row in range(count):
            one = batch[row : row + 1]
            yield _Piece(batch.call(row), one.labels, 1, 1, True, one.truth)
        return
    fixed = _batch(session)
    weight = max(sum(array.nbytes for array in inputs.values()), 1)
    size = fixed or (1 if one_by_one else max(PIECE_BYTES * count // weight, 1))
    for start in range(0, count, size):
        real = min(size, count - start)
        rows = np.minimum(np.arange(start, start + size), count - 1) if fixed else slice(start, start + real)
        taken = batch[start : start + real]
        fed = {name: array[rows] for name, array in inputs.items()}
        yield _Piece(fed, taken.labels, real, fixed or real, truth=taken.truth)
