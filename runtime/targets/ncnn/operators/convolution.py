"""Conv and ConvTranspose of one, two and three dimensions, with groups or without, in float and INT8.

Parameters of the three dimensions stand at keys of their own (src/layer/convolution*.cpp): w first, then h, then d.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.dialect import Stored, Value, Weight
from onnx_lathe.runtime.targets.ncnn.network import Network
from onnx_lathe.runtime.targets.ncnn.quantized import quantized_layer
from onnx_lathe.runtime.targets.ncnn.registry import operator
from onnx_lathe.runtime.targets.ncnn.windows import SAME_LOWER, SAME_UPPER, Window, window

KERNEL, DILATION, STRIDE = (1, 11, 21), (2, 12, 22), (3, 13, 23)
BEGIN, END = (4, 14, 24), (15, 16, 17)
OUTPUT_PAD = (18, 19, 20)
OUTPUTS, BIAS, WEIGHT_SIZE, GROUP = 0, 5, 6, 7
ABSENT = -1
"""An axis that the tensor has not: its dimension in the blob is 1."""
SQUEEZED = 3
"""Squeeze's axes."""


@operator("Conv")
def conv(node: Node, net: Network) -> None:
    source, weight = node.inputs[:2]
    shape = net.constant(weight, "weight").shape
    spatial = len(shape) - 2
    _one_sample(node, net, spatial)
    group = node.integer("group", 1)
    found = window(node, net, shape[2:])
    params = _params(found, shape[0], int(np.prod(shape)), group)
    bias = _bias(node, net, shape[0])
    params[BIAS] = int(bias is not None)
    kind = "ConvolutionDepthWise" if group > 1 else "Convolution"
    axes = tuple(range(1, spatial + 2))
    if spatial < 3 and _put_quantized(node, net, kind, params, bias):
        return
    stored = net.weight(weight).moved(lambda values: values.reshape(-1))
    weights = [Weight(stored, tagged=True), *([Weight(Stored(bias))] if bias is not None else [])]
    net.put(node, f"{kind}{_suffix(spatial)}", [net.form(source, axes).name], params, weights, axes)


def _put_quantized(
    node: Node, net: Network, kind: str, params: dict[int, Value], bias: np.ndarray | None
) -> bool:
    """ncnn's INT8 convolutions have two dimensions: one of a single dimension is one over rows of height 1."""
    is_row = KERNEL[1] not in params
    wide = _of_rows(params) if is_row else dict(params)
    found = quantized_layer(node, net, kind, wide, bias)
    if found is None:
        return False
    tensor, weights = found
    if not is_row:
        axes = (1, 2, 3)
        net.put(node, kind, [net.form(tensor, axes).name], wide, weights, axes)
        return True
    row = net.form(tensor, (1, ABSENT, 2)).name
    whole = net.several(kind, node.name, [row], [f"{node.outputs[0]}_row"], wide, weights)
    net.put(node, "Squeeze", whole, {SQUEEZED: [1]}, axes=(1, 2))
    return True


def _of_rows(params: Mapping[int, Value]) -> dict[int, Value]:
    """Parameters of a window over a single dimension as those of one over two, of which the first is 1."""
    known = {KERNEL[1]: 1, DILATION[1]: 1, STRIDE[1]: 1}
    by_word = params[BEGIN[0]] in (SAME_UPPER, SAME_LOWER)  # ncnn wants the word on all sides, or on none
    sides = {key[1]: params[key[0]] if by_word else 0 for key in (BEGIN, END)}
    return {**params, **known, **sides}


