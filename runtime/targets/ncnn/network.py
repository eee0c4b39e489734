"""The network that is being written: its layers so far, and the blob that holds each tensor.

A blob is a tensor without those of its dimensions that are 1 and not wanted: the batch is dropped so. What is left,
at most four, are the blob's dimensions, outermost first: c, d, h, w. Values lie in the same order, so that
dimensions of 1 can be put in and taken out where a layer wants them (`form`).
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_lathe.runtime.targets.core.facts import Facts
from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.dialect import LONGEST_TEXT, Layer, Stored, Value, Weight, plain_name
from onnx_lathe.runtime.targets.ncnn.integers import is_integer
from onnx_lathe.runtime.targets.ncnn.weights import stored_weight

MOST_DIMENSIONS = 4
Axes = tuple[int, ...]
Sizes = tuple[int | None, ...]
"""None for a size that depends on those of the inputs."""


@dataclass(frozen=True)
class Blob:
    """`axes`: which of the tensor's axes are the blob's dimensions, outermost first; a blob of none has one value."""

    name: str
    axes: Axes


@dataclass(frozen=True)
class Loose:
    """A blob with the values of a tensor that has too many dimensions for one, in order. `dims`: what it has instead,
    at both sizes.
    """

    name: str
    dims: tuple[tuple[int, int], ...]


class Network:
    """What builders write to. `nodes`: the model's node that writes each tensor; `counted`: tensors of integers
    whose blobs hold floats (integers.py); `varying`: free tensors that are not what they seem (further.py).
    """

    def __init__(
        self,
        facts: Facts,
        nodes: Mapping[str, onnx.NodeProto],
        counted: Set[str] = frozenset(),
        varying: Set[str] = frozenset(),
    ) -> None:
        self.facts = facts
        self.nodes = nodes
        self.counted = counted
        self.varying = varying
        self.layers: list[Layer] = []
        self.blobs: dict[str, Blob] = {}
        self.loose: dict[str, Loose] = {}
        self._names: set[str] = set()
        self._forms: dict[tuple[str, Axes], Blob] = {}
        self._tops: dict[str, str] = {}

    # What is known of tensors

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape at the sizes that the model is built for."""
        known = self.facts.shapes[0].get(tensor)
        if known is None:
            raise Unsupported(f"the shape of '{tensor}' is not known")
        return known

    def rank(self, tensor: str) -> int:
        return len(self.shape(tensor))

    def sizes(self, tensor: str) -> Sizes:
        """None where the size depends on the inputs'."""
        shape, other = self.shape(tensor), self.facts.shapes[1].get(tensor, ())
        if len(shape) != len(other):
            raise Unsupported(f"the number of dimensions of '{tensor}' depends on the size of the input")
        return tuple(a if a == b else None for a, b in zip(shape, other, strict=True))

    def is_free(self, tensor: str) -> bool:
        """Whether no input's content goes into it."""
        return tensor in self.facts.free

    def value(self, tensor: str) -> np.ndarray | None:
        """The values of a constant; None for a tensor that is none, or depends on the sizes of inputs."""
        found = self.values(tensor)
        return found[0] if found is not None and _same(*found) else None

    def refuse_varying(self, tensors: Iterable[str]) -> None:
        """Refuses what is equal at both sizes by chance."""
        if found := next((tensor for tensor in tensors if tensor in self.varying), None):
            raise Unsupported(
                f"'{found}' depends on the size of the input, in a way that shows only far from the sizes looked at"
            )

    def values(self, tensor: str) -> tuple[np.ndarray, np.ndarray] | None:
        """The values of a free tensor at both sizes."""
        first, second = (values.get(tensor) for values in self.facts.values)
        return None if first is None or second is None else (first, second)

    def constant(self, tensor: str, what: str) -> np.ndarray:
        """The values of a constant; `what` it is, for the refusal of another."""
        found = self.value(tensor)
        if found is None:
            known = self.is_free(tensor)
            reason = "depends on the size of the input" if known else "is computed at run time"
            raise Unsupported(f"its {what} {reason}")
        return found

    def weight(self, tensor: str, what: str = "weight") -> Stored:
        """A constant weight as the model stores it, so that a codebook stays one."""
        return stored_weight(self, tensor, self.constant(tensor, what))

    def is_integer(self, tensor: str) -> bool:
        """Whether the tensor is one of integers; `counted` has those of them that are floats in ncnn."""
        return is_integer(self.facts.types.get(tensor, 0))

    def is_bool(self, tensor: str) -> bool:
        return self.facts.types.get(tensor, 0) == onnx.TensorProto.BOOL

    # Blobs

    def usual(self, tensor: str) -> Axes:
        """The axes that the blob of a tensor has if nothing else is wanted: without the batch, where that is 1."""
        sizes = self.sizes(tensor)
        axes = tuple(range(1 if len(sizes) > 1 and sizes[0] == 1 else 0, len(sizes)))
        while len(axes) > MOST_DIMENSIONS:
            single = next((axis for axis in axes if sizes[axis] == 1), None)
            if single is None:
                raise Unsupported(
                    f"'{tensor}' has {len(axes)} dimensions beside the batch; ncnn has {MOST_DIMENSIONS}"
                )
            axes = tuple(axis for axis in axes if axis != single)
        return axes

    def blob(self, tensor: str) -> Blob:
        """The blob of a tensor, in the form in which it was written; a constant becomes a layer of its own."""
        if tensor in self.loose:
            self.usual(tensor)  # says what is too many
        if tensor not in self.blobs:
            self.blobs[tensor] = self._stored(tensor)
        return self.blobs[tensor]

    def form(self, tensor: str, axes: Axes) -> Blob:
        """The blob with these dimensions; those that it lacks, and those that are too many, are 1."""
        blob = self.blob(tensor)
        if blob.axes == axes:
            return blob
        key = (blob.name, axes)
        if key not in self._forms:
            self._forms[key] = self._formed(tensor, blob, axes)
        return self._forms[key]

    def _formed(self, tensor: str, blob: Blob, axes: Axes) -> Blob:
        sizes = self.sizes(tensor)
        if lost := [axis for axis in blob.axes if axis not in axes and sizes[axis] != 1]:
            raise Unsupported(
                f"'{tensor}' has {sizes[lost[0]] or 'an open number of'} values along axis {lost[0]}, where ncnn's "
                "layer has no dimension"
            )
        kept = tuple(axis for axis in blob.axes if axis in axes)
        name = blob.name
        if not kept:
            return Blob(
                self.reshaped(name, tensor, [1] * max(len(axes), 1))
                if len(axes) > 1 or len(blob.axes) > 1
                else name,
                axes,
            )
        if kept != blob.axes:
            drop = [place for place, axis in enumerate(blob.axes) if axis not in kept]
            name = self.inner("Squeeze", f"{tensor}_squeezed", [name], {3: drop})
        if kept != axes:
            put = [place for place, axis in enumerate(axes) if axis not in kept]
            name = self.inner("ExpandDims", f"{tensor}_expanded", [name], {3: put})
        return Blob(name, axes)

    def reshaped(self, source: str, label: str, sizes: Sequence[int]) -> str:
        """A blob with other dimensions, outermost first; one of them may be -1, the rest."""
        keys = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 11, 1, 0)}[len(sizes)]
        return self.inner(
            "Reshape", f"{label}_reshaped", [source], dict(zip(keys, map(int, sizes), strict=True))
        )

    def _stored(self, tensor: str) -> Blob:
        values = self.constant(tensor, f"operand '{tensor}'")
        axes = self.usual(tensor)
        return Blob(self.memory(tensor, values.reshape([values.shape[axis] for axis in axes] or [1])), axes)

    def memory(self, label: str, values: np.ndarray) -> str:
        """A blob with these values, of 1 to 4 dimensions."""
        if not 1 <= values.ndim <= MOST_DIMENSIONS or values.size == 0:
            raise Unsupported(f"the constant '{label}' has shape {list(values.shape)}")
        keys = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 11, 1, 0)}[values.ndim]
        floats = Stored(np.ascontiguousarray(values, np.float32))
        return self.inner(
            "MemoryData", label, [], dict(zip(keys, values.shape, strict=True)), [Weight(floats)]
        )

    # Layers

    def put(
        self,
        node: Node,
        type: str,
        bottoms: Sequence[str],
        params: Mapping[int, Value] | None = None,
        weights: Sequence[Weight] = (),
        axes: Axes | None = None,
        outputs: Sequence[int] = (0,),
    ) -> None:
        """Writes the layer whose tops are the node's `outputs`, in the form of `axes` (as usual if none are given)."""
        tops = []
        for position in outputs:
            tensor = node.outputs[position]
            top = self._new(plain_name(tensor))
            tops.append(top)
            self.blobs[tensor] = Blob(top, self.usual(tensor) if axes is None else axes)
        self.add(type, node.name, list(bottoms), tops, params, weights)

    def inner(
        self,
        type: str,
        label: str,
        bottoms: Sequence[str],
        params: Mapping[int, Value] | None = None,
        weights: Sequence[Weight] = (),
    ) -> str:
        """Writes a layer whose result is no tensor of the model. Returns the blob's name."""
        return self.several(type, label, bottoms, [label], params, weights)[0]

    def several(
        self,
        type: str,
        name: str,
        bottoms: Sequence[str],
        labels: Sequence[str],
        params: Mapping[int, Value] | None = None,
        weights: Sequence[Weight] = (),
    ) -> list[str]:
        """Writes a layer with a top for each label. Returns the blobs' names."""
        tops = [self._new(plain_name(label)) for label in labels]
        self.add(type, name, list(bottoms), tops, params, weights)
        return tops

    def add(
        self,
        type: str,
        name: str,
        bottoms: list[str],
        tops: list[str],
        params: Mapping[int, Value] | None = None,
        weights: Sequence[Weight] = (),
    ) -> None:
        """Writes a layer as it is given: most builders want `put` or `inner`."""
        kept = {key: value for key, value in (params or {}).items() if value is not None}
        if any(isinstance(value, float) and np.isnan(value) for value in kept.values()):
            raise Unsupported("a number of it is NaN")
        if any(isinstance(value, str) and len(value) > LONGEST_TEXT for value in kept.values()):
            raise Unsupported(
                f"its sizes need a formula of more than {LONGEST_TEXT} characters, which ncnn does not read"
            )
        unique = self._new(plain_name(name), layers=True)
        self.layers.append(Layer(type, unique, bottoms, tops, kept, list(weights)))

    def name_output(self, node: Node, blob: str, axes: Axes | None = None, output: int = 0) -> None:
        """Makes a blob that is there already the node's result, without a layer."""
        tensor = node.outputs[output]
        self.blobs[tensor] = Blob(blob, self.usual(tensor) if axes is None else axes)

    def unused(self, name: str) -> str:
        """A name for a blob, for `add`."""
        return self._new(plain_name(name))

    def _new(self, name: str, layers: bool = False) -> str:
        """The name, with a number if it is taken."""
        key, number = ("layer " if layers else "blob ") + name, 1
        while key in self._names:
            number += 1
            key = ("layer " if layers else "blob ") + f"{name}_{number}"
        self._names.add(key)
        return key.split(" ", 1)[1]

    def input(self, tensor: str) -> None:
        """Writes the layer of an input of the model."""
        axes = self.usual(tensor)
        top = self._new(plain_name(tensor))
        sizes = self.sizes(tensor)
        keys = {0: (0,), 1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 11, 1, 0)}[len(axes)]
        known = [sizes[axis] for axis in axes] or [1]
        fixed = [size for size in known if size is not None]
        params = dict(zip(keys, fixed, strict=True)) if len(fixed) == len(known) else {}
        self.blobs[tensor] = Blob(top, axes)
        self.add("Input", tensor, [], [top], params)


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    return first is second or (
        first.shape == second.shape and bool(np.array_equal(first, second, equal_nan=True))
    )
