"""Operators that compute each element of elements at the same place, with broadcasting, or of one tensor alone."""

from collections.abc import Mapping

from onnx_lathe.passes.graph import Tensor
from onnx_lathe.passes.lowering.litert_layout import memory
from onnx_lathe.passes.lowering.litert_layout.rules import Frames, Site, Uniform, rule
from onnx_lathe.passes.lowering.litert_layout.storage import Frame, Storage, moves_nothing, plain

AXES_INPUT_OPSET = 13
"""The first opset whose Unsqueeze has its axes as an input."""

_UNARY = """
Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp
Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu
Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
"""
_BROADCASTING = """
Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual
Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor
"""


@rule(*_UNARY.split())
class Unary(Uniform):
    """Other inputs are numbers."""

    def accepts(self, site: Site, storage: Storage) -> bool:
        return True


@rule(*_BROADCASTING.split())
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

    def frames(self, site: Site, tensor: Tensor, frame: Frame, known: Mapping[int, Frame]) -> Frames | None:
        """An operand of a lower rank is bound if its storages are those of the others without their first axes."""
        found = super().frames(site, tensor, frame, known)
        for operand in site.node.inputs if found is not None else ():
            below = _below(site, operand, frame)
            if found is not None and below is not None and known.get(id(operand)) == below:
                found[id(operand)] = below
        return found

    def rewrite(self, site: Site, seen: Mapping[int, Storage]) -> None:
        storage = seen[id((self.flows(site) or [])[0])]
        if storage.is_plain:
            return
        for index, tensor in enumerate(site.node.inputs):
            if site.work.is_operand(tensor):
                site.node.inputs[index] = site.work.stored_constant(tensor, storage)
                continue
            rank = site.rank(tensor) or 0
            if 0 < rank < storage.rank and seen.get(id(tensor), plain(rank)).is_plain:
                site.node.inputs[index] = _raised(site, tensor, storage)


def _below(site: Site, operand: Tensor, frame: Frame) -> Frame | None:
    """The frame of a computed operand of a lower rank with which nothing moves; None if there is none."""
    rank = site.rank(operand)
    if rank is None or not 1 < rank < frame[0].rank or site.work.is_operand(operand):
        return None
    first = tuple(range(frame[0].rank - rank))
    if any(storage.flat or storage.order[: len(first)] != first for storage in frame):
        return None
    below = frame[0].without(first), frame[1].without(first)
    return below if below[0] != below[1] else None


def _raised(site: Site, tensor: Tensor, storage: Storage) -> Tensor:
    """A computed operand of a lower rank, with leading axes of size 1 and in the order of the storage."""
    work, shape = site.work, site.shape(tensor) or ()
    if all(size == 1 for size in shape):
        return tensor
    source = work.stored(tensor, plain(len(shape)))
    axes = list(range(storage.rank - len(shape)))
    full = (*(1 for _ in axes), *shape)
    stored = work.variable(f"{tensor.name}_nhwc", tensor, storage.sizes(full))
    target = memory.target(shape, plain(len(shape)), full, storage)
    if target is not None and moves_nothing(full, plain(storage.rank), storage):
        inputs = [source, work.integers(f"{tensor.name}_shape", target)]
        work.node("Reshape", f"{tensor.name}_Reshape", inputs, [stored])
        return stored
    raised = work.variable(f"{tensor.name}_raised", tensor, full)
    node = work.node("Unsqueeze", f"{tensor.name}_Unsqueeze", [source], [raised])
    if site.opset >= AXES_INPUT_OPSET:
        node.inputs.append(work.integers(f"{tensor.name}_axes", axes))
    else:
        node.attrs["axes"] = axes
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
