"""One layer replaced by two whose product it is, nearly.

    Conv(W k x k, c -> d, b)   becomes   Conv(k x k, c -> r) -> Conv(1 x 1, r -> d, b')
    or                                   Conv(k x 1, c -> r) -> Conv(1 x k, r -> d, b')
    ConvTranspose              becomes   ConvTranspose -> Conv 1 x 1, or ConvTranspose -> ConvTranspose
    Gemm, MatMul (-> Add)      becomes   two of them (-> Add)

The first layer keeps strides, pads and dilations and has no bias: behind a bias, padding with zeros would
not be padding with zeros.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.layers import Weight
from onnx_lathe.passes.graph.macs import Shape, positions
from onnx_lathe.passes.graph.model import taken_names, unused_name
from onnx_lathe.passes.graph.rewire import is_output, replace_input

BIAS_INPUT = 2
CONVOLUTIONS = ("Conv", "ConvTranspose")
_SPATIAL_DEFAULTS = {"strides": 1, "dilations": 1, "output_padding": 0}


@dataclass(frozen=True)
class Layer:
    """The layers that read one weight, seen as one map from [inputs * kernel] to [channels].

    `bias` [channels] float64 is what is added behind the map, by the layers themselves or by the nodes in
    `adds`; `responses` are the tensors that hold the sums.
    """

    weight: Weight
    bias: np.ndarray | None
    adds: tuple[Node, ...]
    responses: tuple[Tensor, ...]
    relu: bool

    @property
    def op(self) -> str:
        return str(self.weight.nodes[0].op)

    @property
    def name(self) -> str:
        return str(self.weight.nodes[0].name)

    @property
    def channels(self) -> int:
        return int(self.weight.tensor.shape[self.weight.axis])

    @property
    def inputs(self) -> int:
        """Input channels times kernel size."""
        return math.prod(self.weight.tensor.shape) // self.channels

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.weight.tensor.shape[2:]) if self.op in CONVOLUTIONS else ()

    @property
    def response_axis(self) -> int:
        return 1 if self.op in CONVOLUTIONS else -1

    def matrix(self) -> np.ndarray:
        """The weight as [channels, inputs * kernel]."""
        return np.moveaxis(read(self.weight.tensor), self.weight.axis, 0).reshape(self.channels, -1)

    def factors(self, left: np.ndarray, right: np.ndarray) -> "Factors":
        """What two layers hold whose product is left [channels, r] @ right [r, inputs * kernel]."""
        shape = list(self.weight.tensor.shape)
        rest = shape[: self.weight.axis] + shape[self.weight.axis + 1 :]
        first = np.moveaxis(right.reshape(-1, *rest), 0, self.weight.axis)
        if self.op in CONVOLUTIONS:
            return Factors(first, left.reshape(*left.shape, *[1] * len(self.kernel)), spatial=False)
        return Factors(first, left if self.weight.axis == 0 else left.T, spatial=False)

    def plane(self) -> np.ndarray:
        """The weight of a two-dimensional convolution as [channels * columns, inputs * rows]."""
        width = self.kernel[1]
        values = np.moveaxis(read(self.weight.tensor), self.weight.axis, 0)
        return values.transpose(0, 3, 1, 2).reshape(self.channels * width, -1)

    def spatial_factors(self, left: np.ndarray, right: np.ndarray) -> "Factors":
        """What a vertical and a horizontal layer hold whose product is left [channels * columns, r] @ right
        [r, inputs * rows].
        """
        height, width = self.kernel
        first = right.reshape(len(right), -1, height, 1)
        second = left.reshape(self.channels, width, -1).transpose(0, 2, 1)[:, :, None, :]
        if self.op == "ConvTranspose":
            first, second = first.swapaxes(0, 1), second.swapaxes(0, 1)
        return Factors(first, second, spatial=True)


@dataclass(frozen=True)
class Factors:
    """The weights of the two layers, each as its operator wants it. `spatial`: vertical and horizontal."""

    first: np.ndarray
    second: np.ndarray
    spatial: bool


def describe(graph: Graph, weight: Weight, captured: Collection[str]) -> Layer | str:
    """The layers of a weight that is a float32 initializer, or why they cannot be split."""
    first = weight.nodes[0]
    if first.op in CONVOLUTIONS and first.attrs.get("group", 1) != 1:
        return "its convolution is grouped: each group is a small layer already"
    if first.op == "MatMul" and len(weight.tensor.shape) != 2:
        return "its weight is a batch of matrices"
    biases, adds, responses = [], [], []
    for node in weight.nodes:
        if node.op != first.op or node.attrs.get("transB", 0) != first.attrs.get("transB", 0):
            return f"its weight is read by {node.name} in another way"
        add = _add_behind(graph, node, captured) if node.op == "MatMul" else None
        bias = _bias(node, weight.tensor.shape[weight.axis]) if add is None else _vector(add)
        if isinstance(bias, str):
            return bias
        biases.append(bias)
        adds += [] if add is None else [add]
        responses.append((node if add is None else add).outputs[0])
    if len(adds) not in (0, len(weight.nodes)) or any(not _equal(bias, biases[0]) for bias in biases):
        return "its weight is shared by layers with different biases"
    relu = all(
        len(tensor.outputs) > 0
        and all(reader.op == "Relu" and not reader.domain for reader in tensor.outputs)
        and not is_output(graph, tensor)
        and tensor.name not in captured
        for tensor in responses
    )
    return Layer(weight, biases[0], tuple(adds), tuple(responses), relu)


def _add_behind(graph: Graph, node: Node, captured: Collection[str]) -> Node | None:
    """The Add that gives a MatMul its bias, if nobody else reads the MatMul and the bias is a float32
    vector of its channels.
    """
    result = node.outputs[0]
    if len(result.outputs) != 1 or is_output(graph, result) or result.name in captured:
        return None
    add = result.outputs[0]
    if add.op != "Add" or add.domain:
        return None
    constant = next((tensor for tensor in add.inputs if isinstance(tensor, Constant)), None)
    channels = node.inputs[1].shape[-1]
    if constant is None or constant.dtype != np.float32 or not constant.shape:
        return None
    return add if constant.shape[-1] == channels == math.prod(constant.shape) else None


def _vector(add: Node) -> np.ndarray:
    return (
        read(next(tensor for tensor in add.inputs if isinstance(tensor, Constant)))
        .reshape(-1)
        .astype(np.float64)
    )


def _bias(node: Node, channels: int) -> np.ndarray | str | None:
    """The third input as [channels], with what Gemm multiplies it by; None without one; or why it cannot be
    taken.
    """
    if len(node.inputs) <= BIAS_INPUT or node.inputs[BIAS_INPUT].is_empty():
        return None
    tensor = node.inputs[BIAS_INPUT]
    if not isinstance(tensor, Constant):
        return "its bias is computed at run time"
    if tensor.dtype != np.float32:
        return f"its bias is {tensor.dtype}, not float32"
    values = read(tensor).astype(np.float64)
    if values.size not in (1, channels) or (values.size > 1 and values.shape[-1] != channels):
        return "its bias is not one value per channel"
    return np.broadcast_to(values.reshape(-1) * node.attrs.get("beta", 1.0), (channels,))


def _equal(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def split_macs(layer: Layer, shapes: Mapping[str, Shape], spatial: bool) -> tuple[float, float]:
    """(MACs of the layers as they are, MACs of two layers in place of each, per rank)."""
    whole = per_rank = 0.0
    for node in layer.weight.nodes:
        here = positions(node, shapes)
        source, result = (shapes.get(tensor.name, ()) for tensor in (node.inputs[0], node.outputs[0]))
        batch, there = (result or (1,))[0], math.prod(result[:1] + result[2:])
        whole += here * layer.channels * layer.inputs
        if spatial:
            width = layer.kernel[1]
            middle = batch * result[2] * source[3] if len(result) == len(source) == 4 else here
            columns = layer.inputs // width
            first, last = (here, middle) if layer.op == "ConvTranspose" else (middle, here)
            per_rank += first * columns + last * layer.channels * width
        else:
            per_rank += (
                here * layer.inputs + (there if layer.op == "ConvTranspose" else here) * layer.channels
            )
    return whole, per_rank


def not_spatial(layer: Layer) -> str | None:
    """Why the layer cannot become a vertical and a horizontal one."""
    if layer.op not in CONVOLUTIONS or len(layer.kernel) != 2 or min(layer.kernel) == 1:
        shape = " x ".join(map(str, layer.kernel)) or "1"
        return f"its kernel is {shape}; method=spatial splits kernels of two sides longer than 1"
    if layer.op == "ConvTranspose" and any(
        node.attrs.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in node.attrs
        for node in layer.weight.nodes
    ):
        return "its padding follows from output_shape or auto_pad, which two layers would divide differently"
    return None


def split(graph: Graph, layer: Layer, factors: Factors, bias: np.ndarray | None) -> None:
    """Puts two layers in place of each that reads the weight; `bias` [channels] float32 takes the place of
    the old one, None for none.
    """
    taken = taken_names(graph)

    def constant(wanted: str, values: np.ndarray) -> Constant:
        name = unused_name(wanted, taken)
        taken.add(name)
        return Constant(name, np.ascontiguousarray(values, np.float32))

    weight = layer.weight.name
    first, second = constant(f"{weight}_first", factors.first), constant(f"{weight}_second", factors.second)
    offset = None if bias is None else constant(f"{weight}_bias", bias)
    for number, node in enumerate(list(layer.weight.nodes)):
        names = [unused_name(f"{node.name}_{part}", taken) for part in ("first", "second")]
        taken.update(names)
        middle = Variable(unused_name(f"{names[0]}_output", taken), np.float32)
        taken.add(middle.name)
        before, after = _attributes(node, layer, factors.spatial)
        result, place = node.outputs[0], next(index for index, one in enumerate(graph.nodes) if one is node)
        source = node.inputs[0]
        node.inputs.clear()
        node.outputs.clear()
        made = [Node(layer.op, names[0], before, [source, first], [middle])]
        second_op = layer.op if factors.spatial or layer.op != "ConvTranspose" else "Conv"
        if layer.adds:
            if offset is not None:
                add = layer.adds[number]
                old = next(tensor for tensor in add.inputs if isinstance(tensor, Constant))
                shaped = (
                    offset
                    if list(old.shape) == list(offset.shape)
                    else constant(offset.name, offset.values.reshape(old.shape))
                )
                replace_input(add, old, shaped)
            made.append(Node(second_op, names[1], after, [middle, second], [result]))
        elif layer.op == "MatMul" and offset is not None:
            product = Variable(unused_name(f"{names[1]}_output", taken), np.float32)
            add_name = unused_name(f"{node.name}_bias", taken)
            taken.update((product.name, add_name))
            made.append(Node(second_op, names[1], after, [middle, second], [product]))
            made.append(Node("Add", add_name, {}, [product, offset], [result]))
        else:
            made.append(
                Node(
                    second_op,
                    names[1],
                    after,
                    [middle, second, *([] if offset is None else [offset])],
                    [result],
                )
            )
        graph.nodes[place : place + 1] = made


def _attributes(node: Node, layer: Layer, spatial: bool) -> tuple[dict[str, object], dict[str, object]]:
    """The attributes of the two layers in place of `node`."""
    attrs = dict(node.attrs)
    if layer.op == "MatMul":
        return {}, {}
    if layer.op == "Gemm":
        attrs.pop("beta", None)
        return attrs, {"transB": 1} if attrs.get("transB", 0) else {}
    if not spatial:
        return attrs, {"kernel_shape": [1] * len(layer.kernel)}
    padding = attrs.get("auto_pad", "NOTSET")
    pads = list(attrs.get("pads", [0] * 4)) if padding == "NOTSET" else None
    halves: tuple[dict[str, object], dict[str, object]] = ({}, {})
    for axis, half in enumerate(halves):
        half["kernel_shape"] = [size if place == axis else 1 for place, size in enumerate(layer.kernel)]
        for key, default in _SPATIAL_DEFAULTS.items():
            if key in attrs:
                half[key] = [value if place == axis else default for place, value in enumerate(attrs[key])]
        if pads is None:
            half["auto_pad"] = padding
        else:
            half["pads"] = [pad if place % 2 == axis else 0 for place, pad in enumerate(pads)]
    return halves
