"""equalize(absorb=true): what a channel never falls below moves on into the next layer's bias, and its
range starts at zero.

    Conv(W1, b1) -> Relu -> Conv(W2, b2)
    Conv(W1, b1 - c) -> Relu -> Conv(W2, b2 + sum W2 c)

is the same where W1 x + b1 >= c >= 0. c is the smallest pre-activation of each channel on the calibration
data, on which nothing changes. A reader that pads its input is left alone: its zeros would have to become
-c.
Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019,
section 4.1.3.
"""

from dataclasses import dataclass

import numpy as np

from onnx_lathe.layout import LAYOUT
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.equalize.scalable import KEEP, Scaling, find_scaling
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, rewire
from onnx_lathe.passes.graph.biases import BIAS_INPUT
from onnx_lathe.passes.graph.coupling.state import Channels
from onnx_lathe.passes.graph.initializers import read, write
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, constant_value, is_constant, is_layer
from onnx_lathe.passes.graph.model import export_model, free_name

SHIFTED = (*LAYOUT, "Dropout", "MaxPool", "GlobalMaxPool", "GlobalAveragePool")
"""Operators for which f(x - c) = f(x) - c."""


@dataclass(frozen=True)
class _Pair:
    """A layer with a bias in front of a ReLU, the channels that it writes, and all layers that read these."""

    first: Node
    channels: Channels
    readers: list[Node]


def absorb(graph: Graph, context: Context, report: PassReport) -> None:
    """Moves biases on. Layers whose bias cannot move are skipped with the reason."""
    scaling = find_scaling(graph, KEEP)
    pairs = []
    for node in graph.nodes:
        relu = _relu(node)
        if relu is None:
            continue
        found = _pair(scaling, node, relu)
        if isinstance(found, _Pair):
            pairs.append(found)
        else:
            report.skip(node.name, f"its bias stays: {found}")
    for pair, least in zip(pairs, _least(graph, pairs, context), strict=True):
        moved = _alike(scaling, pair.channels, np.where(np.isfinite(least), np.maximum(least, 0), 0))
        if moved.any():
            _move(scaling, pair, moved)
            report.edit(
                pair.first.name,
                f"biases of {np.count_nonzero(moved)} channels moved on, by at most {moved.max():.3g}",
            )


def _relu(node: Node) -> Node | None:
    """The ReLU that alone reads a layer with a bias."""
    if (
        not is_layer(node)
        or len(node.inputs) <= BIAS_INPUT
        or not isinstance(node.inputs[BIAS_INPUT], Constant)
    ):
        return None
    readers = node.outputs[0].outputs
    return readers[0] if len(readers) == 1 and readers[0].op == "Relu" and not readers[0].domain else None


def _pair(scaling: Scaling, node: Node, relu: Node) -> _Pair | str:
    channels = scaling.of(node.outputs[0])
    bias = node.inputs[BIAS_INPUT]
    if channels is None:
        return "its weight is no float32 initializer, or the rank of its output is not known"
    if (
        bias.dtype != np.float32
        or tuple(bias.shape)[-1:] != (channels.units.size,)
        or node.attrs.get("beta", 1.0) == 0
    ):
        return "it has no element per channel"
    readers, waiting = [], [node.outputs[0], relu.outputs[0]]
    while waiting:
        tensor = waiting.pop()
        if _is_seen(scaling.graph, tensor):
            return f"{tensor.name} is an output of the model, or a body of If, Loop or Scan reads it"
        for reader in tensor.outputs:
            if reader is relu:
                continue
            if reader.op in SHIFTED and not reader.domain and scaling.of(reader.outputs[0]) is not None:
                waiting.append(reader.outputs[0])
            elif reason := _cannot_take(scaling, reader, tensor):
                return reason
            else:
                readers.append(reader)
    return _Pair(node, channels, readers) if readers else "no layer reads it"


