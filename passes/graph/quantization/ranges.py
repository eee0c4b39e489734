"""Calibrated ranges of tensors that no Q/DQ pair stands behind, as the metadata `lathe.range` of what makes them.

A target that stores every tensor in INT8 (`Placement.stored`) needs the range of each, where the canonical form has
pairs in front of layers alone. The entries name the tensors: what a pass takes out or renames leaves no range of
another tensor behind.
"""

import math
from collections.abc import Mapping

import onnx

from onnx_lathe import metadata
from onnx_lathe.passes.graph import Graph, Tensor
from onnx_lathe.passes.graph.layers import FILLERS, UNFOLDED, is_constant
from onnx_lathe.passes.graph.model import node_metadata
from onnx_lathe.passes.graph.shapes import infer_types

Range = tuple[float, float]
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
CONSTANT = (*UNFOLDED, *FILLERS)


def stored_tensors(graph: Graph) -> list[str]:
    """Names of the float tensors of the main graph that a target would store: inputs, and what nodes compute."""
    types = infer_types(graph)
    found: list[Tensor] = list(graph.inputs)
    for node in graph.nodes:
        if node.op not in QUANTIZERS:
            found += [
                tensor
                for tensor in node.outputs
                if not tensor.is_empty() and not is_constant(tensor, CONSTANT)
            ]
    return [
        tensor.name
        for tensor in found
        if tensor.name in types and types[tensor.name].element == onnx.TensorProto.FLOAT
    ]


def say_ranges(graph: Graph, ranges: Mapping[str, Range]) -> int:
    """Writes the ranges of these tensors into the metadata of what makes them, in place of those that it has; others
    stay. Returns how many tensors have one.
    """
    count = 0
    for holder, names in _holders(graph):
        told = metadata.parse_ranges(holder.get(metadata.RANGE)) | {
            name: ranges[name] for name in names if name in ranges and all(map(math.isfinite, ranges[name]))
        }
        if told:
            holder[metadata.RANGE] = metadata.format_ranges(told)
            count += len(told)
    return count


def said_ranges(graph: Graph) -> dict[str, Range]:
    """Tensor -> range, of all that the metadata says, but for that of QuantizeLinear.

    Raises ModelError for malformed metadata.
    """
    found: dict[str, Range] = {}
    for holder, names in _holders(graph):
        told = metadata.parse_ranges(holder.get(metadata.RANGE))
        found |= {name: told[name] for name in names if name in told}
    return found


def drop_ranges(graph: Graph) -> None:
    """Takes out all ranges but those of QuantizeLinear."""
    for holder, _ in _holders(graph):
        holder.pop(metadata.RANGE, None)


def drop_stale(graph: Graph) -> None:
    """Takes out the ranges of tensors that are no output of the node, or no input of the model, which says them."""
    for holder, names in _holders(graph):
        if metadata.RANGE not in holder:
            continue
        told = metadata.parse_ranges(holder[metadata.RANGE])
        kept = {name: ends for name, ends in told.items() if name in names}
        if not kept:
            del holder[metadata.RANGE]
        elif len(kept) < len(told):
            holder[metadata.RANGE] = metadata.format_ranges(kept)


def _holders(graph: Graph) -> list[tuple[dict[str, str], list[str]]]:
    """(metadata, names of the tensors that it may speak of), of the model and of every node but QuantizeLinear."""
    return [
        (graph.metadata, [tensor.name for tensor in graph.inputs]),
        *(
            (node_metadata(node), [tensor.name for tensor in node.outputs])
            for node in graph.nodes
            if node.op != "QuantizeLinear"
        ),
    ]
