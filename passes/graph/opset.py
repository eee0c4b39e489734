"""Raises a graph's opset in place, with the converter of the ONNX project."""

import onnx
from onnx import version_converter

from onnx_lathe.passes.graph import Constant, Graph, Variable
from onnx_lathe.passes.graph.constants import constant_to_initializer
from onnx_lathe.passes.graph.initializers import to_initializer
from onnx_lathe.passes.graph.keeping import has_functions
from onnx_lathe.passes.graph.model import export_model, import_model, node_metadata
from onnx_lathe.passes.graph.quantization.propagation import keep_loadable
from onnx_lathe.passes.graph.skeleton import signature, skeleton


def raise_opset(graph: Graph, wanted: int) -> str | None:
    """The same graph at opset `wanted`. Returns why it cannot be raised, with nothing changed.

    All nodes and tensors are new objects afterwards; nodes keep their names and metadata, big initializers
    are not copied.
    """
    if has_functions(graph) or any(True for _ in graph.subgraphs()):
        return "it has subgraphs or local functions"
    original = export_model(graph)
    light = skeleton(original)
    try:
        converted = version_converter.convert_version(light, wanted)
        onnx.checker.check_model(converted)
    except (RuntimeError, version_converter.ConvertError, onnx.checker.ValidationError) as error:
        return " ".join(str(error).split())
    if _ranks(converted) != _ranks(light):
        return "the converter changed its inputs or outputs"
    _adopt(graph, import_model(converted))
    keep_loadable(graph)
    return None


def _ranks(model: onnx.ModelProto) -> dict[str, tuple[str, int, int]]:
    """What a caller sees, but for sizes: the converter infers those that the model leaves open."""
    return {key: (name, element, len(shape)) for key, (_, name, element, shape) in signature(model).items()}


def _adopt(graph: Graph, converted: Graph) -> None:
    """`graph` takes the nodes of `converted`, whose big initializers are inputs."""
    said = {node.name: (node_metadata(node), getattr(node, "doc_string", "")) for node in graph.nodes}
    stored = {name: tensor for name, tensor in graph.tensors().items() if isinstance(tensor, Constant)}
    inputs = {tensor.name for tensor in graph.inputs}
    for tensor in converted.inputs:
        if tensor.name not in inputs:
            to_initializer(tensor, stored[tensor.name])
    for node in converted.nodes:
        node.metadata, node.doc_string = said.get(node.name, ({}, ""))
        if node.op == "Constant" and node.name not in said:  # an attribute that became an input
            constant_to_initializer(node)
    shapes = [{tensor.name: tensor.shape for tensor in side} for side in (graph.inputs, graph.outputs)]
    graph.inputs = [tensor for tensor in converted.inputs if tensor.name in inputs]
    graph.outputs = converted.outputs
    for side, known in zip((graph.inputs, graph.outputs), shapes, strict=True):
        for tensor in side:
            if isinstance(tensor, Variable):
                tensor.shape = known[tensor.name]
    graph.nodes = [node for node in converted.nodes if node.outputs]
    graph.opset = converted.opset
    graph.import_domains = converted.import_domains
