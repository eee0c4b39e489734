"""Operators that LiteRT has not, as those that it has.

GlobalAveragePool(x)             ReduceMean(x, axes 2, 3, ...); so an AveragePool over the whole image
GlobalMaxPool(x)                 ReduceMax(x, axes 2, 3, ...)
BatchNormalization(x)            x * a + b, with a and b of shape [C, 1, ...], as computed from its constants
InstanceNormalization(x)         (x - mean) * a / sqrt(variance + epsilon) + b
Dropout(x), Identity(x)          x
"""

from collections.abc import Sequence

import numpy as np

from onnx_lathe.passes.graph import Constant, Node, Tensor
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.rewire import bypass, disconnect, sweep
from onnx_lathe.passes.lowering.litert_layout.depth import order_channels, write_depth_to_space
from onnx_lathe.passes.lowering.litert_layout.storage import Size
from onnx_lathe.passes.lowering.litert_layout.work import Work

AXES_INPUT_OPSET = 18
"""The first opset whose ReduceMean and ReduceMax have their axes as an input."""


def restate(work: Work) -> None:
    for node in list(work.graph.nodes):
        if node.domain or not node.inputs or not node.outputs:
            continue
        shape = work.shape(node.inputs[0])
        if node.op in ("Dropout", "Identity"):
            _skip(work, node)
        elif shape is None or len(shape) < 3:
            continue
        elif node.op == "GlobalAveragePool" or (node.op == "AveragePool" and _is_global(node, shape)):
            _reduce(work, node, "ReduceMean", range(2, len(shape)))
        elif node.op == "GlobalMaxPool":
            _reduce(work, node, "ReduceMax", range(2, len(shape)))
        elif node.op == "BatchNormalization":
            _batch_normalization(work, node, len(shape))
        elif node.op == "Pad":
            _pad_all(work, node, len(shape))
        elif node.op == "Resize" and node.attrs.get("axes") is not None:
            _resize_all(work, node, shape)
        elif node.op == "DepthToSpace" and node.attrs.get("mode") == "CRD":
            order_channels(work, node)
        elif node.op == "Transpose":
            write_depth_to_space(work, node)
    sweep(work.graph)


def _skip(work: Work, node: Node) -> None:
    others = [one for one in node.outputs[1:] if one.outputs or one in work.graph.outputs]
    if others or (len(node.inputs) > 2 and not isinstance(node.inputs[2], Constant)):
        return
    if len(node.inputs) > 2 and bool(node.inputs[2].values.reshape(())):
        return
    name = node.name
    if bypass(work.graph, node, work.captured):
        work.report.edit(name, "does nothing, and is gone")


def _is_global(node: Node, shape: Sequence[Size]) -> bool:
    """Whether the one window is the whole image."""
    attrs = node.attrs
    plain = not any(attrs.get("pads") or ()) and attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return plain and list(attrs["kernel_shape"]) == list(shape[2:])


def _reduce(work: Work, node: Node, operator: str, axes: Sequence[int]) -> None:
    work.report.edit(node.name, f"is a {operator} over the axes of the image")
    node.op, node.attrs = operator, {"keepdims": 1}
    if work.opset >= AXES_INPUT_OPSET:
        node.inputs.append(work.integers(f"{node.name}_axes", list(axes)))
    else:
        node.attrs["axes"] = list(axes)


def _pad_all(work: Work, node: Node, rank: int) -> None:
    if len(node.inputs) < 4 or not all(isinstance(node.inputs[index], Constant) for index in (1, 3)):
        return
    pads, axes = (read(node.inputs[index]).reshape(-1) for index in (1, 3))
    full = np.zeros((2, rank), np.int64)
    full[:, axes] = pads.reshape(2, -1)
    node.inputs = [
        node.inputs[0],
        work.integers(node.inputs[1].name, full.reshape(-1).tolist()),
        node.inputs[2],
    ]
    work.report.edit(node.name, "names all axes")


def _resize_all(work: Work, node: Node, shape: Sequence[Size]) -> None:
    """Sizes of all axes must be known where the node has sizes; a region of interest names the axes, too."""
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return
    axes = [int(axis) % len(shape) for axis in node.attrs["axes"]]
    for index, others in ((2, [1.0] * len(shape)), (3, list(shape))):
        if len(node.inputs) <= index or node.inputs[index].is_empty() or node.inputs[index].shape == (0,):
            continue
        given = node.inputs[index]
        if not isinstance(given, Constant) or any(isinstance(one, str) for one in others):
            return
        if node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            return
        full = np.array(others, given.dtype)
        full[axes] = read(given).reshape(-1)
        node.inputs[index] = work.constant(given.name, full)
        del node.attrs["axes"]
        work.report.edit(node.name, "names all axes")
        return


def _batch_normalization(work: Work, node: Node, rank: int) -> None:
    parameters = node.inputs[1:5]
    if not all(isinstance(one, Constant) for one in parameters) or node.attrs.get("training_mode", 0):
        return
    scale, bias, mean, variance = (np.asarray(read(one), np.float64) for one in parameters)
    factor = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    source, result = node.inputs[0], node.outputs[0]
    dtype, shape = read(parameters[0]).dtype, (-1, *(1 for _ in range(2, rank)))
    operands = [
        work.constant(f"{node.name}_{name}", values.astype(dtype).reshape(shape))
        for name, values in (("scale", factor), ("offset", bias - mean * factor))
    ]
    disconnect(node)
    product = _made(work, node.name, "Mul", [source, operands[0]], source)
    work.node("Add", f"{node.name}_Add", [product, operands[1]], [result])
    work.report.edit(node.name, "is a multiplication and an addition")


def _made(work: Work, name: str, operator: str, inputs: Sequence[Tensor], like: Tensor) -> Tensor:
    """The result of a new node, of the type of `like`."""
    result = work.variable(f"{name}_{operator}", like, like.shape)
    work.node(operator, f"{name}_{operator}", inputs, [result])
    return result
