"""Resize and Upsample: Interp, where that takes the same places with the same weights.

ONNX has seven ways to say which place of the input a place of the output is, ncnn two: corners aligned, or the pixels'
areas (half_pixel). Whether they are the same for the sizes at hand is no matter of names: what ONNX Runtime computes
for each axis is compared with what Interp does (resampling.py).
"""

from dataclasses import dataclass

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.arithmetic import refuse_integers
from onnx_lathe.runtime.targets.ncnn.dialect import Value
from onnx_lathe.runtime.targets.ncnn.expressions import Pair, Sources, holds, is_open, origins, pairs
from onnx_lathe.runtime.targets.ncnn.moving import grouped, held, leave
from onnx_lathe.runtime.targets.ncnn.network import Loose, Network
from onnx_lathe.runtime.targets.ncnn.registry import operator
from onnx_lathe.runtime.targets.ncnn.resampling import BICUBIC, BILINEAR, NEAREST, Resampling, same_places

WAYS = {"nearest": NEAREST, "linear": BILINEAR, "bilinear": BILINEAR, "cubic": BICUBIC}


@dataclass(frozen=True)
class Axis:
    """An axis that is resized. `scale`: as the node has it; None where it has sizes."""

    before: Pair
    after: Pair
    scale: float | None


@operator("Resize", "Upsample")
def resize(node: Node, net: Network) -> None:
    source, target = node.inputs[0], node.outputs[0]
    refuse_integers(net, source)
    before, after = pairs(net, source), pairs(net, target)
    scales, sizes = _wanted(node, net)
    axes = [
        Axis(before[axis], after[axis], None if scales is None else scales[axis])
        for axis in range(len(before))
    ]
    # open sizes that happen to be the input's at both sizes need not be at others
    moved = [
        axis
        for axis, one in enumerate(axes)
        if one.before != one.after or one.scale not in (None, 1.0) or (sizes and is_open(one.after))
    ]
    if not moved:
        leave(node, net, held(net, source))
        return
    rank = len(before)
    if rank < 3 or moved[0] < max(rank - 2, 2 if rank < 5 else 3):
        raise Unsupported(f"it resizes axis {moved[0]} of {rank}; ncnn resizes the last two of an image")
    count = 1 if rank == 3 else 2
    blob = grouped(
        net, source, [tuple(range(rank - count)), *((axis,) for axis in range(rank - count, rank))]
    )
    _interp(node, net, blob, axes[-count:], sizes)


def _wanted(node: Node, net: Network) -> tuple[list[float] | None, str]:
    """(the scale of each axis if the node has scales, the name of the sizes if it has these)."""
    if node.integer("antialias"):
        raise Unsupported("it is antialiased, which ncnn's Interp is not")
    if node.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unsupported("it keeps the aspect ratio")
    rank = net.rank(node.inputs[0])
    given = node.integers("axes")
    axes = list(range(rank)) if given is None else [axis % rank for axis in given]
    place = 1 if node.op == "Upsample" or node.opset < 11 else 2
    if place == 2 and node.given(3):
        if net.values(node.inputs[3]) is None:
            raise Unsupported("its sizes are computed at run time")
        return None, node.inputs[3]
    values = node.attributes.get("scales")
    if values is None:
        values = net.constant(node.inputs[place], "scale")
    scales = [1.0] * rank
    for axis, scale in zip(axes, values, strict=True):
        scales[axis] = float(scale)
    return scales, ""


