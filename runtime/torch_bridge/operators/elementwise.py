"""Arithmetic, comparison and logic, element by element with broadcasting."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from runtime.torch_bridge.registry import Function, Node, RefusedError, operator, scalar

_ONE_ARGUMENT: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
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
_ANY_NUMBER: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"Max": torch.maximum, "Min": torch.minimum, "Sum": torch.add}


def _always(function: Any) -> Callable[[Node], Function]:
    return lambda node: function


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda *tensors: functools.reduce(function, tensors)


for _name, _function in {**_ONE_ARGUMENT, **_TWO_ARGUMENTS}.items():
    operator(_name, since=7)(_always(_function))
for _name, _function in _ANY_NUMBER.items():
    operator(_name, since=8)(_always(_folded(_function)))


@operator("Mean", since=8)
def mean(node: Node) -> Function:
    return lambda *tensors: functools.reduce(torch.add, tensors) / len(tensors)


@operator("Div", since=7)
def div(node: Node) -> Function:
    return lambda a, b: a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Mod", since=10)
def mod(node: Node) -> Function:
    return torch.fmod if node.integer("fmod") else torch.remainder


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
    return torch.isposinf if positive else torch.isneginf if negative else lambda x: torch.zeros_like(x, dtype=torch.bool)


@operator("Where", since=9)
def where(node: Node) -> Function:
    return torch.where


@operator("CumSum", since=11, numbers=(1,))
def cumsum(node: Node) -> Function:
    if node.integer("exclusive") or node.integer("reverse"):
        raise RefusedError("with exclusive or reverse")
    return lambda x, axis: torch.cumsum(x, scalar(axis))
