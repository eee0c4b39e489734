"""Where a model joins its outputs of parts: the Concat nodes behind what only moves or scales values.

A detector's output [1, 84, 8400] is four rows of boxes and 80 of scores, joined along axis 1; what it is joined
of need not have one range.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

LARGEST_KEPT = 1024
"""Elements of an initializer whose values shape inference may need."""
_ELEMENTWISE = ("Identity", "Cast", "Relu", "Sigmoid", "Tanh", "Exp", "Softplus", "Clip", "HardSigmoid", "LeakyRelu",
                "Mul", "Add", "Sub", "Div", "Neg", "QuantizeLinear", "DequantizeLinear")  # fmt: skip

MOST_VISITS = 10_000
"""Of nodes; parts that are joined of themselves again and again are seen no further."""

Dims = tuple[int | str | None, ...]
Axes = tuple[int | None, ...]
"""By the axis of a tensor, that of the output."""


@dataclass(frozen=True)
class Join:
    """An output is parts of these sizes, one behind the other along `axis`."""

    axis: int
    sizes: tuple[int, ...]


def joins(model: onnx.ModelProto) -> dict[str, list[Join]]:
    """By the name of an output, the ways in which it is joined; outputs that are not joined are left out."""
    finder = _Finder(model)
    found = {output.name: list(dict.fromkeys(finder.find(output.name))) for output in model.graph.output}
    return {name: parts for name, parts in found.items() if parts}


class _Finder:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.producer = {name: node for node in model.graph.node for name in node.output if name}
        self.constants = {tensor.name for tensor in model.graph.initializer}
        for node in model.graph.node:  # in the order of execution
            if node.op_type == "Constant" or (
                node.input and self.constants.issuperset(filter(None, node.input))
            ):
                self.constants.update(node.output)
        self.dims = _dims(model)
        self.visits = MOST_VISITS

    def find(self, output: str) -> Iterator[Join]:
        dims = self.dims.get(output)
        if dims is not None:
            yield from self._walk(output, tuple(range(len(dims))))

    def _walk(self, name: str, axes: Axes) -> Iterator[Join]:
        at: tuple[str, Axes] | None = (name, axes)
        while at is not None and any(axis is not None for axis in at[1]) and self.visits:
            self.visits -= 1
            node = self.producer.get(at[0])
            if node is not None and node.op_type == "Concat":
                yield from self._concat(node, at[1])
            at = None if node is None else self._before(node, at[1])

    def _before(self, node: onnx.NodeProto, axes: Axes) -> tuple[str, Axes] | None:
        """What the node moves or scales, and its axes; None for any other node."""
        if node.op_type in _ELEMENTWISE:
            sources = [one for one in node.input if one and one not in self.constants]
            if len(sources) == 1 and len(self.dims.get(sources[0], ())) == len(axes):
                return sources[0], axes
        elif node.op_type in ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"):
            moved = self._moved(node, axes)
            return None if moved is None else (node.input[0], moved)
        return None

    def _concat(self, node: onnx.NodeProto, axes: Axes) -> Iterator[Join]:
        axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis") % len(axes)
        sizes = [self.dims.get(name, ())[axis : axis + 1] for name in node.input]
        known = [size[0] for size in sizes if size and isinstance(size[0], int)]
        where = axes[axis]
        if where is not None and len(known) == len(sizes) > 1:
            yield Join(where, tuple(known))
        # parts that are joined alike along another axis, as the levels of a detector
        inner = tuple(None if index == axis else outer for index, outer in enumerate(axes))
        first, *others = [list(self._walk(name, inner)) for name in node.input]
        yield from (join for join in first if all(join in other for other in others))

    def _moved(self, node: onnx.NodeProto, axes: Axes) -> Axes | None:
        """The axes of what the node reads."""
        before, after = self.dims.get(node.input[0]), self.dims.get(node.output[0])
        if before is None or after is None:
            return None
        if node.op_type == "Transpose":
            order = next((list(one.ints) for one in node.attribute if one.name == "perm"), [])
            order = order or list(range(len(axes)))[::-1]
            moved: list[int | None] = [None] * len(axes)
            for index, source in enumerate(order):
                moved[source] = axes[index]
            return tuple(moved)
        moved = [None] * len(before)
        for index in range(min(len(before), len(after))):  # the same sizes from the front, or from the back
            if before[index] != after[index] or before[index] is None:
                break
            moved[index] = axes[index]
        for index in range(1, min(len(before), len(after)) + 1):
            if before[-index] != after[-index] or before[-index] is None:
                break
            moved[-index] = axes[-index]
        return tuple(moved)


def _dims(model: onnx.ModelProto) -> Mapping[str, Dims]:
    """Shapes by tensor, as far as shape inference knows them."""
    small = _without_weights(model)
    try:
        graph = onnx.shape_inference.infer_shapes(small, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError):
        # shapes that are declared stay
        graph = small.graph
    return {
        value.name: tuple(_dim(dim) for dim in value.type.tensor_type.shape.dim)
        for values in (graph.input, graph.value_info, graph.output)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with large initializers as inputs: shape inference copies it."""
    small = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    small.functions.extend(model.functions)
    graph = small.graph
    graph.node.extend(model.graph.node)
    graph.name = model.graph.name or "g"
    for field in ("input", "output", "value_info"):
        getattr(graph, field).extend(getattr(model.graph, field))
    declared = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if _elements(tensor.dims) <= LARGEST_KEPT and tensor.data_location != onnx.TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return small


def _elements(dims: Sequence[int]) -> int:
    count = 1
    for dim in dims:
        count *= dim
    return count