def _interp(node: Node, net: Network, blob: Loose, axes: list[Axis], sizes: str) -> None:
    mode = node.text("mode", "nearest")
    if mode not in WAYS:
        raise Unsupported(f"ncnn has no resizing of mode '{mode}'")
    way = WAYS[mode]
    if way == BILINEAR and all(1 in one.before or one.before == one.after for one in axes):
        way = NEAREST if all(one.before in ((1, 1), one.after) for one in axes) else way
    resampling = _resampling(node, axes, way)
    params: dict[int, Value] = {0: way, 6: int(resampling.aligned)}
    bottoms = [blob.name]
    if any(is_open(one.after) for one in axes):
        params[9], bottoms = _expression(node, net, blob, axes, sizes, way)
    else:
        params |= {3: axes[0].after[0] if len(axes) == 2 else 1, 4: axes[-1].after[0]}
    top = net.inner("Interp", node.outputs[0], bottoms, params)
    leave(node, net, Loose(top, (blob.dims[0], *(one.after for one in axes))))


def _resampling(node: Node, axes: list[Axis], way: int) -> Resampling:
    """How Interp computes what the node says, at both sizes."""
    attributes = {
        name: value
        for name, value in node.attributes.items()
        if name not in ("axes", "keep_aspect_ratio_policy", "scales")
    }
    for aligned in (False, True) if way != NEAREST else (False,):
        found = Resampling(way, aligned)
        if all(
            same_places(found, node.op, node.opset, attributes, before, after, one.scale)
            for one in axes
            for before, after in zip(one.before, one.after, strict=True)
        ):
            return found
    raise Unsupported(_described(node, axes))


def _described(node: Node, axes: list[Axis]) -> str:
    how = [node.text("mode", "nearest")]
    if node.op == "Resize" and node.opset >= 11:
        how.append(node.text("coordinate_transformation_mode", "half_pixel"))
        if how[0] == "nearest":
            how.append(node.text("nearest_mode", "round_prefer_floor"))
    sizes = " and ".join(f"{one.before[0]} to {one.after[0]}" for one in axes)
    return f"ncnn's Interp does not resize {sizes} with mode {', '.join(how)}"


def _expression(
    node: Node, net: Network, blob: Loose, axes: list[Axis], sizes: str, way: int
) -> tuple[str, list[str]]:
    """(the sizes of the result, innermost first, the blobs that they are computed from)."""
    sources = Sources(blob.name, blob.dims)
    own = not sizes or _proportional(node, net, sizes, len(axes))
    for tensor in sorted(origins(net, sizes)) if sizes else ():
        sources.add(net, tensor)
    letters = "hw"[-len(axes) :]
    texts = []
    for letter, one in zip(letters, axes, strict=True):
        ratio = one.after[0] // one.before[0]
        whole = (one.before[0] * ratio, one.before[1] * ratio) == one.after
        if not is_open(one.after):
            texts.append(str(one.after[0]))
        elif whole and own and one.scale in (None, ratio):
            texts.append(f"*(0{letter},{ratio})" if ratio > 1 else f"0{letter}")
        elif one.scale is None and (text := sources.equal(one.after)) is not None and _any_size(node, way):
            texts.append(text)
        else:
            raise Unsupported("its sizes depend on the size of the input, and it is not certain how")
    read = max((int(text[0]) for text in texts if text[-1] in "cdhw"), default=0)
    return ",".join(reversed(texts)), sources.bottoms[: read + 1]


def _proportional(node: Node, net: Network, sizes: str, count: int) -> bool:
    """Whether the last `count` of the sizes are, at every size of the input, what they are at those that are known: as
    many times the input's.
    """
    source = node.inputs[0]
    known = net.values(sizes)
    before = net.shape(source)[-count:]
    if known is None:
        return False
    ratios = [int(size) / one for size, one in zip(known[0][-count:], before, strict=True)]
    return holds(
        net,
        node.opset,
        sizes,
        source,
        lambda values, shape: all(
            int(size) == one * ratio
            for size, one, ratio in zip(values[-count:], shape[-count:], ratios, strict=True)
        ),
    )


def _any_size(node: Node, way: int) -> bool:
    """Whether Interp takes the same places whatever the sizes are: of nearest ones, rounded down from the corner."""
    return way != NEAREST or (
        node.text("coordinate_transformation_mode", "half_pixel") == "asymmetric"
        and node.text("nearest_mode", "round_prefer_floor") == "floor"
    )
