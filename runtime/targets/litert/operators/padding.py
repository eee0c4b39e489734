"""Pad: values around a tensor, the same number everywhere or its own, mirrored or repeated."""

import numpy as np

from onnx_lathe.runtime.targets.litert.dimensions import Dim, is_open
from onnx_lathe.runtime.targets.litert.emitter import FLOAT, Emitter
from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.registry import operator

MOST_AXES = 5
"""Of a tensor that the kernel of PAD takes."""
Amounts = list[tuple[int, int]]


@operator("Pad", integers=("INT8",), data=(0,))
def pad(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    source = emit.operand(0)
    amounts = _amounts(node, net, emit.rank(source))
    mode = node.text("mode", "constant")
    source = _cut(emit, source, amounts)
    amounts = [(max(before, 0), max(behind, 0)) for before, behind in amounts]
    if not any(map(any, amounts)):
        emit.leave(source)
    elif mode == "constant":
        _constant(emit, source, amounts)
    elif mode == "reflect" and _is_mirror(emit.dims(source), amounts):
        places = [source, emit.constant(np.array(amounts, np.int32), "pads")]
        net.put(node, "MIRROR_PAD", places, "MirrorPadOptions", mode="REFLECT")
    else:
        emit.leave(_gathered(emit, source, amounts, mode))


def _amounts(node: Node, net: Network, rank: int) -> Amounts:
    """(before, behind) for each axis."""
    if node.opset < 11:
        values = node.integers("pads") or []
    else:
        values = net.constant(node.inputs[1], "pads").reshape(-1).tolist()
    axes = list(range(rank))
    if node.given(3):
        axes = [int(axis) % rank for axis in net.constant(node.inputs[3], "axes").reshape(-1)]
    found: Amounts = [(0, 0)] * rank
    for place, axis in enumerate(axes):
        found[axis] = (int(values[place]), int(values[place + len(axes)]))
    return found


def _cut(emit: Emitter, source: int, amounts: Amounts) -> int:
    """Without what negative amounts take away."""
    if all(min(one) >= 0 for one in amounts):
        return source
    begin = [max(-before, 0) for before, _ in amounts]
    dims: list[Dim] = []
    for (before, behind), dim in zip(amounts, emit.dims(source), strict=True):
        gone = max(-before, 0) + max(-behind, 0)
        if gone and is_open(dim):
            raise Unsupported("it takes values away along an axis whose size depends on that of the input")
        if gone >= min(dim):
            raise Unsupported("it takes all values away")
        dims.append((dim[0] - gone, dim[1] - gone))
    sizes = [-1 if is_open(dim) else dim[0] for dim in dims]
    inputs = [source, emit.integers(begin, "begin"), emit.integers(sizes, "size")]
    return emit.op("SLICE", inputs, dims, None, "SliceOptions")


def _constant(emit: Emitter, source: int, amounts: Amounts) -> None:
    node, net = emit.node, emit.net
    kind = emit.type(source)
    value: float = node.number("value", 0.0) if node.opset < 11 else 0.0
    filler = -1
    if node.opset >= 11 and node.given(2):
        values = net.value(node.inputs[2])
        if values is None:
            filler = emit.read(2)
        else:
            value = values.reshape(-1)[0].item()
    if node.on_integers and value != 0.0:
        filler = _stored(emit, source, value)
    elif filler < 0 and (value != 0.0 or kind not in (FLOAT, "INT8")):
        filler = emit.number(value, kind)
    if emit.rank(source) > MOST_AXES:
        source, amounts = _merged(emit, source, amounts)
    dims: list[Dim] = [
        (dim[0] + sum(one), dim[1] + sum(one)) for dim, one in zip(emit.dims(source), amounts, strict=True)
    ]
    inputs = [source, emit.constant(np.array(amounts, np.int32), "pads"), *([filler] if filler >= 0 else [])]
    code, options = ("PADV2", "PadV2Options") if filler >= 0 else ("PAD", "PadOptions")
    if tuple(dims) == emit.given():
        net.put(node, code, inputs, options)
    else:
        emit.leave(emit.reshape(emit.op(code, inputs, dims, None, options), emit.given()))


def _stored(emit: Emitter, source: int, value: float) -> int:
    """A real value as the integer that stands for it in the tensor."""
    one = emit.net.tensors[source]
    if one.quantization is None:
        raise Unsupported("its input has no scale")
    scale, zero = one.quantization.scales[0], one.quantization.zero_points[0]
    stored = np.clip(np.rint(value / scale) + zero, -128, 127).astype(np.int8)
    return emit.net.store(stored, "INT8", f"{emit.label}_value", one.quantization)


def _merged(emit: Emitter, source: int, amounts: Amounts) -> tuple[int, Amounts]:
    """With neighbours that are not padded as one axis."""
    dims: list[Dim] = []
    found: Amounts = []
    for dim, one in zip(emit.dims(source), amounts, strict=True):
        if found and one == found[-1] == (0, 0):
            dims[-1] = (dims[-1][0] * dim[0], dims[-1][1] * dim[1])
        else:
            dims.append(dim)
            found.append(one)
    if len(dims) > MOST_AXES:
        raise Unsupported(f"it pads {len(dims)} dimensions; LiteRT pads {MOST_AXES}")
    return emit.reshape(source, dims), found


def _is_mirror(dims: tuple[Dim, ...], amounts: Amounts) -> bool:
    """Whether each edge is mirrored once: MIRROR_PAD goes no farther than the other edge."""
    return all(max(one) < min(dim) for dim, one in zip(dims, amounts, strict=True))


def _gathered(emit: Emitter, source: int, amounts: Amounts, mode: str) -> int:
    """Of each axis the values at the places that the mode takes: LiteRT has no operator for it."""
    ways = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}
    if mode not in ways:
        raise Unsupported(f"its mode '{mode}' is unknown")
    for axis, one in enumerate(amounts):
        if not any(one):
            continue
        dim = emit.dims(source)[axis]
        if is_open(dim):
            raise Unsupported(f"it pads with mode '{mode}' an axis whose size depends on that of the input")
        places = np.pad(np.arange(dim[0]), one, mode=ways[mode])  # type: ignore[call-overload]
        source = emit.gather(source, places, axis)
    return source
