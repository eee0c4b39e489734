"""Models in half precision, float16 or bfloat16, for passes that compute in float32.

    x f16 -> Conv(W f16) -> y f16      is lifted to      x f16 -> Cast -> Conv(W f32) -> Cast -> y f16

and lowered afterwards: what was half is half again, and so is what the pass made between it. A cast widens
exactly, so that a weight which the pass did not touch keeps its bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_lathe.passes.float16.ports import QUANTIZERS, Half, Ports, half_ports
from onnx_lathe.passes.float16.writer import Borders, write_half
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.constants import constant_to_initializer
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.model import node_metadata, taken_names, unused_name
from onnx_lathe.passes.graph.opset import raise_opset
from onnx_lathe.passes.graph.rewire import is_output, replace_input
from onnx_lathe.passes.graph.shapes import TensorType, infer_types

_T = onnx.TensorProto
SCALES_OPSET = 19
"""The first opset whose QuantizeLinear and DequantizeLinear take float16."""
_LIFTED = "lathe.lifted"
"""Marks, while a pass runs, the Casts at the model's inputs and outputs."""


@dataclass
class Lifted:
    """What a lifted graph was before. `halves`: names of tensors that were half; `floats`: float32."""

    half: Half
    halves: frozenset[str]
    floats: frozenset[str]

    def lower(self, graph: Graph) -> None:
        """The graph in half precision again."""
        if graph.opset < SCALES_OPSET and any(n.op in QUANTIZERS and not n.domain for n in graph.nodes):
            raise_opset(graph, SCALES_OPSET)  # where it cannot be raised, pairs stay in float32
        for node in graph.nodes:
            node_metadata(node).pop(_LIFTED, None)
        graph.toposort()
        types = infer_types(graph)
        ports: dict[str, Ports] = {}
        chosen = self._halves(graph, types)
        for node in graph.nodes:
            found = half_ports(node, graph.opset, types, self.half) if node.name in chosen else None
            if isinstance(found, Ports):
                ports[node.name] = found
        write_half(Borders(graph, ports, types), self.half)

    def _halves(self, graph: Graph, types: Mapping[str, TensorType]) -> set[str]:
        """Nodes that compute in half: those that did, and new ones beside them."""
        known: dict[str, bool] = dict.fromkeys(self.halves, True) | dict.fromkeys(self.floats, False)
        chosen, open_nodes = set[str](), list[Node]()
        for node in graph.nodes:
            named = [known[t.name] for t in node.outputs if t.name in known]
            read_ = [known[t.name] for t in node.inputs if t.name in known and not isinstance(t, Constant)]
            weights = [known[t.name] for t in node.inputs if t.name in known and isinstance(t, Constant)]
            votes = named or read_ or weights
            if not votes:
                open_nodes.append(node)
                continue
            for tensor in node.outputs:
                known.setdefault(tensor.name, any(votes))
            if any(votes):
                chosen.add(node.name)
        for node in reversed(open_nodes):  # made of new constants: as its readers
            readers = [reader.name in chosen for tensor in node.outputs for reader in tensor.outputs]
            if any(readers) or not readers:
                chosen.add(node.name)
        return chosen


def lift(graph: Graph) -> Lifted | None:
    """Makes all half tensors float32. None, with nothing changed, for a graph without half weights, or one
    whose half tensors are read by bodies or by operators that are not of the ONNX standard.
    """
    element = next((e for t in graph.tensors().values() if (e := _weight_element(t)) is not None), None)
    if element is None or any(True for _ in graph.subgraphs()):
        return None
    _take_up_constants(graph)
    types = infer_types(graph)
    halves = frozenset(name for name, kind in types.items() if kind.element == element)
    if any(node.domain and {t.name for t in [*node.inputs, *node.outputs]} & halves for node in graph.nodes):
        return None
    half = Half(element)
    floats = frozenset(name for name, kind in types.items() if kind.element == _T.FLOAT)
    for tensor in graph.tensors().values():
        if isinstance(tensor, Constant):
            if _element(tensor) == element:
                tensor.values = read(tensor).astype(np.float32)
                tensor.data_location = None
        elif tensor.name in halves and not _is_end(graph, tensor):
            tensor.dtype = np.dtype(np.float32)
    for node in graph.nodes:
        _retype(node, element)
    return Lifted(half, halves | _cast_ends(graph, halves, element), floats)


def _element(tensor: Tensor) -> int:
    kind = tensor.dtype
    if kind is None:
        return 0
    return int(kind) if isinstance(kind, int) else int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)))


def _weight_element(tensor: Tensor) -> int | None:
    """FLOAT16 or BFLOAT16, of a constant that a layer may read, or its decoder."""
    element = _element(tensor) if isinstance(tensor, Constant) else 0
    return element if element in (_T.FLOAT16, _T.BFLOAT16) and len(tensor.shape) > 0 else None


def _take_up_constants(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op == "Constant" and not node.domain and not is_output(graph, node.outputs[0]):
            constant_to_initializer(node)
    graph.nodes = [node for node in graph.nodes if node.outputs]


def _retype(node: Node, element: int) -> None:
    for name in ("to", "output_dtype", "dtype"):
        if node.attrs.get(name) == element:
            node.attrs[name] = int(_T.FLOAT)
    value = node.attrs.get("value")
    if isinstance(value, Constant) and _element(value) == element:
        node.attrs["value"] = Constant("", read(value).astype(np.float32))


def _is_end(graph: Graph, tensor: Tensor) -> bool:
    return is_output(graph, tensor) or any(tensor is value for value in graph.inputs)


def _cast_ends(graph: Graph, halves: frozenset[str], element: int) -> set[str]:
    """Inputs and outputs keep their type, with a Cast behind or in front. Names of the new tensors."""
    taken, made = taken_names(graph), set[str]()

    def cast(source: Tensor, result: Tensor, to: int) -> None:
        name = unused_name(f"{result.name}_lift", taken)
        taken.add(name)
        node = Node("Cast", name, {"to": int(to)}, [source], [result])
        node_metadata(node)[_LIFTED] = "true"
        graph.nodes.append(node)

    def variable(tensor: Tensor) -> Variable:
        name = unused_name(f"{tensor.name}_float32", taken)
        taken.add(name)
        made.add(name)
        return Variable(name, np.dtype(np.float32), tensor.shape)

    for tensor in graph.inputs:
        if tensor.name in halves:
            wide = variable(tensor)
            for reader in list(tensor.outputs):
                replace_input(reader, tensor, wide)
            cast(tensor, wide, _T.FLOAT)
    for tensor in graph.outputs:
        if tensor.name in halves and tensor.inputs and not isinstance(tensor, Constant):
            producer = tensor.inputs[0]
            if producer.op == "Cast" and node_metadata(producer).get(_LIFTED):
                continue
            wide = variable(tensor)
            place = next(i for i, output in enumerate(producer.outputs) if output is tensor)
            for reader in list(tensor.outputs):
                replace_input(reader, tensor, wide)
            producer.outputs[place] = wide
            cast(wide, tensor, element)
    graph.toposort()
    return made
