"""Biases that were made for the canonical form, made for that of a target.

    b  becomes  b + E[W q(x)] - E[W r(x)]      per output channel; q rounds as the canonical form does, r as the target's

int8 moves a layer's bias by what makes up for the mean error of the canonical form, and training settles on
such a bias by itself. Another form may round the same tensor in finer steps, and does not at all in front of
a layer that it leaves in float: what was made up for is no longer there, and the bias an error by itself (2
dB on one real network, 7 on another). Both means come from one run of the calibration data through the
target's form, with a copy beside each layer that reads what the canonical form would have.

Where int8 knew that the file is for this target alone, the biases are right as they are. The graph does not
say which is the case: both are lowered, and the one is kept whose outputs are nearer to the original's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx

from onnx_lathe import metadata
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Calibrator
from onnx_lathe.passes.graph import Constant, Graph, Node
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, constant_value, is_constant, output_axis
from onnx_lathe.passes.graph.model import export_model, node_metadata, unused_name
from onnx_lathe.passes.graph.quantization.bias_places import (
    BiasPlace,
    add_mean,
    bias_place,
    moved,
    observed,
)
from onnx_lathe.passes.graph.quantization.placement import quantized_layers
from onnx_lathe.passes.graph.quantization.simulation import as_computed
from onnx_lathe.placement import Placement

Shifts = Mapping[str, np.ndarray]
"""By a layer's result, what to add to its bias: float64 [output channels]."""


class Lowered(Protocol):
    """A graph on its way to a target's form; `taken`: the names that it has."""

    graph: Graph
    placement: Placement
    taken: set[str]
    report: PassReport


@dataclass(frozen=True)
class CanonicalLayer:
    """What a layer of the canonical form reads: the tensor `source` in steps of `scale`, and `weight`."""

    node: Node
    source: str
    scale: np.ndarray
    weight: np.ndarray

    @property
    def channels(self) -> int:
        return int(self.weight.shape[output_axis(self.node, self.weight.ndim)])


def canonical_layers(graph: Graph) -> list[CanonicalLayer]:
    """The layers that read a pair of int8, in canonical form still."""
    found = []
    for node in quantized_layers(graph):
        decoder = node.inputs[0].inputs[0]
        writers = decoder.inputs[0].inputs
        if not is_constant(node.inputs[WEIGHT_INPUT]) or not writers or len(decoder.inputs) < 3:
            continue
        quantize = writers[0]
        known = quantize.op == "QuantizeLinear" and metadata.RANGE in node_metadata(quantize)
        constants = all(isinstance(tensor, Constant) for tensor in decoder.inputs[1:])
        if known and constants and decoder.inputs[2].dtype == np.int8:
            weight = np.asarray(constant_value(node.inputs[WEIGHT_INPUT], graph.opset), np.float32)
            found.append(
                CanonicalLayer(node, quantize.inputs[0].name, read(decoder.inputs[1]).reshape(()), weight)
            )
    return found


def bias_shifts(work: Lowered, layers: Sequence[CanonicalLayer], calibrator: Calibrator) -> Shifts:
    """What the biases of `layers` are to be moved by, where float layers and pairs are as they will stay in
    `work`.
    """
    model = as_computed(export_model(work.graph), work.placement)
    nodes = {name: node for node in model.graph.node for name in node.output}
    names = {}
    # In this order ONNX Runtime runs the nodes so that it can let go of each layer's output early.
    for layer in reversed(layers):
        place = bias_place(work.graph, layer.node)
        if place is not None:
            other = _add_canonical(model, nodes[place.response], layer, work)
            ours = add_mean(model, place, place.response, layer.channels, work.taken)
            names[place.response] = ours, add_mean(model, place, other, layer.channels, work.taken)
    if not names:
        return {}
    totals: dict[str, np.ndarray] = {}
    samples = 0
    for batch, count in observed(calibrator, model, [name for pair in names.values() for name in pair]):
        samples += count
        for response, (ours, other) in names.items():
            change = batch[other].astype(np.float64) - batch[ours]
            totals[response] = totals.get(response, np.float64(0)) + count * change
    return {response: total / samples for response, total in totals.items() if np.isfinite(total).all()}


def move_biases(work: Lowered, layers: Sequence[CanonicalLayer], shifts: Shifts) -> None:
    for layer in layers:
        place: BiasPlace | None = bias_place(work.graph, layer.node)
        change = shifts.get(layer.node.outputs[0].name)
        if place is not None and change is not None and change.any():
            place.set(moved(place, change, work.taken))
            work.report.edit(layer.node.name, "bias moved by what this form rounds otherwise")


def _add_canonical(model: onnx.ModelProto, node: onnx.NodeProto, layer: CanonicalLayer, work: Lowered) -> str:
    """Adds the layer beside itself, with what it reads in canonical form. Returns its result's name."""
    names = []
    for what in ("scale", "zero", "codes", "values", "weight", "result"):
        names.append(unused_name(f"{node.output[0]}_canonical_{what}", work.taken))
        work.taken.add(names[-1])
    scale, zero, codes, values, weight, result = names
    stored = {scale: layer.scale, zero: np.zeros((), np.int8), weight: layer.weight}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in stored.items()
    )
    make = onnx.helper.make_node
    model.graph.node.append(make("QuantizeLinear", [layer.source, scale, zero], [codes], codes))
    model.graph.node.append(make("DequantizeLinear", [codes, scale, zero], [values], values))
    copy = model.graph.node.add()
    copy.CopyFrom(node)
    copy.name = result
    del copy.input[:], copy.output[:]
    copy.input.extend([values, weight, *node.input[2:]])
    copy.output.append(result)
    return result
