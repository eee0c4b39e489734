"""What a graph says of its tensors before the lowering: Q/DQ pairs, which are taken out, and calibrated ranges."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from onnx_lathe import metadata
from onnx_lathe.layout import LAYOUT
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph, Node, Tensor
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, is_constant, is_layer
from onnx_lathe.passes.graph.model import export_model, node_metadata
from onnx_lathe.passes.graph.quantization.pairs import is_dequantized
from onnx_lathe.passes.graph.quantization.placement import floor_range, is_floor
from onnx_lathe.passes.graph.quantization.ranges import Range, said_ranges, stored_tensors
from onnx_lathe.passes.graph.rewire import disconnect, replace_input
from onnx_lathe.passes.lowering.ort_integers.work import ActivationPair, Work, scale_and_zero
from onnx_lathe.passes.lowering.phone_form.operators import JOINED, Parameters, is_same
from onnx_lathe.passes.numerics.quantization import affine

PERCENT = 99.999
"""Share of the values inside a range that is calibrated here: that of int8, unless told otherwise."""


@dataclass
class Known:
    """By the name of a tensor. `layers`: by identity, those that read input and weight quantized; `paired`: tensors
    that had a pair; `exact`: what another tool stored it with.
    """

    ranges: dict[str, Range] = field(default_factory=dict)
    exact: dict[str, Parameters] = field(default_factory=dict)
    paired: set[str] = field(default_factory=set)
    layers: dict[int, Node] = field(default_factory=dict)


def take_pairs(work: Work) -> Known:
    """Takes the pairs of activations out of the graph, and says what they and the metadata knew."""
    known = Known(said_ranges(work.graph))
    pairs = work.pairs()
    written = {id(one.outputs[0]) for pair in pairs for one in pair.dequantize}
    for node in work.graph.nodes:
        if (
            is_layer(node)
            and is_dequantized(node.inputs[WEIGHT_INPUT])
            and is_constant(node.inputs[WEIGHT_INPUT])
        ) and any(id(tensor) in written for tensor in _above(node.inputs[0])):
            known.layers[id(node)] = node
    for pair in pairs:
        _note(known, pair)
        _take(work, pair)
    work.graph.cleanup(recurse_subgraphs=False, recurse_functions=False)
    work.graph.toposort()
    return known


def complete_ranges(work: Work, known: Known, context: Context) -> None:
    """Adds ranges that follow from others, or that the calibration data gives."""
    _derive(work.graph, known.ranges)
    missing = [name for name in stored_tensors(work.graph) if name not in known.ranges]
    if missing and known.layers and context.calibrator is not None:
        context.progress("calibrating tensors without a range")
        found = context.calibrator.statistics(export_model(work.graph), missing)
        for name in missing:
            low, high = found[name].percentile(PERCENT)
            known.ranges[name] = min(low, 0.0), max(high, 0.0)


def _above(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor, and those above it that hold its values."""
    yield tensor
    while tensor.inputs and is_same(tensor.inputs[0]) and tensor.inputs[0].inputs:
        tensor = tensor.inputs[0].inputs[0]
        yield tensor


def _note(known: Known, pair: ActivationPair) -> None:
    name = pair.source.name
    scale, zero = scale_and_zero(pair.quantize)
    known.paired.add(name)
    text = node_metadata(pair.quantize).get(metadata.RANGE)
    if text is not None:
        known.ranges[name] = affine.trained_range(scale, *json.loads(text))
    elif zero.dtype == np.int8:
        known.exact[name] = Parameters(scale, zero)
    elif zero.dtype == np.uint8:
        known.exact[name] = Parameters(scale, np.int8(int(zero) - 128))
    else:
        known.ranges[name] = Parameters(scale, zero).ends
    if name in known.exact:
        known.ranges[name] = known.exact[name].ends


def _take(work: Work, pair: ActivationPair) -> None:
    """Everybody reads what was quantized."""
    source = pair.source
    for node in pair.dequantize:
        result = node.outputs[0]
        if work.is_seen(result):
            disconnect(node)
            work.graph.nodes.append(
                Node("Identity", work.name(f"{result.name}_same"), {}, [source], [result])
            )
            continue
        for reader in list(result.outputs):
            replace_input(reader, result, source)
        disconnect(node)
    disconnect(pair.quantize)


def _derive(graph: Graph, ranges: dict[str, Range]) -> None:
    """Ranges that need no data: what an operator hands on has that of what it reads."""
    for node in reversed(graph.nodes):
        if node.op in LAYOUT and not node.domain and node.outputs[0].name in ranges and node.inputs:
            ranges.setdefault(node.inputs[0].name, ranges[node.outputs[0].name])
    for node in graph.nodes:
        known = [ranges.get(tensor.name) for tensor in node.inputs]
        first = known[0] if known else None
        if is_same(node) and first is not None:
            for tensor in node.outputs:
                ranges.setdefault(tensor.name, first)
        elif is_floor(node) and first is not None:
            low, high = floor_range(node)
            if low is not None and high is not None:
                ranges.setdefault(node.outputs[0].name, (max(first[0], low), min(first[1], high)))
        elif node.op == JOINED and not node.domain and known and None not in known:
            ends = [one for one in known if one is not None]
            whole = min(low for low, _ in ends), max(high for _, high in ends)
            ranges.setdefault(node.outputs[0].name, whole)
