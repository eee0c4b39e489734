"""Weight scales at which a float bias fits into INT32.

ONNX Runtime stores the bias of a layer between Q/DQ pairs as INT32 in units of input scale times weight
scale when it loads a model (its optimizer WeightBiasQuantization), and lets what does not fit saturate.
That is the bias of an output channel whose weights are next to nothing, which batch normalization switched
off or pruning took out. A wider scale for this channel's weights costs nothing that the bias does not hide:
half a level of them, times as many levels as an activation and a layer have, is below the bias's own last
digit in float32.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor
from onnx_lathe.passes.graph.biases import BIAS_INPUT
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT
from onnx_lathe.passes.graph.model import free_name
from onnx_lathe.passes.graph.quantization.placement import quantized_layers

LARGEST_UNITS = 1 << 30
"""Of a bias, in INT32: as much is left to the sum of products and to what training or a correction adds."""


class _Need(NamedTuple):
    layer: Node
    decoder: Node
    least: np.ndarray
    """Of the weight's scale, float64 [O]."""


def fit_biases(graph: Graph, report: PassReport) -> None:
    """Widens the weight scale of every channel of a quantized layer whose bias would not fit; its integers
    follow.
    """
    for need in list(_needs(graph)):
        scale = need.decoder.inputs[1].values
        least = need.least if scale.size > 1 else need.least.max(keepdims=True)
        wider = np.maximum(scale.reshape(-1), least).astype(np.float32).reshape(scale.shape)
        if changed := int(np.count_nonzero(wider > scale)):
            set_scale(graph, need.decoder, wider)
            report.edit(
                need.layer.name, f"scale of {changed} weight channels widened until the bias fits into INT32"
            )


def set_scale(graph: Graph, decoder: Node, scale: np.ndarray, levels: np.ndarray | None = None) -> None:
    """Gives the DequantizeLinear of a weight another scale of the same shape, and the integers to it:
    `levels`, or the old ones rounded.

    The integers are an initializer, or come from a QuantizeLinear, which gets the scale too.
    """
    codes, old = decoder.inputs[0], decoder.inputs[1].values
    if isinstance(codes, Constant):
        if levels is None:
            levels = _rescaled(decoder, codes.values, old / scale)
        decoder.inputs[0] = _replaced(graph, codes, levels)
    wanted = _replaced(graph, decoder.inputs[1], scale)
    if not isinstance(codes, Constant):
        codes.inputs[0].inputs[1] = wanted
    decoder.inputs[1] = wanted


def _rescaled(decoder: Node, codes: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    shape = [1] * codes.ndim
    if ratio.size > 1:
        shape[decoder.attrs.get("axis", 1)] = -1
    zero = decoder.inputs[2].values if len(decoder.inputs) > 2 else np.zeros(1, codes.dtype)
    middle = zero.astype(np.float64).reshape(shape if zero.size > 1 else [1] * codes.ndim)
    moved = np.rint((codes - middle) * ratio.astype(np.float64).reshape(shape)) + middle
    limits = np.iinfo(codes.dtype)
    return moved.clip(limits.min, limits.max).astype(codes.dtype)


def _replaced(graph: Graph, tensor: Constant, values: np.ndarray) -> Constant:
    return Constant(free_name(graph, f"{tensor.name}_fitted"), values)


def _needs(graph: Graph) -> Iterator[_Need]:
    for layer in quantized_layers(graph):
        source, decoder = (tensor.inputs[0] for tensor in layer.inputs[:2])
        bias = _bias(layer)
        if bias is None or decoder.attrs.get("block_size", 0) or not _is_known(decoder):
            continue
        given, scale = source.inputs[1], decoder.inputs[1]
        if isinstance(given, Constant) and given.values.size == 1 and scale.values.size in (1, bias.size):
            unit = float(given.values.item()) * LARGEST_UNITS
            if unit > 0 and np.isfinite(bias).all():
                yield _Need(layer, decoder, np.abs(bias.astype(np.float64)) / unit)


def _is_known(decoder: Node) -> bool:
    """Whether scale and zero-point are initializers, and the integers one too, or those of a
    QuantizeLinear.
    """
    codes = decoder.inputs[0]
    stored = (isinstance(codes, Constant) and codes.values.dtype in (np.int8, np.uint8)) or (
        bool(codes.inputs) and codes.inputs[0].op == "QuantizeLinear"
    )
    return stored and all(isinstance(tensor, Constant) for tensor in decoder.inputs[1:])


def _bias(layer: Node) -> np.ndarray | None:
    """The float bias of a layer, or what is added behind a MatMul, float32 [O]; None without one."""
    if layer.op == "MatMul":
        readers = layer.outputs[0].outputs
        operands: list[Tensor] = (
            list(readers[0].inputs) if len(readers) == 1 and readers[0].op == "Add" else []
        )
    else:
        operands = list(layer.inputs[BIAS_INPUT : BIAS_INPUT + 1])
    channels = layer.inputs[WEIGHT_INPUT].inputs[0].inputs[1].shape
    for tensor in operands:
        if isinstance(tensor, Constant) and tensor.dtype == np.float32 and tensor.values.size:
            values = tensor.values.reshape(-1)
            if max(tensor.values.shape, default=1) == values.size or tuple(channels) == values.shape:
                return np.asarray(values)
    return None
