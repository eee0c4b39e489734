"""Networks to split among workers, and workers that are threads of one process: what they say to each other goes through
a table that all of them see.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.torch_bridge.members import Members
from onnx_lathe.runtime.training.parallel.placer import Placer
from onnx_lathe.runtime.training.parallel.rules.table import Choose, Mesh

T = TypeVar("T")
PATIENCE_S = 60.0


class Table:
    """Where the members of one group leave what the others take."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier = size, threading.Barrier(size, timeout=PATIENCE_S)
        self.places: list[Any] = [None] * size


class Thread(Members):
    def __init__(self, table: Table, rank: int) -> None:
        self.table, self.rank, self.size = table, rank, table.size

    def add(self, tensor: Tensor) -> None:
        tensor.copy_(torch.stack([one.to(tensor.device) for one in self._shown(tensor.clone())]).sum(0))

    def swap(self, pieces: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        shown = self._shown([piece.clone() for piece in pieces])
        found = [given[self.rank] for given in shown]
        assert [len(piece) for piece in found] == list(sizes)
        return found

    def _shown(self, mine: T) -> list[T]:
        self.table.places[self.rank] = mine
        self.table.barrier.wait()
        found = list(self.table.places)
        self.table.barrier.wait()
        return found


def in_threads(parts: int, work: Callable[[Mesh], T], data: int = 1) -> list[T]:
    """What `work` returns for each of data x parts workers. Raises what the first of them raised."""
    every = Table(data * parts)
    rows, columns = [Table(parts) for _ in range(data)], [Table(data) for _ in range(parts)]
    results: list[Any] = [None] * (data * parts)
    errors: list[Exception] = []

    def run(number: int) -> None:
        group, place = divmod(number, parts)
        mesh = Mesh(Thread(columns[place], group), Thread(rows[group], place), Thread(every, number))
        try:
            results[number] = work(mesh)
        except Exception as error:  # noqa: BLE001 - of a thread, raised again below
            errors.append(error)
            for table in (every, *rows, *columns):
                table.barrier.abort()

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(data * parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    if errors:
        raise next((one for one in errors if not isinstance(one, threading.BrokenBarrierError)), errors[0])
    return results


def averaged(module: GraphModule, mesh: Mesh) -> None:
    """Makes of each worker's gradients those of the step that one process would take."""
    parts = {id(parameter) for parameter in module.parts().values()}
    for parameter in module.parameters():
        if parameter.requires_grad:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            (mesh.data if id(parameter) in parts else mesh.every).add(gradient)
            parameter.grad = gradient / mesh.every.size


def trained(
    model: onnx.ModelProto,
    batches: Sequence[tuple[Mapping[str, Tensor], Tensor]],
    mesh: Mesh | None = None,
    choose: Choose | None = None,
    **options: Any,
) -> tuple[dict[str, np.ndarray], Placer | None, list[float]]:
    """(weights, placer, losses) after a step of SGD for each batch of (inputs, labels), of which each group of workers
    has its part.
    """
    cuts = options.pop("cuts", ())
    made = {name: options.pop(name) for name in ("train_normalization", "learn_scales") if name in options}
    module = GraphModule(model, **{"train_normalization": True} | made)
    placer = None
    if mesh is not None and choose is not None:
        sample = {name: value[:2] for name, value in batches[0][0].items()}
        placer = Placer(module.eval(), sample, mesh, choose, **options).place()
    module.checkpoint(cuts)
    module.train()
    optimizer = torch.optim.SGD(
        [one for one in module.parameters() if one.requires_grad], lr=0.01, momentum=0.9, nesterov=True
    )
    losses = []
    for inputs, labels in batches:
        if mesh is not None:
            inputs = {name: value.chunk(mesh.data.size)[mesh.data.rank] for name, value in inputs.items()}
            labels = labels.chunk(mesh.data.size)[mesh.data.rank]
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(**inputs), labels)
        loss.backward()
        losses.append(loss.item())
        if mesh is not None:
            averaged(module, mesh)
        optimizer.step()
    return module.values(), placer, losses


def worst(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> float:
    """Largest difference of a weight, relative to the largest of its tensor."""
    assert list(found) == list(wanted)
    return max(
        float(np.abs(found[name] - value).max() / max(np.abs(value).max(), 1e-30))
        for name, value in wanted.items()
    )


def images(
    model: onnx.ModelProto, steps: int, batch: int, seed: int = 5
) -> list[tuple[dict[str, Tensor], Tensor]]:
    """Random batches for a classifier of images."""
    value, result = model.graph.input[0], model.graph.output[0]
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
    classes = result.type.tensor_type.shape.dim[1].dim_value
    wide = value.type.tensor_type.elem_type == TensorProto.DOUBLE
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            {
                value.name: torch.randn(
                    batch, *shape, generator=generator, dtype=torch.float64 if wide else torch.float32
                )
            },
            torch.randint(classes, (batch,), generator=generator),
        )
        for _ in range(steps)
    ]


