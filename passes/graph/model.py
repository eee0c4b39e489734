"""ModelProto <-> onnx-graphsurgeon graph, keeping what graphsurgeon itself drops or writes wrongly.

onnx-graphsurgeon 0.6 loses metadata (of the model and of nodes) and node doc strings, writes a 4-bit tensor
as one byte per element, and leaves initializers that are also inputs (IR version 3) as initializers alone,
which is not valid at that version.
"""

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from onnx_lathe import metadata
from onnx_lathe.passes.graph import Graph, Node
from onnx_lathe.passes.graph.bodies import constants, detach_attributes, parts, store_once, take_up
from onnx_lathe.passes.graph.initializers import data_withheld, is_sparse, size_bytes, store_packed
from onnx_lathe.passes.graph.names import unused_name as unused_name

G_LOGGER.severity = G_LOGGER.ERROR  # its warnings speak of graphsurgeon's internals

BIG_BYTES = 1 << 14
FOUR_BIT = (np.dtype(ml_dtypes.uint4), np.dtype(ml_dtypes.int4))
FOUR_BIT_OPSET = 21
"""The first opset whose Cast and DequantizeLinear take 4-bit integers."""
FOUR_BIT_IR_VERSION = 10


def import_model(model: onnx.ModelProto) -> Graph:
    """A graph whose tensors read the model's lazily: nothing is copied until a pass asks for values.

    Every node gets a unique name, so that a report can name it. `graph.metadata` and `node.metadata` are
    dicts of strings.
    """
    graph = gs.import_onnx(model)
    graph.metadata = {entry.key: entry.value for entry in model.metadata_props}
    taken = {node.name for node in model.graph.node if node.name}
    seen: set[str] = set()
    for index, (node, proto) in enumerate(zip(graph.nodes, model.graph.node, strict=True)):
        node.metadata = {entry.key: entry.value for entry in proto.metadata_props}
        node.doc_string = proto.doc_string
        detach_attributes(node)
        if not node.name or node.name in seen:
            node.name = unused_name(f"{node.name or node.op}_{index}", taken)
            taken.add(node.name)
        seen.add(node.name)
    take_up(graph, model)
    return graph


def export_model(graph: Graph) -> onnx.ModelProto:
    """The graph as a ModelProto, nodes in topological order. Tensors never read are the imported ones,
    unchanged.
    """
    stored = [tensor for tensor, _ in constants(parts(graph))]
    for tensor in stored:
        if tensor.dtype in FOUR_BIT:
            store_packed(tensor)
    graph.toposort()
    # onnx-graphsurgeon copies the whole model three times as it writes it
    held = [tensor for tensor in stored if not is_sparse(tensor) and size_bytes(tensor) >= BIG_BYTES]
    with data_withheld(held):
        model = gs.export_onnx(graph, do_type_check=False)
    store_once(graph, model, {id(tensor) for tensor in held})
    model.ir_version = max(model.ir_version, 4)
    for key, value in getattr(graph, "metadata", {}).items():
        model.metadata_props.add(key=key, value=value)
    return model


def node_metadata(node: Node) -> dict[str, str]:
    """The node's metadata, to read or to write; empty for a node just created."""
    if not hasattr(node, "metadata"):
        node.metadata = {}
    metadata: dict[str, str] = node.metadata
    return metadata


def sparse_tensors(graph: Graph) -> dict[str, str]:
    """Tensor name -> pattern of the tensors whose zeros must stay."""
    text = graph.metadata.get(metadata.SPARSE)
    return metadata.parse_sparse(text) if text else {}


def set_sparse_tensors(graph: Graph, tensors: dict[str, str]) -> None:
    if tensors:
        graph.metadata[metadata.SPARSE] = metadata.format_sparse(tensors)
    else:
        graph.metadata.pop(metadata.SPARSE, None)


def free_name(graph: Graph, wanted: str) -> str:
    """`wanted`, or it with the first free number behind, among the graph's tensors and nodes."""
    return unused_name(wanted, taken_names(graph))


def taken_names(graph: Graph) -> set[str]:
    """Names of tensors and nodes, those inside subgraphs included: a body must not name a tensor like one
    of the graph around it.
    """
    parts = [graph, *graph.subgraphs(recursive=True)]
    ends = {tensor.name for part in parts for tensor in [*part.inputs, *part.outputs]}
    return ends.union(
        *(part.tensors() for part in parts), (node.name for part in parts for node in part.nodes)
    )
