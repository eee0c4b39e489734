"""The part of a model that some of its tensors depend on."""

from collections.abc import Collection, Iterator

import onnx


def model_up_to(model: onnx.ModelProto, tensors: Collection[str]) -> onnx.ModelProto:
    """A model with these tensors of the main graph as outputs, of unstated type, and no node that they do
    not need.
    """
    wanted, nodes = set(tensors), []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            nodes.append(node)
            wanted.update(_read(node))
    part = onnx.ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = model.graph.name or "graph"
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in wanted)
    part.graph.sparse_initializer.extend(
        tensor for tensor in model.graph.sparse_initializer if tensor.values.name in wanted
    )
    part.graph.input.extend(value for value in model.graph.input if value.name in wanted)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    return part


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads; those that its bodies read, which may be their own."""
    yield from node.input
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            yield from (value.name for value in body.output)
            for inner in body.node:
                yield from _read(inner)
