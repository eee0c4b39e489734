"""Per-channel scale and shift behind a layer, folded into the layer's weight and bias.

    Conv(W, b) -> BatchNormalization | Mul(k) | Add(k) | Sub(k) | Div(k)      y_c = scale_c * conv_c + shift_c
    Conv(W', b')   with W'_c = scale_c * W_c,  b'_c = scale_c * b_c + shift_c

computed in float64 and rounded once.
Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015, section 3.1, at inference; Jacob et al., CVPR
2018, section 3.2.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT
from onnx_lathe.passes.graph.rewire import disconnect, is_output

FOLDS_INTO = ("Conv", "ConvTranspose", "Gemm")
BIAS_INPUT = 2
ELEMENTWISE = ("Mul", "Add", "Sub", "Div")
"""What a constant per channel goes into the layer of."""


@dataclass(frozen=True)
class ChannelAffine:
    """scale * x + shift along axis 1; float64 [C], or [1] for one value for all. `scale` is None when it is
    1.
    """

    scale: np.ndarray | None
    shift: np.ndarray


def merge(graph: Graph, layer: Node, node: Node, whole: Graph, free_name: Callable[[str], str]) -> str | None:
    """Folds `node` into the layer in front of it, which then writes the node's output. Returns why not,
    having changed nothing. `graph` has both nodes; it is `whole` or a body inside it. `free_name`
    makes a name that nothing in `whole` has of one that is wanted.
    """
    reason = _unusable(graph, layer)
    if reason is None and graph is not whole and is_output(whole, layer.inputs[WEIGHT_INPUT]):
        reason = f"the weight of {layer.name} is an output of the model"
    if reason is not None:
        return reason
    affine = (
        _batch_normalization(graph, node) if node.op == "BatchNormalization" else _elementwise(layer, node)
    )
    return affine if isinstance(affine, str) else _apply(graph, layer, node, affine, whole, free_name)


def _elementwise(layer: Node, node: Node) -> ChannelAffine | str:
    constant = next((tensor for tensor in node.inputs if isinstance(tensor, Constant)), None)
    if constant is None:
        return "its other operand is computed at run time"
    rank = len(layer.inputs[WEIGHT_INPUT].shape)
    shape = (1,) * (rank - len(constant.shape)) + tuple(constant.shape)
    if len(shape) != rank or any(size != 1 for axis, size in enumerate(shape) if axis != 1):
        return "its constant is not one value per channel"
    values = constant.values.astype(np.float64).reshape(-1)
    if node.op in ("Add", "Mul"):
        return ChannelAffine(None, values) if node.op == "Add" else ChannelAffine(values, np.zeros(1))
    first = node.inputs[0] is constant
    if node.op == "Sub":
        return ChannelAffine(-np.ones(1), values) if first else ChannelAffine(None, -values)
    if first or not values.all():
        return "it divides a constant, or by 0"
    return ChannelAffine(1 / values, np.zeros(1))


def _batch_normalization(graph: Graph, node: Node) -> ChannelAffine | str:
    attrs = node.attrs
    if attrs.get("training_mode", 0) or any(_is_read(graph, extra) for extra in node.outputs[1:]):
        return "it is in training form"
    if graph.opset < 7 and not attrs.get("is_test", 0):
        return "it is in training form"
    if graph.opset < 9 and not attrs.get("spatial", 1):
        return "it normalizes each element, not each channel"
    if not all(isinstance(tensor, Constant) for tensor in node.inputs[1:5]):
        return "its parameters are not plain initializers"
    scale, shift, mean, variance = (tensor.values.astype(np.float64) for tensor in node.inputs[1:5])
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + attrs.get("epsilon", 1e-5))
    return ChannelAffine(factor, shift - mean * factor)


def _is_read(graph: Graph, tensor: Tensor) -> bool:
    return bool(tensor.outputs) or is_output(graph, tensor)


def _unusable(graph: Graph, layer: Node) -> str | None:
    """Why nothing can be folded into this layer."""
    weight = layer.inputs[WEIGHT_INPUT]
    result = layer.outputs[0]
    if not isinstance(weight, Constant):
        return f"the weight of {layer.name} is not a plain initializer"
    if weight.dtype not in (np.float32, np.float64):
        return f"the weight of {layer.name} is {weight.dtype}: rounding again would cost accuracy"
    if len(weight.outputs) > 1 or is_output(graph, weight):
        return f"the weight of {layer.name} has another reader"
    if len(result.outputs) > 1 or is_output(graph, result):
        return f"the output of {layer.name} has another reader"
    if (layer.op != "Gemm" and len(weight.shape) < 3) or (layer.op == "Gemm" and len(weight.shape) != 2):
        return f"the weight of {layer.name} has an unexpected rank"
    bias = _bias(layer)
    if bias is not None and not isinstance(bias, Constant):
        return f"the bias of {layer.name} is not a plain initializer"
    return None


def _apply(
    graph: Graph,
    layer: Node,
    node: Node,
    affine: ChannelAffine,
    whole: Graph,
    free_name: Callable[[str], str],
) -> str | None:
    weight = layer.inputs[WEIGHT_INPUT]
    channels = _output_channels(layer)
    width = max(affine.shift.size, 1 if affine.scale is None else affine.scale.size)
    if width not in (1, channels):
        return f"it has {width} channels, the output of {layer.name} has {channels}"
    with np.errstate(all="ignore"):
        scaled = (
            None
            if affine.scale is None
            else _scale_channels(layer, np.broadcast_to(affine.scale, channels)).astype(weight.dtype)
        )
        bias = _new_bias(layer, affine, channels)
    if not np.isfinite(bias).all() or (scaled is not None and not np.isfinite(scaled).all()):
        return f"folded into {layer.name}, it would hold infinity or NaN"
    if scaled is not None:
        weight.values = scaled
    _set_bias(graph, layer, bias, whole, free_name)
    result = node.outputs[0]
    disconnect(node)
    layer.outputs[0] = result
    return None


def _output_channels(layer: Node) -> int:
    shape = layer.inputs[WEIGHT_INPUT].shape
    if layer.op == "ConvTranspose":
        return int(shape[1] * layer.attrs.get("group", 1))
    return int(shape[0] if layer.op == "Conv" or layer.attrs.get("transB", 0) else shape[1])


def _scale_channels(layer: Node, scale: np.ndarray) -> np.ndarray:
    """The layer's weight in float64 with output channel c multiplied by scale[c]; `scale` is [C]."""
    values = layer.inputs[WEIGHT_INPUT].values.astype(np.float64)
    if layer.op == "ConvTranspose":  # [I, O/groups, ...]: each group of inputs has output channels of its own
        groups = layer.attrs.get("group", 1)
        per_input = scale.reshape(groups, -1).repeat(values.shape[0] // groups, axis=0)
        return values * per_input.reshape(values.shape[:2] + (1,) * (values.ndim - 2))
    if layer.op == "Gemm" and not layer.attrs.get("transB", 0):
        return values * scale
    return values * scale.reshape((-1,) + (1,) * (values.ndim - 1))


def _is_given(tensor: Tensor, graph: Graph, whole: Graph) -> bool:
    return is_output(graph, tensor) or is_output(whole, tensor)


def _bias(layer: Node) -> Tensor | None:
    present = len(layer.inputs) > BIAS_INPUT and not layer.inputs[BIAS_INPUT].is_empty()
    return layer.inputs[BIAS_INPUT] if present else None


def _new_bias(layer: Node, affine: ChannelAffine, channels: int) -> np.ndarray:
    """The bias afterwards, in the weight's type: [C], or [M, C] for a Gemm that has one per row."""
    bias = _bias(layer)
    old = (
        np.zeros(channels) if bias is None else bias.values.astype(np.float64) * layer.attrs.get("beta", 1.0)
    )
    new = old * (1.0 if affine.scale is None else affine.scale) + affine.shift
    return np.broadcast_to(new, np.broadcast_shapes(new.shape, (channels,))).astype(
        layer.inputs[WEIGHT_INPUT].dtype
    )


def _set_bias(
    graph: Graph, layer: Node, values: np.ndarray, whole: Graph, free_name: Callable[[str], str]
) -> None:
    layer.attrs.pop("beta", None)  # it is in the values now
    bias = _bias(layer)
    if isinstance(bias, Constant) and len(bias.outputs) == 1 and not _is_given(bias, graph, whole):
        bias.values = values
        return
    new = Constant(free_name(f"{layer.inputs[WEIGHT_INPUT].name}_bias"), values)
    if len(layer.inputs) > BIAS_INPUT:
        layer.inputs[BIAS_INPUT] = new
    else:
        layer.inputs.append(new)
