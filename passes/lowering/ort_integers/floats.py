"""Makes float again what ONNX Runtime would compute in float: layers, and pairs that serve no kernel."""

from collections.abc import Iterator, Mapping

import numpy as np

from onnx_lathe import metadata
from onnx_lathe.passes.graph import Constant, Node, Tensor, Variable
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, constant_shape, constant_value, is_constant, is_layer
from onnx_lathe.passes.graph.model import node_metadata
from onnx_lathe.passes.graph.quantization.pairs import is_dequantized
from onnx_lathe.passes.graph.quantization.placement import (
    QUANTIZERS,
    float_reason,
    hands_on,
    is_floor,
    quantized_layers,
)
from onnx_lathe.passes.graph.rewire import disconnect, is_output, replace_input
from onnx_lathe.passes.lowering.ort_integers.work import PER_CHANNEL_OPSET, ActivationPair, Work
from onnx_lathe.passes.lowering.restoring import restore_weight

UNQUANTIZED_RESULT = (
    "its result is not quantized, without which ONNX Runtime computes it in float; run int8 with --target ort"
)
OUTPUT_RESULT = "its result is an output of the model, which ONNX Runtime computes in float"


def restore_layers(work: Work, slow: Mapping[str, str]) -> None:
    """`slow`: names of layers that are to be float as well, with the reason."""
    for node in quantized_layers(work.graph):
        if not is_constant(node.inputs[WEIGHT_INPUT]):
            continue
        if (reason := slow.get(node.name, _why_float(work, node))) is not None:
            restore_weight(work.graph, node)
            work.report.skip(node.name, reason)
            work.report.edit(node.name, "its weight is float again")


def _why_float(work: Work, node: Node) -> str | None:
    weight = constant_value(node.inputs[WEIGHT_INPUT], work.graph.opset)
    if reason := float_reason(node, weight.shape, work.placement, work.rows):
        return reason
    if node.op not in work.placement.results or work.lands(node.outputs[0]):
        return None
    return OUTPUT_RESULT if is_output(work.graph, node.outputs[0]) else UNQUANTIZED_RESULT


def drop_pairs(work: Work, slow: Mapping[str, str]) -> None:
    """Takes out the pairs of the pass that no kernel on integers reads or writes.

    An operator without weights is one if it stands beside a layer that is, if need be with others like it
    between, and not among the names in `slow`.
    """
    kernels = {id(node) for node in quantized_layers(work.graph)}
    waiting = integer_operators(work)
    for node in [node for node in waiting if node.name in slow]:
        waiting.remove(node)
        work.report.skip(node.name, slow[node.name])
    while beside := [node for node in waiting if _is_beside(work, node, kernels)]:
        kernels.update(id(node) for node in beside)
        waiting = [node for node in waiting if id(node) not in kernels]
    for pair in work.pairs():
        writer = _writer(work, pair.source)
        written = writer is not None and id(writer) in kernels
        seen = any(work.is_seen(node.outputs[0]) for node in pair.dequantize)
        if metadata.RANGE in node_metadata(pair.quantize) and not (
            written or seen or _feeds(work, pair.quantize, kernels)
        ):
            _drop(work, pair)


def integer_operators(work: Work) -> list[Node]:
    """Operators without weights all of whose values are quantized."""
    return [
        node
        for node in work.graph.nodes
        if node.op in work.placement.operators
        and all(map(is_dequantized, node.inputs))
        and work.lands(node.outputs[0])
    ]


def _is_beside(work: Work, node: Node, kernels: set[int]) -> bool:
    """Whether a kernel writes what the node reads, or reads what it writes."""
    sources = [tensor.inputs[0].inputs[0].inputs[0].inputs[0] for tensor in node.inputs if _is_pair(tensor)]
    writers = [_writer(work, source) for source in sources]
    return any(id(writer) in kernels for writer in writers) or any(
        _feeds(work, quantizer, kernels) for quantizer in _quantizers(work, node.outputs[0])
    )


def _quantizers(work: Work, tensor: Tensor) -> Iterator[Node]:
    """The QuantizeLinear nodes behind the tensor, and what hands integers on."""
    for reader in tensor.outputs:
        if reader.op == "QuantizeLinear":
            yield reader
        elif is_floor(reader) or hands_on(reader, work.placement):
            yield from _quantizers(work, reader.outputs[0])


