"""Which quantized layers TensorRT does not make faster: by times on the engine where a GPU is at hand, else by rules.

The rules are those by which NVIDIA's Model Optimizer leaves layers out before it quantizes
(modelopt/onnx/quantization): INT8 kernels for Tensor Cores take channels and matrices in steps, and on
smaller ones the quantizing costs more than they gain. What TensorRT computes in float in any case is not among them:
the placement knows it (onnx_lathe/placement.py), and int8 leaves it alone.

One of its rules is not taken: a product with one row stays on integers. There the weights are read once and used
once, INT8 reads a quarter of float's bytes, and the engine of a network that ends in large layers would be four times
as large. Where times are measured they decide.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from onnx_lathe.errors import TargetError
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph, Node
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, constant_shape, is_constant
from onnx_lathe.passes.graph.quantization.placement import Rows, float_reason, quantized_layers
from onnx_lathe.passes.lowering.restoring import is_ours
from onnx_lathe.passes.lowering.speed import slow_nodes
from onnx_lathe.placement import Placement

LEAST_CHANNELS = 16
STEP = 8
GROUPED_KERNEL = 3

Lower = Callable[[Collection[str]], onnx.ModelProto]

BY_RULES = "which layers pay in INT8 was decided by published rules, not timed"
NO_TIMES = "no GPU that runs the engine is at hand, or times are not wanted"


@dataclass(frozen=True)
class Choice:
    """`floats`: layers to make float again, with the reason."""

    floats: Mapping[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def choose(graph: Graph, model: onnx.ModelProto, lower: Lower, context: Context) -> Choice:
    """Of the layers that int8 quantized. `model` is the graph; `lower` gives it lowered, with those named in float."""
    layers = paying_layers(graph, context.placement)
    if not layers:
        return Choice()
    why = NO_TIMES
    if context.profiler is not None:
        context.progress("timing layers in INT8 and in float")
        try:
            slow = slow_nodes(model, [node.name for node in layers], lower, context.profiler)
        except TargetError as error:
            slow, why = None, f"it could not be timed: {error}"
        else:
            why = "the model is too large to be timed"
        if slow is not None:
            return Choice(slow)
    found = {node.name: reason for node in layers if (reason := too_small(graph, node))}
    if not found:
        stay = f"{BY_RULES} ({why}): all {len(layers)} stay in INT8"
        return Choice(warnings=[] if why == NO_TIMES else [stay])
    count = f"{len(found)} of {len(layers)} stay in float"
    return Choice(found, [f"{BY_RULES} ({why}): {count}; speed=any keeps INT8 everywhere"])


def paying_layers(graph: Graph, placement: Placement) -> list[Node]:
    """Layers that int8 quantized and that the placement leaves on integers: those that there is a choice for."""
    rows = Rows(graph)
    return [
        node
        for node in quantized_layers(graph)
        if is_constant(node.inputs[WEIGHT_INPUT])
        and is_ours(node.inputs[0])
        and not float_reason(node, constant_shape(node.inputs[WEIGHT_INPUT], graph.opset), placement, rows)
    ]


def too_small(graph: Graph, node: Node) -> str:
    """Why the rules leave the layer in float; empty if they do not."""
    shape = constant_shape(node.inputs[WEIGHT_INPUT], graph.opset)
    if node.op != "Conv":
        rows, columns = shape[-2:] if len(shape) > 1 else (shape[0], 1)
        if min(rows, columns) < LEAST_CHANNELS:
            return f"by rule: a matrix of {rows} x {columns} is too small to gain from INT8, {LEAST_CHANNELS} is the least"
        return ""
    outputs, inputs = shape[:2]
    if min(outputs, inputs) >= LEAST_CHANNELS or _is_step(graph, node, shape):
        return ""
    return f"by rule: a convolution of {inputs} to {outputs} channels gains nothing from INT8"


def _is_step(graph: Graph, node: Node, shape: Sequence[int]) -> bool:
    """Whether INT8 has a kernel for a convolution with fewer channels than LEAST_CHANNELS."""
    (outputs, inputs), kernel = shape[:2], shape[2:]
    if node.attrs.get("group", 1) > 1:
        return outputs % STEP == 0 and min(kernel) >= GROUPED_KERNEL
    is_first = any(_read(node) is tensor for tensor in graph.inputs)
    in_steps = outputs % STEP == 0 or inputs % STEP == 0
    return in_steps and (is_first or max(outputs, inputs) >= LEAST_CHANNELS) and len(set(kernel)) == 1


def _read(node: Node) -> object:
    """What is quantized for the layer."""
    quantize = node.inputs[0].inputs[0].inputs[0].inputs[0]
    return quantize.inputs[0]
