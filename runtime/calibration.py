"""Statistics of activations over calibration data: one pass, bounded memory, no activation kept.

Each tensor has a histogram over -limit..limit, where limit is a power of two. A value beyond it doubles the limit and adds up neighbouring
bins, which is exact because the new bins' edges are edges of the old ones; so the range need not be known before the pass.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from lathe import DataError, ModelError
from runtime import model_file, ort
from runtime.data import DataSource

BINS = 8192
"""At worst half of them lie beyond the largest value, and half of the rest on the side that a ReLU leaves empty: 2048 are in use."""

SAMPLED_VALUES = 1 << 18
"""Of a larger tensor, the histogram takes an even sample of about this many values per batch. Minimum and maximum see every value."""

FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)")

SMALLEST_LIMIT = 2.0**-126


class Histogram:
    """Streamed statistics of one tensor. Implements passes.base.TensorStatistics."""

    def __init__(self) -> None:
        self.minimum = math.inf
        self.maximum = -math.inf
        self.limit = SMALLEST_LIMIT
        self.counts = np.zeros(BINS, np.int64)

    def add(self, values: np.ndarray) -> bool:
        """Counts the values of one batch. False, with nothing counted, if one is NaN or infinite."""
        if values.size == 0:
            return True
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            return False
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        largest = max(-low, high)
        if largest > 0 and not self.counts.any():
            self.limit = max(self.limit, 2.0 ** math.frexp(largest)[1])
        while largest >= self.limit:
            self._double()
        flat = values.reshape(-1)
        # An odd step does not fall in with the sizes of channels and rows, which are mostly even.
        sample = flat[:: flat.size // SAMPLED_VALUES | 1].astype(np.float64)
        index = np.floor(sample * (BINS / (2 * self.limit))).astype(np.int64) + BINS // 2  # exact: the factor is a power of two
        self.counts += np.bincount(index, minlength=BINS)
        return True

    def _double(self) -> None:
        merged = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros(BINS, np.int64)
        self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
        self.limit *= 2

    def percentile(self, percent: float) -> tuple[float, float]:
        """Range (low, high) of the central `percent` of the values, to one bin's width; never outside minimum..maximum."""
        if percent >= 100.0:
            return self.minimum, self.maximum
        below = np.concatenate([[0], np.cumsum(self.counts)])
        edges = np.linspace(-self.limit, self.limit, BINS + 1)
        first, last = int(np.argmax(below > 0)) - 1, int(np.argmax(below == below[-1])) - 1  # outermost bins in use
        used = slice(first, last + 2)
        outside = (100.0 - percent) / 200.0
        low, high = np.interp([outside * below[-1], (1.0 - outside) * below[-1]], below[used], edges[used])
        # Inside an outermost bin nothing is known but the extreme: the many zeros behind a ReLU are zero, not a little more.
        low = self.minimum if low < edges[first + 1] else low
        high = self.maximum if high > edges[last] else high
        return float(min(low, self.maximum)), float(max(high, self.minimum))  # interpolation may leave a bin that is not used to its end


