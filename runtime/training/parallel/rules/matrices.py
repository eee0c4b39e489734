"""Matrix products: own rows of a weight give own channels of the result, own columns a part of a sum."""

from torch import Tensor

from onnx_lathe.runtime.torch_bridge.plan import NOTHING, Step
from onnx_lathe.runtime.torch_bridge.registry import Function
from onnx_lathe.runtime.training.parallel.layout import Split
from onnx_lathe.runtime.training.parallel.moves import summed
from onnx_lathe.runtime.training.parallel.rules.table import Placed, Placing, rule


@rule(
    "Gemm",
    says="filters: own rows of the weight; channels: own columns, and a sum; with transA: gathered",
)
def gemm(placer: Placing, step: Step) -> Placed | None:
    node = step.described
    if node is None or node.integer("transA") or len(placer.shape(step.inputs[0])) != 2:
        return None
    bias = step.inputs[2] if len(step.inputs) > 2 else NOTHING
    shape = placer.shape(bias)
    if len(shape) > 1 and shape[0] > 1:  # a value of its own for each sample
        return None
    beta = node.number("beta", 1.0)
    transposed = bool(node.integer("transB"))
    run = step.run
    return _product(placer, step, 1 if transposed else 0, lambda a, b: run(a, b, None), bias, beta)


@rule(
    "MatMul",
    says="by a matrix as Gemm; other axes than the last: as they are; of two activations: gathered",
)
def matmul(placer: Placing, step: Step) -> Placed | None:
    x, weight = step.inputs
    layout, rank = placer.layout(x), len(placer.shape(x))
    if rank < 2 or len(placer.shape(weight)) != 2 or placer.layout(weight):
        return None
    if layout is not None and layout.axis < rank - 1:
        return Placed(step.run, step.inputs, layout)
    return _product(placer, step, 0, step.run, NOTHING, 1.0)


def _product(
    placer: Placing, step: Step, inner: int, multiply: Function, bias: int, beta: float
) -> Placed | None:
    """x [..., K] times a weight whose axis `inner` has the K elements that are summed over; then beta * bias."""
    x, weight = step.inputs[:2]
    last = len(placer.shape(x)) - 1
    layout, how = placer.layout(x), placer.choose(placer, step)
    if len(placer.shape(weight)) != 2 or any(placer.layout(slot) for slot in (weight, bias)):
        return None
    along = layout is not None and layout.axis == last
    if how == "follow":
        how = "channel" if along else "whole"
    channels, filters = placer.shape(weight)[inner], placer.shape(weight)[1 - inner]
    if how == "filter" and filters >= placer.size:
        bounds = placer.even(weight, 1 - inner).bounds
        shape = placer.shape(bias)
        if shape and shape[-1] == filters:
            bias = placer.part(bias, len(shape) - 1, bounds)
        inputs = (placer.want(x, None), placer.part(weight, 1 - inner, bounds), bias)
        return Placed(_with_bias(multiply, beta), inputs, Split(last, bounds))
    if how == "channel" and channels >= placer.size:
        split = layout if layout is not None and along else placer.even(x, last)
        members, traffic = placer.mesh.model, placer.traffic
        run = _with_bias(lambda a, b: summed(multiply(a, b), members, traffic), beta)
        return Placed(run, (placer.want(x, split), placer.part(weight, inner, split.bounds), bias), None)
    return None


def _with_bias(multiply: Function, beta: float) -> Function:
    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        product: Tensor = multiply(x, weight)
        return product if bias is None else product + (bias if beta == 1 else beta * bias).to(product.dtype)

    return run
