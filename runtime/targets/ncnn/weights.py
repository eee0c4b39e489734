"""How the model stores a weight: as it is, as a codebook with indices, or in INT8 with scales."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
import onnx

from onnx_lathe.runtime.targets.ncnn.dialect import TABLE_SIZE, Stored


class Known(Protocol):
    """What is known of a model: the node that writes each tensor, and values of constants."""

    nodes: Mapping[str, onnx.NodeProto]

    def value(self, tensor: str) -> np.ndarray | None: ...


class Int8Weight(NamedTuple):
    """INT8 codes, and the scale of each index along `axis`: value = code * scale. One scale where axis is None."""

    codes: np.ndarray
    scales: np.ndarray
    axis: int | None


def stored_weight(net: Known, tensor: str, values: np.ndarray) -> Stored:
    """The float values of a constant tensor; as indices into a table where the model has them so."""
    made = net.nodes.get(tensor)
    if made is not None and made.op_type == "Gather" and not made.domain:
        table, indices = net.value(made.input[0]), _indices(net, made.input[1])
        if table is not None and indices is not None and table.ndim == 1 and table.size <= TABLE_SIZE:
            whole = indices.astype(np.int64)
            codes = np.where(whole < 0, whole + table.size, whole)
            return Stored(codes.astype(np.uint8), table.astype(np.float32))
    return Stored(values.astype(np.float32))


def _indices(net: Known, tensor: str) -> np.ndarray | None:
    """Integers, behind a Cast or not."""
    made = net.nodes.get(tensor)
    return net.value(made.input[0] if made is not None and made.op_type == "Cast" else tensor)


def int8_weight(net: Known, tensor: str) -> Int8Weight | None:
    """A constant weight that the model dequantizes from INT8 with zero-point 0; None for any other."""
    made = net.nodes.get(tensor)
    if made is None or made.op_type != "DequantizeLinear" or made.domain:
        return None
    if any(item.name == "block_size" and item.i for item in made.attribute):
        return None
    codes, scales = net.value(made.input[0]), net.value(made.input[1])
    zero = net.value(made.input[2]) if len(made.input) > 2 and made.input[2] else np.zeros(1)
    if codes is None or scales is None or zero is None or codes.dtype != np.int8 or np.any(zero):
        return None
    axis = next((item.i for item in made.attribute if item.name == "axis"), 1)
    return Int8Weight(
        codes, scales.astype(np.float32).reshape(-1), None if scales.ndim == 0 else axis % max(codes.ndim, 1)
    )


def quantized_input(net: Known, tensor: str) -> tuple[str, float] | None:
    """(what is quantized, its scale) of a tensor behind a pair of INT8 with one scale and zero-point 0."""
    dequantize = net.nodes.get(tensor)
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    quantize = net.nodes.get(dequantize.input[0])
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return None
    scales = []
    for node in (quantize, dequantize):
        scale, zero = net.value(node.input[1]), zero_point(net, node)
        if scale is None or scale.size != 1 or zero is None or zero.dtype != np.int8 or np.any(zero):
            return None
        scales.append(float(scale.reshape(())))
    return (quantize.input[0], scales[0]) if scales[0] == scales[1] else None


def zero_point(net: Known, node: onnx.NodeProto) -> np.ndarray | None:
    """Of a QuantizeLinear or DequantizeLinear, with its type; None if it is computed at run time."""
    if len(node.input) > 2 and node.input[2]:
        return net.value(node.input[2])
    wanted = next((item.i for item in node.attribute if item.name == "output_dtype"), 0)
    if node.op_type == "DequantizeLinear":
        source = net.nodes.get(node.input[0])
        return None if source is None else zero_point(net, source)
    return np.zeros(1, onnx.helper.tensor_dtype_to_np_dtype(wanted or onnx.TensorProto.UINT8))