class StreamingCalibrator:
    """Runs a model over calibration data. Implements passes.base.Calibrator.

    `limit` samples at most are read, in an order shuffled with a fixed seed, since files are often sorted by class; `batch` at a time,
    or as many as the model's fixed batch asks for.
    """

    def __init__(self, data: DataSource, limit: int = 512, batch: int = 4, progress: Callable[[str], None] = lambda message: None) -> None:
        self.data = data
        self.limit = limit
        self.batch = batch
        self.progress = progress

    def statistics(self, model: onnx.ModelProto, tensors: Sequence[str]) -> Mapping[str, Histogram]:
        """Statistics of the named float tensors of the main graph: results of nodes, or inputs.

        Raises DataError if there is no data, it lacks an input, or a tensor holds NaN or infinity; ModelError for a name that is no
        float tensor, or if ONNX Runtime refuses the model or the data.
        """
        found = {name: Histogram() for name in tensors}
        if not found:
            return found
        samples = 0
        for values, count in self._values(model, tensors):
            for name, histogram in found.items():
                if not histogram.add(values[name]):
                    raise DataError(
                        f"tensor '{name}' holds NaN or infinity on calibration samples {samples} to {samples + count - 1}; "
                        "check the scale of the data and the model's weights"
                    )
            samples += count
        unseen = [name for name, histogram in found.items() if histogram.minimum > histogram.maximum]
        if unseen:
            raise DataError(f"tensor '{unseen[0]}' has no elements on the calibration data; check the data's shape")
        return found

    def observe(self, model: onnx.ModelProto, tensors: Sequence[str]) -> Iterator[Mapping[str, np.ndarray]]:
        """The values of the named float tensors of the main graph, batch by batch; every call gives the same samples in the same order.

        Raises as `statistics` does, but does not look for NaN.
        """
        for values, _ in self._values(model, tensors):
            yield values

    def _values(self, model: onnx.ModelProto, tensors: Sequence[str]) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """(values of the tensors, samples)."""
        with _session(model, tensors) as session:
            samples = 0
            for feeds, count in self._feeds(session):
                outputs = ort.run(session, feeds)
                yield {name: feeds[name] if name in feeds else outputs[name] for name in tensors}, count
                samples += count
                self.progress(f"calibrating: {samples} of at most {self.limit} samples")

    def _feeds(self, session: onnxruntime.InferenceSession) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """(inputs, samples), `limit` samples in all; at least one batch."""
        inputs = session.get_inputs()
        fixed = {value.shape[0] for value in inputs if value.shape and isinstance(value.shape[0], int)}
        fixed_batch = len(fixed) == 1
        size = fixed.pop() if fixed_batch else min(self.batch, self.limit)
        samples = 0
        for batch in self.data.batches(size, shuffle_seed=0):
            missing = [value.name for value in inputs if value.name not in batch.inputs]
            if missing:
                raise DataError(f"the calibration data has no input '{missing[0]}'; it has {', '.join(map(repr, batch.inputs))}")
            count = min(batch.count, self.limit - samples)
            if count == 0:
                continue
            rows = np.arange(size if fixed_batch else count) % count  # a fixed batch is filled up with repeats
            yield {value.name: batch.inputs[value.name][rows] for value in inputs}, count
            samples += count
            if samples >= self.limit:
                return
        if samples == 0:
            raise DataError("the calibration data is empty; give at least one sample")


@contextmanager
def _session(model: onnx.ModelProto, tensors: Sequence[str]) -> Iterator[onnxruntime.InferenceSession]:
    """A session of the model that also returns the named tensors. Not optimized, so that each is what its own node computes."""
    inputs = {value.name for value in model.graph.input} - {tensor.name for tensor in model.graph.initializer}
    present = {value.name for value in model.graph.output}
    computed = {name for node in model.graph.node for name in node.output}
    for name in tensors:
        if name not in inputs and name not in computed:
            raise ModelError(f"tensor '{name}' cannot be calibrated: no node of the model computes it, and it is no input")
    extra = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(tensors) if name not in inputs | present]
    original = len(model.graph.output)
    model.graph.output.extend(extra)  # taken off again below: copying the model would copy its weights
    try:
        with tempfile.TemporaryDirectory(prefix="lathe-") as folder:
            source: onnx.ModelProto | Path = model
            if model_file.size_bytes(model) > model_file.INLINE_LIMIT_BYTES:
                source = Path(folder) / "model.onnx"
                model_file.save(model, source)
            session = ort.session(source, optimized=False)
    finally:
        del model.graph.output[original:]
    types = {value.name: value.type for value in [*session.get_inputs(), *session.get_outputs()]}
    for name in tensors:
        if types[name] not in FLOATS:
            raise ModelError(f"tensor '{name}' cannot be calibrated: it is {types[name]}, not a float tensor")
    yield session
