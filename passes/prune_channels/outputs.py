"""How far from its outputs a network is whose layers read fewer channels: what a layer's error is worth.

The same error of two layers' answers is not the same for what comes out at the end. So each group's losses are multiplied
with what its first ones do to the outputs, for a share of the losses that is alike.
Source: Frantar and Alistarh, "SPDY", ICML 2022, section 3.3, whose coefficients are searched for; here they are measured.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_lathe.passes.core.services import Calibrator
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.answers.aligned import Layer
from onnx_lathe.passes.graph.initializers import write
from onnx_lathe.passes.graph.model import export_model, import_model, taken_names
from onnx_lathe.passes.graph.quantization.bias_places import bias_place, shift
from onnx_lathe.passes.numerics.second_order.elimination import Reader

PROBED = 0.05
"""What a group's readers lose together, about, where its outputs are looked at."""
SAMPLES = 32
"""Calibration samples that are run for each group, or a few more."""
LEAST = 0.01
"""Of the largest worth: no group's channels are for nothing."""


@dataclass(frozen=True)
class Part:
    """A layer that reads a group's channels: its groups of a convolution, and what they read on average, [groups, d]."""

    layer: Layer
    readers: list[Reader]
    mean: np.ndarray


class Outputs:
    """Of a network, on a few calibration samples."""

    def __init__(self, graph: Graph, calibrator: Calibrator) -> None:
        self.model, self.calibrator = export_model(graph), calibrator
        self.names = [str(one.name) for one in graph.outputs if one.inputs and one.dtype == np.float32]
        self.wanted = self._observed(self.model) if self.names else []

    def error(self, parts: Iterable[Part], gone: np.ndarray) -> float:
        """Mean squared error over the variance, of all outputs together, when `parts` do without the units `gone`, and
        their other weights make up for it. 1 without outputs that can be compared.
        """
        if not self.names:
            return 1.0
        graph = import_model(self.model)
        nodes, taken = {node.name: node for node in graph.nodes}, taken_names(graph)
        for part in parts:
            node, rows = nodes[part.layer.node.name], part.layer.rows
            change = np.stack([_without(reader, gone) - reader.weight for reader in part.readers])
            weight = np.stack([reader.weight for reader in part.readers]) + change
            write(node.inputs[1], np.ascontiguousarray(rows.back(weight)).astype(np.float32))
            place = bias_place(graph, node)
            if place is not None:
                shift(graph, place, -np.einsum("grd,gd->gr", change, part.mean).reshape(-1), taken)
        found = self._observed(export_model(graph))
        errors = [
            _relative(
                np.concatenate([one[name] for one in self.wanted]),
                np.concatenate([one[name] for one in found]),
            )
            for name in self.names
        ]
        return float(np.mean(errors))

    def _observed(self, model: onnx.ModelProto) -> list[Mapping[str, np.ndarray]]:
        found, samples = list[Mapping[str, np.ndarray]](), 0
        for batch in self.calibrator.observe(model, self.names):
            found.append({name: batch[name].reshape(-1) for name in self.names})
            samples += batch.samples
            if samples >= SAMPLES:
                break
        return found


def _without(reader: Reader, gone: np.ndarray) -> np.ndarray:
    """The reader's weight without these units, the others fitted."""
    stays = ~np.isin(reader.units, gone)
    found = np.zeros_like(reader.weight)
    asked = reader.weight @ reader.covariance[:, stays]
    found[:, stays] = np.linalg.solve(reader.covariance[np.ix_(stays, stays)], asked.T).T
    return found


def _relative(wanted: np.ndarray, found: np.ndarray) -> float:
    variance = float(np.var(wanted, dtype=np.float64))
    error = float(np.mean(np.square(wanted.astype(np.float64) - found)))
    return error / variance if variance > 0 and np.isfinite(error) else 1.0


def worth(
    outputs: Outputs, parts: Iterable[Part], order: np.ndarray, stops: np.ndarray, losses: np.ndarray
) -> float:
    """By what the losses of a group are multiplied: of the first stop at which they are PROBED, or of the last."""
    place = min(int(np.searchsorted(losses, PROBED)), losses.size - 1)
    if losses[place] <= 0:
        return 0.0
    return outputs.error(parts, order[: stops[place]]) / float(losses[place])
