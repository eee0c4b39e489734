"""From what a layer reads back to the DequantizeLinear that made it, past operators that TensorRT moves it through.

Which operators those are was found by building with TensorRT-RTX 1.7 and reading what kernel came of the layer.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnx_lathe.layout import LAYOUT
from onnx_lathe.runtime.targets.core.base import LAYERS

HANDED_ON = frozenset(
    (*LAYOUT, "DepthToSpace", "Dropout", "Expand", "Gather", "GlobalMaxPool", "MaxPool", "ReduceMax", "Slice")
) | {"SpaceToDepth", "Split", "Tile"}
"""Pick and move an activation's values: kernels do that with INT8 as well. Not Resize, and no average."""


class Follower:
    """Reads the main graph of a model. producers: tensor -> node; constants: tensor -> its value."""

    def __init__(
        self, producers: Mapping[str, onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
    ) -> None:
        self.producers = producers
        self.constants = constants

    def activation(self, tensor: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that an activation comes from; one of several where a Concat joins equal scales."""
        node = self.producers.get(tensor)
        while node is not None and self._hands_on(node):
            if node.op_type == "Concat":
                return self._joined(node)
            node = self.producers.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def stopper(self, tensor: str) -> onnx.NodeProto | None:
        """The operator nearest to the layer that INT8 is not moved through, where all that goes into it comes from
        pairs; None where `activation` finds one, or there is none above.
        """
        node = self.producers.get(tensor)
        while node is not None and self._hands_on(node):
            if node.op_type == "Concat" and all(self.activation(name) for name in node.input):
                return None if self._joined(node) else node
            node = self.producers.get(node.input[0])
        return node if node is not None and self._behind_pairs(node) else None

    def _behind_pairs(self, node: onnx.NodeProto) -> bool:
        """Whether pairs, and no layer, lie above all inputs of the node; along operators of one input."""
        while node.op_type not in (*LAYERS, "QuantizeLinear", "DequantizeLinear"):
            computed = [name for name in node.input if name and name not in self.constants]
            if not computed:
                return False
            if all(self.activation(name) for name in computed):
                return True
            above = self.producers.get(computed[0])
            if len(computed) > 1 or above is None:
                return False
            node = above
        return False

    def weight(self, tensor: str) -> onnx.NodeProto | None:
        """The DequantizeLinear that a weight comes from."""
        return self._weight_path(tensor)[0]

    def weight_axis(self, tensor: str, axis: int, shape: Sequence[int]) -> tuple[int, int] | None:
        """(axis, rank) of the weight that the layer reads, for axis `axis` of what its DequantizeLinear gives, of this
        shape. None where it is no axis of that.
        """
        dims = tuple(shape)
        for node in self._weight_path(tensor)[1]:
            moved = self._moved(node, axis, dims)
            if moved is None:
                return None
            axis, dims = moved
        return axis, len(dims)

    def _hands_on(self, node: onnx.NodeProto) -> bool:
        if node.domain or not node.input:
            return False
        if node.op_type == "Pad":
            return self._pads_with_zero(node)
        return node.op_type in HANDED_ON or node.op_type == "Concat"

    def _pads_with_zero(self, node: onnx.NodeProto) -> bool:
        """Or with values of the tensor itself."""
        modes = [attribute.s for attribute in node.attribute if attribute.name == "mode"]
        if modes and modes[0] != b"constant":
            return True
        if len(node.input) < 3 or not node.input[2]:
            return True
        value = self.constants.get(node.input[2])
        return value is not None and not np.any(onnx.numpy_helper.to_array(value))

    def _joined(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        parts = [self.activation(name) for name in node.input]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        scales = [self.constants.get(part.input[1]) for part in found]
        known = [scale for scale in scales if scale is not None and scale.data_location == 0]
        values = [onnx.numpy_helper.to_array(scale) for scale in known]
        same = len(values) == len(found) and all(np.array_equal(value, values[0]) for value in values)
        return found[0] if same or len({part.input[1] for part in found}) == 1 else None

    def _weight_path(self, tensor: str) -> tuple[onnx.NodeProto | None, list[onnx.NodeProto]]:
        """The DequantizeLinear, or None, and what lies between it and the layer, in the order of the data."""
        path: list[onnx.NodeProto] = []
        node = self.producers.get(tensor)
        while node is not None and node.op_type in LAYOUT and not node.domain:
            path.insert(0, node)
            node = self.producers.get(node.input[0])
        return (node if node is not None and node.op_type == "DequantizeLinear" else None), path

    def _moved(
        self, node: onnx.NodeProto, axis: int, dims: tuple[int, ...]
    ) -> tuple[int, tuple[int, ...]] | None:
        """(axis, shape) behind the node."""
        if node.op_type == "Identity":
            return axis, dims
        if node.op_type == "Transpose":
            order = self._integers(node, "perm") or list(range(len(dims)))[::-1]
            return order.index(axis), tuple(dims[place] for place in order)
        after = self._reshaped(node, dims)
        if after is None:
            return None
        before = math.prod(dims[:axis])
        for place, size in enumerate(after):
            if size == dims[axis] and math.prod(after[:place]) == before:
                return place, after
        return None

    def _reshaped(self, node: onnx.NodeProto, dims: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape that Reshape, Flatten, Squeeze or Unsqueeze gives; None where it is not a constant."""
        if node.op_type == "Flatten":
            start = next((item.i for item in node.attribute if item.name == "axis"), 1)
            first = start + len(dims) if start < 0 else start
            return math.prod(dims[:first]), math.prod(dims[first:])
        key = "shape" if node.op_type == "Reshape" else "axes"
        given = self._integers(node, key)
        if node.op_type == "Squeeze" and given is None and len(node.input) < 2:
            return tuple(size for size in dims if size != 1)
        if given is None:
            return None
        if node.op_type == "Squeeze":
            gone = {place % len(dims) for place in given}
            return tuple(size for place, size in enumerate(dims) if place not in gone)
        if node.op_type == "Unsqueeze":
            rank = len(dims) + len(given)
            new, rest = {place % rank for place in given}, iter(dims)
            return tuple(1 if place in new else next(rest) for place in range(rank))
        sizes = [dims[place] if size == 0 else size for place, size in enumerate(given)]
        known = math.prod(size for size in sizes if size > 0)
        return tuple(math.prod(dims) // known if size < 0 else size for size in sizes)

    def _integers(self, node: onnx.NodeProto, attribute: str) -> list[int] | None:
        """Of an attribute, or of the second input in its place."""
        for item in node.attribute:
            if item.name == attribute:
                return list(item.ints)
        value = self.constants.get(node.input[1]) if len(node.input) > 1 else None
        return None if value is None else [int(size) for size in onnx.numpy_helper.to_array(value).ravel()]