def _is_pair(tensor: Tensor) -> bool:
    return bool(tensor.inputs[0].inputs[0].inputs)


def _writer(work: Work, tensor: Tensor) -> Node | None:
    while tensor.inputs and (is_floor(tensor.inputs[0]) or hands_on(tensor.inputs[0], work.placement)):
        tensor = tensor.inputs[0].inputs[0]
    return tensor.inputs[0] if tensor.inputs else None


def _feeds(work: Work, node: Node, kernels: set[int]) -> bool:
    """Whether a kernel reads the node's result, behind quantization and what hands integers on."""
    for reader in [reader for output in node.outputs for reader in output.outputs]:
        if id(reader) in kernels:
            return True
        if (reader.op in QUANTIZERS or hands_on(reader, work.placement)) and _feeds(work, reader, kernels):
            return True
    return False


def _drop(work: Work, pair: ActivationPair) -> None:
    source = pair.source
    for node in pair.dequantize:
        for reader in list(node.outputs[0].outputs):
            replace_input(reader, node.outputs[0], source)
    work.report.edit(pair.quantize.name, f"{source.name} is float again: nothing computes on its integers")
    for node in pair.nodes:
        disconnect(node)


def shield_layers(work: Work) -> None:
    """Keeps ONNX Runtime from rounding the weights of float layers between pairs.

    Its optimizer WeightBiasQuantization stores a float weight as INT8, with one scale for the whole tensor,
    if the layer reads a DequantizeLinear per tensor and a QuantizeLinear reads the result. There it leaves
    a DequantizeLinear per channel alone, which gives the same numbers where all channels have one scale.
    """
    for node in list(work.graph.nodes):
        if (
            not is_layer(node)
            or not is_dequantized(node.inputs[0])
            or not is_constant(node.inputs[WEIGHT_INPUT])
        ):
            continue
        if is_dequantized(node.inputs[WEIGHT_INPUT]) or not _is_rounded_behind(work, node.outputs[0]):
            continue
        decoder = node.inputs[0].inputs[0]
        parameters = decoder.inputs[1:]
        if any(not isinstance(tensor, Constant) or tensor.values.size > 1 for tensor in parameters):
            continue
        if work.graph.opset < PER_CHANNEL_OPSET:
            work.report.skip(node.name, "below opset 13 ONNX Runtime rounds its weight to INT8; export later")
            continue
        axis, channels = _input_channels(work, node)
        if channels < 2:  # one scale per channel is one scale for all
            work.report.skip(
                node.name, "it has one input channel, and ONNX Runtime rounds its weight to INT8"
            )
            continue
        name = node.inputs[0].name
        result = Variable(work.name(f"{name}_per_channel"), np.float32, node.inputs[0].shape)
        stored = [
            work.constant(tensor.name, np.broadcast_to(tensor.values.reshape(-1), channels).copy())
            for tensor in parameters
        ]
        work.graph.nodes.append(
            Node(
                "DequantizeLinear",
                work.name(f"{name}_DQ"),
                {"axis": axis},
                [decoder.inputs[0], *stored],
                [result],
            )
        )
        node.inputs[0] = result
        work.report.edit(
            node.name, "reads its integers with a scale per channel, so that its weight stays float"
        )


def _is_rounded_behind(work: Work, tensor: Tensor) -> bool:
    """Whether a QuantizeLinear is all that reads the tensor, or the bias, ReLU or Clip behind it."""
    while len(tensor.outputs) == 1 and not work.is_seen(tensor):
        reader = tensor.outputs[0]
        if reader.op == "QuantizeLinear":
            return True
        if reader.op not in ("Relu", "Clip", "Add") or reader.domain:
            return False
        tensor = reader.outputs[0]
    return False


def _input_channels(work: Work, layer: Node) -> tuple[int, int]:
    """Axis of the input channels in what the layer reads, and how many there are."""
    shape = constant_shape(layer.inputs[WEIGHT_INPUT], work.graph.opset)
    if layer.op == "Conv":
        return 1, shape[1] * layer.attrs.get("group", 1)
    if layer.op == "ConvTranspose":
        return 1, shape[0]
    if layer.op == "MatMul":
        return -1, shape[-2] if len(shape) > 1 else shape[0]
    return 0 if layer.attrs.get("transA", 0) else 1, shape[1 if layer.attrs.get("transB", 0) else 0]
