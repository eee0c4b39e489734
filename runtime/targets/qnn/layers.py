"""Which layers the chip computes on integers: those between quantizers. All others it computes in float16, unsaid."""

from collections.abc import Iterator

import onnx

from onnx_lathe.runtime.targets.core.base import NOT_QUANTIZED, LayerVerdict, layers_of

FUSED = ("Relu", "Clip")
"""What may stand between a layer and the quantizer of its result."""
RESULT = "its result is not quantized, so the chip computes it in float16 from a weight that the CPU decodes"


def verdicts(model: onnx.ModelProto) -> list[LayerVerdict]:
    """One per layer of the main graph, in graph order."""
    return list(_verdicts(model))


def _verdicts(model: onnx.ModelProto) -> Iterator[LayerVerdict]:
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in model.graph.output}
    for index, node in layers_of(model).items():
        name = node.name or f"{node.op_type}_{index}"
        source, weight = (makers.get(tensor) == "DequantizeLinear" for tensor in node.input[:2])
        reason = ""
        if not (source or weight):
            reason = NOT_QUANTIZED
        elif not (source and weight):
            reason = f"only its {'weight' if weight else 'input'} is quantized"
        elif not _is_quantized(node.output[0], readers, outputs):
            reason = RESULT
        yield LayerVerdict(name, node.op_type, not reason, reason)


def _is_quantized(tensor: str, readers: dict[str, list[onnx.NodeProto]], outputs: set[str]) -> bool:
    found = readers.get(tensor, [])
    while tensor not in outputs and len(found) == 1 and found[0].op_type in FUSED:
        tensor = found[0].output[0]
        found = readers.get(tensor, [])
    return bool(found) and tensor not in outputs and all(node.op_type == "QuantizeLinear" for node in found)
