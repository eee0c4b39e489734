"""The shapes of all tensors, those inside bodies of If, Loop and Scan too, and how often a body runs.

onnx.shape_inference leaves open what a Loop carries from step to step, because a body may change its shape. Here
the shape is that of the first value, where the body then gives the same shape back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnx_lathe.macs import OpenShape
from onnx_lathe.passes.graph.bodies import graph_protos
from onnx_lathe.passes.graph.skeleton import runtime_inputs, skeleton

ROUNDS = 4
"""A shape goes one body further inwards, or out of a Loop, in each."""


@dataclass
class Scope:
    """A graph of the model with the shapes and small constants that its nodes can read. `outer` is the scope
    around it, `node` whose body it is, `attribute` the name under which; None for the main graph.
    """

    graph: onnx.GraphProto
    outer: "Scope | None" = None
    node: onnx.NodeProto | None = None
    attribute: str = ""
    number: int = 0
    bodies: "list[Scope]" = field(default_factory=list)
    shapes: dict[str, OpenShape] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    """Element types, as numbers of onnx.TensorProto."""
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)


def scopes(
    model: onnx.ModelProto, sizes: Mapping[str, OpenShape] | None = None, batch: int = 1
) -> list[Scope]:
    """The main graph and its bodies in the order of passes.graph.bodies.parts. Inputs have the `sizes` given by their
    name; else `batch` where their first axis is open. Without shapes if they do not fit each other.
    """
    light = skeleton(model)
    fed = {value.name for value in runtime_inputs(model)}
    for value in [value for value in light.graph.input if value.name in fed]:
        dims = value.type.tensor_type.shape.dim
        for dim in dims:
            if dim.dim_value < 0:  # PaddlePaddle's way to leave a size open
                dim.Clear()
        for dim, size in zip(dims, (sizes or {}).get(value.name, ()), strict=False):
            if isinstance(size, int):
                dim.dim_value = size
        if dims and not dims[0].dim_value:
            dims[0].dim_value = batch
    for graph in graph_protos(light.graph):
        del graph.value_info[:]
        for value in graph.output:
            value.type.tensor_type.ClearField("shape")
    facts, found = _Facts(), _opened(light, inferred=False)
    for _ in range(ROUNDS):
        try:
            found = _opened(onnx.shape_inference.infer_shapes(facts.told(light), data_prop=True))
        except onnx.shape_inference.InferenceError:
            return found
        learnt = [facts.learn(scope, number) for number, scope in enumerate(found)]
        if not any(learnt):
            return found
    return found


def _opened(model: onnx.ModelProto, inferred: bool = True) -> list[Scope]:
    found = [Scope(model.graph)]
    for number, scope in enumerate(found):
        scope.number = number
        if scope.outer is not None:
            scope.shapes, scope.constants = dict(scope.outer.shapes), dict(scope.outer.constants)
            scope.types = dict(scope.outer.types)
        graph = scope.graph
        if inferred:
            for value in [*graph.input, *graph.value_info, *graph.output]:
                scope.shapes.pop(value.name, None)
                if value.type.tensor_type.elem_type:
                    scope.types[value.name] = value.type.tensor_type.elem_type
                if value.type.tensor_type.HasField("shape"):
                    dims = value.type.tensor_type.shape.dim
                    scope.shapes[value.name] = tuple(dim.dim_value or dim.dim_param or "?" for dim in dims)
        scope.shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        scope.types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        scope.constants |= {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    scope.constants[node.output[0]] = attribute.t
                if attribute.HasField("g"):
                    scope.bodies.append(Scope(attribute.g, scope, node, attribute.name))
        found += scope.bodies
    return found


class _Facts:
    """Shapes that shape inference is told: of what bodies carry, and of what Loops and Scans give back. The keys
    are numbers of scopes, and positions of inputs or names of tensors.
    """

    def __init__(self) -> None:
        self.carried: dict[tuple[int, int], OpenShape | None] = {}
        self.results: dict[tuple[int, str], OpenShape] = {}

    def told(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of the model that states the facts."""
        if not self.carried and not self.results:
            return model
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        graphs = graph_protos(copy.graph)
        for (number, index), shape in self.carried.items():
            _declare(graphs[number].input[index], shape)
        for (number, name), shape in self.results.items():
            outputs = [value for value in graphs[number].output if value.name == name]
            _declare(outputs[0] if outputs else graphs[number].value_info.add(name=name), shape)
        return copy

    def learn(self, scope: Scope, number: int) -> bool:
        """Takes up what follows from the shapes of a body and of the graph around it. Says whether that is news."""
        node, outer, body = scope.node, scope.outer, scope.graph
        if node is None or outer is None or node.op_type not in ("Loop", "Scan"):
            return False
        before = dict(self.carried), dict(self.results)
        loop = node.op_type == "Loop"
        skip, carried = (2, len(node.input) - 2) if loop else (0, len(node.input) - _scanned(node))
        for index in range(carried):
            first = outer.shapes.get(node.input[index + skip])
            inside, key = scope.shapes.get(body.input[index + skip].name), (number, index + skip)
            if first is None or (key in self.carried and self.carried[key] is None):
                continue
            if inside != first and not _is_known(inside):
                self.carried[key] = first
            elif inside == first == scope.shapes.get(body.output[index + skip // 2].name):
                self._result(outer, node.output[index], first)
            else:
                self.carried[key] = None  # it changes from step to step
        count = trips(node, outer) if loop else ""
        for index in range(carried, len(node.output)):
            shape = scope.shapes.get(body.output[index + skip // 2].name)
            if shape is not None and isinstance(count, int):
                self._result(outer, node.output[index], (count, *shape))
        return before != (self.carried, self.results)

    def _result(self, scope: Scope, name: str, shape: OpenShape) -> None:
        if name and not _is_known(scope.shapes.get(name)):
            self.results[scope.number, name] = shape


def _is_known(shape: OpenShape | None) -> bool:
    return shape is not None and all(isinstance(size, int) for size in shape)


def _scanned(node: onnx.NodeProto) -> int:
    return next(int(item.i) for item in node.attribute if item.name == "num_scan_inputs")


def _declare(value: onnx.ValueInfoProto, shape: OpenShape | None) -> None:
    """States the shape, or that it is not known."""
    if shape is None:
        value.type.tensor_type.ClearField("shape")
        return
    if not value.type.tensor_type.elem_type:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    value.type.tensor_type.shape.Clear()
    for size in shape:
        if isinstance(size, int):
            value.type.tensor_type.shape.dim.add(dim_value=size)
        else:
            value.type.tensor_type.shape.dim.add(dim_param=size if size != "?" else "")


def trips(node: onnx.NodeProto, scope: Scope) -> int | str:
    """How often the body of a Loop or Scan runs, or why that is not known."""
    if node.op_type == "Scan":
        return _scan_length(node, scope)
    limit = scope.constants.get(node.input[0])
    if limit is None:
        return "how often its body runs is known only when it runs"
    body = next(item.g for item in node.attribute if item.name == "body")
    begins = len(node.input) < 2 or not node.input[1] or _is_true(scope.constants.get(node.input[1]))
    if not begins or not _goes_on(body, scope.constants):
        return "its condition, which depends on the data, may end it early"
    return max(0, int(onnx.numpy_helper.to_array(limit).reshape(-1)[0]))


def _goes_on(body: onnx.GraphProto, outside: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether the condition that the body computes is always true, given that it is so before."""
    makers = {name: node for node in body.node for name in node.output}
    inside = {tensor.name: tensor for tensor in body.initializer}
    name = body.output[0].name
    while (node := makers.get(name)) is not None:
        if node.op_type == "Constant":
            return any(item.name == "value" and _is_true(item.t) for item in node.attribute)
        if node.op_type not in ("Identity", "Cast"):
            return False
        name = node.input[0]
    return name == body.input[1].name or _is_true(inside.get(name, outside.get(name)))


def _is_true(tensor: onnx.TensorProto | None) -> bool:
    return tensor is not None and bool(np.all(onnx.numpy_helper.to_array(tensor)))


def _scan_length(node: onnx.NodeProto, scope: Scope) -> int | str:
    attributes = {item.name: item for item in node.attribute}
    scanned = _scanned(node)
    axes = list(attributes["scan_input_axes"].ints) if "scan_input_axes" in attributes else [0] * scanned
    for name, axis in zip(node.input[len(node.input) - scanned :], axes, strict=True):
        shape = scope.shapes.get(name)
        if shape is not None and isinstance(shape[axis], int):
            return int(shape[axis])
    return "how many steps it scans is known only when it runs"
