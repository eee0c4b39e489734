"""How important the channels are that prune_channels chooses from, in each layer that they run
through.

| importance | energy of a channel; a unit's importance is its share, added up over layers | source |
|---|---|---|
| l2 | squares of the weights that write it | Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1 |
| scale | squares of the batch-normalization scales behind it | Liu et al., "Network Slimming", ICCV 2017, section 3 |
| activation | mean square on data, times squares of the weights that read it | Sun et al., "Wanda", ICLR 2024, section 3, per channel |
| taylor | gradient times weight, by its sign, on labelled data | see passes/numerics/sparsity/taylor.py |
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

import numpy as np

from onnx_lathe.errors import PassError
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.core.training_options import TrainingOptions
from onnx_lathe.passes.graph import Graph, Node
from onnx_lathe.passes.graph.coupling.state import OTHER, SCALE, WRITTEN, Coupling, LayerUse
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT
from onnx_lathe.passes.graph.model import export_model
from onnx_lathe.passes.numerics.sparsity.taylor import Part, TaylorScores

SMALLEST_LOSS = 1e-6
"""Below it there is nothing to learn, and gradients are rounding errors."""


def _by_axis(values: np.ndarray, axis: int) -> np.ndarray:
    """Sums of squares, float64, one per position of the axis."""
    moved = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    return np.einsum("ij,ij->i", moved, moved, dtype=np.float64)


def _roles(
    graph: Graph, coupling: Coupling, context: Context, role: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for slot in coupling.slots.values():
        if slot.role == role:
            yield slot.units, _by_axis(read(slot.tensor), slot.axis)


def _weights(graph: Graph, coupling: Coupling, context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield from _roles(graph, coupling, context, WRITTEN)


def _scales(graph: Graph, coupling: Coupling, context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield from _roles(graph, coupling, context, SCALE)


def _activations(
    graph: Graph, coupling: Coupling, context: Context
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The power that a channel brings into the layers that read it, as if channels were not correlated."""
    uses = [use for use in coupling.layers if use.source is not None]
    axes = {use.node.inputs[0].name: use.source.axis for use in uses if use.source is not None}
    if not axes:
        return
    powers, counts = {name: np.zeros(1) for name in axes}, dict.fromkeys(axes, 0)
    for values in context.need_calibrator().observe(export_model(graph), list(axes)):
        for name, axis in axes.items():
            powers[name] = powers[name] + _by_axis(values[name], axis)
            counts[name] += values[name].size // values[name].shape[axis]
    for use in uses:
        if use.source is not None:
            name = use.node.inputs[0].name
            yield use.source.units, powers[name] / max(counts[name], 1) * _reading(use.node)


def _reading(node: Node) -> np.ndarray:
    """Sums of squares of the weights that read each input of a layer."""
    values, groups = read(node.inputs[WEIGHT_INPUT]), int(node.attrs.get("group", 1))
    if node.op != "Conv":
        return _by_axis(values, 1 if node.op == "Gemm" and node.attrs.get("transB", 0) else 0)
    split = values.reshape(groups, values.shape[0] // groups, *values.shape[1:])
    return np.concatenate([_by_axis(part, 1) for part in split])


def _taylor(graph: Graph, coupling: Coupling, context: Context) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    written = [
        slot
        for slot in coupling.slots.values()
        if slot.role in (WRITTEN, OTHER) and _writes(coupling.layers, slot.tensor.name)
    ]
    roots = coupling.units.roots(np.arange(len(coupling.units)))
    scores = TaylorScores(
        [Part(slot.tensor.name, slot.axis, roots[slot.units]) for slot in written], roots.size
    )
    descent = TrainingOptions(
        epochs=1, rate=1.0, optimizer="sgd", momentum=0.0, distill=0.0, decay="constant", warmup=0.0, clip=0.0
    )
    result = context.need_trainer().train(export_model(graph), asdict(descent), scores)
    if result.metrics.get("last_loss", 1.0) < SMALLEST_LOSS:
        raise PassError(
            "prune_channels(importance=taylor) needs labelled data, or the loss has no gradient; "
            "give labels, or importance=activation"
        )
    yield np.arange(roots.size), scores.total


def _writes(uses: list[LayerUse], name: str) -> bool:
    """Whether a tensor is a layer's weight or bias."""
    return any(tensor.name == name for use in uses for tensor in use.node.inputs[WEIGHT_INPUT:])


IMPORTANCES: Mapping[str, Callable[[Graph, Coupling, Context], Iterator[tuple[np.ndarray, np.ndarray]]]] = {
    "l2": _weights,
    "scale": _scales,
    "activation": _activations,
    "taylor": _taylor,
}


def importances(
    kind: str, graph: Graph, coupling: Coupling, context: Context
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(units by root, importance), int64 and float64 [n], of each layer or parameter; see
    Shares of passes/numerics/sparsity/channel_choice.py.
    """
    roots = coupling.units.roots(np.arange(len(coupling.units)))
    return [(roots[units], values) for units, values in IMPORTANCES[kind](graph, coupling, context)]
