"""ModelProto <-> onnx-graphsurgeon graph, keeping what graphsurgeon itself drops or writes wrongly.

onnx-graphsurgeon 0.6 loses much of what a model says (keeping.py), writes a 4-bit tensor as one byte per
element, and leaves initializers that are also inputs (IR version 3) as initializers alone, which is not valid
at that version.
"""

from collections.abc import Collection

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.importers.onnx_importer import (
    OnnxImporter,
    get_onnx_tensor_dtype,
    get_onnx_tensor_shape,
)
from onnx_graphsurgeon.logger import G_LOGGER

from onnx_lathe import held, metadata
from onnx_lathe.passes.graph import Constant, Graph, Node, Variable
from onnx_lathe.passes.graph.ancestors import model_up_to
from onnx_lathe.passes.graph.bodies import (
    constants,
    detach_attributes,
    fill,
    graph_protos,
    parts,
    store_once,
    take_up,
)
from onnx_lathe.passes.graph.initializers import (
    data_withheld,
    is_sparse,
    know_held,
    let_go,
    size_bytes,
    store_packed,
)
from onnx_lathe.passes.graph.keeping import keep, restore
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
    graph = OnnxImporter.import_graph(
        model.graph,
        opset=OnnxImporter.get_opset(model),
        import_domains=OnnxImporter.get_import_domains(model),
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        ir_version=model.ir_version,
    )
    keep(graph, model)
    graph.metadata = {entry.key: entry.value for entry in model.metadata_props}
    _declare(graph, model)
    taken = {node.name for node in model.graph.node if node.name}
    seen: set[str] = set()
    for index, node in enumerate(graph.nodes):
        detach_attributes(node)
        if not node.name or node.name in seen:
            node.name = unused_name(f"{node.name or node.op}_{index}", taken)
            taken.add(node.name)
        seen.add(node.name)
    take_up(graph, model)
    if held.are_any():
        for tensor, _ in constants(parts(graph)):
            know_held(tensor)
    return graph


def _declare(graph: Graph, model: onnx.ModelProto) -> None:
    """Inputs and outputs have the type and shape that the model declares: onnx-graphsurgeon prefers an entry of
    value_info of the same name, which quantizers leave without a shape, and which may say something else.
    """
    declared_inputs = {value.name: value for value in model.graph.input}
    fed = [(tensor, declared_inputs[tensor.name]) for tensor in graph.inputs]
    for tensor, declared in [*fed, *zip(graph.outputs, model.graph.output, strict=True)]:
        if isinstance(tensor, Variable) and declared.type.HasField("tensor_type"):
            tensor.dtype = get_onnx_tensor_dtype(declared)
            tensor.shape = get_onnx_tensor_shape(declared)


def export_model(graph: Graph) -> onnx.ModelProto:
    """The graph as a ModelProto, nodes in topological order. Tensors never read are the imported ones,
    unchanged.
    """
    model, held = _without_data(graph)
    store_once(graph, model, {id(tensor) for tensor in held})
    _complete(graph, model)
    return model


class Snapshot:
    """The graph as it is now, parts of which can be had as models of their own once it has changed.

    The data of large initializers is not copied: what is taken out of a graph keeps it.
    """

    def __init__(self, graph: Graph) -> None:
        self.frame, held = _without_data(graph)
        """The model, in which large initializers say their type and shape, and that their data is elsewhere."""
        self._held = {tensor.name: tensor for tensor in held}
        for proto in graph_protos(self.frame.graph):
            for stored in proto.initializer:
                if stored.name in self._held:
                    stored.data_location = onnx.TensorProto.EXTERNAL
        store_once(graph, self.frame, ())
        _complete(graph, self.frame)

    def up_to(self, tensors: Collection[str]) -> onnx.ModelProto:
        """As `model_up_to`, of the whole model."""
        part = model_up_to(self.frame, tensors)
        fill(part, self._held)
        return part


def _without_data(graph: Graph) -> tuple[onnx.ModelProto, list[Constant]]:
    """The graph as onnx-graphsurgeon writes it, and the large initializers, which have no data in it."""
    stored = [tensor for tensor, _ in constants(parts(graph))]
    for tensor in stored:
        if tensor.dtype in FOUR_BIT:
            store_packed(tensor)
        else:
            let_go(tensor)
    graph.toposort()
    # onnx-graphsurgeon copies the whole model three times as it writes it
    held = [tensor for tensor in stored if not is_sparse(tensor) and size_bytes(tensor) >= BIG_BYTES]
    with data_withheld(held):
        return gs.export_onnx(graph, do_type_check=False), held


def _complete(graph: Graph, model: onnx.ModelProto) -> None:
    model.ir_version = max(model.ir_version, 4)
    for key, value in getattr(graph, "metadata", {}).items():
        model.metadata_props.add(key=key, value=value)
    restore(graph, model)


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
