"""Statistics of activations over calibration data: one pass, bounded memory, no activation kept.

The model runs as ONNX Runtime optimizes it, with the wanted tensors as further outputs: a tensor that is an
output is never fused away, so it is what its own node computes, up to the rounding of float arithmetic in
another order.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime

from onnx_lathe.errors import DataError, ModelError
from onnx_lathe.protocols import Observed
from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.data.source import IndexedSource
from onnx_lathe.runtime.files.signature import fixed_batch
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.content import model_fingerprint
from onnx_lathe.runtime.running.held import HeldValues
from onnx_lathe.runtime.running.histogram import Histogram
from onnx_lathe.runtime.running.taps import tapped

SAMPLED_VALUES = 1 << 20
"""About as many of each tensor over all batches; minimum and maximum see every value. Ten of them lie
beyond the percentile 99.999.
"""

SAMPLED_PER_SAMPLE = 1 << 10
"""About as many of each tensor and each sample of the data, where that is more."""

OUTPUT_BYTES = 1 << 28
"""Of the wanted tensors, at most this much is held at once, or what one sample takes."""

REMEMBERED_MODELS = 4
"""Statistics of that many models are kept for the next pass that asks; about 100 KB per tensor."""

REMEMBERED_BYTES = 1 << 30
"""Of what else passes had made of the data."""

T = TypeVar("T")

FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)")


class StreamingCalibrator:
    """Runs a model over calibration data. Implements Calibrator of passes/core/services.py.

    `limit` samples at most are read, in an order shuffled with a fixed seed, since files are often sorted
    by class; `batch` at a time, or as many as the model's fixed batch asks for.
    """

    def __init__(
        self,
        data: DataSource,
        limit: int = 512,
        batch: int = 4,
        progress: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.data = data
        self.limit = limit
        self.batch = batch
        self.progress = progress
        # by content of the model, the latest last
        self._known: OrderedDict[str, dict[str, Histogram]] = OrderedDict()
        self._made: OrderedDict[tuple[str, str], tuple[Any, int]] = OrderedDict()

    def statistics(
        self, model: onnx.ModelProto, tensors: Sequence[str], optional: Collection[str] = ()
    ) -> Mapping[str, Histogram]:
        """Statistics of the named float tensors of the main graph: results of nodes, or inputs. They are
        not to be changed.

        What was asked of a model of the same content before, and of few others since, is answered without a
        run.

        Of `optional` ones, those that hold NaN or infinity, or have no elements, are left out.

        Raises DataError if there is no data, it lacks an input, or another tensor holds NaN or infinity;
        ModelError for a name that is no float tensor, or if ONNX Runtime refuses the model or the data.
        """
        if not tensors:
            return {}
        content = model_fingerprint(model)
        known = self._known.get(content, {})
        missing = [name for name in dict.fromkeys(tensors) if name not in known]
        if missing:
            known = known | self._measure(model, missing, optional)
        self._known[content] = known
        self._known.move_to_end(content)
        while len(self._known) > REMEMBERED_MODELS:
            self._known.popitem(last=False)
        return {name: known[name] for name in tensors if name in known or name not in optional}

    def _measure(
        self, model: onnx.ModelProto, tensors: Sequence[str], optional: Collection[str]
    ) -> dict[str, Histogram]:
        found = {name: Histogram() for name in tensors}
        expected = self.limit if self.data.count is None else min(self.limit, self.data.count)
        sampled = max(SAMPLED_PER_SAMPLE, SAMPLED_VALUES // max(expected, 1))
        session = _session(model, tensors)
        samples, rows_at_once = 0, 1  # one row tells how much memory the others will take
        for feeds, count, _, divisible in self._feeds(session):
            start = 0
            while start < count:
                end = min(start + rows_at_once, count) if divisible else count
                part = {name: values[start:end] for name, values in feeds.items()} if divisible else feeds
                values = part | ort.run(session, part)
                row_bytes = sum(values[name].nbytes for name in tensors) // (end - start)
                rows_at_once = max(OUTPUT_BYTES // max(row_bytes, 1), 1)
                for name, histogram in list(found.items()):
                    if not histogram.add(
                        values.pop(name), sampled * (end - start)
                    ):  # popped: memory for the next run
                        if name in optional:
                            del found[name]
                            continue
                        where = self._samples(samples + start, samples + end - 1)
                        raise DataError(
                            f"tensor '{name}' holds NaN or infinity on {where}; "
                            "check the scale of the data and the model's weights"
                        )
                start = end
            samples += count
            self._tell(samples)
        unseen = [name for name, histogram in found.items() if histogram.counted == 0]
        if needed := [name for name in unseen if name not in optional]:
            raise DataError(
                f"tensor '{needed[0]}' has no elements on the calibration data; check the data's shape"
            )
        return {name: histogram for name, histogram in found.items() if name not in unseen}

    def observe(self, model: onnx.ModelProto, tensors: Sequence[str]) -> Iterator[Observed]:
        """The values of the named float tensors of the main graph, batch by batch; every call gives the
        same samples in the same order.

        Raises as `statistics` does, but does not look for NaN.
        """
        session = _session(model, tensors)
        del model  # of which a caller may have kept none: the session has its weights
        samples = 0
        for feeds, count, rows, _ in self._feeds(session):
            outputs = ort.run(session, feeds)
            yield Observed(
                {name: feeds[name] if name in feeds else outputs[name] for name in tensors}, count, rows
            )
            samples += count
            self._tell(samples)

    def held(self, model: onnx.ModelProto, samples: int) -> HeldValues:
        """The first samples, that many, as inputs of parts of the model.

        Raises DataError if there is no data or it lacks an input.
        """
        found, count = [], 0
        for feeds, more, rows, _ in self._feeds(ort.session(model, integer=False)):
            found.append((feeds, more, rows))
            count += more
            if count >= samples:
                break
        return HeldValues(found)

    def remembered(self, model: onnx.ModelProto, what: str, make: Callable[[], T], size_bytes: int) -> T:
        """What `make` gives, as an earlier call for the same content of the model and `what` has it, if it is one of
        the last that take no more than REMEMBERED_BYTES together.
        """
        key = model_fingerprint(model), what
        if key not in self._made:
            self._made[key] = make(), size_bytes
        self._made.move_to_end(key)
        found: T = self._made[key][0]
        while sum(size for _, size in self._made.values()) > REMEMBERED_BYTES:
            self._made.popitem(last=False)
        return found

    def _samples(self, first: int, last: int) -> str:
        """A phrase for the samples that a run took from the `first` to the `last` place, as the data
        numbers them.
        """
        if not isinstance(self.data, IndexedSource):
            return f"calibration sample{f's {first} to' if first < last else ''} {last}"
        order = next(self.data.row_batches(self.data.count, shuffle_seed=0))
        found = [str(number) for number in sorted(self.data.numbers(order[first : last + 1]))]
        return f"calibration sample{'' if len(found) == 1 else 's'} {' or '.join(filter(None, [', '.join(found[:-1]), found[-1]]))}"

    def _tell(self, samples: int) -> None:
        self.progress(f"calibrating: {samples} of at most {self.limit} samples")

    def _feeds(
        self, session: onnxruntime.InferenceSession
    ) -> Iterator[tuple[dict[str, np.ndarray], int, int, bool]]:
        """(inputs, samples, these with repeats, whether they may be run in parts), `limit` samples in all; at least one
        batch.
        """
        names = [value.name for value in session.get_inputs()]
        fixed = fixed_batch([value.shape for value in session.get_inputs()])
        samples = 0
        for batch in self.data.batches(fixed or min(self.batch, self.limit), shuffle_seed=0):
            missing = [name for name in names if name not in batch.inputs]
            if missing:
                raise DataError(
                    f"the calibration data has no input '{missing[0]}'; it has {', '.join(map(repr, batch.inputs))}"
                )
            count = min(batch.count, self.limit - samples)
            if count == 0:
                continue
            if batch.per_call:
                calls = (batch.call(row) for row in range(count))
                yield from (({name: call[name] for name in names}, 1, 1, False) for call in calls)
            else:
                rows = np.arange(fixed or count) % count  # a fixed batch is filled up with repeats
                yield {name: batch.inputs[name][rows] for name in names}, count, len(rows), fixed is None
            samples += count
            if samples >= self.limit:
                return
        if samples == 0:
            raise DataError("the calibration data is empty; give at least one sample")


def open_with(model: onnx.ModelProto, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    """A session of the model that also returns the named tensors of its main graph, of whatever type; layers between
    Q/DQ pairs compute in float there, as the graph says.

    Raises ModelError for a name that nothing computes, or if ONNX Runtime refuses the model.
    """
    listed = {value.name for value in model.graph.input}
    inputs = listed - {tensor.name for tensor in model.graph.initializer}  # others keep their defaults
    computed = {name for node in model.graph.node for name in node.output}
    for name in tensors:
        if name not in listed and name not in computed:
            raise ModelError(
                f"tensor '{name}' cannot be calibrated: no node of the model computes it, and it is no input"
            )
    return tapped(model, [name for name in tensors if name not in inputs])


def _session(model: onnx.ModelProto, tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    """As `open_with`, for float tensors alone."""
    session = open_with(model, tensors)
    types = {value.name: value.type for value in [*session.get_inputs(), *session.get_outputs()]}
    for name in tensors:
        if types[name] not in FLOATS:
            raise ModelError(f"tensor '{name}' cannot be calibrated: it is {types[name]}, not a float tensor")
    return session
