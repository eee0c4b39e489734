"""Shapes in which TensorRT takes stored integers: blocks on one of the last two axes, INT4 in even rows.

[O, C, R, S], blocks of 2 along C     DequantizeLinear([O, C, R*S], axis 1) -> Reshape
INT4 [O, C, R, S], S odd              DequantizeLinear([O, C*R*S], axis 0) -> Reshape
"""

import math
from typing import NamedTuple

import numpy as np

from onnx_lathe.passes.graph import Node

PARTIAL = "its last block is a part of one, and TensorRT takes whole blocks only"
SINGLE = "its blocks are of one value each, which TensorRT does not take for blocks"


class Form(NamedTuple):
    """How the constant of a DequantizeLinear is stored; `scale` is the scale's shape."""

    shape: tuple[int, ...]
    scale: tuple[int, ...]
    axis: int


def as_it_is(node: Node, shape: tuple[int, ...], scale: tuple[int, ...]) -> Form:
    axis = node.attrs.get("axis", 1)
    return Form(shape, scale, axis % len(shape) if shape and scale else axis)


def block_of(node: Node) -> int:
    return int(node.attrs.get("block_size", 0))


def refusal(node: Node, form: Form) -> str:
    """Why TensorRT takes no blocks like these in any shape; empty if it does."""
    block = block_of(node)
    if not block:
        return ""
    if form.shape[form.axis] % block:
        return PARTIAL
    return SINGLE if block == 1 and form.shape[form.axis] > 1 else ""


def fitting(node: Node, form: Form) -> Form:
    """The same integers with the axis of the blocks among the last two, in at most three dimensions."""
    if not block_of(node) or (len(form.shape) <= 3 and form.axis >= len(form.shape) - 2):
        return form
    return Form(_collapsed(form.shape, form.axis), _collapsed(form.scale, form.axis), 1 if form.axis else 0)


def even(node: Node, form: Form) -> Form | None:
    """The form with an even last dimension; None if there is none with the scale as it is."""
    if form.shape and form.shape[-1] % 2 == 0:
        return form
    if block_of(node) or len(form.shape) < 2 or (form.scale and form.axis != 0):
        return None
    rest = math.prod(form.shape[1:])
    return Form((form.shape[0], rest), form.scale, form.axis) if rest % 2 == 0 else None


def _collapsed(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """[before, axis, behind], without what is not there."""
    before = [math.prod(shape[:axis])] if axis else []
    behind = [math.prod(shape[axis + 1 :])] if axis < len(shape) - 1 else []
    return (*before, shape[axis], *behind)


def even_rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape of the same even number of elements whose last dimension is even: the parser of TensorRT 10
    takes no other INT4.
    """
    if shape and shape[-1] % 2 == 0:
        return shape
    size = int(np.prod(shape))
    return (shape[0], size // shape[0]) if size // shape[0] % 2 == 0 else (size // 2, 2)
