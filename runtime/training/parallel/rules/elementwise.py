"""Operators that compute each element of the result from the elements in its place."""

from onnx_lathe.runtime.torch_bridge.operators.quantization import Pace
from onnx_lathe.runtime.torch_bridge.plan import Step
from onnx_lathe.runtime.training.parallel.layout import Split
from onnx_lathe.runtime.training.parallel.rules.table import Placed, Placing, rule

ONE_TENSOR = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitwiseNot",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
]
SEVERAL = [
    "Add",
    "And",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "PRelu",
    "Pow",
    "Sub",
    "Sum",
    "SwiGLU",
    "Where",
    "Xor",
]
BROADCASTS = 7
"""The opset from which operands are aligned by their last axes."""


@rule(
    *ONE_TENSOR,
    *SEVERAL,
    says="as the first split input; others are cut or moved to match, broadcast ones stay",
)
def elementwise(placer: Placing, step: Step) -> Placed | None:
    operator, opset = step.node.op_type, step.described.opset if step.described else 0
    if operator in SEVERAL and len(step.inputs) > 1 and opset < BROADCASTS:
        return None
    rank = max(len(placer.shape(slot)) for slot in step.inputs)
    layout = next(
        _lifted(found, rank - len(placer.shape(slot)))
        for slot in step.inputs
        if (found := placer.layout(slot)) is not None
    )
    size = layout.bounds[-1]
    inputs = tuple(_matching(placer, slot, layout, rank, size) for slot in step.inputs)
    return Placed(step.run, inputs, layout)


def _lifted(layout: Split, axes: int) -> Split:
    """The layout with so many axes more in front."""
    return Split(layout.axis + axes, layout.bounds)


def _matching(placer: Placing, slot: int, layout: Split, rank: int, size: int) -> int:
    shape = placer.shape(slot)
    axis = layout.axis - (rank - len(shape))
    if not shape or axis < 0 or shape[axis] != size:
        return placer.want(slot, None)
    wanted = Split(axis, layout.bounds)
    return placer.want(slot, wanted) if placer.layout(slot) else placer.part(slot, axis, wanted.bounds)


@rule(
    "QuantizeLinear",
    "DequantizeLinear",
    says="as their input; scales of an axis that is split are cut, in blocks: gathered",
)
def quantize(placer: Placing, step: Step) -> Placed | None:
    x, scale = step.inputs[:2]
    layout, node = placer.layout(x), step.described
    if layout is None or node is None or node.integer("block_size"):
        return None
    along = node.integer("axis", 1) % len(placer.shape(x))
    inputs = list(step.inputs)
    if along == layout.axis and len(placer.shape(scale)) == 1 and placer.shape(scale)[0] > 1:
        for place in (1, 2):
            if place < len(inputs):
                inputs[place] = placer.want(inputs[place], Split(0, layout.bounds))
    run = step.run
    pace = placer.value(inputs[3]) if len(inputs) > 3 else None
    if isinstance(pace, Pace):
        own = layout.bounds[placer.rank + 1] - layout.bounds[placer.rank]
        shared = (
            1 if inputs[1] == scale else own / layout.bounds[-1]
        )  # a scale per channel has all its values here
        wider = pace._replace(times=layout.bounds[-1] / own * shared)
        return Placed(lambda x, scale, zero, _: run(x, scale, zero, wider), tuple(inputs), layout)
    return Placed(run, tuple(inputs), layout)
