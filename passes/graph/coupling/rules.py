"""How each operator passes channels on: it ties units of its inputs, says where they are in its outputs, or
says why it cannot.

A rule returns None, or the reason for which the channels that the node reads have to stay; it has then
given its outputs none.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from onnx_lathe.passes.graph import Constant, Node, Tensor
from onnx_lathe.passes.graph.coupling.shape_rules import (
    flatten,
    pad,
    reshape,
    resize,
    slice_,
    split,
    squeeze,
    transpose,
    unsqueeze,
)
from onnx_lathe.passes.graph.coupling.state import (
    OTHER,
    READ,
    SCALE,
    WRITTEN,
    Channels,
    Coupling,
    LayerUse,
    Survivors,
)
from onnx_lathe.passes.graph.layers import NOT_CONSTANT, WEIGHT_INPUT, is_constant, not_float

BIAS_INPUT = 2
NOT_WRITTEN = "it is not written by a layer"
UNFOLDED = "a Constant node; fold first"

Rule = Callable[[Coupling, Node], str | None]


def layer(coupling: Coupling, node: Node) -> str | None:
    """A new unit for each output channel. Groups of a convolution have to stay of one size."""
    source, weight = coupling.of(node.inputs[0]), node.inputs[WEIGHT_INPUT]
    if reason := unusable(coupling, node, source):
        return reason
    shape = tuple(int(size) for size in weight.shape)
    if node.op in ("Conv", "ConvTranspose"):
        axis, written = 1, _convolution(coupling, node, source, shape)
    else:
        read_axis = 1 if node.op == "Gemm" and node.attrs.get("transB", 0) else 0
        axis, written = -1, coupling.units.fresh(shape[1 - read_axis])
        coupling.slot(node, WEIGHT_INPUT, 1 - read_axis, written, WRITTEN)
        coupling.slot(node, WEIGHT_INPUT, read_axis, _read(coupling, node, source, shape[read_axis]), READ)
    if len(node.inputs) > BIAS_INPUT and not node.inputs[BIAS_INPUT].is_empty():
        bias_of_layer(coupling, node, written)
    output = coupling.shape(node.outputs[0])
    if output is None:
        coupling.units.lock(written, "the rank of its output is not known")
    else:
        coupling.put(node.outputs, axis % len(output), written)
    coupling.births.append((node, written))
    coupling.layers.append(LayerUse(node, source))
    return None


def unusable(coupling: Coupling, node: Node, source: Channels | None) -> str | None:
    weight = node.inputs[WEIGHT_INPUT]
    if not isinstance(weight, Constant):
        reason = f"its weight is {UNFOLDED}" if _is_unfolded(weight) else NOT_CONSTANT
        if is_constant(weight):
            reason = not_float(weight, "prune_channels") or reason
        return f"{node.name} reads it, and {reason}"
    if weight.dtype != np.float32:
        return f"{node.name} reads it, and its weight is {weight.dtype}, not float32"
    if (
        len(weight.shape) < 2
        or 0 in weight.shape
        or (node.op in ("Gemm", "MatMul") and len(weight.shape) != 2)
    ):
        return f"{node.name} reads it, and its weight is no matrix"
    if source is None:
        return None
    if node.op == "Gemm" and node.attrs.get("transA", 0):
        return f"{node.name} reads it transposed"
    shape = coupling.shape(node.inputs[0])
    wanted = 1 if node.op != "MatMul" else None if shape is None else len(shape) - 1
    return None if source.axis == wanted else f"{node.name} does not read channels on axis {source.axis}"


def _read(coupling: Coupling, node: Node, source: Channels | None, count: int) -> np.ndarray:
    """Units of what a layer reads. Another layer that shares its weight may read channels that would go, so
    the weight must know.
    """
    if source is not None:
        return source.units
    return coupling.fixed(
        count, f"{node.name} applies {node.inputs[WEIGHT_INPUT].name} to channels that cannot go"
    )


def _is_unfolded(tensor: Tensor) -> bool:
    return bool(tensor.inputs) and tensor.inputs[0].op == "Constant"


def _convolution(
    coupling: Coupling, node: Node, source: Channels | None, shape: tuple[int, ...]
) -> np.ndarray:
    """Ties the weight with what the layer reads and writes. Returns the units of its output."""
    groups, units = int(node.attrs.get("group", 1)), coupling.units
    read, write = (1, 0) if node.op == "Conv" else (0, 1)
    inputs = shape[1] * groups if node.op == "Conv" else shape[0]
    outputs = shape[0] if node.op == "Conv" else shape[1] * groups
    if groups > 1 and inputs == groups:
        return _depthwise(coupling, node, source, outputs // groups)
    reads = _read(coupling, node, source, inputs)
    if groups == 1:
        coupling.slot(node, WEIGHT_INPUT, read, reads, READ)
        written = units.fresh(outputs)
        coupling.slot(node, WEIGHT_INPUT, write, written, WRITTEN)
        return written
    if node.op == "ConvTranspose":
        written = np.tile(units.fresh(shape[1]), groups)
        coupling.slot(node, WEIGHT_INPUT, 1, written[: shape[1]], WRITTEN)
    else:
        written = units.fresh(outputs)
        coupling.slot(node, WEIGHT_INPUT, 0, written, WRITTEN)
        coupling.balances.append((node, written.reshape(groups, -1)))
    blocks = reads.reshape(groups, -1)
    coupling.slot(node, WEIGHT_INPUT, read, blocks if node.op == "Conv" else reads, READ)
    coupling.balances.append((node, blocks))
    return written


def _depthwise(coupling: Coupling, node: Node, source: Channels | None, multiplier: int) -> np.ndarray:
    """Each group reads one channel, and goes with it."""
    groups = int(node.attrs["group"])
    units = _read(coupling, node, source, groups)
    written = np.repeat(units, multiplier)
    coupling.slot(node, WEIGHT_INPUT, 0, written if node.op == "Conv" else units, WRITTEN)

    def adapt(survive: Survivors) -> None:
        node.attrs["group"] = int(survive(units).sum())

    coupling.adapts.append(adapt)
    return written


def bias_of_layer(coupling: Coupling, node: Node, written: np.ndarray) -> None:
    bias = node.inputs[BIAS_INPUT]
    if not isinstance(bias, Constant):
        coupling.units.lock(written, "its bias is computed at run time")
        coupling.lock([bias], f"{node.name} adds it as its bias")
    elif bias.shape and bias.shape[-1] == written.size and (written.size > 1 or node.op != "Gemm"):
        coupling.slot(node, BIAS_INPUT, len(bias.shape) - 1, written)


def positions(coupling: Coupling, node: Node) -> int | None:
    """Rows of a matrix product; pixels of a convolution's output (a transposed one's input), times the
    batch if that is fixed.
    """
    shape = coupling.shape(node.inputs[0] if node.op == "ConvTranspose" else node.outputs[0])
    if not shape:
        return None
    first, *rest = [shape[0], *shape[2:]] if node.op in ("Conv", "ConvTranspose") else [*shape[:-1], 1]
    sizes = [size for size in rest if isinstance(size, int)]
    return (first if isinstance(first, int) else 1) * math.prod(sizes) if len(sizes) == len(rest) else None


def same(coupling: Coupling, node: Node) -> str | None:
    """Element by element on the first input; other inputs have no channels."""
    source = coupling.of(node.inputs[0])
    if source is None or any(coupling.of(tensor) is not None for tensor in node.inputs[1:]):
        return f"{node.name} computes with it"
    coupling.put(node.outputs, source.axis, source.units)
    return None


def _per_tensor(coupling: Coupling, node: Node) -> str | None:
    """Quantization with one scale."""
    if any(
        not isinstance(tensor, Constant) or math.prod(tensor.shape) != 1
        for tensor in node.inputs[1:]
        if not tensor.is_empty()
    ):
        return f"{node.name} scales channels apart"
    return same(coupling, node)


def _pool(coupling: Coupling, node: Node) -> str | None:
    source = coupling.of(node.inputs[0])
    if source is None or source.axis != 1:
        return f"{node.name} pools over its channels"
    if any(tensor.outputs for tensor in node.outputs[1:]):
        return f"{node.name} also gives positions, which count channels"
    return same(coupling, node)


def _normalization(coupling: Coupling, node: Node) -> str | None:
    """Batch or instance normalization: every parameter has an element per channel."""
    source = coupling.of(node.inputs[0])
    if source is None or source.axis != 1:
        return f"{node.name} normalizes over its channels"
    if node.attrs.get("training_mode", 0):
        return f"{node.name} is in training mode"
    if not all(isinstance(tensor, Constant) for tensor in node.inputs[1:]):
        return f"{node.name} has parameters that are computed at run time; fold first"
    for index in range(1, len(node.inputs)):
        coupling.slot(node, index, 0, source.units, SCALE if index == 1 else OTHER)
    coupling.put(node.outputs[:1], 1, source.units)
    return None


def elementwise(coupling: Coupling, node: Node) -> str | None:
    """Any number of inputs, broadcast: those that have channels have them on one axis, counted from the
    last.
    """
    output = coupling.shape(node.outputs[0])
    found = [(tensor, channels) for tensor in node.inputs if (channels := coupling.of(tensor)) is not None]
    shapes = {tensor.name: coupling.shape(tensor) for tensor in node.inputs if not tensor.is_empty()}
    if output is None or any(shape is None for shape in shapes.values()):
        return f"the rank of what {node.name} computes with is not known"
    ranks = {name: len(shape) for name, shape in shapes.items() if shape is not None}
    from_last = {ranks[tensor.name] - channels.axis for tensor, channels in found}
    sizes = {channels.units.size for _, channels in found}
    if len(from_last) != 1 or len(sizes) != 1:
        return f"{node.name} joins channels of different axes"
    distance, units = from_last.pop(), found[0][1].units
    for tensor in node.inputs:
        if tensor.is_empty() or coupling.of(tensor) is not None or ranks[tensor.name] < distance:
            continue
        shape = shapes[tensor.name] or ()
        size = shape[ranks[tensor.name] - distance]
        if size != 1 and not isinstance(tensor, Constant):
            if _is_unfolded(tensor):
                return f"{node.name} joins it with {tensor.name}, which is {UNFOLDED}"
            return f"{node.name} joins it with {tensor.name}, whose channels cannot go"
        if size != 1 and size != units.size:
            return f"{node.name} spreads it over {size} channels"
    for index, tensor in enumerate(node.inputs):
        axis = ranks.get(tensor.name, 0) - distance
        if isinstance(tensor, Constant) and axis >= 0 and tensor.shape[axis] > 1:
            coupling.slot(node, index, axis, units)
    for _, channels in found[1:]:
        coupling.units.tie(units, channels.units)
    coupling.put(node.outputs, len(output) - distance, units)
    return None


def _concat(coupling: Coupling, node: Node) -> str | None:
    """Behind one another on the channel axis, where inputs without channels keep their place; or side by
    side on another axis.
    """
    output, axes = (
        coupling.shape(node.outputs[0]),
        {found.axis for tensor in node.inputs if (found := coupling.of(tensor)) is not None},
    )
    if output is None or len(axes) != 1:
        return f"{node.name} joins channels of different axes"
    axis, parts = axes.pop(), [coupling.of(tensor) for tensor in node.inputs]
    if int(node.attrs["axis"]) % len(output) != axis:
        units = next(part.units for part in parts if part is not None)
        if any(part is None or part.units.size != units.size for part in parts):
            return f"{node.name} joins it with what cannot go"
        for part in parts:
            coupling.units.tie(units, part.units if part is not None else units)
        coupling.put(node.outputs, axis, units)
        return None
    sizes = [(coupling.shape(tensor) or (None,) * len(output))[axis] for tensor in node.inputs]
    if not all(isinstance(size, int) for size in sizes):
        return f"{node.name} joins it with a number of channels that is not known"
    joined = [
        coupling.fixed(int(size or 0), NOT_WRITTEN) if part is None else part.units
        for part, size in zip(parts, sizes, strict=True)
    ]
    coupling.put(node.outputs, axis, np.concatenate(joined))
    return None


def _reduce(coupling: Coupling, node: Node) -> str | None:
    """Over axes without channels."""
    source, shape = coupling.of(node.inputs[0]), coupling.shape(node.inputs[0])
    given = node.inputs[1] if len(node.inputs) > 1 and not node.inputs[1].is_empty() else None
    if source is None or shape is None or (given is not None and not isinstance(given, Constant)):
        return f"{node.name} reduces over axes that are not known"
    axes = node.attrs.get("axes", []) if given is None else given.values.reshape(-1).tolist()
    reduced = {int(axis) % len(shape) for axis in axes}
    if source.axis in reduced or not reduced:
        return f"{node.name} adds up its channels"
    lost = 0 if node.attrs.get("keepdims", 1) else sum(axis < source.axis for axis in reduced)
    coupling.put(node.outputs, source.axis - lost, source.units)
    return None


def _softmax(coupling: Coupling, node: Node) -> str | None:
    source, shape = coupling.of(node.inputs[0]), coupling.shape(node.inputs[0])
    if (
        source is None
        or shape is None
        or coupling.graph.opset < 13
        or int(node.attrs.get("axis", -1)) % len(shape) == source.axis
    ):
        return f"{node.op} compares its channels"
    return same(coupling, node)


def _local_response(coupling: Coupling, node: Node) -> str | None:
    """Divides by neighbouring channels, which would be others if some went."""
    if int(node.attrs["size"]) > 1:
        return f"{node.name} divides by neighbouring channels, which would be others"
    return same(coupling, node)


_SAME = """
Abs Acos Acosh Asin Asinh Atan Atanh Cast Ceil Celu Cos Cosh Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu
Log Mish Neg Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Clip
"""
"""Element by element. Operators that mix channels by their place (GroupNormalization, CumSum, TopK, ...) have
no rule: without some, the others would compute something else.
"""

_POOLS = "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool"
_JOINS = "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor"
_REDUCTIONS = "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_SAME.split(), same),
    **dict.fromkeys(_POOLS.split(), _pool),
    **dict.fromkeys(_JOINS.split(), elementwise),
    **dict.fromkeys(_REDUCTIONS.split(), _reduce),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _normalization),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _per_tensor),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    "Concat": _concat,
    "Flatten": flatten,
    "LRN": _local_response,
    "Pad": pad,
    "Reshape": reshape,
    "Slice": slice_,
    "Split": split,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
