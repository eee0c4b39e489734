"""Operators that move values, or ask for shapes."""

import math

import torch
from torch import Tensor

from onnx_lathe.runtime.torch_bridge.plan import Step
from onnx_lathe.runtime.training.parallel.layout import Split
from onnx_lathe.runtime.training.parallel.rules.table import Placed, Placing, rule


@rule(
    "Flatten",
    "Reshape",
    says="to [N, all the rest]: channels stay split, rows or columns are exchanged for channels; else gathered",
)
def flatten(placer: Placing, step: Step) -> Placed | None:
    """A fully connected layer behind it then reads own channels, and its weight is never exchanged (Krizhevsky, "One
    weird trick for parallelizing convolutional neural networks", arXiv 1404.5997, 2014, section 3).
    """
    x = step.inputs[0]
    shape, result, layout = placer.shape(x), placer.shape(step.outputs[0]), placer.layout(x)
    if layout is None or layout.axis == 0 or result != (shape[0], math.prod(shape[1:])):
        return None
    if layout.axis != 1:
        if shape[1] < placer.size:
            return None
        layout = placer.even(x, 1)
    inner = math.prod(shape[2:])
    made = Split(1, tuple(bound * inner for bound in layout.bounds))
    return Placed(lambda x, *_: x.flatten(1), (placer.want(x, layout), *step.inputs[1:]), made)


@rule("Transpose", says="the split axis goes where it goes")
def transpose(placer: Placing, step: Step) -> Placed | None:
    layout, node = placer.layout(step.inputs[0]), step.described
    if layout is None or node is None:
        return None
    order = node.integers("perm") or list(range(len(placer.shape(step.inputs[0]))))[::-1]
    return Placed(step.run, step.inputs, Split(order.index(layout.axis), layout.bounds))


@rule("Concat", says="along another axis than the split one: as the first split input; along that: gathered")
def concat(placer: Placing, step: Step) -> Placed | None:
    layout = next(found for slot in step.inputs if (found := placer.layout(slot)) is not None)
    axis = 1 if step.described is None else step.described.integer("axis", 1)
    if axis % len(placer.shape(step.outputs[0])) == layout.axis:
        return None
    inputs = tuple(
        placer.want(slot, layout) if placer.layout(slot) else placer.part(slot, layout.axis, layout.bounds)
        for slot in step.inputs
    )
    return Placed(step.run, inputs, layout)


@rule("Pad", says="of other axes than the split one: as they are; of that one: gathered")
def pad(placer: Placing, step: Step) -> Placed | None:
    layout = placer.layout(step.inputs[0])
    same = layout is not None and placer.shape(step.outputs[0])[layout.axis] == layout.bounds[-1]
    pads = placer.value(step.inputs[1]) if len(step.inputs) > 1 else None
    if layout is None or not same or not isinstance(pads, list) or any(size < 0 for size in pads):
        return None
    return Placed(step.run, step.inputs, layout)


@rule("Shape", "Size", says="as of the whole, without gathering it")
def shape_of(placer: Placing, step: Step) -> Placed | None:
    layout, run = placer.layout(step.inputs[0]), step.run
    if layout is None:
        return None

    def run_on_whole(x: Tensor) -> Tensor:
        sizes = list(x.shape)
        sizes[layout.axis] = layout.bounds[-1]
        result: Tensor = run(torch.empty(sizes, device="meta"))
        return result

    return Placed(run_on_whole, step.inputs, None)
