"""How far from its outputs a network is whose layers read fewer channels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.answers.aligned import Layer
from onnx_lathe.passes.graph.answers.outputs import Outputs, probed
from onnx_lathe.passes.graph.initializers import write
from onnx_lathe.passes.graph.model import taken_names
from onnx_lathe.passes.graph.quantization.bias_places import bias_place, shift
from onnx_lathe.passes.numerics.second_order.elimination import Reader


@dataclass(frozen=True)
class Part:
    """A layer that reads a group's channels: its groups of a convolution, and what they read on average, [groups, d]."""

    layer: Layer
    readers: list[Reader]
    mean: np.ndarray


def worth(
    outputs: Outputs, parts: Sequence[Part], order: np.ndarray, stops: np.ndarray, losses: np.ndarray
) -> float:
    """By what the losses of a group are multiplied, whose channels go in this order: `losses` of the first `stops`."""
    place = probed(losses)
    gone = order[: stops[place]]
    return outputs.worth(lambda graph: _without_units(graph, parts, gone), float(losses[place]))


def _without_units(graph: Graph, parts: Sequence[Part], gone: np.ndarray) -> None:
    """`parts` do without the units `gone`, and their other weights make up for it."""
    nodes, taken = {node.name: node for node in graph.nodes}, taken_names(graph)
    for part in parts:
        node, rows = nodes[part.layer.node.name], part.layer.rows
        change = np.stack([_without(reader, gone) - reader.weight for reader in part.readers])
        weight = np.stack([reader.weight for reader in part.readers]) + change
        write(node.inputs[1], np.ascontiguousarray(rows.back(weight)).astype(np.float32))
        place = bias_place(graph, node)
        if place is not None:
            shift(graph, place, -np.einsum("grd,gd->gr", change, part.mean).reshape(-1), taken)


def _without(reader: Reader, gone: np.ndarray) -> np.ndarray:
    """The reader's weight without these units, the others fitted."""
    stays = ~np.isin(reader.units, gone)
    found = np.zeros_like(reader.weight)
    asked = reader.weight @ reader.covariance[:, stays]
    found[:, stays] = np.linalg.solve(reader.covariance[np.ix_(stays, stays)], asked.T).T
    return found
