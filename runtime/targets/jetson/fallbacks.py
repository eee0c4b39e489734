"""What of a network a DLA core does not compute, so that it runs on the GPU between parts that DLA does.

The rules are those of NVIDIA's page "DLA Supported Layers and Restrictions" for TensorRT 11.4.1, and what trtexec of
TensorRT 10.3 said of a ResNet-50 on an AGX Orin. Nothing here was run on a DLA. The builder on the device decides.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper

from onnx_lathe.layout import LAYOUT
from onnx_lathe.runtime.files.external_data import externalized
from onnx_lathe.runtime.targets.core.base import LAYERS
from onnx_lathe.runtime.targets.tensorrt.check import QUANTIZERS, verdicts

KERNEL, STRIDE, CHANNELS = 32, 8, 8192
POOL_WINDOW, POOL_STRIDE = 8, 16
TAKEN = frozenset(
    ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "PRelu", "Clip", "Add", "Sub", "Mul", "Div", "Max", "Min", "Sum")
    + ("BatchNormalization", "LRN", "Gemm", "MatMul")
)
"""Operators that a DLA core computes on tensors of up to four dimensions."""
MOVED = ("Constant", "Identity", "Cast", "Dropout", *QUANTIZERS)
"""Of which no layer of TensorRT's becomes one for DLA or GPU that counts."""
FLOAT = "it computes in float32, and DLA in float16 and INT8: add float16 to the passes (TensorRT 10 makes it float16 by itself)"
WITH_TENSORRT_10 = "with JetPack 6 all {count} layers between Q/DQ pairs run on the GPU: DLA takes no such pairs before TensorRT 11.4.1"

ON_GPU = "on the GPU, not on DLA"
BETWEEN_PAIRS = "on the GPU with JetPack 6: DLA takes no Q/DQ pairs before TensorRT 11.4.1"


@dataclass(frozen=True)
class _Graph:
    """What is known of the main graph: constants by name, element types and numbers of dimensions of tensors."""

    constants: Mapping[str, TensorProto]
    types: Mapping[str, int]
    ranks: Mapping[str, int]

    def dims(self, name: str) -> list[int]:
        return list(self.constants[name].dims) if name in self.constants else []


def fallbacks(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """(node, reason), in graph order, of the lowered model's main graph; the first entry may be one of all quantized
    layers, with TensorRT 10.
    """
    quantized = [verdict.node for verdict in verdicts(model) if verdict.int8]
    found = [(quantized[0], WITH_TENSORRT_10.format(count=len(quantized)))] if quantized else []
    return found + _never(model, quantized)


def layers_on_gpu(model: onnx.ModelProto) -> dict[str, str]:
    """Node -> reason, of each by itself: also of every quantized layer, with TensorRT 10."""
    quantized = [verdict.node for verdict in verdicts(model) if verdict.int8]
    return dict.fromkeys(quantized, BETWEEN_PAIRS) | {
        node: f"{ON_GPU}: {reason}" for node, reason in _never(model, quantized)
    }


def _never(model: onnx.ModelProto, quantized: Sequence[str]) -> list[tuple[str, str]]:
    """What DLA takes with no TensorRT. `quantized`: layers between Q/DQ pairs."""
    graph = _known(model)
    found = []
    near = _beside_pairs(model.graph)
    for index, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type}_{index}"
        if node.op_type in MOVED or all(tensor in graph.constants for tensor in node.input if tensor):
            continue
        reason = _reason(node, graph)
        if not reason and not (name in quantized or node.output[0] in near):
            reason = FLOAT if graph.types.get(node.output[0]) == TensorProto.FLOAT else ""
        if reason:
            found.append((name, reason))
    return found


def count_layers(model: onnx.ModelProto) -> int:
    """Nodes that count: of which `fallbacks` says something or nothing."""
    constants = _known(model).constants
    return sum(
        node.op_type not in MOVED and not all(name in constants for name in node.input if name)
        for node in model.graph.node
    )


def _known(model: onnx.ModelProto) -> _Graph:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    light, _ = externalized(model, "elsewhere")  # shapes of the large ones are enough
    try:
        shaped = onnx.shape_inference.infer_shapes(light)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        shaped = light
    types: dict[str, int] = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    ranks: dict[str, int] = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    for value in (*shaped.graph.input, *shaped.graph.value_info, *shaped.graph.output):
        tensor_type = value.type.tensor_type
        types[value.name] = tensor_type.elem_type
        if tensor_type.HasField("shape"):
            ranks[value.name] = len(tensor_type.shape.dim)
    return _Graph(constants, types, ranks)


