"""Edits of the wiring: taking a node out, and what must not be taken out because somebody else reads it by
name.
"""

from collections.abc import Collection

from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor
from onnx_lathe.passes.graph.bodies import all_tensors
from onnx_lathe.passes.graph.model import set_sparse_tensors, sparse_tensors


def captured_names(graph: Graph) -> set[str]:
    """Names that subgraphs (bodies of If, Loop, Scan) read, at any depth: their own tensors', and the
    graph's that they capture.
    """
    return {
        tensor.name
        for body in graph.subgraphs(recursive=True)
        for tensor in [t for n in body.nodes for t in n.inputs] + list(body.outputs)
    }


def is_output(graph: Graph, tensor: Tensor) -> bool:
    return any(tensor is output for output in graph.outputs)


def replace_input(node: Node, old: Tensor, new: Tensor) -> None:
    """The node reads `new` wherever it read `old`."""
    for index, tensor in enumerate(node.inputs):
        if tensor is old:
            node.inputs[index] = new


def disconnect(node: Node) -> None:
    """Takes the node out of its tensors' lists; `sweep` then drops it from the graph."""
    node.inputs.clear()
    node.outputs.clear()


def bypass(graph: Graph, node: Node, captured: Collection[str]) -> bool:
    """Takes out a node whose first output equals its first input, if every name that others rely on can
    stay. Says whether it did.

    Readers of the output read the input instead. When the output is an output of the graph, the input's
    producer writes it directly.
    """
    source, result = node.inputs[0], node.outputs[0]
    if result.name in captured:
        return False
    if not is_output(graph, result):
        disconnect(node)
        for reader in list(result.outputs):
            replace_input(reader, result, source)
        _rename_sparse(graph, result.name, source.name)
        return True
    computed = not isinstance(source, Constant) and len(source.inputs) == 1
    if (
        not computed
        or is_output(graph, source)
        or source.name in captured
        or source.name in sparse_tensors(graph)
    ):
        return False
    producer = source.inputs[0]
    disconnect(node)
    for reader in list(source.outputs):
        replace_input(reader, source, result)
    producer.outputs[next(i for i, t in enumerate(producer.outputs) if t is source)] = result
    return True


def sweep(graph: Graph) -> list[str]:
    """Removes nodes that no output of the graph needs, and `lathe.sparse` entries that name nothing any more.

    Returns the names of removed nodes that were still connected. Bodies of If, Loop and Scan, and local
    functions, stay as they are.
    """
    before = [node for node in graph.nodes if node.outputs]
    graph.cleanup(recurse_subgraphs=False, recurse_functions=False)
    kept = {id(node) for node in graph.nodes}
    tensors = all_tensors(graph)
    sparse = sparse_tensors(graph)
    if sparse.keys() - tensors.keys():
        set_sparse_tensors(graph, {name: pattern for name, pattern in sparse.items() if name in tensors})
    return [node.name for node in before if id(node) not in kept]


def _rename_sparse(graph: Graph, old: str, new: str) -> None:
    sparse = sparse_tensors(graph)
    if old in sparse:
        set_sparse_tensors(
            graph, {new: sparse[old], **{name: pattern for name, pattern in sparse.items() if name != old}}
        )
