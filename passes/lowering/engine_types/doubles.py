"""64-bit floats -> 32-bit ones, as TensorRT reads them, so that what is measured is what the engine computes.

input f64 -> ... f64 ... -> output f64      input f64 -> Cast -> ... f32 ... -> Cast -> output f64
"""

import numpy as np
import onnx

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.bodies import parts
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.model import taken_names, unused_name
from onnx_lathe.passes.graph.rewire import replace_input

_DOUBLE = np.dtype(np.float64)
_LARGEST = float(np.finfo(np.float32).max)
_TYPE_ATTRIBUTES = ("to", "dtype")


def single_precision(graph: Graph, report: PassReport) -> None:
    """Changes the graph and its bodies; inputs and outputs of the model keep their type."""
    found = parts(graph)
    tensors = {
        id(tensor): tensor
        for part in found
        for tensor in (*part.graph.tensors().values(), *part.graph.inputs, *part.graph.outputs)
    }
    doubles = [tensor for tensor in tensors.values() if _is_double(tensor)]
    casts = [node for part in found for node in part.graph.nodes if _writes_double(node)]
    if not doubles and not casts:
        return
    outputs = list(graph.outputs)
    _keep_ends(graph, report)
    ends = {id(tensor) for tensor in (*graph.inputs, *graph.outputs, *outputs)}
    for tensor in doubles:
        if id(tensor) in ends:
            continue
        if isinstance(tensor, Constant):
            tensor.values = _narrowed(read(tensor), tensor.name, report)
        else:
            tensor.dtype = np.dtype(np.float32)
    for node in [node for part in found for node in part.graph.nodes]:
        if not _is_end(node, ends):
            _narrow_attributes(node, report)


def _keep_ends(graph: Graph, report: PassReport) -> None:
    taken = taken_names(graph)

    def cast(source: Tensor, result: Tensor, to: int, name: str) -> Node:
        node = Node("Cast", unused_name(name, taken), {"to": to}, [source], [result])
        taken.add(node.name)
        graph.nodes.append(node)
        return node

    def single(name: str, shape: object) -> Variable:
        made = Variable(unused_name(f"{name}_float32", taken), np.float32, shape)
        taken.add(made.name)
        return made

    for tensor in graph.inputs:
        if _is_double(tensor) and isinstance(tensor, Variable):
            inner = single(tensor.name, tensor.shape)
            for reader in list(tensor.outputs):
                replace_input(reader, tensor, inner)
            cast(tensor, inner, onnx.TensorProto.FLOAT, f"{tensor.name}_float32_Cast")
            report.edit(tensor.name, "read as 32-bit floats, as TensorRT does")
    for tensor in graph.outputs:
        if _is_double(tensor) and tensor.inputs:
            producer = tensor.inputs[0]
            casts = producer.op == "Cast" and producer.attrs.get("to") == onnx.TensorProto.DOUBLE
            if casts and not tensor.outputs:
                continue
            inner = single(tensor.name, tensor.shape)
            for reader in list(tensor.outputs):
                replace_input(reader, tensor, inner)
            producer.outputs[next(i for i, one in enumerate(producer.outputs) if one is tensor)] = inner
            cast(inner, tensor, onnx.TensorProto.DOUBLE, f"{tensor.name}_float64_Cast")
            report.edit(tensor.name, "computed in 32-bit floats, as TensorRT does")
    for place, tensor in enumerate(graph.outputs):
        if _is_double(tensor) and isinstance(tensor, Constant):
            inner = single(tensor.name, tensor.shape)
            stored = Constant(inner.name, _narrowed(read(tensor), tensor.name, report))
            for reader in list(tensor.outputs):
                replace_input(reader, tensor, stored)
            graph.outputs[place] = Variable(tensor.name, np.float64, tensor.shape)
            cast(stored, graph.outputs[place], onnx.TensorProto.DOUBLE, f"{tensor.name}_float64_Cast")


def _is_double(tensor: Tensor) -> bool:
    return (
        tensor.dtype is not None and not isinstance(tensor.dtype, int) and np.dtype(tensor.dtype) == _DOUBLE
    )


def _writes_double(node: Node) -> bool:
    return any(node.attrs.get(name) == onnx.TensorProto.DOUBLE for name in _TYPE_ATTRIBUTES) or any(
        isinstance(value, Constant) and _is_double(value) for value in node.attrs.values()
    )


def _is_end(node: Node, ends: set[int]) -> bool:
    """Whether the node casts to an output of the model, which stays as it is."""
    return node.op == "Cast" and bool(node.outputs) and id(node.outputs[0]) in ends


def _narrow_attributes(node: Node, report: PassReport) -> None:
    if not _writes_double(node):
        return
    for name, value in node.attrs.items():
        if name in _TYPE_ATTRIBUTES and value == onnx.TensorProto.DOUBLE:
            node.attrs[name] = int(onnx.TensorProto.FLOAT)
        elif isinstance(value, Constant) and _is_double(value):
            value.values = _narrowed(read(value), node.name, report)
    report.edit(node.name, "32-bit floats instead of 64-bit ones, as TensorRT computes")


def _narrowed(values: np.ndarray, name: str, report: PassReport) -> np.ndarray:
    beyond = int(np.count_nonzero(np.isfinite(values) & (np.abs(values) > _LARGEST)))
    if beyond:
        report.warnings.append(
            f"{name}: {beyond} of its 64-bit floats are beyond those of 32 bits, and become the largest of them"
        )
        values = np.where(np.isfinite(values), np.clip(values, -_LARGEST, _LARGEST), values)
    report.edit(name, "stored as 32-bit floats, as TensorRT reads them")
    return values.astype(np.float32)
