"""Explicit padding in front of a convolution or a pooling, folded into the layer's own.

    x -> Pad(0) -> Conv(pads p)           becomes  x -> Conv(pads p + q)
    x -> Pad(0) -> AveragePool            becomes  x -> AveragePool(pads q, count_include_pad 1)
    x -> Pad(v) -> MaxPool(pads p)        becomes  x -> MaxPool(pads p + q)    where no x is below v

TensorFlow's and TensorFlow Lite's exporters write it so where SAME pads one side more than the other.
A window of MaxPool that touches padding also holds a value of x, since pads are smaller than the kernel:
the padding's v, which no x is below, never is the largest.
"""

import numpy as np

from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor
from onnx_lathe.passes.graph.gates import clip_range
from onnx_lathe.passes.graph.rewire import is_output

LAYERS = ("Conv", "MaxPool", "AveragePool")
VALUE_INPUT, AXES_INPUT = 2, 3
_LOWEST = {np.dtype(kind): float(np.finfo(kind).min) for kind in (np.float16, np.float32, np.float64)}


def merge(graph: Graph, pad: Node, layer: Node) -> str | None:
    """Folds `pad` into the layer, which reads its result. Returns why not, having changed nothing.

    `pad` stays where others read its result too.
    """
    known = _amounts(graph, pad, layer)
    if isinstance(known, str):
        return known
    begin, end, value = known
    reason = _refusal(layer, pad.inputs[0], value, begin + end)
    if reason is not None:
        return reason
    spatial = len(begin)
    own = list(layer.attrs.get("pads") or [0] * (2 * spatial))
    pads = [int(a + b) for a, b in zip(own, [*begin, *end], strict=True)]
    kernel = layer.attrs.get("kernel_shape")
    if layer.op != "Conv" and any(p >= kernel[i % spatial] for i, p in enumerate(pads)):
        return f"{layer.name} would have more padding than its kernel has places"
    layer.attrs["pads"] = pads
    layer.attrs.pop("auto_pad", None)
    if layer.op == "AveragePool":
        layer.attrs["count_include_pad"] = 1
    layer.inputs[0] = pad.inputs[0]
    return None


def is_foldable(graph: Graph, pad: Node) -> bool:
    """Whether the node is a Pad that a layer reads."""
    return (
        pad.op == "Pad"
        and not pad.domain
        and bool(pad.outputs)
        and not is_output(graph, pad.outputs[0])
        and any(reader.op in LAYERS and not reader.domain for reader in pad.outputs[0].outputs)
    )


def _amounts(graph: Graph, pad: Node, layer: Node) -> tuple[list[int], list[int], float] | str:
    """(Places before, places after, value) of each spatial axis, or why the padding is none of a layer's."""
    if pad.attrs.get("mode", "constant") not in ("constant", b"constant"):
        return "it does not pad with a constant"
    if graph.opset < 11:
        pads, value = pad.attrs.get("pads", pad.attrs.get("paddings", [])), pad.attrs.get("value", 0.0)
    else:
        stored = _constant(pad, 1)
        given = _constant(pad, VALUE_INPUT)
        if stored is None:
            return "its padding is computed at run time"
        pads, value = [int(one) for one in stored.reshape(-1)], 0.0
        if len(pad.inputs) > VALUE_INPUT and not pad.inputs[VALUE_INPUT].is_empty():
            if given is None or given.size != 1:
                return "its value is computed at run time"
            value = float(given.item())
    rank = _rank(layer, len(pads) // 2)
    if len(pad.inputs) > AXES_INPUT and not pad.inputs[AXES_INPUT].is_empty():
        axes = _constant(pad, AXES_INPUT)
        if axes is None or rank is None:
            return "its axes are computed at run time"
        whole, half = [0] * (2 * rank), len(pads) // 2
        for index, axis in enumerate(axes.reshape(-1).tolist()):
            whole[axis % rank], whole[rank + axis % rank] = pads[index], pads[half + index]
        pads = whole
    if rank is None or len(pads) != 2 * rank or rank < 3:
        return "its rank is not known"
    begin, end = list(pads[:rank]), list(pads[rank:])
    if any([*begin[:2], *end[:2]]):
        return "it pads samples or channels"
    if min([*begin, *end]) < 0:
        return "it cuts off"
    return begin[2:], end[2:], float(value)


def _constant(node: Node, index: int) -> np.ndarray | None:
    if len(node.inputs) <= index or not isinstance(node.inputs[index], Constant):
        return None
    return np.asarray(node.inputs[index].values)


def _rank(layer: Node, given: int) -> int | None:
    """Of what the layer reads."""
    kernel = layer.attrs.get("kernel_shape")
    if kernel is not None:
        return len(kernel) + 2
    return len(layer.inputs[1].shape) if layer.inputs[1].shape is not None else given


def _refusal(layer: Node, source: Tensor, value: float, pads: list[int]) -> str | None:
    """Why this layer's own padding would not be the same."""
    if layer.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"{layer.name} chooses its padding by itself"
    if layer.op == "Conv":
        return None if value == 0 else "its value is not 0"
    if layer.attrs.get("ceil_mode", 0):
        return f"{layer.name} rounds its size up"
    if any(one != 1 for one in layer.attrs.get("dilations", [1])):
        return f"{layer.name} is dilated"
    if layer.op == "AveragePool":
        if value != 0:
            return "its value is not 0"
        counted = layer.attrs.get("count_include_pad", 0) or not any(layer.attrs.get("pads", [0]))
        return None if counted else f"{layer.name} does not count its padding"
    if len(layer.outputs) > 1 and not layer.outputs[1].is_empty():
        return f"{layer.name} gives indices"
    return None if value <= _least(source) else "its value may be the largest"


def _least(source: Tensor) -> float:
    """What no value of the tensor is below, as far as its producer tells."""
    lowest = _LOWEST.get(
        np.dtype(source.dtype) if source.dtype is not None else np.dtype(np.float32), -np.inf
    )
    if not source.inputs or source.inputs[0].domain:
        return lowest
    node = source.inputs[0]
    if node.op == "Clip":
        return max(clip_range(node)[0], lowest)
    return 0.0 if node.op in ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs") else lowest
