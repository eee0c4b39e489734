"""Means and sums over axes: over one that is split, each worker's own, and then theirs."""

import math

from torch import Tensor

from onnx_lathe.runtime.torch_bridge.plan import NOTHING, Step
from onnx_lathe.runtime.training.parallel.layout import Split
from onnx_lathe.runtime.training.parallel.moves import summed
from onnx_lathe.runtime.training.parallel.rules.table import Placed, Placing, rule


@rule("GlobalAveragePool", says="rows or columns: own sum, and a sum over workers; channels: as they are")
def global_average_pool(placer: Placing, step: Step) -> Placed | None:
    return _reduced(placer, step, tuple(range(2, len(placer.shape(step.inputs[0])))), True, is_mean=True)


@rule("GlobalMaxPool", "GlobalLpPool", says="channels: as they are; rows or columns: gathered")
def global_pool(placer: Placing, step: Step) -> Placed | None:
    layout = placer.layout(step.inputs[0])
    return None if layout is None or layout.axis > 1 else Placed(step.run, step.inputs, layout)


@rule(
    "ReduceMean",
    "ReduceSum",
    says="over the split axis: own sum, and a sum over workers; over others: as they are",
)
def mean_or_sum(placer: Placing, step: Step) -> Placed | None:
    node, rank = step.described, len(placer.shape(step.inputs[0]))
    if node is None:
        return None
    given = (
        placer.value(step.inputs[1])
        if len(step.inputs) > 1 and step.inputs[1] != NOTHING
        else node.integers("axes")
    )
    if given is not None and not isinstance(given, list):
        return None
    if not given and node.integer("noop_with_empty_axes"):
        return None
    axes = tuple(sorted(axis % rank for axis in given or range(rank)))
    return _reduced(placer, step, axes, bool(node.integer("keepdims", 1)), node.op == "ReduceMean")


def _reduced(placer: Placing, step: Step, axes: tuple[int, ...], keep: bool, is_mean: bool) -> Placed | None:
    x = step.inputs[0]
    layout = placer.layout(x)
    if layout is None or not placer.value(x).is_floating_point():
        return None
    if layout.axis not in axes:
        axis = layout.axis if keep else layout.axis - sum(one < layout.axis for one in axes)
        return Placed(step.run, step.inputs, Split(axis, layout.bounds))
    members, traffic, length = placer.mesh.model, placer.traffic, layout.bounds[-1]

    def run(x: Tensor, *_: object) -> Tensor:
        total = summed(x.sum(axes, keepdim=keep), members, traffic)
        if not is_mean:
            return total
        return total / (length * math.prod(x.shape[axis] for axis in axes if axis != layout.axis))

    return Placed(run, step.inputs, None)
