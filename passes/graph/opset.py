"""Raises a graph's opset in place, with the converter of the ONNX project."""

import onnx
from onnx import version_converter

from onnx_lathe.passes.graph import Graph, Variable
from onnx_lathe.passes.graph.bodies import constants, parts
from onnx_lathe.passes.graph.constants import constant_to_initializer
from onnx_lathe.passes.graph.initializers import to_initializer
from onnx_lathe.passes.graph.keeping import has_functions
from onnx_lathe.passes.graph.model import export_model, import_model, node_metadata
from onnx_lathe.passes.graph.quantization.propagation import keep_loadable
from onnx_lathe.passes.graph.skeleton import signature, skeleton


def raise_opset(graph: Graph, wanted: int) -> str | None:
    """The same graph at opset `wanted`, bodies of If, Loop and Scan included. Returns why it cannot be raised,
    with nothing changed.

    All nodes and tensors are new objects afterwards; nodes keep their names and metadata, big initializers
    of the main graph are not copied.
    """
    if has_functions(graph):
        return "it has local functions"
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
    said = {
        node.name: (node_metadata(node), getattr(node, "doc_string", ""))
        for part in parts(graph)
        for node in part.graph.nodes
    }
    stored = {tensor.name: tensor for tensor, _ in constants(parts(graph))}
    inputs = {tensor.name for tensor in graph.inputs}
    for tensor in converted.inputs:
        if tensor.name not in inputs:
            to_initializer(tensor, stored[tensor.name])
    converted.inputs = [tensor for tensor in converted.inputs if tensor.name in inputs]
    before = {part.place: part.graph for part in parts(graph)}
    for part in parts(converted):
        for node in part.graph.nodes:
            node.metadata, node.doc_string = said.get(node.name, ({}, ""))
            if node.op == "Constant" and node.name not in said:  # an attribute that became an input
                constant_to_initializer(node)
        part.graph.nodes = [node for node in part.graph.nodes if node.outputs]
        _declare_as(part.graph, before[part.place])
        if part.node is not None:
            part.graph.kept = before[part.place].kept
            part.graph.doc_string = before[part.place].doc_string
    graph.inputs, graph.outputs, graph.nodes = converted.inputs, converted.outputs, converted.nodes
    graph.opset = converted.opset
    graph.import_domains = converted.import_domains


def _declare_as(graph: Graph, before: Graph) -> None:
    """Shapes of inputs and outputs: the converter infers those that a model leaves open."""
    for side, old in ((graph.inputs, before.inputs), (graph.outputs, before.outputs)):
        for tensor, known in zip(side, old, strict=True):
            if isinstance(tensor, Variable):
                tensor.shape = known.shape
