"""Random networks on images: convolutions among operators that name axes, broadcast, reshape and transpose."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
BATCH = 2
"""Of the inputs that `feeds` makes; the model leaves it open."""

Shape = tuple[int, ...]
"""Without the batch."""


class RandomNetwork:
    """Grows a network node by node; what cannot be added to a tensor of some shape is left out."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        rank = int(self.random.choice([2, 3, 3, 3]))
        self.inputs = {"x": tuple(int(n) for n in self.random.integers(2, 6, rank))}
        self.shapes: dict[str, Shape] = dict(self.inputs)

    def grow(self, count: int) -> onnx.ModelProto:
        steps: list[Callable[[str, Shape], str | None]] = [
            *(self._conv, self._conv, self._pool, self._unary, self._constant, self._join, self._concat),
            *(self._split, self._slice, self._pad, self._reduce, self._softmax, self._transpose, self._gate),
            *(
                self._flatten,
                self._squeeze,
                self._layer,
                self._reshape,
                self._gather,
                self._lower,
                self._shaped,
            ),
        ]
        while len(self.nodes) < count:
            name = str(self.random.choice([one for one, shape in self.shapes.items() if shape][-4:]))
            steps[int(self.random.integers(len(steps)))](name, self.shapes[name])
        read = {one for node in self.nodes for one in node.input}
        outputs = [one for one in self.shapes if one not in read] or list(self.shapes)[-1:]
        if self.random.random() < 0.3:
            outputs.append(
                str(self.random.choice([one for one in self.shapes if one not in (*outputs, "x")] or outputs))
            )
        outputs = [one for one in dict.fromkeys(outputs) if one != "x"]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape])
                for name, shape in self.inputs.items()
            ],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *self.shapes[name]])
                for name in outputs
            ],
            [numpy_helper.from_array(values, name) for name, values in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model

    def feeds(self) -> dict[str, np.ndarray]:
        return {name: self._normal(BATCH, *shape) for name, shape in self.inputs.items()}

    def _normal(self, *shape: int) -> np.ndarray:
        return self.random.standard_normal(shape).astype(np.float32)

    def _stored(self, values: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(values)
        return name

    def _integers(self, *values: int) -> str:
        return self._stored(np.array(values, np.int64))

    def _add(self, op: str, inputs: list[str], shape: Shape, **attributes) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], f"{op}_{len(self.nodes)}", **attributes))
        self.shapes[name] = shape
        return name

    def _axis(self, shape: Shape) -> int:
        """An axis behind the batch, of the tensor with its batch; sometimes counted from the end."""
        axis = int(self.random.integers(1, len(shape) + 1))
        return axis if self.random.random() < 0.5 else axis - len(shape) - 1

    @staticmethod
    def _at(shape: Shape, axis: int) -> int:
        """Place in a shape without batch."""
        return axis % (len(shape) + 1) - 1

    def _changed(self, shape: Shape, axis: int, size: int) -> Shape:
        place = self._at(shape, axis)
        return (*shape[:place], size, *shape[place + 1 :])

    def _conv(self, name: str, shape: Shape) -> None:
        if len(shape) not in (2, 3):
            return
        channels, pads = int(self.random.integers(1, 5)), [1] * (2 * len(shape) - 2)
        weight = self._stored(self._normal(channels, shape[0], *([3] * (len(shape) - 1))) / 3)
        made = self._add("Conv", [name, weight], (channels, *shape[1:]), pads=pads)
        if self.random.random() < 0.4:
            self._add("Relu", [made], self.shapes[made])

    def _pool(self, name: str, shape: Shape) -> None:
        if len(shape) in (2, 3):
            size = len(shape) - 1
            op = str(self.random.choice(["MaxPool", "AveragePool"]))
            self._add(op, [name], shape, kernel_shape=[3] * size, pads=[1] * (2 * size))

    def _unary(self, name: str, shape: Shape) -> None:
        self._add(str(self.random.choice(["Relu", "Sigmoid", "Tanh", "Neg"])), [name], shape)

    def _constant(self, name: str, shape: Shape) -> None:
        """A constant of any rank that is broadcast."""
        rank = int(self.random.integers(0, len(shape) + 1))
        sizes = [size if self.random.random() < 0.6 else 1 for size in shape[len(shape) - rank :]]
        operands = [name, self._stored(self._normal(*sizes))]
        self.random.shuffle(operands)
        self._add(str(self.random.choice(["Add", "Mul", "Sub"])), operands, shape)

    def _join(self, name: str, shape: Shape) -> None:
        others = [one for one, known in self.shapes.items() if known == shape]
        self._add("Add", [name, str(self.random.choice(others))], shape)

    def _concat(self, name: str, shape: Shape) -> None:
        axis = self._axis(shape)
        others = [one for one, known in self.shapes.items() if known == shape]
        grown = self._changed(shape, axis, 2 * shape[self._at(shape, axis)])
        if max(grown) < 20:
            self._add("Concat", [name, str(self.random.choice(others))], grown, axis=axis)

    def _split(self, name: str, shape: Shape) -> None:
        axis = self._axis(shape)
        size = shape[self._at(shape, axis)]
        if size < 2:
            return
        names = [f"t{len(self.nodes)}_{part}" for part in range(2)]
        sizes = self._integers(1, size - 1)
        self.nodes.append(
            helper.make_node("Split", [name, sizes], names, f"Split_{len(self.nodes)}", axis=axis)
        )
        for one, part in zip(names, (1, size - 1), strict=True):
            self.shapes[one] = self._changed(shape, axis, part)

    def _slice(self, name: str, shape: Shape) -> None:
        axis = self._axis(shape)
        size = shape[self._at(shape, axis)]
        if size > 2:
            bounds = [self._integers(1), self._integers(size), self._integers(axis)]
            self._add("Slice", [name, *bounds], self._changed(shape, axis, size - 1))

    def _pad(self, name: str, shape: Shape) -> None:
        before, after = self.random.integers(0, 2, (2, len(shape)))
        pads = self._integers(0, *before.tolist(), 0, *after.tolist())
        self._add("Pad", [name, pads], tuple(int(n) for n in np.array(shape) + before + after))

    def _reduce(self, name: str, shape: Shape) -> None:
        axes = sorted({self._axis(shape) % (len(shape) + 1) for _ in range(2)})
        keeps = int(self.random.integers(2))
        left = [
            1 if axis + 1 in axes else size
            for axis, size in enumerate(shape)
            if keeps or axis + 1 not in axes
        ]
        op = str(self.random.choice(["ReduceMean", "ReduceMax"]))
        self._add(op, [name], tuple(left), axes=axes, keepdims=keeps)

    def _softmax(self, name: str, shape: Shape) -> None:
        if shape:
            self._add("Softmax", [name], shape, axis=self._axis(shape))

    def _transpose(self, name: str, shape: Shape) -> None:
        """Often to channels last, or back."""
        rank = len(shape) + 1
        orders = [
            (0, *range(2, rank), 1),
            (0, rank - 1, *range(1, rank - 1)),
            (0, *self.random.permutation(range(1, rank))),
        ]
        order = [int(axis) for axis in orders[int(self.random.integers(3))]]
        self._add("Transpose", [name], tuple(shape[axis - 1] for axis in order[1:]), perm=order)

    def _gate(self, name: str, shape: Shape) -> None:
        """Squeeze and excitation, through a Gemm."""
        if len(shape) != 3:
            return
        channels = shape[0]
        pooled = self._add("GlobalAveragePool", [name], (channels, 1, 1))
        flat = self._add("Flatten", [pooled], (channels,))
        gate = self._add("Gemm", [flat, self._stored(self._normal(channels, channels))], (channels,))
        back = self._add("Reshape", [gate, self._integers(0, channels, 1, 1)], (channels, 1, 1))
        self._add("Mul", [name, back], shape)

    def _flatten(self, name: str, shape: Shape) -> None:
        if len(shape) > 1:
            self._add("Flatten", [name], (int(np.prod(shape)),))

    def _squeeze(self, name: str, shape: Shape) -> None:
        if 1 in shape and len(shape) > 1:
            place = shape.index(1)
            self._add("Squeeze", [name, self._integers(place + 1)], (*shape[:place], *shape[place + 1 :]))
        elif len(shape) < 4:
            place = int(self.random.integers(len(shape) + 1))
            self._add("Unsqueeze", [name, self._integers(place + 1)], (*shape[:place], 1, *shape[place:]))

    def _layer(self, name: str, shape: Shape) -> None:
        if shape and len(shape) < 4:
            weight = self._stored(self._normal(shape[-1], 3) / shape[-1] ** 0.5)
            self._add("MatMul", [name, weight], (*shape[:-1], 3))

    def _reshape(self, name: str, shape: Shape) -> None:
        """Two neighbouring axes as one, or one as two."""
        if len(shape) > 1 and self.random.random() < 0.6:
            place = int(self.random.integers(len(shape) - 1))
            merged = (*shape[:place], shape[place] * shape[place + 1], *shape[place + 2 :])
        else:
            even = [axis for axis, size in enumerate(shape) if size % 2 == 0]
            if not even or len(shape) > 3:
                return
            merged = (*shape[: even[0]], 2, shape[even[0]] // 2, *shape[even[0] + 1 :])
        first = int(self.random.choice([0, -1]))
        self._add("Reshape", [name, self._integers(first, *merged)], merged)

    def _gather(self, name: str, shape: Shape) -> None:
        axis = self._axis(shape)
        place = self._at(shape, axis)
        if len(shape) > 1 and self.random.random() < 0.3:
            index = self._stored(np.array(shape[place] - 1, np.int64))
            self._add("Gather", [name, index], (*shape[:place], *shape[place + 1 :]), axis=axis)
        else:
            indices = self._integers(shape[place] - 1, 0)
            self._add("Gather", [name, indices], self._changed(shape, axis, 2), axis=axis)

    def _lower(self, name: str, shape: Shape) -> None:
        """A computed operand of a lower rank."""
        if len(shape) > 1:
            mean = self._add("ReduceMean", [name], shape, axes=[0], keepdims=0)
            del self.shapes[mean]
            self._add("Sub", [name, mean], shape)

    def _shaped(self, name: str, shape: Shape) -> None:
        """A Reshape to what is computed from the shape."""
        if len(shape) != 3:
            return
        whole, batch = f"t{len(self.nodes)}_shape", f"t{len(self.nodes)}_batch"
        self.nodes.append(helper.make_node("Shape", [name], [whole], f"Shape_{len(self.nodes)}"))
        self.nodes.append(
            helper.make_node("Gather", [whole, self._integers(0, 1)], [batch], f"Gather_{len(self.nodes)}")
        )
        target = f"{batch}_target"
        self.nodes.append(
            helper.make_node(
                "Concat", [batch, self._integers(-1)], [target], f"Concat_{len(self.nodes)}", axis=0
            )
        )
        self._add("Reshape", [name, target], (shape[0], shape[1] * shape[2]))
