"""Quality of a model on evaluation data: accuracy against labels, and closeness to the original model's
outputs.

Metrics are fractions 0..1 (`top1`, `top5`, `agreement`) or decibels (`sqnr`). What the data cannot tell is
left out of the result.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime

from onnx_lathe.errors import DataError
from onnx_lathe.runtime.data import DataSource, take
from onnx_lathe.runtime.running import ort

BATCH = 250
PIECE_BYTES = 2 << 20
"""Inputs that are run at once: activations take many times as much."""
KEPT_BYTES = 256 << 20
"""The original's outputs are kept up to this size, so that it runs once; samples beyond it are compared by
labels alone.
"""


@dataclass
class Reference:
    """The original's first output on the evaluation data, batch by batch (None where it was not kept)."""

    metrics: dict[str, float]
    outputs: list[np.ndarray | None] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    """Fingerprint of each batch: data that is not the same when it is read again would judge two models on
    different samples.
    """


def reference(
    session: onnxruntime.InferenceSession, data: DataSource, progress: Callable[[str], None]
) -> Reference:
    """Evaluates the original and keeps its outputs for `evaluate`."""
    kept: list[np.ndarray | None] = []
    batches: list[int] = []
    total = 0
    score = _Score()
    for output, labels, fingerprint in _outputs(session, data, progress):
        batches.append(fingerprint)
        score.add(output, labels, output)
        total += output.nbytes
        kept.append(output if total <= KEPT_BYTES else None)
    return Reference(score.metrics(), kept, batches)


def evaluate(
    session: onnxruntime.InferenceSession,
    data: DataSource,
    original: Reference,
    progress: Callable[[str], None],
) -> dict[str, float]:
    """Metrics of a candidate on the same data. `sqnr` is infinite when every kept output is equal.

    Raises DataError if the data is not the same as it was for the original.
    """
    score = _Score()
    seen = 0
    for output, labels, fingerprint in _outputs(session, data, progress):
        if seen == len(original.batches) or original.batches[seen] != fingerprint:
            raise DataError(
                f"{data.description}: evaluation data differs from one reading to the next; it must yield the same each time"
            )
        score.add(output, labels, original.outputs[seen])
        seen += 1
    if seen < len(original.batches):
        raise DataError(
            f"{data.description}: evaluation data ended early when it was read again; it must yield the same each time"
        )
    return score.metrics()


class OutputComparer:
    """Compares models on at most `limit` samples of one source. Implements Runner of passes/core/services.py.

    The outputs of a base are kept until another one comes, so that comparing many candidates with it runs
    it once.
    """

    def __init__(
        self, data: DataSource, limit: int, progress: Callable[[str], None] = lambda text: None
    ) -> None:
        self.data, self.progress = take(data, limit), progress
        self._known: tuple[bytes, Reference] | None = None

    def compare(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> dict[str, float]:
        """`sqnr` of the first output in dB (inf when equal, -inf when nothing of the base is left) and, for
        classifiers, `agreement`.

        Raises DataError if there is no data, or if the first output holds no floats.
        """
        digest = hashlib.blake2b(base.SerializeToString()).digest()
        if self._known is None or self._known[0] != digest:
            self._known = None
            self._known = digest, reference(ort.session(base), self.data, self.progress)
        original = self._known[1]
        if not original.outputs:
            raise DataError(f"{self.data.description}: there are no samples to compare outputs on")
        if not any(
            output is not None and np.issubdtype(output.dtype, np.floating) for output in original.outputs
        ):
            raise DataError(
                "outputs cannot be compared: the model's first output holds no floats; cut off the ArgMax (or what else makes integers)"
            )
        found = evaluate(ort.session(candidate), self.data, original, self.progress)
        return {"sqnr": float("-inf")} | {
            name: found[name] for name in ("sqnr", "agreement") if name in found
        }


def _outputs(
    session: onnxruntime.InferenceSession, data: DataSource, progress: Callable[[str], None]
) -> Iterator[tuple[np.ndarray, np.ndarray | None, int]]:
    seen = 0
    for batch in data.batches(BATCH):
        for inputs, labels, count in _pieces(session, batch.inputs, batch.labels):
            output = next(iter(ort.run(session, inputs).values()))
            output = output[:count] if output.ndim and len(output) > count else output
            seen += count
            progress(
                f"evaluating: {seen} samples"
                if data.count is None
                else f"evaluating: {seen} of {data.count} samples"
            )
            yield output, labels, _fingerprint(inputs, labels)


def _fingerprint(inputs: dict[str, np.ndarray], labels: np.ndarray | None) -> int:
    arrays = [*inputs.values(), *([] if labels is None else [labels])]
    return zlib.crc32(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))


def _pieces(
    session: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray], labels: np.ndarray | None
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray | None, int]]:
    """(inputs, labels, samples that count). A model with a fixed batch gets just that size, the last one
    filled with repeats.
    """
    count = len(next(iter(inputs.values())))
    fixed = {
        value.shape[0] for value in session.get_inputs() if value.shape and isinstance(value.shape[0], int)
    }
    if len(fixed) != 1:
        size = max(PIECE_BYTES * count // max(sum(array.nbytes for array in inputs.values()), 1), 1)
        for start in range(0, count, size):
            part = slice(start, start + size)
            taken = None if labels is None else labels[part]
            yield {name: array[part] for name, array in inputs.items()}, taken, min(size, count - start)
        return
    size = fixed.pop()
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        real = min(size, count - start)
        yield (
            {name: array[rows] for name, array in inputs.items()},
            None if labels is None else labels[start : start + real],
            real,
        )


class _Score:
    def __init__(self) -> None:
        self.labelled = self.compared = 0
        self.top1 = self.top5 = self.agreeing = 0
        self.classes = 0
        self.signal = self.noise = 0.0

    def add(self, output: np.ndarray, labels: np.ndarray | None, original: np.ndarray | None) -> None:
        classifier = output.ndim == 2 and output.shape[1] > 1 and np.issubdtype(output.dtype, np.floating)
        if classifier:
            self.classes = output.shape[1]
        if classifier and labels is not None:
            self.labelled += len(labels)
            self.top1 += int((output.argmax(1) == labels).sum())
            if self.classes > 5:
                best = np.argpartition(-output, 5, axis=1)[:, :5]
                self.top5 += int((best == labels[:, None]).any(1).sum())
        if original is None or not np.issubdtype(output.dtype, np.floating) or original.shape != output.shape:
            return
        self.signal += float(np.square(original, dtype=np.float64).sum())
        with np.errstate(invalid="ignore"):  # of two infinities; there is no signal to noise then
            self.noise += float(np.square(original.astype(np.float64) - output).sum())
        if classifier:
            self.compared += len(output)
            self.agreeing += int((output.argmax(1) == original.argmax(1)).sum())

    def metrics(self) -> dict[str, float]:
        found = {}
        if self.labelled:
            found["top1"] = self.top1 / self.labelled
            if self.classes > 5:
                found["top5"] = self.top5 / self.labelled
        if self.compared:
            found["agreement"] = self.agreeing / self.compared
        if self.signal > 0 and np.isfinite(self.noise):
            found["sqnr"] = (
                float("inf") if self.noise == 0 else 10 * float(np.log10(self.signal / self.noise))
            )
        return found
