"""Shapes as far as they can be told: those that ONNX's inference finds, and those of Reshapes to what is computed from
other shapes, which it gives up.

    Reshape(x [N,C,H,W], Concat(Cast(Slice(Shape(x), 0, 2)), -1))      [N,C,?]
    Conv(Reshape(x, shape [4]), w [8,4,3,3])                           its input has four axes
"""

from collections.abc import Sequence

import numpy as np
import onnx

from onnx_lathe.engines import says_nothing
from onnx_lathe.passes.graph import Graph, Variable
from onnx_lathe.passes.graph.bodies import constants, parts
from onnx_lathe.passes.graph.initializers import data_withheld, is_sparse, size_bytes
from onnx_lathe.passes.graph.model import BIG_BYTES, export_model
from onnx_lathe.passes.graph.shapes import TensorType, type_of
from onnx_lathe.passes.graph.skeleton import skeleton
from onnx_lathe.passes.lowering.litert_layout.storage import Size

ROUNDS = 30
"""How often what was found is inferred from anew at most: once for each Reshape behind another."""
SAME_NUMBERS = ("Cast", "Identity", "Squeeze", "Unsqueeze")
SAME_SHAPE = ("GroupNormalization",)
"""Operators that inference says nothing of, with what they write shaped like what they read."""
OF_IMAGES = ("AveragePool", "Conv", "ConvTranspose", "MaxPool")


def infer(graph: Graph) -> dict[str, TensorType]:
    """Types by tensor name. Unknown sizes of inputs each get a name, also where a converter wrote the same one, such as
    ?, for all.
    """
    known = [(tensor, tensor.shape) for tensor in graph.inputs if isinstance(tensor, Variable)]
    big = [one for one, _ in constants(parts(graph)) if not is_sparse(one) and size_bytes(one) >= BIG_BYTES]
    for tensor, shape in known:
        tensor.shape = shape and [
            size if _is_said(size) else invented(tensor.name, axis) for axis, size in enumerate(shape)
        ]
    try:
        with data_withheld(big):
            model = skeleton(export_model(graph))
    finally:
        for tensor, shape in known:
            tensor.shape = shape
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    for _ in range(ROUNDS):
        types = _inferred(model)
        hints = _Hints(model, types).found()
        if not hints:
            break
        model.graph.value_info.extend(hints)
    return types


def invented(tensor: str, axis: int) -> str:
    """The name of a size that nothing names."""
    return f"{tensor}[{axis}]"


def _is_said(size: Size) -> bool:
    """Whether a declared size says anything."""
    return size >= 0 if isinstance(size, int) else bool(size) and not says_nothing(str(size))


def _inferred(model: onnx.ModelProto) -> dict[str, TensorType]:
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    return {
        **{value.name: type_of(value) for value in values if value.type.tensor_type.elem_type},
        **{tensor.name: TensorType(tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer},
    }


class _Hints:
    """Shapes of tensors whose rank inference has not found."""

    def __init__(self, model: onnx.ModelProto, types: dict[str, TensorType]) -> None:
        self.model, self.types = model, types
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.given = {value.name for value in model.graph.value_info}

    def found(self) -> list[onnx.ValueInfoProto]:
        hints: dict[str, onnx.ValueInfoProto] = {}
        for node in self.model.graph.node:
            if node.domain:
                continue
            if node.op_type == "Reshape":
                sizes = self._reshaped(node)
                self._add(hints, node.output[0], node.input[0], sizes)
            elif node.op_type in SAME_SHAPE:
                self._add(hints, node.output[0], node.input[0], self._shape(node.input[0]))
            elif node.op_type in OF_IMAGES and self._shape(node.input[0]) is None:
                rank = self._image_rank(node)
                self._add(hints, node.input[0], node.input[0], None if rank is None else [None] * rank)
        return list(hints.values())

    def _add(
        self,
        hints: dict[str, onnx.ValueInfoProto],
        tensor: str,
        like: str,
        sizes: Sequence[Size] | None,
    ) -> None:
        if sizes is None or tensor in self.given or self._shape(tensor) is not None or like not in self.types:
            return
        element = self.types[like].element
        hints[tensor] = onnx.helper.make_tensor_value_info(tensor, element, list(sizes))

    def _shape(self, tensor: str) -> tuple[Size, ...] | None:
        return self.types[tensor].shape if tensor in self.types else None

    def _image_rank(self, node: onnx.NodeProto) -> int | None:
        for attribute in node.attribute:
            if attribute.name == "kernel_shape":
                return len(attribute.ints) + 2
        weight = self._shape(node.input[1]) if len(node.input) > 1 else None
        return None if weight is None else len(weight)

    def _reshaped(self, node: onnx.NodeProto) -> list[Size] | None:
        numbers = self.numbers(node.input[1])
        if numbers is None:
            return None
        source = self._shape(node.input[0])
        copies = all(attribute.name != "allowzero" or not attribute.i for attribute in node.attribute)
        return [
            None
            if one == -1 or (one == 0 and (not copies or source is None or axis >= len(source)))
            else source[axis]
            if one == 0 and source is not None
            else one
            for axis, one in enumerate(numbers)
        ]

    def numbers(self, tensor: str) -> list[Size] | None:
        """The elements of a vector, or the number, that the model computes from shapes; None for each that is not
        known, None for all if it is not known how many there are.
        """
        if tensor in self.stored:
            return [int(one) for one in onnx.numpy_helper.to_array(self.stored[tensor]).reshape(-1)]
        node = self.makers.get(tensor)
        found = None if node is None or node.domain else self._computed(node)
        shape = self._shape(tensor)
        if found is None and shape is not None and len(shape) < 2 and all(isinstance(n, int) for n in shape):
            return [None] * int(np.prod([int(one) for one in shape if isinstance(one, int)]))
        return found

    def _computed(self, node: onnx.NodeProto) -> list[Size] | None:
        if node.op_type in SAME_NUMBERS:
            return self.numbers(node.input[0])
        if node.op_type == "Concat":
            pieces = [self.numbers(one) for one in node.input]
            return None if None in pieces else [one for piece in pieces for one in piece or ()]
        if node.op_type == "Shape" and not node.attribute:
            shape = self._shape(node.input[0])
            return None if shape is None else list(shape)
        if node.op_type not in ("Gather", "Slice"):
            return None
        source, *others = (self.numbers(one) for one in node.input)
        places = [[one for one in other or () if isinstance(one, int)] for other in others]
        if source is None or any(other is None or None in other for other in others):
            return None
        if node.op_type == "Gather":
            return [source[one] for one in places[0] if -len(source) <= one < len(source)]
        step = places[3][0] if len(places) > 3 else 1
        return source[places[0][0] : places[1][0] : step] if len(places) > 1 and step else None
