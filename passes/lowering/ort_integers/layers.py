"""Weights as INT8 initializers and biases as INT32, as ONNX Runtime's kernels on integers read them."""

import ml_dtypes
import numpy as np

from onnx_lathe.passes.graph import Constant, Node, Variable
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, constant_value, is_constant, output_axis
from onnx_lathe.passes.graph.quantization.bias_range import set_scale
from onnx_lathe.passes.graph.quantization.pair_order import adds_in_pairs, as_added, as_stored
from onnx_lathe.passes.lowering.ort_integers.work import PER_CHANNEL_OPSET, Work
from onnx_lathe.passes.numerics.quantization import affine, pair_sums

SATURATES = "its sums may saturate on processors without VNNI"


def store_weight(work: Work, layer: Node, reduce_range: bool, reduced: set[str]) -> None:
    """Stores the layer's weight as an INT8 initializer, whatever decodes its integers.

    `reduced` names the decoders that have 7 bits already: layers may share one.
    """
    node = layer.inputs[WEIGHT_INPUT].inputs[0]
    codes = node.inputs[0]
    if node.attrs.get("block_size", 0) or not is_constant(codes):
        return
    values = constant_value(codes, work.graph.opset)
    if not isinstance(codes, Constant) or values.dtype == ml_dtypes.int4:
        values = values.astype(np.int8) if values.dtype == ml_dtypes.int4 else values
        _store(work, node, values)
        work.report.edit(node.name, "weight stored as INT8")
    centred = len(node.inputs) < 3 or not np.any(constant_value(node.inputs[2], work.graph.opset))
    if reduce_range and not centred:
        work.report.skip(layer.name, "the zero-point of its weight is not 0, and its weight keeps 8 bits")
    elif reduce_range and values.dtype == np.int8 and node.name not in reduced:
        reduced.add(node.name)
        _store(work, node, np.rint(values / 2).astype(np.int8))
        node.inputs[1] = work.constant(node.inputs[1].name, node.inputs[1].values * np.float32(2))
        work.report.edit(node.name, "weight has 7 bits")


def bound_sums(work: Work, layer: Node) -> None:
    """Gives the layer's weight levels whose products ONNX Runtime adds without saturation on processors
    without VNNI, unless int8 did. Channels that cannot saturate stay.
    """
    node = layer.inputs[WEIGHT_INPUT].inputs[0]
    codes = node.inputs[0]
    if not isinstance(codes, Constant) or codes.values.dtype != np.int8 or node.attrs.get("block_size", 0):
        return
    if not adds_in_pairs(layer, codes.values) or not all(
        isinstance(tensor, Constant) for tensor in node.inputs[1:]
    ):
        return
    levels = as_added(layer, codes.values)
    if not pair_sums.saturates(levels).any():
        return
    if len(node.inputs) > 2 and np.any(node.inputs[2].values):
        work.report.skip(layer.name, f"the zero-point of its weight is not 0, and {SATURATES}")
        return
    scale = np.broadcast_to(node.inputs[1].values.reshape(-1), len(levels)).astype(np.float32)
    bound, wider = pair_sums.without_saturation(affine.dequantize(levels, scale, 0), scale)
    if node.inputs[1].values.size != scale.size:
        if work.graph.opset < PER_CHANNEL_OPSET:
            work.report.skip(
                layer.name, f"its weight has one scale at opset {work.graph.opset}, and {SATURATES}"
            )
            return
        node.attrs["axis"] = output_axis(layer, codes.values.ndim)
        if len(node.inputs) > 2:
            node.inputs[2] = work.constant(node.inputs[2].name, np.zeros(scale.shape, np.int8))
    set_scale(work.graph, node, wider, as_stored(layer, bound, codes.values.shape))
    work.report.edit(
        layer.name,
        f"{np.count_nonzero((bound != levels).any(axis=1))} of {len(levels)} channels rounded so that no two products saturate",
    )


def store_bias(work: Work, layer: Node) -> None:
    """Stores a bias as INT32 in units of input scale times weight scale, where the result is float: with a
    float bias there is no QGemm.
    """
    place = _bias_of(work, layer)
    if place is None:
        return
    _flatten(work, *place)
    if work.lands(place[0].outputs[0]):
        return
    if work.graph.opset < PER_CHANNEL_OPSET:
        return
    node, index = place
    source, decoder = (tensor.inputs[0] for tensor in layer.inputs[:2])
    if decoder.attrs.get("block_size", 0):
        return
    scale = constant_value(decoder.inputs[1], work.graph.opset) * constant_value(
        source.inputs[1], work.graph.opset
    )
    values = constant_value(node.inputs[index], work.graph.opset).reshape(-1)
    units = np.rint(values.astype(np.float64) / scale)
    if scale.size not in (1, values.size) or np.abs(units).max(initial=0) > np.iinfo(np.int32).max:
        return
    name = node.inputs[index].name
    stored = work.constant(f"{name}_int32", units.astype(np.int32))
    scales = work.constant(f"{name}_scale", np.broadcast_to(scale.astype(np.float32), values.shape).copy())
    result = Variable(work.name(f"{name}_dequantized"), np.float32, list(values.shape))
    work.graph.nodes.append(
        Node("DequantizeLinear", work.name(f"{name}_DQ"), {"axis": 0}, [stored, scales], [result])
    )
    node.inputs[index] = result
    work.report.edit(layer.name, "bias is INT32")


def _bias_of(work: Work, layer: Node) -> tuple[Node, int] | None:
    """Where the float bias of a Gemm, or of the addition behind a MatMul, is read."""
    if (
        layer.op == "Gemm"
        and len(layer.inputs) > 2
        and {layer.attrs.get("alpha", 1.0), layer.attrs.get("beta", 1.0)} == {1.0}
    ):
        place = layer, 2
    elif (
        layer.op == "MatMul"
        and len(layer.outputs[0].outputs) == 1
        and layer.outputs[0].outputs[0].op == "Add"
    ):
        node = layer.outputs[0].outputs[0]
        place = node, 1 if node.inputs[0] is layer.outputs[0] else 0
    else:
        return None
    bias = place[0].inputs[place[1]]
    if not is_constant(layer.inputs[WEIGHT_INPUT]):
        return None
    columns = constant_value(layer.inputs[WEIGHT_INPUT].inputs[0].inputs[0], work.graph.opset).shape[
        output_axis(layer, 2)
    ]
    if not isinstance(bias, Constant) or tuple(bias.shape) not in ((columns,), (1, columns)):
        return None
    if len(bias.shape) > 1 and work.rank(layer.outputs[0]) < len(bias.shape):
        return None  # an axis of the result comes from the bias, as far as is known
    return place


def _flatten(work: Work, node: Node, index: int) -> None:
    """A bias [1, N] behind a MatMul becomes [N], with which ONNX Runtime makes a Gemm of the two: int8 gave
    it an axis for the sake of INT8 pairs, that this lowering makes UINT8.
    """
    bias = node.inputs[index]
    if node.op == "Add" and len(bias.shape) > 1:
        node.inputs[index] = work.constant(
            f"{bias.name}_flat", constant_value(bias, work.graph.opset).reshape(-1)
        )


def _store(work: Work, node: Node, values: np.ndarray) -> None:
    node.inputs[0] = work.constant(f"{node.outputs[0].name}_{values.dtype}", values)
    if len(node.inputs) > 2:
        node.inputs[2] = work.constant(node.inputs[2].name, np.zeros(node.inputs[2].shape, values.dtype))
