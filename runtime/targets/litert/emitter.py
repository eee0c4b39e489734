"""Short names for what builders write in several operators: arithmetic, moves and constants between their tensors.

    emit = Emitter(node, net)
    x = emit.read(0)
    gate = emit.unary("LOGISTIC", emit.mul(x, emit.number(1.702)))
    emit.leave(emit.mul(x, gate))

A tensor is its place in the file, as everywhere in the writer. The shape of a result is followed here, at both sizes that
the model is looked at with (facts.py): a Dim has a size for each, and is open where they differ.
"""

import functools
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from onnx_lathe.runtime.targets.litert.dimensions import (
    ONE,
    Dim,
    broadcast,
    fixed,
    is_open,
    known,
    pairs,
    spacing,
    total,
)
from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.options import OPTIONS
from onnx_lathe.runtime.targets.litert.tensors import NUMPY, Tensor

FLOAT, INT32, INT64, BOOL = "FLOAT32", "INT32", "INT64", "BOOL"
NARROW = frozenset(("INT8", "UINT8", "INT16"))
NUMBERS = frozenset((FLOAT, INT32, INT64))
"""What most arithmetic is computed with."""
COMPARED = frozenset(
    ("LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL", "EQUAL", "NOT_EQUAL", "LOGICAL_AND", "LOGICAL_OR")
)
TYPE_OF = {np.dtype(kind).name: name for name, kind in NUMPY.items() if name != "INT4"}


