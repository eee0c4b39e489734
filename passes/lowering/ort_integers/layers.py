"""Weights as INT8 initializers and biases as INT32, as ONNX Runtime's kernels on integers read them."""

import ml_dtypes
import numpy as np

from onnx_lathe.passes.graph import Constant, Node, Variable
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, constant_value, is_constant, output_axis
from onnx_lathe.passes.lowering.ort_integers.work import Work


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


def store_bias(work: Work, layer: Node) -> None:
    """Stores a bias as INT32 in units of input scale times weight scale, where the result is float: with a
    float bias there is no QGemm.
    """
    place = _bias_of(work, layer)
    if place is None or work.lands(place[0].outputs[0]):
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
    return place if isinstance(bias, Constant) and tuple(bias.shape) in ((columns,), (1, columns)) else None


def _store(work: Work, node: Node, values: np.ndarray) -> None:
    node.inputs[0] = work.constant(f"{node.outputs[0].name}_{values.dtype}", values)
    if len(node.inputs) > 2:
        node.inputs[2] = work.constant(node.inputs[2].name, np.zeros(node.inputs[2].shape, values.dtype))
