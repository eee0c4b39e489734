"""Calibrated ranges of tensors that no Q/DQ pair stands behind, as the metadata `lathe.range` of what makes them.

A target that stores every tensor in INT8 (`Placement.stored`) needs the range of each, where the canonical form has
pairs in front of layers alone. The entries name the tensors: what a pass takes out or renames leaves no range of
another tensor behind.
"""

import math
from collections.abc import Collection, Mapping, Sequence

import onnx

from onnx_lathe import metadata
from onnx_lathe.layout import LAYOUT
from onnx_lathe.passes.core.services import Context, TensorStatistics
from onnx_lathe.passes.graph import Graph, Tensor
from onnx_lathe.passes.graph.layers import FILLERS, UNFOLDED, is_constant
from onnx_lathe.passes.graph.model import export_model, node_metadata
from onnx_lathe.passes.graph.quantization.placement import floor_range, hands_on, is_floor
from onnx_lathe.passes.graph.rewire import captured_names
from onnx_lathe.passes.graph.shapes import infer_types
from onnx_lathe.placement import Placement

Range = tuple[float, float]
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
PERCENT = 99.999
"""Share of the values inside a range: the default of int8."""
PART_BYTES, UNKNOWN_BYTES = 1 << 28, 1 << 21
"""Of the tensors that one run calibrates: of all, and of one whose size is not known."""
HANDED_ON = frozenset(
    {
        *LAYOUT,
        *("AveragePool", "DepthToSpace", "Dropout", "Expand", "Gather", "MaxPool", "Pad", "Resize", "Slice"),
        *("SpaceToDepth", "Split", "Tile"),
    }
)
"""Operators whose result is stored as what they read is: it holds the same values, or averages of them."""
BOUNDS: Mapping[str, Range] = {
    **dict.fromkeys(("HardSigmoid", "Sigmoid", "Softmax"), (0.0, 1.0)),
    "Tanh": (-1.0, 1.0),
}
"""What these compute lies within."""
_PASSED = Placement(passed=HANDED_ON)
CONSTANT = (*UNFOLDED, *FILLERS)


def stored_tensors(graph: Graph) -> list[str]:
    """Names of the float tensors of the main graph that a target would store: inputs, and what nodes compute; those
    left out whose range `derive` finds, or whose only reader is a ReLU or Clip, which storing does.
    """
    types, seen = infer_types(graph), captured_names(graph) | {tensor.name for tensor in graph.outputs}
    found: list[Tensor] = list(graph.inputs)
    for node in graph.nodes:
        if (
            node.op not in QUANTIZERS
            and not hands_on(node, _PASSED)
            and (node.op not in BOUNDS or node.domain)
        ):
            found += [
                tensor
                for tensor in node.outputs
                if not tensor.is_empty() and not is_constant(tensor, CONSTANT)
            ]
    return [
        tensor.name
        for tensor in found
        if tensor.name in types
        and types[tensor.name].element == onnx.TensorProto.FLOAT
        and (tensor.name in seen or len(tensor.outputs) != 1 or not is_floor(tensor.outputs[0]))
    ]


def derive(graph: Graph, ranges: dict[str, Range]) -> None:
    """Adds ranges that need no data: what an operator hands on has that of what it reads."""
    for node in reversed(graph.nodes):
        if node.op in LAYOUT and not node.domain and node.outputs[0].name in ranges and node.inputs:
            ranges.setdefault(node.inputs[0].name, ranges[node.outputs[0].name])
    for node in graph.nodes:
        known = [ranges.get(tensor.name) for tensor in node.inputs]
        ends = [one for one in known if one is not None]
        if hands_on(node, _PASSED) and known[0] is not None:
            for tensor in node.outputs:
                ranges.setdefault(tensor.name, known[0])
        elif is_floor(node) and known[0] is not None:
            low, high = floor_range(node)
            if low is not None and high is not None:
                ranges.setdefault(node.outputs[0].name, (max(known[0][0], low), min(known[0][1], high)))
        elif node.op in BOUNDS and not node.domain:
            ranges.setdefault(node.outputs[0].name, BOUNDS[node.op])
        elif node.op == "Concat" and not node.domain and ends and len(ends) == len(known):
            whole = min(low for low, _ in ends), max(high for _, high in ends)
            ranges.setdefault(node.outputs[0].name, whole)


def in_parts(graph: Graph, names: Sequence[str]) -> list[list[str]]:
    """The tensors in parts that one sample's values of fill no more than PART_BYTES, as far as sizes are known."""
    types, parts, size = infer_types(graph, one_sample=True), list[list[str]](), PART_BYTES
    for name in names:
        own = types[name].size_bytes if name in types else None
        size += UNKNOWN_BYTES if own is None else own
        if size > PART_BYTES:
            parts.append([])
            size = UNKNOWN_BYTES if own is None else own
        parts[-1].append(name)
    return parts


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


def keep_ranges(graph: Graph, before: Mapping[str, Range], known: Collection[tuple[str, ...]]) -> None:
    """After a pass: what other nodes compute now under a name of `before` has its range still, and no node says that of
    a tensor which it does not compute. `known`: each node before, its name and those of its outputs.
    """
    drop_stale(graph)
    for node in graph.nodes:
        names = tuple(tensor.name for tensor in node.outputs)
        if node.op in QUANTIZERS or (node.name, *names) in known or before.keys().isdisjoint(names):
            continue
        kept = {name: before[name] for name in names if name in before}
        told = metadata.parse_ranges(node_metadata(node).get(metadata.RANGE))
        node_metadata(node)[metadata.RANGE] = metadata.format_ranges(kept | told)


def measure_again(graph: Graph, context: Context) -> None:
    """Gives the tensors whose ranges are said new ones, where there is data: their values have changed."""
    names = list(said_ranges(graph))
    if not names or context.calibrator is None:
        return
    found = context.calibrator.statistics(export_model(graph), names, names)
    say_ranges(graph, {name: usual_range(statistics) for name, statistics in found.items()})


def usual_range(statistics: TensorStatistics) -> Range:
    """As int8 chooses it unless told otherwise; holds 0."""
    low, high = statistics.percentile(PERCENT)
    return (
        (min(low, 0.0), max(high, 0.0))
        if low < high
        else (min(statistics.minimum, 0.0), max(statistics.maximum, 0.0))
    )


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