def _beside_pairs(graph: onnx.GraphProto) -> set[str]:
    """Tensors that are quantized next, or were just now, also through what only moves them."""
    near = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.node:
        if node.op_type in (*LAYOUT, "Relu", "MaxPool", "Concat", "Clip") and near & set(node.input):
            near.update(node.output)
    for node in reversed(graph.node):
        if node.op_type == "QuantizeLinear" or (
            near & set(node.output) and node.op_type not in (*LAYERS, "DequantizeLinear")
        ):
            near.update(
                name for name in node.input[: 1 if node.op_type == "QuantizeLinear" else None] if name
            )
    return near


def _reason(node: onnx.NodeProto, graph: _Graph) -> str:
    if node.domain:
        return f"DLA does not know the domain {node.domain}"
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    rule = _RULES.get(node.op_type)
    if rule is not None:
        return rule(node, attributes, graph)
    if node.op_type not in TAKEN:
        return f"DLA has no {node.op_type}"
    rank = graph.ranks.get(node.output[0], 0)
    return f"its result has {rank} dimensions; DLA takes up to 4" if rank > 4 else ""


def _convolution(node: onnx.NodeProto, attributes: Mapping[str, Any], graph: _Graph) -> str:
    weight = graph.dims(node.input[1])
    kernel = attributes.get("kernel_shape") or weight[2:]
    if len(kernel) not in (0, 2):
        return f"its kernel has {len(kernel)} dimensions; DLA takes 2"
    if any(size > KERNEL for size in kernel):
        return f"its kernel is larger than {KERNEL}"
    if any(size > STRIDE for size in attributes.get("strides", ())):
        return f"its stride is larger than {STRIDE}"
    if weight and max(weight[:2]) > CHANNELS:
        return f"it has more than {CHANNELS} channels"
    return ""


def _transposed(node: onnx.NodeProto, attributes: Mapping[str, Any], graph: _Graph) -> str:
    if attributes.get("group", 1) > 1 or any(size > 1 for size in attributes.get("dilations", ())):
        return "a transposed convolution with groups or dilation"
    if any(attributes.get("pads", ())) or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return "a transposed convolution with padding"
    return _convolution(node, attributes, graph)


def _pooling(node: onnx.NodeProto, attributes: Mapping[str, Any], graph: _Graph) -> str:
    kernel = attributes.get("kernel_shape", ())
    if len(kernel) != 2:
        return f"its window has {len(kernel)} dimensions; DLA takes 2"
    if any(size > POOL_WINDOW for size in kernel):
        return f"its window {'x'.join(map(str, kernel))} is larger than {POOL_WINDOW}"
    if any(size > POOL_STRIDE for size in attributes.get("strides", ())):
        return f"its stride is larger than {POOL_STRIDE}"
    if any(size > 1 for size in attributes.get("dilations", ())):
        return "a pooling with dilation"
    return ""


def _concatenation(node: onnx.NodeProto, attributes: Mapping[str, Any], graph: _Graph) -> str:
    rank = graph.ranks.get(node.output[0], 4)
    axis = attributes.get("axis", 1) % max(rank, 1)
    return "" if axis == 1 else f"it joins along axis {axis}; DLA joins channels"


def _resize(node: onnx.NodeProto, attributes: Mapping[str, Any], graph: _Graph) -> str:
    mode = attributes.get("mode", b"nearest")
    if mode not in (b"nearest", b"linear"):
        return f"DLA does not resize by {mode.decode()}"
    return "" if graph.ranks.get(node.output[0], 4) == 4 else "DLA resizes four dimensions"


def _softmax(node: onnx.NodeProto, attributes: Mapping[str, Any], graph: _Graph) -> str:
    rank = graph.ranks.get(node.output[0], 4)
    return "" if rank == 4 else f"a softmax of {rank} dimensions; DLA takes 4"


_RULES: Mapping[str, Callable[[onnx.NodeProto, Mapping[str, Any], _Graph], str]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "MaxPool": _pooling,
    "AveragePool": _pooling,
    "GlobalAveragePool": lambda node, attributes, graph: "DLA has no mean over whole pictures (AVG Reduce)",
    "Concat": _concatenation,
    "Resize": _resize,
    "Softmax": _softmax,
    "Reshape": lambda node, attributes, graph: "DLA does not reshape (SHUFFLE)",
    "Flatten": lambda node, attributes, graph: "DLA does not reshape (SHUFFLE)",
}
