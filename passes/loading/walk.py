"""Goes through all graphs of a model: the main one and the bodies that its nodes carry."""

from collections.abc import Iterator

import onnx


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph, and the bodies of its nodes at any depth."""
    yield graph
    for node in graph.node:
        yield from bodies(node)


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of the node, and theirs."""
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            yield from graphs(body)


def names(graph: onnx.GraphProto) -> set[str]:
    """Every name of a value or node, those of the bodies included: a body sees the names around it."""
    found: set[str] = set()
    for part in graphs(graph):
        found.update(value.name for value in (*part.input, *part.output, *part.value_info))
        found.update(tensor.name for tensor in part.initializer)
        found.update(sparse.values.name for sparse in part.sparse_initializer)
        for node in part.node:
            found.update((node.name, *node.input, *node.output))
    return found


def standard_opset(model: onnx.ModelProto) -> onnx.OperatorSetIdProto | None:
    """The entry of the standard operators."""
    return next((entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
