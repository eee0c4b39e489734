"""Weights as INT8 per output channel and biases as INT32, as the runtimes of phones read them."""

import numpy as np

from onnx_lathe.passes.graph import Constant, Node, Tensor, Variable
from onnx_lathe.passes.graph.biases import BIAS_INPUT
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, constant_value, is_constant, output_axis
from onnx_lathe.passes.graph.rewire import disconnect
from onnx_lathe.passes.lowering.ort_integers.work import Work
from onnx_lathe.passes.lowering.phone_form.choice import Kernel
from onnx_lathe.passes.lowering.phone_form.operators import Parameters, parameters_over
from onnx_lathe.passes.numerics.quantization import affine

LARGEST = np.iinfo(np.int32).max
NEAR_TIE, OFF_TIE = 1e-3, 0.02
"""In steps of a sum: as near a half is taken for one, and so far it is moved."""


def store_weight(work: Work, layer: Node) -> None:
    """The layer's weight as INT8 initializer, -127 to 127, with a scale per output channel and no zero-point but 0.

    What has that form keeps its levels; another is rounded again.
    """
    tensor = layer.inputs[WEIGHT_INPUT]
    decoder = tensor.inputs[0]
    rank = len(constant_value(tensor, work.graph.opset).shape)
    axis = output_axis(layer, rank)
    levels, scale = _levels(work, decoder, axis, rank)
    if levels is None or scale is None:
        values = np.asarray(constant_value(tensor, work.graph.opset), np.float32)
        scale = affine.channel_scale(values, axis)
        levels = affine.quantize(values, scale, axis)
        noise = affine.signal_to_noise_db(values, affine.dequantize(levels, scale, axis))
        work.report.edit(layer.name, f"its weight is rounded to INT8 per channel: {noise:.1f} dB")
    if layer.op == "Gemm" and layer.attrs.get("alpha", 1.0) != 1.0:
        alpha = np.float32(layer.attrs.pop("alpha"))
        scale = np.maximum(scale * abs(alpha), affine.SMALLEST_SCALE).astype(np.float32)
        levels = levels if alpha > 0 else -levels if alpha < 0 else np.zeros_like(levels)
    name = str(tensor.name)
    result = Variable(
        work.name(f"{name}_decoded") if len(tensor.outputs) > 1 else name, np.float32, list(levels.shape)
    )
    inputs = [
        work.constant(f"{name}_levels", levels),
        work.constant(f"{name}_scales", scale),
        work.constant(f"{name}_zeros", np.zeros(scale.shape, np.int8)),
    ]
    layer.inputs[WEIGHT_INPUT] = result
    work.graph.nodes.append(
        Node("DequantizeLinear", work.name(f"{name}_DQ"), {"axis": axis}, inputs, [result])
    )