class Net:
    """Makes a network, layer by layer; weights are random, or `value`."""

    def __init__(self, dtype: str = "float64", seed: int = 0) -> None:
        self.dtype = np.dtype(dtype)
        self.element = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}[dtype]
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int, scale: float | None = None, value: float | None = None) -> str:
        name = f"w{len(self.weights)}"
        fan = np.prod(shape[1:]) if len(shape) > 1 else 1
        array = np.full(shape, value) if value is not None else self.random.standard_normal(shape)
        if value is None:
            array = array * ((2 / fan) ** 0.5 if scale is None else scale)
        self.weights.append(numpy_helper.from_array(array.astype(self.dtype), name))
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], f"{kind}_{name}", **attributes))
        return name

    def conv(
        self,
        x: str,
        channels: int,
        filters: int,
        kernel: int,
        stride: int = 1,
        bias: bool = False,
        group: int = 1,
        dilation: int = 1,
        **more: Any,
    ) -> str:
        pad = (kernel // 2) * dilation
        inputs = [self.weight(filters, channels // group, kernel, kernel)]
        inputs += [self.weight(filters, scale=0.1)] if bias else []
        attributes = {"strides": [stride] * 2, "pads": [pad] * 4, "group": group, "dilations": [dilation] * 2}
        return self.op("Conv", x, *inputs, **attributes | more)

    def normalized(self, x: str, channels: int) -> str:
        return self.op(
            "BatchNormalization",
            *(x, self.weight(channels, value=1.0), self.weight(channels, scale=0.1)),
            *(self.weight(channels, value=0.0), self.weight(channels, value=1.0)),
        )

    def gemm(self, x: str, channels: int, filters: int, scale: float | None = None) -> str:
        return self.op(
            "Gemm", x, self.weight(filters, channels, scale=scale), self.weight(filters, scale=0.1), transB=1
        )

    def model(self, output: str, shape: Sequence[int], classes: int) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", self.element, ["N", *shape])],
            [helper.make_tensor_value_info(output, self.element, ["N", classes])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        onnx.checker.check_model(model)
        return model


def residual(dtype: str = "float64", flat: bool = False) -> onnx.ModelProto:
    """All that is awkward to split: a strided 7 x 7 stem, a pool whose windows overlap, residual blocks, one with a strided
    1 x 1 shortcut, depthwise, grouped, dilated and even kernels, on 37 x 29, of which no size that follows is even.
    """
    net = Net(dtype)

    def conv(x: str, channels: int, filters: int, kernel: int, stride: int = 1, **more: Any) -> str:
        return net.normalized(net.conv(x, channels, filters, kernel, stride, **more), filters)

    x = net.op("Relu", conv("x", 3, 8, 7, 2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for channels, filters, stride in ((8, 8, 1), (8, 16, 2)):
        y = conv(net.op("Relu", conv(x, channels, filters, 3, stride)), filters, filters, 3)
        shortcut = x if stride == 1 else conv(x, channels, filters, 1, stride)
        x = net.op("Relu", net.op("Add", y, shortcut))
    y = net.op("Clip", conv(x, 16, 16, 3, group=16))
    y = net.conv(y, 16, 16, 3, bias=True, dilation=2)
    y = net.op("Add", y, net.conv(x, 16, 16, 2, bias=True, group=4, auto_pad="SAME_UPPER", pads=None))
    x = net.op("Add", x, y)
    if flat:
        x = net.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
        x = net.gemm(net.op("Flatten", x), 16 * 4, 16)
        return net.model(net.gemm(net.op("Relu", x), 16, 5), (3, 37, 29), 5)
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.model(net.gemm(x, 16, 5), (3, 37, 29), 5)


def plain(
    dtype: str = "float32", size: int = 96, widths: Sequence[int] = (32, 32, 64, 64), flat: int = 0
) -> onnx.ModelProto:
    """As VGG: 3 x 3 convolutions, a 2 x 2 pool behind every second; `flat`: fully connected layers of that width."""
    net, x, channels, side = Net(dtype), "x", 3, size
    for number, filters in enumerate(widths):
        x, channels = net.op("Relu", net.conv(x, channels, filters, 3, bias=True)), filters
        if number % 2:
            x, side = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), side // 2
    if flat:
        x = net.op("Relu", net.gemm(net.op("Flatten", x), channels * side * side, flat))
        return net.model(net.gemm(x, flat, 10), (3, size, size), 10)
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return net.model(net.gemm(x, channels, 10, scale=0.1), (3, size, size), 10)