class Emitter:
    """Writes operators for one node. `label` begins the names of their results. `in_float`: a node between stored tensors is
    computed in float all the same: what it reads is decoded, and what it leaves is stored.
    """

    def __init__(self, node: Node, net: Network) -> None:
        self.node, self.net, self.label = node, net, node.name
        self.in_float = False
        self._made: set[int] = set()
        self._dims: dict[int, tuple[Dim, ...]] = {}

    # What is known

    def type(self, place: int) -> str:
        return self.net.tensors[place].type

    def dims(self, place: int) -> tuple[Dim, ...]:
        """Of a tensor that was read or written here, or of a constant."""
        known = self._dims.get(place)
        return tuple(fixed(*self.net.tensors[place].shape)) if known is None else known

    def rank(self, place: int) -> int:
        return len(self.dims(place))

    def given(self, position: int = 0) -> tuple[Dim, ...]:
        """The dimensions of the node's output at a position, as the model has them."""
        return pairs(self.net, self.node.outputs[position])

    # What is read

    def read(self, position: int = 0) -> int:
        return self.tensor(self.node.inputs[position])

    def operand(self, position: int = 0) -> int:
        """As `read`; where the node computes on integers, a constant is the one that the graph stores."""
        place = self._known(self.net.operand(self.node, position), self.node.inputs[position])
        if self.in_float and self.net.tensors[place].quantization is not None:
            return self.op("DEQUANTIZE", [place], None, FLOAT)
        return place

    def tensor(self, name: str) -> int:
        return self._known(self.net.read(name), name)

    def _known(self, place: int, name: str) -> int:
        self._dims[place] = pairs(self.net, name)
        return place

    def number(self, value: float, type: str = FLOAT) -> int:
        """A constant of rank 0."""
        return self.net.store(np.array(value, NUMPY[type]), type, f"{self.label}_{value:g}")

    def constant(self, values: np.ndarray, what: str = "constant") -> int:
        """Of the type of the array."""
        return self.net.store(values, TYPE_OF[values.dtype.name], f"{self.label}_{what}")

    def floats(self, values: np.ndarray, what: str = "constant") -> int:
        return self.net.floats(values, f"{self.label}_{what}")

    def integers(self, values: Sequence[int] | np.ndarray, what: str = "axes") -> int:
        return self.net.ints(values, f"{self.label}_{what}")

    def computed(self, position: int, allowed: Collection[str]) -> int:
        """An input in one of the types that the operator's kernels compute with: integers of fewer bits become INT32.

        Raises Unsupported for another type.
        """
        place = self.operand(position)
        kind = self.type(place)
        if self.node.on_integers or kind in allowed:
            return place
        if kind in NARROW and INT32 in allowed:
            return self.cast(place, INT32)
        types = " and ".join(sorted(allowed))
        raise Unsupported(
            f"it computes with {kind}, and LiteRT's kernel with {types}: cast its inputs to one of these"
        )

    # What is written

    def op(
        self,
        code: str,
        inputs: Sequence[int],
        dims: Sequence[Dim] | None = None,
        type: str | None = None,
        options: str | None = None,
        rescaled: bool = False,
        **fields: Any,
    ) -> int:
        """One result, of the first input's dimensions and type where none are told. Of a stored input it has the scale,
        too, or is `rescaled` to that of the node's output.
        """
        dims = self.dims(inputs[0]) if dims is None else dims
        model = self.net.tensors[inputs[0]]
        scale = model.quantization if type in (None, model.type) else None
        if rescaled and self.node.on_integers:
            scale = self.net.quantization(self.node.outputs[0])
        label, shape = f"{self.label}_{code.lower()}", tuple(size for size, _ in dims)
        place = self.net.add(Tensor(label, type or model.type, shape, (), scale))
        self.net.operate(code, inputs, [place], OPTIONS.get(code, "") if options is None else options, fields)
        return self._note(place, dims)

    def several(
        self,
        code: str,
        inputs: Sequence[int],
        results: Sequence[tuple[Sequence[Dim], str]],
        options: str = "",
        like: int = 0,
        **fields: Any,
    ) -> list[int]:
        """Results of these dimensions and types. Those of the type of one input, `like`, have its quantization too."""
        model = self.net.tensors[inputs[like]]
        places = []
        for dims, kind in results:
            scale = model.quantization if kind == model.type else None
            shape = tuple(size for size, _ in dims)
            label = f"{self.label}_{code.lower()}"
            places.append(self._note(self.net.add(Tensor(label, kind, shape, (), scale)), dims))
        self.net.operate(code, inputs, places, options, fields)
        return places

    def _note(self, place: int, dims: Sequence[Dim]) -> int:
        self._dims[place] = tuple(dims)
        self.net.tensors[place].signature = tuple(known(dim) for dim in dims)
        self._made.add(place)
        return place

    def last(self, code: str, inputs: Sequence[int], options: str | None = None, **fields: Any) -> None:
        """Writes the operator whose result is the node's output. It has the dimensions that its inputs broadcast to; where
        it computed with another type than the output's, that is cast.
        """
        options = OPTIONS.get(code, "") if options is None else options
        kind = BOOL if code in COMPARED else self.type(inputs[0])
        if self.node.on_integers or kind == self.net.element(self.node.outputs[0]):
            self.net.put(self.node, code, inputs, options, **fields)
        else:
            dims = functools.reduce(broadcast, map(self.dims, inputs))
            self.leave(self.op(code, inputs, dims, kind, options, **fields))

    def leave(self, place: int, position: int = 0) -> None:
        """Makes a tensor the node's output, and names it so if it is of this node's making."""
        name = self.node.outputs[position]
        if self.in_float and self.type(place) == FLOAT:
            place = self.op("QUANTIZE", [place], None, self.net.element(name), rescaled=True)
        elif self.node.on_integers:
            place = self.net.requantized(place, self.net.quantization(name), name)
        elif self.type(place) != (wanted := self.net.element(name)):
            place = self.cast(place, wanted)
        if place in self._made:
            self._made.discard(place)
            self.net.rename(place, name)
        self.net.name_output(self.node, place, position)

    # Arithmetic with broadcasting

    def pair(self, code: str, first: int, second: int, activation: str = "NONE") -> int:
        dims = broadcast(self.dims(first), self.dims(second))
        fields: dict[str, Any] = {"fusedActivationFunction": activation} if activation != "NONE" else {}
        return self.op(code, [first, second], dims, BOOL if code in COMPARED else None, **fields)

    def add(self, first: int, second: int, activation: str = "NONE") -> int:
        return self.pair("ADD", first, second, activation)

    def sub(self, first: int, second: int) -> int:
        return self.pair("SUB", first, second)

    def mul(self, first: int, second: int) -> int:
        return self.pair("MUL", first, second)

    def div(self, first: int, second: int) -> int:
        return self.pair("DIV", first, second)

    def maximum(self, first: int, second: int) -> int:
        return self.pair("MAXIMUM", first, second)

    def minimum(self, first: int, second: int) -> int:
        return self.pair("MINIMUM", first, second)

    def activated(self, place: int) -> int:
        """With the activation that stands behind the node, which no operator here takes in."""
        return place if self.node.activation == "NONE" else self.unary(self.node.activation, place)

    def magnitude(self, place: int) -> int:
        """ABS has no integers of 64 bits."""
        if self.type(place) == INT64:
            return self.maximum(place, self.unary("NEG", place))
        return self.unary("ABS", place)

    def unary(self, code: str, place: int) -> int:
        return self.op(code, [place])

    def select(self, condition: int, first: int, second: int) -> int:
        dims = broadcast(broadcast(self.dims(condition), self.dims(first)), self.dims(second))
        return self.op("SELECT_V2", [condition, first, second], dims, self.type(first))

    def cast(self, place: int, type: str) -> int:
        """The same tensor if it has that type."""
        if self.type(place) == type:
            return place
        return self.op(
            "CAST", [place], None, type, "CastOptions", inDataType=self.type(place), outDataType=type
        )

    # Axes

    def reduce(self, code: str, place: int, axes: Sequence[int], keep: bool = True) -> int:
        """A reduction; `axes` are not negative."""
        if not axes:
            return place
        dims = [
            ONE if axis in axes else dim
            for axis, dim in enumerate(self.dims(place))
            if keep or axis not in axes
        ]
        return self.op(code, [place, self.integers(axes)], dims, None, "ReducerOptions", keepDims=keep)

    def transpose(self, place: int, perm: Sequence[int]) -> int:
        """The same tensor if nothing moves."""
        if list(perm) == sorted(perm):
            return place
        dims = self.dims(place)
        return self.op(
            "TRANSPOSE", [place, self.integers(perm)], [dims[axis] for axis in perm], None, "TransposeOptions"
        )

    def moved(self, place: int, axis: int, target: int) -> tuple[int, list[int]]:
        """(the tensor with an axis moved to another place, the permutation that moves it back)."""
        perm = [one for one in range(self.rank(place)) if one != axis]
        perm.insert(target, axis)
        return self.transpose(place, perm), [perm.index(one) for one in range(len(perm))]

    def reshape(self, place: int, dims: Sequence[Dim]) -> int:
        """The same values in other dimensions. The same tensor if nothing changes."""
        if self.dims(place) == tuple(dims):
            return place
        if sum(map(is_open, dims)) > 1:
            return self._respaced(place, dims)
        sizes = [-1 if is_open(dim) else dim[0] for dim in dims]
        shape = self.integers(sizes, "shape")
        return self.op("RESHAPE", [place, shape], dims, None, "ReshapeOptions", newShape=sizes)

    def _respaced(self, place: int, dims: Sequence[Dim]) -> int:
        """By taking out and putting in dimensions of 1, or by sizes that are computed when it runs."""
        spaced = spacing(self.dims(place), dims)
        if spaced is None:
            sizes = self.run_time_sizes(dims, place, rest=True)
            return self.op("RESHAPE", [place, sizes], dims, None, "ReshapeOptions")
        gone, put = spaced
        result = self.squeeze(place, gone)
        for axis in put:
            result = self.expand_dims(result, axis)
        return result

    def squeeze(self, place: int, axes: Sequence[int]) -> int:
        if not axes:
            return place
        dims = [dim for axis, dim in enumerate(self.dims(place)) if axis not in axes]
        return self.op("SQUEEZE", [place], dims, None, "SqueezeOptions", squeezeDims=list(axes))

    def expand_dims(self, place: int, axis: int) -> int:
        dims = list(self.dims(place))
        dims.insert(axis, ONE)
        return self.op("EXPAND_DIMS", [place, self.scalar(axis)], dims, None, "ExpandDimsOptions")

    def run_time_sizes(self, dims: Sequence[Dim], source: int | None = None, rest: bool = False) -> int:
        """An INT32 vector of sizes, of which the open ones are those of the `source` or of an input of the model, or a whole
        number of times as many; with `rest`, one of them may be what a reshape leaves for it.

        Raises Unsupported for one that is not known to be any of these.
        """
        if not any(map(is_open, dims)):
            return self.integers([size for size, _ in dims], "sizes")
        pieces = []
        for dim in dims:
            found = self._run_time_size(dim, source) if is_open(dim) else self.integers([dim[0]], "size")
            if found is None and not rest:
                raise Unsupported(
                    f"a size that it gives depends on the size of the input ({dim[0]} and {dim[1]}), and it is not "
                    "clear how: build for a fixed size"
                )
            rest = rest and found is not None
            pieces.append(self.integers([-1], "rest") if found is None else found)
        return self.concat(pieces, 0)

    def _run_time_size(self, dim: Dim, first: int | None) -> int | None:
        """[1]: an open size of a tensor, or of an input of the model."""
        places = [] if first is None else [first]
        places += [self.tensor(name) for name in self.net.facts.inputs if name in self.net.places]
        for place in places:
            for axis, own in enumerate(self.dims(place)):
                times = dim[0] // own[0] if is_open(own) and own[0] else 0
                if times and dim == (own[0] * times, own[1] * times):
                    size = self.gather(self.shape(place, INT32), np.array([axis]), 0)
                    return size if times == 1 else self.mul(size, self.number(times, INT32))
        return None

    def scalar(self, value: int) -> int:
        """A constant of rank 0 and type INT32, which some operators want for an axis."""
        return self.number(value, INT32)

    def gather(self, place: int, indices: np.ndarray, axis: int) -> int:
        """Values at constant places along an axis."""
        dims = list(self.dims(place))
        dims[axis : axis + 1] = fixed(*indices.shape)
        places = self.constant(indices.astype(np.int32), "places")
        return self.op("GATHER", [place, places], dims, None, "GatherOptions", axis=axis, batchDims=0)

    def concat(self, places: Sequence[int], axis: int) -> int:
        if len(places) == 1:
            return places[0]
        dims = list(self.dims(places[0]))
        dims[axis] = total([self.dims(one)[axis] for one in places])
        return self.op("CONCATENATION", places, dims, None, "ConcatenationOptions", axis=axis)

    def matmul(self, first: int, second: int, turned: bool = False) -> int:
        """BATCH_MATMUL; `turned`: the second operand is [..., columns, summed]."""
        a, b = self.dims(first), self.dims(second)
        dims = (*broadcast(a[:-2], b[:-2]), a[-2], b[-2] if turned else b[-1])
        return self.op(
            "BATCH_MATMUL", [first, second], dims, None, "BatchMatMulOptions", adjX=False, adjY=turned
        )

    def softmax(self, place: int) -> int:
        """Along the last axis."""
        return self.op("SOFTMAX", [place], None, None, "SoftmaxOptions", rescaled=True, beta=1.0)

    def shape(self, place: int, type: str = INT64) -> int:
        """Its sizes when it runs."""
        rank = self.rank(place)
        return self.op("SHAPE", [place], fixed(rank), type, "ShapeOptions", outType=type)
