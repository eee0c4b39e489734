"""Weights side by side: stored ones, and those that the candidate computes from other stored tensors, such as by
DequantizeLinear or from a codebook.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_lathe.errors import ModelError
from onnx_lathe.optimizer.diffing.groups import grouped
from onnx_lathe.optimizer.diffing.reordered import Reordered, reordered
from onnx_lathe.optimizer.diffing.structure import Structure
from onnx_lathe.passes.extraction.submodel import Flow, submodel
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.differences import Difference


@dataclass(frozen=True)
class StoredError:
    """A float initializer of the base whose values in the candidate are others. `form`: "stored", or the operator
    that computes it there. `reordered`: in which order of its channels it is near all the same.
    """

    name: str
    form: str
    values: int
    differing: int
    not_finite: int
    sqnr: float | None
    max_abs: float
    reordered: Reordered | None = None


def stored_errors(
    base: onnx.ModelProto, candidate: onnx.ModelProto, flow: Flow, found: Structure
) -> list[StoredError]:
    """Of every float initializer of the base that the candidate stores with other values, or computes from
    constants alone under the same name. `flow`: of the candidate.
    """
    wanted = {tensor.name: tensor for tensor in base.graph.initializer}
    others = {tensor.name: tensor for tensor in candidate.graph.initializer}
    rows = list[StoredError]()
    for change in found.initializers:
        if change.differing and not change.place and change.name in wanted and change.name in others:
            arrays = (onnx.numpy_helper.to_array(stored[change.name]) for stored in (wanted, others))
            rows += _row(change.name, "stored", *arrays)
    made = [
        name for name in wanted if name in flow.makers and name not in flow.varying and name not in others
    ]
    for group in grouped(made, lambda name: 4 * int(np.prod(wanted[name].dims, dtype=np.int64))):
        for name, value in _computed(candidate, flow, group):
            operator = flow.nodes[flow.makers[name]].op_type
            rows += _row(name, operator, onnx.numpy_helper.to_array(wanted[name]), value)
    return rows


def _computed(model: onnx.ModelProto, flow: Flow, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    try:
        part = submodel(model, flow, names, {})
        session = ort.session(part.model, optimized=False)
    except ModelError:  # what runs in the whole model alone has no figure here
        return
    yield from ort.run(session, {}).items()


def _row(name: str, form: str, one: np.ndarray, other: np.ndarray) -> Iterator[StoredError]:
    if one.dtype.kind != "f" or one.shape != other.shape:
        return
    found = Difference()
    found.add(one, other)
    if found.differing:
        figures = found.values, found.differing, found.not_finite, found.sqnr, found.max_abs
        yield StoredError(name, form, *figures, reordered(one, other))
