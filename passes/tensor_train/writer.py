"""The tensor-train form of a layer: what writes it. No transposition but one between two cores; every size
that is open stays open.

    MatMul(x, W)       becomes   Reshape(x) -> MatMul(core d) -> Reshape -> Transpose -> ... -> Reshape -> MatMul(core 1) -> Reshape
    Gemm(x, W, b)      becomes   the same -> Add(b)
    Conv(x, W, b)      becomes   Reshape(x, [N * C, 1, H, W]) -> Conv(kernel) -> Reshape(., [N, C * r, H', W']) -> Transpose(., to the end)
                                 -> the same -> Add(b) -> Transpose(., back)

Cores are ordinary weights on the right of a MatMul, [m(k) * r(k), r(k-1) * n(k)], and of a Conv with one
input channel, [r(d), 1, kernel].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.model import taken_names, unused_name
from onnx_lathe.passes.graph.rewire import disconnect
from onnx_lathe.passes.numerics.rank.tensor_train import Modes

BIAS_INPUT = 2


@dataclass(frozen=True)
class Train:
    """The cores of one weight as initializers, which every layer that reads the weight shares."""

    modes: Modes
    ranks: tuple[int, ...]
    """Between cores; with a kernel, the last one is between the channels and the kernel."""
    channels: tuple[Constant, ...]
    kernel: Constant | None
    spatial: int
    """Dimensions of the images that it is convolved with; 0 for a Gemm or MatMul."""


class TrainWriter:
    """Writes the form into one graph. Names are looked up once: asking the graph for each would take longer
    than all else.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.taken = taken_names(graph)
        self.shapes: dict[tuple[int, ...], Constant] = {}

    def train(self, weight: Constant, modes: Modes, cores: Sequence[np.ndarray]) -> Train:
        """Initializers for the cores [r, n, r'] of the weight, a kernel's last."""
        channels = []
        for number, (core, m, n) in enumerate(zip(cores, modes.inputs, modes.outputs, strict=False), 1):
            left, _, right = core.shape
            matrix = core.reshape(left, m, n, right).transpose(1, 3, 0, 2).reshape(m * right, left * n)
            channels.append(
                self._constant(f"{weight.name}_core_{number}", np.ascontiguousarray(matrix, np.float32))
            )
        kernel = None
        if modes.kernel is not None:
            values = cores[-1].reshape(-1, 1, *weight.shape[2:])
            kernel = self._constant(f"{weight.name}_core_kernel", np.ascontiguousarray(values, np.float32))
        return Train(
            modes, tuple(core.shape[0] for core in cores[1:]), tuple(channels), kernel, len(weight.shape) - 2
        )

    def replace(self, node: Node, train: Train, leading: int) -> None:
        """Puts the train in place of a layer. `leading`: dimensions of its input in front of the one that a
        Gemm or MatMul sums over.
        """
        chain = _Chain(self, node.name)
        source, result = node.inputs[0], node.outputs[0]
        bias = (
            node.inputs[BIAS_INPUT]
            if len(node.inputs) > BIAS_INPUT and not node.inputs[BIAS_INPUT].is_empty()
            else None
        )
        factor = node.attrs.get("beta", 1.0)
        disconnect(node)
        del self.graph.nodes[
            next(place for place, other in enumerate(self.graph.nodes) if other is node)
        ]  # remove() compares contents
        if node.op == "Conv":
            chain.convolution(source, train, node.attrs, bias, result)
            return
        if node.attrs.get("transA", 0):
            source = chain.add("Transpose", [source], perm=[1, 0])
        if bias is None:
            chain.cores(source, train, leading, result)
        else:
            chain.add("Add", [chain.cores(source, train, leading), self._scaled(bias, factor)], result)

    def shape(self, sizes: Sequence[int]) -> Constant:
        """The initializer of a Reshape, one for all that are alike."""
        key = tuple(sizes)
        if key not in self.shapes:
            self.shapes[key] = self._constant(
                "shape_" + "x".join(str(size) for size in key), np.array(key, np.int64)
            )
        return self.shapes[key]

    def name(self, wanted: str) -> str:
        name = unused_name(wanted, self.taken)
        self.taken.add(name)
        return name

    def _constant(self, name: str, values: np.ndarray) -> Constant:
        return Constant(self.name(name), values)

    def _scaled(self, bias: Tensor, factor: float) -> Tensor:
        return (
            bias if factor == 1 else self._constant(f"{bias.name}_scaled", np.float32(factor) * bias.values)
        )


class _Chain:
    """The nodes that one layer becomes."""

    def __init__(self, writer: TrainWriter, name: str) -> None:
        self.writer, self.name = writer, name

    def cores(self, source: Tensor, train: Train, leading: int, result: Tensor | None = None) -> Tensor:
        """From [..., m1 * ... * md * r(d)] to [..., n2 * ... * nd * n1]; the `leading` dimensions in front
        are copied (0 in a Reshape).
        """
        modes, ranks, copied = train.modes, (1, *train.ranks, 1), (0,) * leading
        done = 1
        for k in reversed(range(len(modes.inputs))):
            rows = math.prod(modes.inputs[:k]) * done
            source = self.reshape(source, (*copied, rows, modes.inputs[k] * ranks[k + 1]))
            source = self.add("MatMul", [source, train.channels[k]])
            done *= modes.outputs[k]
            if k:
                source = self.reshape(source, (*copied, rows * ranks[k], modes.outputs[k]))
                source = self.add("Transpose", [source], perm=[*range(leading), leading + 1, leading])
        return self.reshape(source, (*copied, done), result)

    def convolution(
        self, source: Tensor, train: Train, attrs: Mapping[str, object], bias: Tensor | None, result: Tensor
    ) -> None:
        inputs, open_sizes = math.prod(train.modes.inputs), (0,) * train.spatial
        if train.kernel is not None:
            source = self.reshape(source, (-1, 1, *open_sizes))  # each channel is an image of its own
            source = self.add("Conv", [source, train.kernel], **attrs)
            source = self.reshape(source, (-1, inputs * train.ranks[-1], *open_sizes))
        last = train.spatial + 1
        source = self.add("Transpose", [source], perm=[0, *range(2, last + 1), 1])
        source = self.cores(source, train, last)
        if bias is not None:
            source = self.add("Add", [source, bias])
        self.add("Transpose", [source], result, perm=[0, last, *range(1, last)])

    def reshape(self, source: Tensor, sizes: Sequence[int], result: Tensor | None = None) -> Tensor:
        return self.add("Reshape", [source, self.writer.shape(sizes)], result)

    def add(self, op: str, inputs: list[Tensor], result: Tensor | None = None, **attrs: object) -> Tensor:
        """A node behind the layer's others; its output, which is `result` if that is given."""
        name = self.writer.name(f"{self.name}_{op}")
        output = Variable(self.writer.name(f"{name}_output"), np.float32) if result is None else result
        self.writer.graph.nodes.append(Node(op, name, attrs, inputs, [output]))
        return output
