"""Convolution and pooling: windows that slide over an axis that is split need a halo, some rows of the neighbours."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from onnx_lathe.runtime.torch_bridge.operators.convolution import Convolution
from onnx_lathe.runtime.torch_bridge.operators.window import Window, window
from onnx_lathe.runtime.torch_bridge.plan import NOTHING, Step
from onnx_lathe.runtime.training.parallel.layout import Ranges, Split, clipped, even, needed
from onnx_lathe.runtime.training.parallel.moves import summed, thrifty
from onnx_lathe.runtime.training.parallel.rules.table import Placed, Placing, rule


@rule(
    "Conv",
    says="rows or columns: with a halo; filters: own rows of the weight; channels: own columns, and a sum; groups: own groups",
)
def conv(placer: Placing, step: Step) -> Placed | None:
    x, weight = step.inputs[:2]
    node, layout, how = step.described, placer.layout(x), placer.choose(placer, step)
    rank = len(placer.shape(x))
    tiled = isinstance(step.run, Convolution) and step.run.tiles is not None
    if node is None or tiled or any(placer.layout(slot) for slot in step.inputs[1:]) or rank < 3:
        return None
    groups = node.integer("group", 1)
    if how == "follow":
        how = _following(layout, rank, groups)
    if how in ("height", "width"):
        axis = rank - 1 if how == "width" or rank == 3 else rank - 2
        return _along(placer, step, axis, placer.shape(weight)[2:], with_zeros=True)
    if how not in ("filter", "channel"):
        return None
    if groups > 1:
        return _grouped(placer, step, groups)
    bias = step.inputs[2] if len(step.inputs) > 2 else NOTHING
    if how == "filter":
        if placer.shape(weight)[0] < placer.size:
            return None
        bounds = placer.even(weight, 0).bounds
        inputs = (placer.want(x, None), placer.part(weight, 0, bounds), placer.part(bias, 0, bounds))
        return Placed(step.run, inputs, Split(1, bounds))
    if placer.shape(weight)[1] < placer.size:
        return None
    split = layout if layout is not None and layout.axis == 1 else placer.even(x, 1)
    return _summing(placer, step, split, bias)


def _following(layout: Split | None, rank: int, groups: int) -> str:
    if layout is None:
        return "whole"
    if layout.axis == 1:
        return "channel"
    return {rank - 1: "width", rank - 2: "height"}.get(layout.axis, "whole")


def _summing(placer: Placing, step: Step, split: Split, bias: int) -> Placed:
    """Own channels of the input and own columns of the weight; what that gives is summed, and the bias added once."""
    x, weight = step.inputs[:2]
    run, members, traffic = step.run, placer.mesh.model, placer.traffic

    def run_summing(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        total = summed(run(x, weight, None), members, traffic)
        return total if bias is None else total + bias.reshape([-1] + [1] * (total.dim() - 2)).to(total.dtype)

    inputs = (placer.want(x, split), placer.part(weight, 1, split.bounds), bias)
    return Placed(run_summing, inputs, None)


def _grouped(placer: Placing, step: Step, groups: int) -> Placed | None:
    """Own groups: their channels of the input give their channels of the result. Depthwise convolution among them."""
    x, weight = step.inputs[:2]
    of_input, of_result = placer.shape(x)[1] // groups, placer.shape(weight)[0] // groups
    layout = placer.layout(x)
    if layout is not None and layout.axis == 1 and all(bound % of_input == 0 for bound in layout.bounds):
        bounds = tuple(bound // of_input for bound in layout.bounds)
    elif groups >= placer.size:
        bounds = even(groups, placer.size)
    else:
        return None
    given = Split(1, tuple(bound * of_input for bound in bounds))
    made = Split(1, tuple(bound * of_result for bound in bounds))
    run = step.rebuilt(group=bounds[placer.rank + 1] - bounds[placer.rank])
    rest = [placer.part(slot, 0, made.bounds) for slot in step.inputs[1:]]
    return Placed(run, (placer.want(x, given), *rest), made)


@rule(
    "MaxPool",
    says="rows or columns: with a halo; channels: as they are; with indices: gathered",
)
def max_pool(placer: Placing, step: Step) -> Placed | None:
    return _pool(placer, step)


@rule(
    "AveragePool",
    says="as MaxPool; with ceil_mode and count_include_pad both: gathered",
)
def average_pool(placer: Placing, step: Step) -> Placed | None:
    node = step.described
    both = node is not None and node.integer("ceil_mode") and node.integer("count_include_pad")
    layout = placer.layout(step.inputs[0])
    return None if both and layout is not None and layout.axis > 1 else _pool(placer, step)


def _pool(placer: Placing, step: Step) -> Placed | None:
    layout, node = placer.layout(step.inputs[0]), step.described
    if layout is None or node is None or node.used > 1 or layout.axis == 0:
        return None
    if layout.axis == 1:
        return Placed(step.run, step.inputs, layout)
    return _along(placer, step, layout.axis, node.integers("kernel_shape") or [], with_zeros=False)


def _along(placer: Placing, step: Step, axis: int, kernel: Sequence[int], with_zeros: bool) -> Placed | None:
    """The operator on the rows (of `axis`) that its own rows of the result need.

    with_zeros: padding comes with the halo, as rows of zeros; else the workers at the edges pad. The move is part of the
    step, so that both are computed again together.
    """
    x, node = step.inputs[0], step.described
    result = placer.shape(step.outputs[0])
    if node is None or result[axis] < placer.size:
        return None
    if (layout := placer.layout(x)) is not None and layout.axis != axis:
        if placer.shape(x)[axis] < placer.size:
            return None
        x = placer.want(x, placer.even(x, axis))
    shape, spatial = placer.shape(x), axis - 2
    geometry = window(node, list(kernel))
    bounds = even(result[axis], placer.size)
    ranges = needed(
        bounds,
        geometry.strides[spatial],
        geometry.padding(spatial, shape[axis])[0],
        geometry.extent(spatial),
    )
    fetched = ranges if with_zeros else clipped(ranges, shape[axis])
    (first, end), (own_first, own_end) = ranges[placer.rank], fetched[placer.rank]
    run = thrifty(
        step.rebuilt(
            **_padding(geometry, shape[2:], spatial, (own_first - first, end - own_end), node.attributes)
        )
    )
    move = placer.fetch(x, Ranges(axis, fetched))
    made = Split(axis, bounds)
    if move is None:
        return Placed(run, (x, *step.inputs[1:]), made)
    return Placed(lambda x, *more: run(move(x), *more), (x, *step.inputs[1:]), made)


def _padding(
    geometry: Window, sizes: Sequence[int], split: int, own: tuple[int, int], attributes: Any
) -> dict[str, Any]:
    """Attributes that pad as the whole operator does, but by `own` along the axis that is split."""
    sides = [geometry.padding(axis, size) for axis, size in enumerate(sizes)]
    if geometry.ceil:
        sides = [(side[0], geometry.reach(axis, sizes[axis])) for axis, side in enumerate(sides)]
    sides[split] = own
    changed: dict[str, Any] = {"pads": [side[0] for side in sides] + [side[1] for side in sides]}
    return changed | {
        name: value for name, value in (("auto_pad", b"NOTSET"), ("ceil_mode", 0)) if name in attributes
    }