@operator("ConvTranspose")
def conv_transpose(node: Node, net: Network) -> None:
    source, weight = node.inputs[:2]
    shape = net.constant(weight, "weight").shape
    spatial = len(shape) - 2
    _one_sample(node, net, spatial)
    group = node.integer("group", 1)
    outputs = shape[1] * group
    begin, end, added = _cuts(node, net, shape[2:])
    found = Window(tuple(shape[2:]), *_steps(node, spatial), begin, end)
    params = _params(found, outputs, int(np.prod(shape)), group)
    params |= dict(zip(OUTPUT_PAD, reversed(added), strict=False))
    bias = _bias(node, net, outputs)
    params[BIAS] = int(bias is not None)
    stored = net.weight(weight).moved(lambda values: _outputs_first(values, group).reshape(-1))
    weights = [Weight(stored, tagged=True), *([Weight(Stored(bias))] if bias is not None else [])]
    kind = f"Deconvolution{'DepthWise' if group > 1 else ''}{_suffix(spatial)}"
    axes = tuple(range(1, spatial + 2))
    net.put(node, kind, [net.form(source, axes).name], params, weights, axes)


def _outputs_first(values: np.ndarray, group: int) -> np.ndarray:
    """[inputs, outputs / group, ...] -> [group, outputs / group, inputs / group, ...]."""
    return values.reshape(group, values.shape[0] // group, *values.shape[1:]).swapaxes(1, 2)


def _suffix(spatial: int) -> str:
    return {1: "1D", 2: "", 3: "3D"}[spatial]


def _one_sample(node: Node, net: Network, spatial: int) -> None:
    if spatial not in (1, 2, 3):
        raise Unsupported(f"it has {spatial} spatial dimensions; ncnn's convolutions have 1, 2 or 3")
    if net.sizes(node.inputs[0])[0] != 1:
        raise Unsupported("it takes several samples at once, which are no batch of the model's input")


def _params(found: Window, outputs: int, size: int, group: int) -> dict[int, Value]:
    """The parameters of a window, which ncnn counts from the innermost dimension."""
    params: dict[int, Value] = {OUTPUTS: outputs, WEIGHT_SIZE: size}
    if group > 1:
        params[GROUP] = group
    for keys, values in (
        (KERNEL, found.kernel),
        (DILATION, found.dilations),
        (STRIDE, found.strides),
        (BEGIN, found.begin),
        (END, found.end),
    ):
        params |= dict(zip(keys, reversed(values), strict=False))
    return params


def _bias(node: Node, net: Network, outputs: int) -> np.ndarray | None:
    """[outputs], float32; of a quantized layer the bias is float too."""
    if not node.given(2):
        return None
    return np.broadcast_to(net.constant(node.inputs[2], "bias").astype(np.float32), (outputs,)).copy()


def _steps(node: Node, spatial: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(dilations, strides)."""
    return tuple(node.integers("dilations") or [1] * spatial), tuple(
        node.integers("strides") or [1] * spatial
    )


def _cuts(
    node: Node, net: Network, kernel: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(begin, end, added): what is cut off the full result on each side, and rows that are added to it."""
    spatial = len(kernel)
    dilations, strides = _steps(node, spatial)
    added = tuple(node.integers("output_padding") or [0] * spatial)
    wanted, auto = node.integers("output_shape"), node.text("auto_pad", "NOTSET")
    if not wanted and auto in ("NOTSET", "VALID"):
        pads = (node.integers("pads") if auto == "NOTSET" else None) or [0] * 2 * spatial
        return tuple(pads[:spatial]), tuple(pads[spatial:]), added
    begin, end = [], []
    sizes = net.sizes(node.inputs[0])[2:]
    for axis in range(spatial):
        # SAME keeps the result at stride times the size, whatever that is; a stated size needs a known one
        size = sizes[axis]
        if wanted and size is None:
            raise Unsupported("its output_shape is for one size of the input, which is open")
        target = wanted[axis] if wanted else strides[axis] * (size or 1)
        full = strides[axis] * ((size or 1) - 1) + added[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        total = full - target
        half = total // 2
        begin.append(half if auto == "SAME_UPPER" else total - half)
        end.append(total - begin[-1])
    if min(*begin, *end) < 0:
        raise Unsupported("its output_shape is larger than what it computes")
    return tuple(begin), tuple(end), added