def _cannot_take(scaling: Scaling, node: Node, tensor: Tensor) -> str | None:
    """Why this reader's bias cannot take up what is missing from its input."""
    if (
        node.op not in ("Conv", "Gemm")
        or not is_layer(node)
        or node.inputs[0] is not tensor
        or node.attrs.get("transA", 0)
    ):
        return f"{node.name} ({node.op}) reads it"
    if any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"{node.name} pads it with zeros"
    bias = node.inputs[BIAS_INPUT] if len(node.inputs) > BIAS_INPUT else None
    if (
        bias is not None
        and not bias.is_empty()
        and (not isinstance(bias, Constant) or bias.dtype != np.float32)
    ):
        return f"the bias of {node.name} is no float32 initializer"
    if (
        not is_constant(node.inputs[WEIGHT_INPUT])
        or scaling.of(tensor) is None
        or node.attrs.get("beta", 1.0) == 0
    ):
        return f"{node.name} has no constant weight or bias"
    return None


def _least(graph: Graph, pairs: list[_Pair], context: Context) -> list[np.ndarray]:
    """Smallest pre-activation of each channel on the calibration data."""
    least = [np.full(pair.channels.units.size, np.inf) for pair in pairs]
    if pairs:
        context.progress("measuring biases")
        names = [pair.first.outputs[0].name for pair in pairs]
        for values in context.need_calibrator().observe(export_model(graph), names):
            for index, (name, pair) in enumerate(zip(names, pairs, strict=True)):
                axes = tuple(axis for axis in range(values[name].ndim) if axis != pair.channels.axis)
                least[index] = np.minimum(least[index], values[name].min(axis=axes, initial=np.inf))
    return least


def _alike(scaling: Scaling, channels: Channels, moved: np.ndarray) -> np.ndarray:
    """What can leave each channel: those that a Reshape on the way makes one unit, the readers cannot tell
    apart.
    """
    units = scaling.units.roots(channels.units)
    least = np.full(len(scaling.units), np.inf)
    np.minimum.at(least, units, moved)
    shared: np.ndarray = least[units]
    return shared


def _move(scaling: Scaling, pair: _Pair, moved: np.ndarray) -> None:
    """`moved`, by channel, leaves the first layer's bias, and what the readers make of it comes to theirs."""
    graph, roots = scaling.graph, scaling.units.roots
    by_unit = dict(zip(roots(pair.channels.units).tolist(), moved.tolist(), strict=True))
    _add(graph, pair.first, -moved)
    for node in pair.readers:
        source = scaling.of(node.inputs[0])
        shift = (
            np.array([by_unit[unit] for unit in roots(source.units).tolist()])
            if source is not None
            else np.zeros(0)
        )
        weight = constant_value(node.inputs[WEIGHT_INPUT], graph.opset).astype(np.float64)
        if node.op == "Conv":
            groups = int(node.attrs.get("group", 1))
            kernels = weight.reshape(groups, -1, weight.shape[1], int(np.prod(weight.shape[2:]))).sum(axis=3)
            added = np.einsum("gri,gi->gr", kernels, shift.reshape(groups, -1)).reshape(-1)
        else:
            added = (
                (weight if node.attrs.get("transB", 0) else weight.T) @ shift * node.attrs.get("alpha", 1.0)
            )
        _add(graph, node, added)


def _add(graph: Graph, node: Node, values: np.ndarray) -> None:
    """Adds to the bias of this node alone: where others read the initializer that it has, it gets one of
    its own.
    """
    old = node.inputs[BIAS_INPUT] if len(node.inputs) > BIAS_INPUT else None
    present = read(old) if isinstance(old, Constant) else np.zeros(values.size)
    result = (present + values / node.attrs.get("beta", 1.0)).astype(np.float32)
    if (
        isinstance(old, Constant)
        and len(old.outputs) == 1
        and result.shape == tuple(old.shape)
        and not _is_seen(graph, old)
    ):
        write(old, result)
        return
    name = free_name(graph, old.name if isinstance(old, Constant) else f"{node.name}_bias")
    if old is None:
        node.inputs.append(Constant(name, result))
    else:
        node.inputs[BIAS_INPUT] = Constant(name, result)


def _is_seen(graph: Graph, tensor: Tensor) -> bool:
    return rewire.is_output(graph, tensor) or tensor.name in rewire.captured_names(graph)
