"""Arithmetic, comparison and logic, element by element with broadcasting."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onnx_lathe.runtime.torch_bridge.arrays import WIDENED
from onnx_lathe.runtime.torch_bridge.registry import Builder, Function, Node, RefusedError, operator, scalar

_ONE_ARGUMENT: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
_TWO_ARGUMENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}
_ANY_NUMBER: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}


def _always(function: Any) -> Callable[[Node], Function]:
    return lambda node: function


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda *tensors: functools.reduce(function, tensors)


def _aligned(build: Builder) -> Builder:
    """Before opset 7: the dimensions of the second operand are those of the first from `axis` on."""

    def aligned(node: Node) -> Function:
        function, axis = build(node), node.attributes.get("axis")
        if axis is None:
            return function
        return lambda a, b: function(a, b.reshape(b.shape + (1,) * (a.dim() - axis % a.dim() - b.dim())))

    return aligned


for _name, _one in _ONE_ARGUMENT.items():
    operator(_name, since=1)(_always(_one))
for _name, _two in _TWO_ARGUMENTS.items():
    operator(_name, since=1)(_aligned(_always(_two)))
    operator(_name, since=7)(_always(_two))
for _name, _two in _ANY_NUMBER.items():
    operator(_name, since=1)(_always(_folded(_two)))


@operator("Mean", since=1)
def mean(node: Node) -> Function:
    return lambda *tensors: functools.reduce(torch.add, tensors) / len(tensors)


@operator("Div", since=7)
def div(node: Node) -> Function:
    return lambda a, b: a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Mod", since=10)
def mod(node: Node) -> Function:
    return torch.fmod if node.integer("fmod") else torch.remainder


@operator("BitwiseNot", since=18)
def bitwise_not(node: Node) -> Function:
    if not node.elements[0] or node.elements[0] in WIDENED:
        raise RefusedError("of a type that PyTorch lacks or that the model does not declare")
    return torch.bitwise_not


@operator("Pow", since=7)
def power(node: Node) -> Function:
    exponent = node.constants[1]
    if exponent is not None and exponent.numel() == 1 and exponent.dim() == 0:
        number = exponent.item()
        return lambda x, _: torch.pow(x, number).to(x.dtype)
    return lambda x, y: torch.pow(x, y).to(x.dtype)


@operator("IsInf", since=10)
def is_inf(node: Node) -> Function:
    positive, negative = node.integer("detect_positive", 1), node.integer("detect_negative", 1)
    if positive and negative:
        return torch.isinf
    return (
        torch.isposinf
        if positive
        else torch.isneginf
        if negative
        else lambda x: torch.zeros_like(x, dtype=torch.bool)
    )


@operator("Where", since=9)
def where(node: Node) -> Function:
    return torch.where


for _name, _build in {"Div": div, "Pow": power}.items():
    operator(_name, since=1)(_aligned(_build))


def _cumulative(node: Node, function: Callable[..., Tensor], neutral: float) -> Function:
    exclusive, reverse = node.integer("exclusive"), node.integer("reverse")

    def run(x: Tensor, axis: Any) -> Tensor:
        where = scalar(axis)
        if reverse:
            x = x.flip(where)
        result = function(x, where, dtype=x.dtype)
        if exclusive:
            first = torch.full_like(x.narrow(where, 0, min(1, x.shape[where])), neutral)
            result = torch.cat([first, result.narrow(where, 0, max(x.shape[where] - 1, 0))], where)
        return result.flip(where) if reverse else result

    return run


@operator("CumSum", since=11, numbers=(1,))
def cumsum(node: Node) -> Function:
    return _cumulative(node, torch.cumsum, 0)


@operator("CumProd", since=26, numbers=(1,))
def cumprod(node: Node) -> Function:
    return _cumulative(node, torch.cumprod, 1)
