"""Operators that treat each channel, or each place of an image, by itself: normalization and softmax."""

from torch import Tensor

from onnx_lathe.runtime.torch_bridge.operators.batch_norm import Observed
from onnx_lathe.runtime.torch_bridge.plan import Step
from onnx_lathe.runtime.training.parallel.rules.table import Placed, Placing, rule

AXES_ALONE = 13
"""The opset from which a softmax is over one axis."""


@rule(
    "BatchNormalization",
    says="rows or columns: statistics of all workers; channels: own scale, bias and statistics, over the other samples only",
)
def batch_normalization(placer: Placing, step: Step) -> Placed | None:
    x, *rest = step.inputs
    layout = placer.layout(x)
    if any(placer.layout(slot) for slot in rest):
        return None
    # The workers of a group have the same samples of a channel, but where rows are split.
    members = placer.mesh.every if layout is not None and layout.axis > 1 else placer.mesh.data
    if layout is not None and layout.axis == 1:
        rest[:4] = [placer.part(slot, 0, layout.bounds) for slot in rest[:4]]
    run = step.run

    def normalize(
        x: Tensor,
        scale: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        observed: Observed | None = None,
    ) -> Tensor:
        result: Tensor = run(x, scale, bias, mean, variance, observed, members)
        return result

    return Placed(normalize, (x, *rest), layout)


@rule("LRN", says="rows or columns: as they are; channels: gathered")
def local_response_normalization(placer: Placing, step: Step) -> Placed | None:
    layout = placer.layout(step.inputs[0])
    return None if layout is None or layout.axis < 2 else Placed(step.run, step.inputs, layout)


@rule(
    "Softmax",
    "LogSoftmax",
    "Hardmax",
    says="other axes than their own: as they are; before opset 13: gathered",
)
def softmax(placer: Placing, step: Step) -> Placed | None:
    layout, node = placer.layout(step.inputs[0]), step.described
    if layout is None or node is None or node.opset < AXES_ALONE:
        return None
    axis = node.integer("axis", -1) % len(placer.shape(step.inputs[0]))
    return None if axis == layout.axis else Placed(step.run, step.inputs, layout)
