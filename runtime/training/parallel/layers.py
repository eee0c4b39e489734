"""The layers of a model as costs.py counts them, from its nodes and the shapes of its tensors.

Operators with one input that keep its layout (ReLU, batch normalization, dropout) belong to the layer before them: their
vectors are its vectors, and what they keep for the backward pass is kept in its layout.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx

from onnx_lathe.macs import FUSED, OpenShape, macs_of
from onnx_lathe.runtime.training.parallel.costs import ELEMENT_BYTES
from onnx_lathe.runtime.training.parallel.geometry import (
    CONCAT,
    CONV,
    FLATTEN,
    GEMM,
    JOIN,
    MEAN,
    OTHER,
    PLACE,
    POOL,
    Axis,
    Layer,
)

_BEHIND = """
    Abs BatchNormalization Cast Celu Clip Dropout Elu Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Log Mish
    Neg PRelu Relu Selu Sigmoid Softplus Softsign Sqrt Swish Tanh
"""
BEHIND = frozenset(_BEHIND.split())
"""They keep any layout of the tensor that they read."""
JOINS = frozenset(["Add", "Div", "Max", "Min", "Mul", "Sub", "Sum"])
FLATTENS = frozenset(["Flatten", "Reshape", "Squeeze", "Unsqueeze"])
POOLS = frozenset(["AveragePool", "GlobalMaxPool", "LpPool", "MaxPool"])
MEANS = frozenset(["GlobalAveragePool", "ReduceMean", "ReduceSum"])


@dataclass
class Network:
    """`left_out`: (node, why) of what has no layer. `results`: tensor -> place of the layer that makes it."""

    layers: list[Layer] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    results: dict[str, int] = field(default_factory=dict)


def layers_of(
    nodes: Iterable[onnx.NodeProto],
    shapes: Mapping[str, OpenShape],
    fed: Collection[str],
    batch: int = 1,
    kept: Mapping[str, int] | None = None,
) -> Network:
    """`nodes` of the main graph in order; `shapes` of all tensors, with `batch` samples; `fed`: the names of the inputs.
    `kept`: bytes that the backward pass reads of a tensor, of all samples, by the name under which a node made it; without,
    each product keeps its input.
    """
    reader = _Reader(shapes, fed, batch, kept)
    for number, node in enumerate(nodes):
        reader.take(node, node.name or f"{node.op_type}_{number}")
    reader.finish()
    return reader.network


class _Reader:
    def __init__(
        self,
        shapes: Mapping[str, OpenShape],
        fed: Collection[str],
        batch: int,
        kept: Mapping[str, int] | None,
    ) -> None:
        self.network = Network()
        self._shapes, self._batch, self._kept = shapes, batch, kept
        self._made: dict[str, int | None] = dict.fromkeys(fed)
        """Tensor that depends on the inputs -> its layer, None for an input itself. Others are constants."""
        self._counted: set[str] = set()
        self._root: dict[str, str] = {}
        """Tensor -> the one that holds the same numbers."""

    def take(self, node: onnx.NodeProto, name: str) -> None:
        read = [one for one in node.input if one in self._made]
        if not read:
            return
        sizes = {one: self._size(one) for one in (*node.input, *node.output) if one}
        if any(sizes[one] is None for one in (*read, *filter(None, node.output[:1]))):
            self.network.left_out.append((name, "a size is not known before the model runs"))
            self._results(node, self._made[read[0]])
            return
        layer = self._layer(node, name, read)
        place = self._made[read[0]]
        if layer is None and place is not None:
            self._follow(node, place)
            return
        if layer is None:  # it works on the model's inputs, which every worker has
            self._results(node, None)
            return
        reads = tuple(dict.fromkeys(one for tensor in read if (one := self._made[tensor]) is not None))
        kept_input = sum(self._take(tensor) for tensor in read) if layer.kind in (CONV, GEMM, OTHER) else 0
        self.network.layers.append(replace(layer, reads=reads, kept_input=kept_input))
        self._results(node, len(self.network.layers) - 1)

    def _results(self, node: onnx.NodeProto, place: int | None) -> None:
        for name in filter(None, node.output):
            self._made[name] = place
            if place is not None:
                self.network.results[name] = place

    def _follow(self, node: onnx.NodeProto, place: int) -> None:
        """Counts the node's vectors in the layer before it."""
        layer = self.network.layers[place]
        trained = node.input[1:3] if node.op_type == "BatchNormalization" else node.input[1:]
        own = sum(self._elements(name) for name in trained if name not in self._made)
        if node.op_type in ("BatchNormalization", "PRelu"):
            self.network.layers[place] = replace(layer, vectors=layer.vectors + own)
        if node.op_type in ("Dropout", "Identity"):
            self._root[node.output[0]] = self._resolved(node.input[0])
        self._results(node, place)

    def finish(self) -> None:
        """Counts what is kept and no product reads, in the layer that makes it."""
        for name, place in self.network.results.items():
            if own := self._take(name) if self._kept is not None else 0:
                layer = self.network.layers[place]
                self.network.layers[place] = replace(layer, kept_result=layer.kept_result + own)

    def _take(self, tensor: str) -> int:
        """Elements of one sample that are kept of it and were not counted yet."""
        tensor = self._resolved(tensor)
        if tensor in self._counted:
            return 0
        self._counted.add(tensor)
        if self._kept is not None:
            return self._kept.get(tensor, 0) // (ELEMENT_BYTES * self._batch)
        return self._elements(tensor) // self._batch

    def _resolved(self, tensor: str) -> str:
        while tensor in self._root:
            tensor = self._root[tensor]
        return tensor

    def _size(self, name: str) -> tuple[int, ...] | None:
        shape = self._shapes.get(name)
        sizes = tuple(size for size in shape or () if isinstance(size, int))
        return sizes if shape is not None and len(sizes) == len(shape) else None

    def _elements(self, name: str) -> int:
        return math.prod(self._size(name) or (0,))

    def _layer(self, node: onnx.NodeProto, name: str, read: Sequence[str]) -> Layer | None:
        """None for what belongs to the layer before it."""
        op = FUSED.get(node.op_type, node.op_type)
        source, result = self._size(read[0]) or (), self._size(node.output[0]) or ()
        if op in BEHIND and len(read) == 1:
            return None
        if op in JOINS:
            return None if len(read) == 1 else self._plain(name, JOIN, result)
        if op in FLATTENS:
            self._root[node.output[0]] = self._resolved(read[0])
            flattens = len(source) > 2 and len(result) == 2
            return (
                self._flattened(name, source, result) if flattens else self._other(node, name, source, result)
            )
        if op == "LRN":
            return self._plain(name, PLACE, result)
        if op == "Concat":
            side_by_side = _integer(node, "axis", 1) % len(result) == 1
            return self._plain(name, CONCAT if side_by_side else PLACE, result)
        if (
            op in MEANS
            and len(source) > 2
            and math.prod(result) == math.prod(source[:2]) == math.prod(result[:2])
        ):
            return self._window(name, MEAN, source, (*source[:2], *(1 for _ in source[2:])), (), ())
        if op in POOLS:
            return self._window(name, POOL, source, result, _integers(node, "kernel_shape"), (), node)
        weight = (
            self._size(node.input[1]) if len(node.input) > 1 and node.input[1] not in self._made else None
        )
        if op == "Conv" and weight is not None:
            layer = self._window(name, CONV, source, result, weight[2:], node.input[2:3], node)
            return replace(layer, groups=_integer(node, "group", 1))
        dense = op == "MatMul" or (op == "Gemm" and not _integer(node, "transA", 0))
        if dense and weight is not None and len(weight) == 2:
            return self._dense(node, name, source, result)
        return self._other(node, name, source, result)

    def _plain(self, name: str, kind: str, result: tuple[int, ...]) -> Layer:
        if len(result) < 2:
            return Layer(name, kind, 1, 1)
        axes = tuple(Axis(size, size) for size in result[2:])
        return Layer(name, kind, result[1], result[1], axes)

    def _flattened(self, name: str, source: tuple[int, ...], result: tuple[int, ...]) -> Layer:
        axes = tuple(Axis(size, 1) for size in source[2:])
        return Layer(name, FLATTEN, source[1], result[1], axes)

    def _window(
        self,
        name: str,
        kind: str,
        source: tuple[int, ...],
        result: tuple[int, ...],
        kernel: Sequence[int],
        biases: Sequence[str],
        node: onnx.NodeProto | None = None,
    ) -> Layer:
        rank = len(source) - 2
        strides = _integers(node, "strides") or (1,) * rank
        dilations = _integers(node, "dilations") or (1,) * rank
        axes = []
        for place, (size, out) in enumerate(zip(source[2:], result[2:], strict=True)):
            taps = kernel[place] if kernel else size
            axis = Axis(size, out, taps, strides[place], dilations[place])
            axes.append(replace(axis, before=_before(node, place, axis)))
        vectors = sum(map(self._elements, biases))
        return Layer(name, kind, source[1], result[1], tuple(axes), vectors=vectors)

    def _dense(
        self, node: onnx.NodeProto, name: str, source: tuple[int, ...], result: tuple[int, ...]
    ) -> Layer:
        rows = max(1, math.prod(result[:-1]) // self._batch)
        vectors = sum(self._elements(one) for one in node.input[2:3] if one not in self._made)
        return Layer(name, GEMM, source[-1], result[-1], rows=rows, vectors=vectors)

    def _other(
        self, node: onnx.NodeProto, name: str, source: tuple[int, ...], result: tuple[int, ...]
    ) -> Layer:
        """Runs whole; a size that is not known counts as no arithmetic, and is named."""
        macs = macs_of(node, self._shapes)
        if isinstance(macs, str):
            self.network.left_out.append((name, macs))
        weights = sum(self._elements(one) for one in node.input if one not in self._made) if macs else 0
        count = macs // self._batch if isinstance(macs, int) else 0
        sizes = (math.prod(source) // self._batch, math.prod(result) // self._batch)
        return Layer(name, OTHER, max(1, sizes[0]), max(1, sizes[1]), macs=count, other_weights=weights)


def _integers(node: onnx.NodeProto | None, name: str) -> tuple[int, ...]:
    attributes = () if node is None else node.attribute
    return next((tuple(item.ints) for item in attributes if item.name == name), ())


def _integer(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), default)


def _before(node: onnx.NodeProto | None, place: int, axis: Axis) -> int:
    """Zeros in front of the first input (ONNX: pads, auto_pad)."""
    if node is None:
        return 0
    auto = next((item.s.decode() for item in node.attribute if item.name == "auto_pad"), "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        total = max((axis.out - 1) * axis.stride + axis.extent - axis.size, 0)
        return total // 2 if auto == "SAME_UPPER" else total - total // 2
    pads = _integers(node, "pads")
    return pads[place] if pads and auto == "NOTSET" else 0
