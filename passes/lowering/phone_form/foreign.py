"""What pairs of other tools do besides rounding: they cut values off at the ends of their range.

    Add -> Q -> DQ, zero-point lowest           the pair of what Add stores has that end: nothing to do
    Concat -> Q -> DQ, zero-point lowest        Concat -> Relu, since a Concat is stored as its parts are
    x -> Q -> DQ, zero-point lowest; x -> Add   x -> Relu, since others read x itself
    float operator -> Q -> DQ -> float reader   float operator -> Clip -> float reader

Exporters take a ReLU or a Clip out in front of a quantizer that does its work; ONNX Runtime's quantize_static does. Pairs
of Lathe (`lathe.range`) stand beside the ReLU that they had.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.graph import Constant, Node, Tensor, Variable
from onnx_lathe.passes.graph.layers import constant_value, is_constant
from onnx_lathe.passes.graph.quantization.placement import floor_range, is_floor
from onnx_lathe.passes.graph.quantization.ranges import BOUNDS, Range
from onnx_lathe.passes.graph.rewire import replace_input
from onnx_lathe.passes.lowering.dropping import clipped
from onnx_lathe.passes.lowering.ort_integers.work import ActivationPair, Work, scale_and_zero
from onnx_lathe.passes.lowering.phone_form.operators import FIXED, JOINED, Parameters, is_same, refusal


@dataclass(frozen=True)
class Taken:
    """A pair of another tool that was taken out: what it quantized, who read that, and the ends of its range."""

    source: Tensor
    readers: tuple[Node, ...]
    ends: Range


def keep_floor(work: Work, pair: ActivationPair, floors: Collection[int]) -> None:
    """Puts a ReLU in front of the pair, where what is in front of it is not stored in the pair's range. `floors`:
    tensors, by identity, that pairs seen before cut off at 0.
    """
    source = pair.source
    maker = source.inputs[0] if source.inputs else None
    alone = len(source.outputs) == 1 and not work.is_seen(source)
    if alone and (maker is None or not (is_same(maker) or maker.op in FIXED or maker.op == JOINED)):
        return
    if ends_of(pair)[0] < 0 or _is_positive(work, source, floors):
        return
    result = Variable(work.name(f"{source.name}_rectified"), np.float32, source.shape)
    name = work.name(f"{source.name}_Relu")
    work.graph.nodes.append(Node("Relu", name, {}, [source], [result]))
    pair.quantize.inputs[0] = result
    work.report.edit(name, f"does to {source.name} what its pair did: it has no level below 0")


def cut_off(work: Work, taken: Collection[Taken], stored: Collection[int]) -> None:
    """Clips what no kernel stores in front of readers that compute in float. `stored`: tensors, by identity."""
    for one in taken:
        readers = [node for node in one.readers if any(tensor is one.source for tensor in node.inputs)]
        maker = one.source.inputs[0] if one.source.inputs else None
        done = maker is not None and is_floor(maker) and _lies_in(floor_range(maker), one.ends)
        if id(one.source) in stored or done or not readers:
            continue
        result = clipped(work.graph, one.source, one.ends)
        for node in readers:
            replace_input(node, one.source, result)
            work.report.edit(
                node.name, f"reads {one.source.name} cut off at the ends of the range of its pair"
            )


def ends_of(pair: ActivationPair) -> Range:
    """The lowest and the highest value that the pair lets through."""
    return Parameters(*scale_and_zero(pair.quantize)).ends


def _lies_in(inner: tuple[float | None, float | None], ends: Range) -> bool:
    low, high = inner
    return low is not None and high is not None and ends[0] <= low and high <= ends[1]


def _is_positive(work: Work, tensor: Tensor, floors: Collection[int]) -> bool:
    """Whether the tensor holds no value below 0, by what makes it."""
    if isinstance(tensor, Constant) or is_constant(tensor):
        return bool((constant_value(tensor, work.graph.opset) >= 0).all())
    if id(tensor) in floors:
        return True
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None or node.domain:
        return False
    if is_floor(node) and floor_range(node)[0] == 0:
        return True
    if node.op in BOUNDS:
        return BOUNDS[node.op][0] == 0
    if node.op == JOINED:
        return all(_is_positive(work, one, floors) for one in node.inputs)
    return is_same(node) and refusal(node) is None and _is_positive(work, node.inputs[0], floors)
