"""Operators that compute each element of elements at the same place, with broadcasting, or of one tensor alone."""

from onnx_lathe.passes.graph import Tensor
from onnx_lathe.passes.lowering.litert_layout.rules import Site, Uniform, rule
from onnx_lathe.passes.lowering.litert_layout.storage import Storage

UNARY = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip"),
    *("Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity"),
    *("IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu"),
    *("Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh"),
    "ThresholdedRelu",
)
BROADCASTING = (
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater"),
    *(
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
    ),
    *("Sum", "Where", "Xor"),
)


@rule(*UNARY)
class Unary(Uniform):
    """Other inputs are numbers."""

    def accepts(self, site: Site, storage: Storage) -> bool:
        return True


@rule(*BROADCASTING)
class Broadcasting(Uniform):
    def flows(self, site: Site) -> list[Tensor] | None:
        rank = site.rank(site.node.outputs[0])
        operands = [one for one in site.node.inputs if not site.work.is_operand(one)]
        if rank is None or any(site.rank(one) is None for one in operands):
            return None
        return [*(one for one in operands if site.rank(one) == rank), *site.results]

    def accepts(self, site: Site, storage: Storage) -> bool:
        return not storage.flat or all(
            site.work.is_operand(one) or site.rank(one) in (0, storage.rank) for one in site.node.inputs
        )

    def act_on(self, site: Site, storage: Storage) -> None:
        work = site.work
        for index, tensor in enumerate(site.node.inputs):
            if work.is_operand(tensor):
                site.node.inputs[index] = work.stored_constant(tensor, storage)
            elif 0 < (site.rank(tensor) or 0) < storage.rank:
                site.node.inputs[index] = _raised(site, tensor, storage)


def _raised(site: Site, tensor: Tensor, storage: Storage) -> Tensor:
    """A computed operand of a lower rank, with leading axes of size 1 and in the order of the storage."""
    work, shape = site.work, site.shape(tensor) or ()
    axes = list(range(storage.rank - len(shape)))
    full = (*(1 for _ in axes), *shape)
    raised = work.variable(f"{tensor.name}_raised", tensor, full)
    if site.opset >= 13:
        inputs = [tensor, work.integers(f"{tensor.name}_axes", axes)]
        work.node("Unsqueeze", f"{tensor.name}_Unsqueeze", inputs, [raised])
    else:
        work.node("Unsqueeze", f"{tensor.name}_Unsqueeze", [tensor], [raised], axes=axes)
    stored = work.variable(f"{tensor.name}_nhwc", tensor, storage.sizes(full))
    work.node("Transpose", f"{tensor.name}_Transpose", [raised], [stored], perm=list(storage.order))
    return stored


@rule("QuantizeLinear", "DequantizeLinear")
class Quantizing(Uniform):
    """One scale, or one for each place along an axis."""

    def accepts(self, site: Site, storage: Storage) -> bool:
        scale = site.node.inputs[1]
        rank = site.rank(scale)
        if rank is None or site.node.attrs.get("block_size", 0):
            return False
        return rank == 0 or site.shape(scale) == (1,) or not storage.flat

    def act_on(self, site: Site, storage: Storage) -> None:
        if site.rank(site.node.inputs[1]) == 1 and not storage.flat:
            site.node.attrs["axis"] = storage.axis(site.node.attrs.get("axis", 1))