def _levels(work: Work, decoder: Node, axis: int, rank: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(levels, scale per output channel) if the weight has the form already, but for where its levels come from."""
    opset = work.graph.opset
    if decoder.op != "DequantizeLinear" or decoder.domain or decoder.attrs.get("block_size", 0):
        return None, None
    scale = np.asarray(constant_value(decoder.inputs[1], opset), np.float32).reshape(-1)
    zeros = constant_value(decoder.inputs[2], opset) if len(decoder.inputs) > 2 else np.zeros(1, np.int8)
    codes = constant_value(decoder.inputs[0], opset).astype(np.int32)
    if np.unique(zeros).size != 1:
        return None, None
    codes = codes - int(zeros.reshape(-1)[0])
    if scale.size > 1 and decoder.attrs.get("axis", 1) % rank != axis:
        return None, None
    if codes.min(initial=0) < -affine.LEVELS or codes.max(initial=0) > affine.LEVELS or not (scale > 0).all():
        return None, None
    return codes.astype(np.int8), np.broadcast_to(scale, codes.shape[axis : axis + 1]).copy()


def join_addition(work: Work, kernel: Kernel) -> None:
    """A MatMul of a matrix and the addition of a bias behind it become a Gemm, the form that all runtimes know."""
    node, addition = kernel.node, kernel.addition
    if addition is None or work.rank(node.inputs[0]) != 2:
        return
    bias = next(tensor for tensor in addition.inputs if is_constant(tensor))
    result = addition.outputs[0]
    disconnect(addition)
    node.op, node.attrs, node.outputs = "Gemm", {}, [result]
    node.inputs.append(bias)
    kernel.addition = None
    work.report.edit(node.name, "is a Gemm with its bias")


def plain_bias(work: Work, kernel: Kernel) -> None:
    """The layer's bias as a float initializer [O], without a factor in front."""
    node = kernel.node
    place = bias_place(kernel)
    if place is None:
        return
    owner, index = place
    values = np.asarray(constant_value(owner.inputs[index], work.graph.opset), np.float32).reshape(-1)
    if node.op == "Gemm":
        values = values * np.float32(node.attrs.pop("beta", 1.0))
    channels = channels_of(work, node)
    owner.inputs[index] = work.constant(
        f"{owner.inputs[index].name}_bias", np.broadcast_to(values, (channels,)).astype(np.float32)
    )


def store_bias(work: Work, kernel: Kernel) -> None:
    """The bias as INT32 in units of input scale times weight scale. Those fit: passes/graph/quantization/bias_range.py
    widened the weight's scale where they would not.
    """
    place = bias_place(kernel)
    if place is None:
        return
    owner, index = place
    source, decoder = (tensor.inputs[0] for tensor in kernel.node.inputs[:2])
    scale = read(decoder.inputs[1]) * read(source.inputs[1]).reshape(())
    name, values = owner.inputs[index].name, read(owner.inputs[index]).astype(np.float64)
    scale = np.tile(scale, values.size // scale.size).astype(np.float32)
    levels = np.rint(values / scale).clip(-LARGEST, LARGEST).astype(np.int32)
    if kernel.addition is not None and work.rank(kernel.node.inputs[0]) > 1:
        levels = levels.reshape(1, -1)  # as ONNX Runtime loads it: passes/graph/quantization/propagation.py
    inputs = [work.constant(f"{name}_int32", levels), work.constant(f"{name}_scale", scale)]
    result = Variable(work.name(f"{name}_decoded"), np.float32, list(levels.shape))
    axis = {"axis": levels.ndim - 1}
    work.graph.nodes.append(Node("DequantizeLinear", work.name(f"{name}_DQ"), axis, inputs, [result]))
    owner.inputs[index] = result


def bias_place(kernel: Kernel) -> tuple[Node, int] | None:
    """Where the bias is read: (node, position)."""
    if kernel.addition is not None:
        return kernel.addition, next(
            index for index, tensor in enumerate(kernel.addition.inputs) if is_constant(tensor)
        )
    node = kernel.node
    if node.op == "MatMul" or len(node.inputs) <= BIAS_INPUT or node.inputs[BIAS_INPUT].is_empty():
        return None
    return node, BIAS_INPUT


def channels_of(work: Work, layer: Node) -> int:
    """Number of output channels."""
    shape = constant_value(layer.inputs[WEIGHT_INPUT], work.graph.opset).shape
    groups = layer.attrs.get("group", 1) if layer.op == "ConvTranspose" else 1
    return int(shape[output_axis(layer, len(shape))]) * groups


def store_operand(
    work: Work,
    tensor: Tensor,
    bits: int,
    parameters: Parameters | None = None,
    sum_scale: float | None = None,
) -> Tensor:
    """A constant operand as an initializer of levels behind a DequantizeLinear: over its own range, or with these
    parameters. `sum_scale`: the step of the sum that it goes into.
    """
    values = np.asarray(constant_value(tensor, work.graph.opset), np.float32)
    if parameters is None:
        parameters = parameters_over(float(values.min(initial=0)), float(values.max(initial=0)), bits)
        if sum_scale is not None and values.size == 1:
            parameters = parameters._replace(
                scale=_off_ties(parameters.scale, float(values.flat[0]) / sum_scale)
            )
    scale, zero = parameters
    limits = np.iinfo(zero.dtype)
    levels = (np.rint(values / scale) + int(zero)).clip(limits.min, limits.max).astype(zero.dtype)
    inputs: list[Tensor] = [
        Constant(work.name(f"{tensor.name}_levels"), np.asarray(levels)),
        Constant(work.name(f"{tensor.name}_scale"), np.asarray(scale, np.float32)),
        Constant(work.name(f"{tensor.name}_zero"), np.asarray(zero)),
    ]
    result = Variable(work.name(f"{tensor.name}_decoded"), np.float32, list(values.shape))
    work.graph.nodes.append(Node("DequantizeLinear", work.name(f"{tensor.name}_DQ"), {}, inputs, [result]))
    return result


def _off_ties(scale: np.float32, steps: float) -> np.float32:
    """The scale of a constant that is so many `steps` of the sum that it goes into, a hair larger where these end in a
    half: what it is added to is 0 in many places, and each would lie in the middle between two levels, where ONNX
    rounds to even and LiteRT up or down. So the 3 of HardSwish in parts, 127.5 steps of a range from 0 to 6.
    """
    if abs(steps % 1 - 0.5) > NEAR_TIE:
        return scale
    return np.float32(scale * (1 + OFF_TIE / abs(steps)))
