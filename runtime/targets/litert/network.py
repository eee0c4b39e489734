"""The network that is being written: its tensors and operators so far. Builders (operators/*.py) write to it.

A builder gets a Node and the Network. The Node's inputs and outputs are names of tensors of the lowered graph; a
sandwich of Transposes, an activation behind it and the Q/DQ pairs around it are folded already (node.py, grouping.py).
Tensors have the shape of the graph's, so that an elementwise builder is three lines:

    @operator("Sub", fuses=True, integers=("INT8", "INT16"))
    def sub(node: Node, net: Network) -> None:
        inputs = [net.read(name) for name in node.inputs]
        net.put(node, "SUB", inputs, "SubOptions", fusedActivationFunction=node.activation)

What is known: `shape`, `sizes` (None for a size that depends on those of the inputs: do not write it into constants),
`rank`, `value` of a constant (None if it is none), `constant` (refuses what is none), `element` (the type in the file),
`quantization`.

What is read, as the place of a tensor in the file: `read` (an activation, or a constant as it is), `weight` and `bias` (of a
layer, in integers where the node computes on them), `ints` (INT32 parameters such as axes), `floats`, `store` (any
constant). A tensor that is stored in INT8 is decoded by `read` where a float one is asked for by name.

What is written: `put` (the operator whose results are the node's outputs), `inner` (one whose result is no tensor of the
graph), `reshaped`, `transposed`, `image` and `put_image` (for spatial operators, which also work outside a sandwich), and
`name_output` (a node that writes no operator, such as Identity).

An operator on integers needs `integers=` in its @operator; its result gets the scale of the QuantizeLinear behind it, and
quantization.py refuses what the kernel would compute wrongly.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from onnx_lathe.runtime.targets.core.facts import Facts
from onnx_lathe.runtime.targets.litert.known import Known
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.quantization import SAME_SCALE, alike
from onnx_lathe.runtime.targets.litert.tensors import (
    NO_TENSOR,
    NUMPY,
    Operator,
    Quantization,
    Stored,
    Tensor,
)
from onnx_lathe.runtime.targets.litert.versions import version_of

Sizes = Sequence[int | None]
"""None for a size that depends on those of the inputs."""
INTEGER_WEIGHTS = ("INT8", "INT4")
Move = Callable[[np.ndarray], np.ndarray]


def as_it_is(values: np.ndarray) -> np.ndarray:
    return values


class Network(Known):
    """What builders write to. `later`: tensor that only sizes of inputs go into -> writes the node that computes it, which
    is done when it is read and not the same at all sizes. `fold_stem`: see stem.py.
    """

    def __init__(self, facts: Facts, stored: Stored, half: bool = False, fold_stem: bool = False) -> None:
        super().__init__(facts, stored, half)
        self.fold_stem = fold_stem
        self.operators: list[Operator] = []
        self.later: dict[str, Callable[[], None]] = {}
        self._covers: tuple[str, ...] = ()

    # What is read

    def read(self, tensor: str) -> int:
        """The place of an operand: an activation, a constant as it is, or what is decoded of a stored one."""
        if not tensor:
            return NO_TENSOR
        if tensor in self.places:
            return self.places[tensor]
        if tensor in self.stored.decoded:
            source = self.read(self.stored.decoded[tensor])
            self.places[tensor] = self._result(tensor)
            self.operate("DEQUANTIZE", [source], [self.places[tensor]])
            return self.places[tensor]
        if not self.is_free(tensor):
            raise Unsupported(f"'{tensor}' is not computed")
        if self.value(tensor) is None and tensor in self.later:
            covers = self._covers
            self.later.pop(tensor)()
            self._covers = covers
            return self.places[tensor]
        values = self.constant(tensor, f"operand '{tensor}'")
        if self.element(tensor) == "FLOAT32":
            return self.floats(values, tensor)
        return self.store(values, self.element(tensor), tensor)

    def operand(self, node: Node, position: int) -> int:
        """As `read`; where the node computes on integers, a constant is the one that the graph stores."""
        tensor = node.inputs[position]
        if node.on_integers and tensor in self.stored.weights:
            return self.weight(node, position)
        return self.read(tensor)

    def floats(self, values: np.ndarray, label: str) -> int:
        """A float constant, stored as float16 where the target is asked to."""
        values = values.astype(np.float32)
        if not self.fits_half(values, label):
            return self.store(values, "FLOAT32", label)
        stored = self.store(values.astype(np.float16), "FLOAT16", label)
        return self._decoded_constant(stored, label)

    def weight(self, node: Node, position: int, move: Move = as_it_is, axis: int = 0) -> int:
        """A constant operand, moved into LiteRT's layout; `axis`: there, of channels with scales of their own."""
        tensor = node.inputs[position]
        known = self.stored.weights.get(tensor)
        if known is None and node.on_integers:
            raise Unsupported("its weight is not quantized")
        if known is not None:
            source, quantization = known
            values = move(self.constant(source, "weight"))
            kind = self.element(source)
            fits = kind in INTEGER_WEIGHTS and (
                not quantization.per_channel
                or _scaled_along(values, quantization, axis, move(self.constant(tensor, "weight")))
            )
            if fits:
                moved = Quantization(
                    quantization.scales,
                    quantization.zero_points,
                    axis if quantization.per_channel else 0,
                )
                stored = self.store(values, kind, source, moved)
                return stored if node.on_integers else self._decoded_constant(stored, tensor)
            if node.on_integers:
                raise Unsupported(
                    "its weight has scales along an axis that is not that of its outputs, or is no INT8 or INT4"
                )
        return self.floats(move(self.constant(tensor, "weight")), tensor)

    def bias(self, node: Node, position: int, source: int, weight: int, count: int) -> int:
        """[count] values; zeros where the node has none. In integers the scale of each is that of the products, of which
        `source` and `weight` are the factors.
        """
        name = node.inputs[position] if node.given(position) else ""
        if not node.on_integers:
            values = self.constant(name, "bias").reshape(-1) if name else np.zeros(count)
            return self.floats(np.broadcast_to(values, (count,)), name or f"{node.name}_bias")
        factors = self.tensors[source].quantization, self.tensors[weight].quantization
        if factors[0] is None or factors[1] is None:
            raise Unsupported("its input or weight has no scale")
        scales = np.float32(factors[0].scales[0]) * np.array(factors[1].scales, np.float32)
        values = self._integer_bias(name, scales, count)
        kind = "INT64" if self.tensors[source].type == "INT16" else "INT32"
        quantization = Quantization(tuple(map(float, scales)), (0,) * len(scales))
        return self.store(values, kind, name or f"{node.name}_bias", quantization)

    def _integer_bias(self, name: str, scales: np.ndarray, count: int) -> np.ndarray:
        if not name:
            return np.zeros(count, np.int64)
        known = self.stored.weights.get(name)
        if known is not None and np.allclose(known[1].scales, scales, rtol=1e-6, atol=0.0):
            return np.broadcast_to(self.constant(known[0], "bias").reshape(-1), (count,)).astype(np.int64)
        values = self.constant(name, "bias").reshape(-1).astype(np.float64)
        return np.broadcast_to(np.rint(values / scales), (count,)).astype(np.int64)

    def _decoded_constant(self, stored: int, label: str) -> int:
        key = ("decoded", stored)
        if key not in self._constants:
            one = self.tensors[stored]
            self._constants[key] = self.add(Tensor(f"{label}_decoded", "FLOAT32", one.shape))
            self.operate("DEQUANTIZE", [stored], [self._constants[key]])
        return self._constants[key]

    # What is written

    def put(self, node: Node, code: str, inputs: Sequence[int], options: str = "", **fields: Any) -> None:
        """Writes the operator whose results are the node's outputs; those that nobody reads get a tensor all the same."""
        results = []
        for position, name in enumerate(node.outputs):
            place = (
                self._result(name)
                if name
                else self.add(Tensor(f"{node.name}_unused{position}", "FLOAT32", ()))
            )
            results.append(place)
        self.operate(code, inputs, results, options, fields)
        self.places |= {name: place for name, place in zip(node.outputs, results, strict=True) if name}

    def inner(
        self,
        code: str,
        label: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        options: str = "",
        *,
        like: int | None = None,
        type: str | None = None,
        **fields: Any,
    ) -> int:
        """Writes an operator whose result is no tensor of the graph: with the type and quantization of tensor `like` (the
        first input if none is given), or of `type` without a scale. Returns its place.
        """
        model = self.tensors[inputs[0] if like is None else like]
        kind, quantization = (model.type, model.quantization) if type is None else (type, None)
        place = self.add(Tensor(label, kind, tuple(shape), (), quantization))
        self.operate(code, inputs, [place], options, fields)
        return place

    def inner_result(
        self,
        node: Node,
        code: str,
        label: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        options: str = "",
        **fields: Any,
    ) -> int:
        """As `inner`, with the type and quantization of the node's output."""
        model = self._described(label, node.outputs[0], tuple(shape))
        place = self.add(model)
        self.operate(code, inputs, [place], options, fields)
        return place

    def several(
        self,
        code: str,
        label: str,
        inputs: Sequence[int],
        shapes: Sequence[Sequence[int]],
        options: str = "",
        **fields: Any,
    ) -> list[int]:
        """As `inner`, with a result for each shape."""
        model = self.tensors[inputs[0]]
        places = [self.add(Tensor(label, model.type, tuple(one), (), model.quantization)) for one in shapes]
        self.operate(code, inputs, places, options, fields)
        return places

    def requantized(self, source: int, wanted: Quantization | None, label: str) -> int:
        """A stored tensor with another scale, if it has not that one."""
        one = self.tensors[source]
        if alike(one.quantization, wanted):
            return source
        place = self.add(Tensor(f"{label}_requantized", one.type, one.shape, one.signature, wanted))
        self.operate("QUANTIZE", [source], [place])
        return place

    def _with_scale_of(self, code: str, inputs: Sequence[int], output: int) -> Sequence[int]:
        """Operands of an operator that hands levels on have the scale of its result: others are brought to it first."""
        wanted = self.tensors[output].quantization
        if code not in SAME_SCALE or wanted is None:
            return inputs
        kind = self.tensors[output].type
        return [
            place
            if place == NO_TENSOR
            or self.tensors[place].type != kind
            or self.tensors[place].quantization is None
            else self.requantized(place, wanted, self.tensors[place].name)
            for place in inputs
        ]

    def name_output(self, node: Node, place: int, output: int = 0) -> None:
        """Makes a tensor that is there already the node's result, without an operator."""
        self.places[node.outputs[output]] = place

    def reshaped(self, source: int, label: str, sizes: Sizes) -> int:
        """With other dimensions, of which one may be open (None)."""
        shape, wanted = self._new_shape(source, sizes)
        return self.inner(
            "RESHAPE",
            f"{label}_reshaped",
            [source, self.ints(wanted, "shape")],
            shape,
            "ReshapeOptions",
            newShape=wanted,
        )

    def put_reshaped(self, node: Node, source: int, sizes: Sizes) -> None:
        """Writes the RESHAPE whose result is the node's output."""
        _, wanted = self._new_shape(source, sizes)
        self.put(node, "RESHAPE", [source, self.ints(wanted, "shape")], "ReshapeOptions", newShape=wanted)

    def _new_shape(self, source: int, sizes: Sizes) -> tuple[tuple[int, ...], list[int]]:
        """(the shape, it with -1 for what is open)."""
        if sum(size is None for size in sizes) > 1:
            raise Unsupported("several sizes of its result depend on the size of the input")
        count = int(np.prod(self.tensors[source].shape, dtype=np.int64))
        known = int(np.prod([size for size in sizes if size is not None], dtype=np.int64))
        shape = tuple(count // max(known, 1) if size is None else size for size in sizes)
        return shape, [-1 if size is None else size for size in sizes]

    def transposed(self, source: int, label: str, order: Sequence[int]) -> int:
        shape = [self.tensors[source].shape[axis] for axis in order]
        inputs = [source, self.ints(order, "order")]
        return self.inner("TRANSPOSE", f"{label}_transposed", inputs, shape, "TransposeOptions")

    def image(self, node: Node, position: int = 0) -> int:
        """The input with channels last: as it is in a sandwich, else transposed here."""
        source = self.operand(node, position)
        rank = len(self.tensors[source].shape)
        if node.channels_last or rank < 3:
            return source
        return self.transposed(source, node.inputs[position], (0, *range(2, rank), 1))

    def image_shape(self, node: Node, output: int = 0) -> tuple[int, ...]:
        """Of the node's result with channels last."""
        shape = self.shape(node.outputs[output])
        return shape if node.channels_last or len(shape) < 3 else (shape[0], *shape[2:], shape[1])

    def put_image(
        self, node: Node, code: str, inputs: Sequence[int], options: str = "", **fields: Any
    ) -> None:
        """Writes the spatial operator whose result, with channels last, is the node's output."""
        if node.channels_last or len(self.shape(node.outputs[0])) < 3:
            self.put(node, code, inputs, options, **fields)
            return
        place = self.add(self._described(f"{node.outputs[0]}_image", node.outputs[0], self.image_shape(node)))
        self.operate(code, inputs, [place], options, fields)
        self.put_from_image(node, place)

    def put_from_image(self, node: Node, place: int) -> None:
        """Makes a result with channels last the node's output."""
        rank = len(self.tensors[place].shape)
        if node.channels_last or rank < 3:
            self.name_output(node, place)
            return
        order = self.ints((0, rank - 1, *range(1, rank - 1)), "order")
        self.put(node, "TRANSPOSE", [place, order], "TransposeOptions")

    def lowest_is_zero(self, source: int) -> bool:
        """Whether no value of a tensor is below zero: it is stored so, or behind a ReLU."""
        one = self.tensors[source]
        if one.quantization is not None:
            return one.quantization.zero_points[0] == np.iinfo(NUMPY[one.type]).min
        writer = next((each for each in reversed(self.operators) if source in each.outputs), None)
        if writer is None:
            return False
        words = (writer.code, writer.fields.get("fusedActivationFunction"))
        return any(word in ("RELU", "RELU6", "RELU_0_TO_1", "LOGISTIC", "SOFTMAX") for word in words)

    def lowest(self, source: int) -> int:
        """A constant: the lowest value that a tensor's type holds, with its scale."""
        one = self.tensors[source]
        if one.type == "FLOAT32":
            return self.store(np.array(np.finfo(np.float32).min, np.float32), "FLOAT32", "lowest")
        value = np.array(np.iinfo(NUMPY[one.type]).min)
        return self.store(value, one.type, "lowest", one.quantization)

    def input(self, tensor: str) -> int:
        """Adds an input of the model."""
        self.places[tensor] = self._result(tensor)
        return self.places[tensor]

    def standing_for(self, nodes: tuple[str, ...]) -> None:
        """The nodes that the operators written from now on stand for."""
        self._covers = nodes

    def _result(self, tensor: str) -> int:
        return self.add(self._described(tensor, tensor, self.shape(tensor)))

    def _described(self, name: str, like: str, shape: tuple[int, ...]) -> Tensor:
        sizes = self.sizes(like) if shape == self.shape(like) else ()
        quantization = self.quantization(like) if like in self.stored.activations else None
        return Tensor(name, self.element(like), shape, sizes, quantization)

    def operate(
        self,
        code: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: str = "",
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes an operator as it is given: most builders want `put` or `inner`."""
        inputs = self._with_scale_of(code, inputs, outputs[0])
        given = [None if place == NO_TENSOR else self.tensors[place] for place in inputs]
        version = version_of(code, given, [self.tensors[place] for place in outputs], fields or {})
        self.operators.append(
            Operator(code, list(inputs), list(outputs), options, fields or {}, version, self._covers)
        )


def _scaled_along(values: np.ndarray, quantization: Quantization, axis: int, decoded: np.ndarray) -> bool:
    """Whether a stored weight with its scales along an axis is the decoded one: a square one has as many inputs as
    outputs.
    """
    if values.shape[axis] != len(quantization.scales):
        return False
    wide = [-1 if one == axis else 1 for one in range(values.ndim)]
    scales, zeros = (
        np.array(each, np.float32).reshape(wide) for each in (quantization.scales, quantization.zero_points)
    )
    return np.allclose((values.astype(np.float32) - zeros) * scales, decoded, rtol=1e-3, atol=0)
