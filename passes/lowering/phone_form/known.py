"""What a graph says of its tensors before the lowering: Q/DQ pairs, which are taken out, and calibrated ranges."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnx_lathe import metadata
from onnx_lathe.layout import LAYOUT
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Node, Tensor
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, is_constant, is_layer
from onnx_lathe.passes.graph.model import node_metadata
from onnx_lathe.passes.graph.quantization.pairs import is_dequantized, is_wide
from onnx_lathe.passes.graph.quantization.ranges import (
    Range,
    derive,
    in_parts,
    said_ranges,
    stored_tensors,
    usual_range,
)
from onnx_lathe.passes.graph.rewire import disconnect, replace_input
from onnx_lathe.passes.lowering.ort_integers.work import ActivationPair, Work, scale_and_zero
from onnx_lathe.passes.lowering.phone_form.foreign import Taken, ends_of, keep_floor
from onnx_lathe.passes.lowering.phone_form.operators import Parameters, is_same
from onnx_lathe.passes.numerics.quantization import affine


@dataclass
class Known:
    """By the name of a tensor. `narrow`: tensors that had a pair of 8 bits; `wide`: the range of those that had one of
    16 bits; `exact`: what another tool stored it with; `taken`: the pairs of other tools. `layers`: by identity, those that read input and weight
    quantized, and how many bits of activations.
    """

    ranges: dict[str, Range] = field(default_factory=dict)
    exact: dict[str, Parameters] = field(default_factory=dict)
    narrow: set[str] = field(default_factory=set)
    wide: dict[str, Range] = field(default_factory=dict)
    taken: list[Taken] = field(default_factory=list)
    layers: dict[int, int] = field(default_factory=dict)

    def is_paired(self, tensor: Tensor) -> bool:
        return tensor.name in self.narrow or tensor.name in self.wide

    def bits(self, tensor: Tensor) -> int:
        """Of a tensor that no kernel computes."""
        return affine.WIDE_BITS if tensor.name in self.wide and tensor.name not in self.narrow else 8


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
            source = next(tensor for tensor in _above(node.inputs[0]) if id(tensor) in written)
            known.layers[id(node)] = affine.WIDE_BITS if is_wide(source) else 8
    floors: set[int] = set()
    for pair in pairs:
        is_foreign = metadata.RANGE not in node_metadata(pair.quantize)
        if is_foreign:
            keep_floor(work, pair, floors)
        _note(known, pair)
        source, ends = pair.source, ends_of(pair)
        readers = _take(work, pair)
        if is_foreign:
            known.taken.append(Taken(source, readers, ends))
            floors.update({id(source)} if ends[0] >= 0 else ())
    work.graph.cleanup(recurse_subgraphs=False, recurse_functions=False)
    work.graph.toposort()
    for node in reversed(work.graph.nodes):
        wide = known.wide.get(node.outputs[0].name) if node.op in LAYOUT and not node.domain else None
        if wide is not None and not known.is_paired(node.inputs[0]):
            known.wide[node.inputs[0].name] = wide
    return known


def complete_ranges(work: Work, known: Known, context: Context, model: onnx.ModelProto | None) -> None:
    """Adds ranges that follow from others, or that the calibration data gives. `model`: as it was before its pairs were
    taken out, which may do what a ReLU did; None without data.
    """
    derive(work.graph, known.ranges)
    missing = [name for name in stored_tensors(work.graph) if name not in known.ranges]
    if not missing or not known.layers or context.calibrator is None or model is None:
        return
    context.progress("calibrating tensors without a range")
    for part in in_parts(work.graph, missing):
        found = context.calibrator.statistics(model, part, part)
        known.ranges |= {name: usual_range(statistics) for name, statistics in found.items()}
    derive(work.graph, known.ranges)


def settle_silent(known: Known) -> None:
    """Gives tensors that were zero throughout a range that holds it exactly."""
    silent = [name for name, (low, high) in known.ranges.items() if low == high == 0]
    known.ranges |= dict.fromkeys(silent, (-1.0, 1.0))


def _above(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor, and those above it that hold its values."""
    yield tensor
    while tensor.inputs and is_same(tensor.inputs[0]) and tensor.inputs[0].inputs:
        tensor = tensor.inputs[0].inputs[0]
        yield tensor


def _note(known: Known, pair: ActivationPair) -> None:
    name = pair.source.name
    scale, zero = scale_and_zero(pair.quantize)
    text = node_metadata(pair.quantize).get(metadata.RANGE)
    if zero.dtype in (np.int16, np.uint16):
        low, high = Parameters(scale, zero).ends
        if text is not None:
            low, high = json.loads(text)
            low, high = affine.trained_range(scale, low, high, affine.WIDE_BITS)
        known.wide[name] = low, high
        known.ranges.setdefault(name, known.wide[name])
        return
    known.narrow.add(name)
    if text is not None and zero.dtype == np.int8 and zero == 0:
        known.ranges[name] = affine.trained_range(scale, *json.loads(text))
    elif zero.dtype == np.int8:
        known.exact[name] = Parameters(scale, zero)
    elif zero.dtype == np.uint8:
        known.exact[name] = Parameters(scale, np.int8(int(zero) - 128))
    if name in known.exact:
        known.ranges[name] = known.exact[name].ends


def _take(work: Work, pair: ActivationPair) -> tuple[Node, ...]:
    """Everybody reads what was quantized. Returns those who read it dequantized."""
    source = pair.source
    readers: list[Node] = []
    for node in pair.dequantize:
        result = node.outputs[0]
        if work.is_seen(result):
            disconnect(node)
            readers.append(Node("Identity", work.name(f"{result.name}_same"), {}, [source], [result]))
            work.graph.nodes.append(readers[-1])
            continue
        for reader in list(result.outputs):
            replace_input(reader, result, source)
            readers.append(reader)
        disconnect(node)
    disconnect(pair.quantize)
    return tuple(readers)
