"""Takes units out of a graph: shorter initializers, and nodes and shapes that say so."""

import numpy as np

from onnx_lathe.passes.graph import Constant, Graph
from onnx_lathe.passes.graph.coupling.state import Coupling, Survivors
from onnx_lathe.passes.graph.initializers import read


def remove(graph: Graph, coupling: Coupling, removed: np.ndarray) -> None:
    """Removes every channel of the units in `removed`, bool by root; ties must be final."""
    roots = coupling.units.roots(np.arange(len(coupling.units)))
    stays = ~removed[roots]

    def survive(units: np.ndarray) -> np.ndarray:
        return stays[units]

    for adapt in coupling.adapts:
        adapt(survive)
    _shorten(coupling, survive)
    for name, tensor in graph.tensors().items():
        found = coupling.channels.get(name)
        if (
            found is None
            or isinstance(tensor, Constant)
            or tensor.shape is None
            or found.axis >= len(tensor.shape)
        ):
            continue
        size = int(survive(found.units).sum())
        if size < found.units.size:  # an output of the model, which loses none, may name the size
            tensor.shape = [size if axis == found.axis else dim for axis, dim in enumerate(tensor.shape)]


def _shorten(coupling: Coupling, survive: Survivors) -> None:
    by_name: dict[str, list[tuple[int, np.ndarray]]] = {}
    for (name, axis), slot in coupling.slots.items():
        stays = survive(slot.units)
        if not stays.all():
            by_name.setdefault(name, []).append((axis, stays))
    for name, axes in by_name.items():
        tensor = coupling.slots[name, axes[0][0]].tensor
        values = read(tensor)
        for axis, stays in sorted(
            axes, key=lambda one: -one[1].ndim
        ):  # blocks of rows first, while all rows are there
            values = np.compress(stays, values, axis) if stays.ndim == 1 else _in_blocks(values, stays)
        tensor.values = np.ascontiguousarray(values)
        tensor.data_location = None


def _in_blocks(values: np.ndarray, stays: np.ndarray) -> np.ndarray:
    """[rows, n, ...] -> [rows, n', ...]: each of the equal blocks of rows keeps its own n' of n; `stays` is
    bool [blocks, n].
    """
    blocks = np.split(values, len(stays))
    return np.concatenate([np.compress(one, block, 1) for one, block in zip(stays, blocks, strict=True)])
