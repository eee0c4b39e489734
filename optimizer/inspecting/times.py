"""Measured milliseconds of each layer in ONNX Runtime, with what it computes together said as such."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import UsageError
from onnx_lathe.macs import OpenShape
from onnx_lathe.optimizer.inspecting.analysis import INPUT
from onnx_lathe.optimizer.inspecting.rows import Inspection, Row
from onnx_lathe.optimizer.measuring import sample_feeds
from onnx_lathe.optimizer.report.units import size
from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.layer_times import Kernel, kernels, main_node
from onnx_lathe.runtime.running.profiling import LARGEST_BYTES, ModelProfiler

TOGETHER = "in {}"
FOLDED = "not run"


@dataclass(frozen=True)
class Sample:
    """What the model is run on: the first samples of `source`, or random values of these shapes."""

    source: DataSource | None
    shapes: Mapping[str, OpenShape]
    batch: int

    def feeds(self, session: Any) -> Mapping[str, np.ndarray]:
        """Raises DataError or ModelError as `sample_feeds` does."""
        inputs = session.get_inputs()
        known = all(isinstance(dim, int) for value in inputs for dim in self.shapes.get(value.name) or ("?",))
        if self.source is not None or not known:
            return sample_feeds(self.source, session, self.batch)
        sized = [
            SimpleNamespace(name=value.name, type=value.type, shape=list(self.shapes[value.name]))
            for value in inputs
        ]
        return ort.random_feeds(SimpleNamespace(get_inputs=lambda: sized))


@dataclass(frozen=True)
class Measured:
    """Kernels of the main graph, and the sizes of the inputs that they were measured on."""

    kernels: Sequence[Kernel]
    sizes: Mapping[str, tuple[int, ...]]
    of: str


def measure(model: onnx.ModelProto, sample: Sample) -> Measured:
    """Raises UsageError for a model that is too large, ModelError if ONNX Runtime does not run it on the sample."""
    weighs = model_file.size_bytes(model)
    if weighs > LARGEST_BYTES:
        raise UsageError(
            f"--time: the model takes {size(weighs)}; layers are timed up to {size(LARGEST_BYTES)}"
        )
    fed: dict[str, tuple[int, ...]] = {}

    def feeds(session: Any) -> Mapping[str, np.ndarray]:
        given = sample.feeds(session)
        fed.update({name: array.shape for name, array in given.items()})
        return given

    ran = kernels(model.graph, *ModelProfiler(feeds).executed(model))
    return Measured(
        ran, fed, "the first samples of the data" if sample.source is not None else "random values"
    )


def with_times(found: Inspection, names: Sequence[str], measured: Measured) -> Inspection:
    """The rows with `ms` and `ran_as`. `names`: of the nodes of the main graph, in their order."""
    weights = {row.node: (row.macs or 0, row.activations or 0) for row in found.layers}
    said = _said(measured.kernels, names, [weights.get(name, (0, 0)) for name in names])
    whole = replace(
        found.whole,
        ms=sum(kernel.ms for kernel in measured.kernels),
        unattributed_ms=sum(kernel.ms for kernel in measured.kernels if not kernel.nodes),
        notes=(*found.whole.notes, _note(measured)),
    )
    return Inspection([_timed(row, said) for row in found.layers], whole)


def _said(
    ran: Sequence[Kernel], names: Sequence[str], weights: Sequence[tuple[int, int]]
) -> dict[str, tuple[float | None, str]]:
    """Node -> its milliseconds, or with which other node it runs."""
    spent: dict[int, float] = {}
    host: dict[int, int] = {}
    for kernel in ran:
        main = main_node(kernel, weights)
        if main is None:
            continue
        spent[main] = spent.get(main, 0.0) + kernel.ms
        host.update(dict.fromkeys(kernel.nodes, main))
    found: dict[str, tuple[float | None, str]] = {}
    for place, main in host.items():
        found[names[place]] = (None, TOGETHER.format(names[main]))
    return found | {names[main]: (ms, "") for main, ms in spent.items()}


def _timed(row: Row, said: Mapping[str, tuple[float | None, str]]) -> Row:
    if row.op == INPUT:
        return row
    if row.place:
        return replace(row, ran_as=TOGETHER.format(row.place.rpartition(" of ")[2]))
    ms, ran_as = said.get(row.node, (None, FOLDED))
    return replace(row, ms=ms, ran_as=ran_as)


def _note(measured: Measured) -> str:
    sizes = ", ".join(f"{name} {'x'.join(map(str, shape)) or '1'}" for name, shape in measured.sizes.items())
    return (
        f"times: of {measured.of}, {sizes}; the least of several runs of each kernel, with all that ONNX Runtime "
        "computes in it"
    )
