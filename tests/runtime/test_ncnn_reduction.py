"""Reductions, global pooling and softmax as ncnn's layers, against ONNX Runtime."""

import itertools

import numpy as np
import onnx
import pytest

from onnx_lathe.runtime.targets.ncnn.operators.reduction import OPERATIONS
from tests.support.builders import build, random
from tests.support.ncnn import agree, types

CHANNELS = (1, 3, 4, 8, 16, 17)
"""ncnn packs 4, 8 or 16 channels, and has other code for each."""
OPERATORS = [
    "ReduceSum",
    "ReduceSumSquare",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
]


def shaped(shape: tuple[int, ...]) -> str:
    return f"float[{', '.join(map(str, shape))}]" if shape else "float"


def one(
    op: str, attributes: str, shape: tuple[int, ...], result: tuple[int, ...], opset: int = 17
) -> onnx.ModelProto:
    return build(f"({shaped(shape)} x) => ({shaped(result)} y) {{ [node] y = {op} {attributes} (x) }}", opset)


def reduce(
    op: str, shape: tuple[int, ...], axes: tuple[int, ...] | None, keep: bool, opset: int
) -> onnx.ModelProto:
    """Axes are an attribute or an input, as the opset has it."""
    gone = tuple(range(len(shape))) if axes is None else axes
    whole = np.zeros(shape).sum(gone, keepdims=keep).shape
    attributes, inputs, stored = [f"keepdims = {int(keep)}"], ["x"], {}
    if axes is not None and opset >= (13 if op == "ReduceSum" else 18):
        inputs.append("axes")
        stored["axes"] = np.array(axes, np.int64)
    elif axes is not None:
        attributes.append(f"axes = [{', '.join(map(str, axes))}]")
    text = f"({shaped(shape)} x) => ({shaped(whole)} y) {{ y = {op} <{', '.join(attributes)}> ({', '.join(inputs)}) }}"
    return build(text, opset, **stored)


def subsets(rank: int) -> list[tuple[int, ...] | None]:
    found = [picked for count in range(1, rank + 1) for picked in itertools.combinations(range(rank), count)]
    return [None, *found]


@pytest.mark.parametrize("op", OPERATORS)
def test_reductions(op: str) -> None:
    shapes = [(1, 5, 4, 3), (5, 8), (1, 7)] + [(1, 16, 3), (1, 3, 2, 4, 5)] * (
        op in ("ReduceSum", "ReduceL2")
    )
    for shape in shapes:
        for axes, keep in itertools.product(subsets(len(shape)), (True, False)):
            values = random(*shape)
            positive = op == "ReduceLogSum"
            feeds = {"x": np.abs(values) + np.float32(0.5) if positive else values}
            agree(reduce(op, shape, axes, keep, 17), feeds=feeds)


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2"])
def test_axes_may_be_an_input_and_negative(op: str) -> None:
    agree(reduce(op, (1, 5, 4, 3), (-1, -2), True, 18))
    agree(reduce(op, (1, 5, 4, 3), (-3,), False, 18))


def test_no_axes_may_mean_none() -> None:
    agree(one("ReduceSum", "<noop_with_empty_axes = 1>", (1, 3, 4), (1, 3, 4)))
    agree(one("ReduceSum", "", (1, 3, 4), (1, 1, 1)))


def test_large_values_do_not_overflow() -> None:
    model = reduce("ReduceLogSumExp", (1, 3, 16), (2,), False, 17)
    agree(model, feeds={"x": random(1, 3, 16) + np.float32(500)})
    given = random(1, 3, 16) * np.float32(200)
    agree(one("LogSoftmax", "", (1, 3, 16), (1, 3, 16)), feeds={"x": given})
    agree(one("Softmax", "", (1, 3, 16), (1, 3, 16)), feeds={"x": given})


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("sizes", [(9,), (5, 7), (3, 4, 5), (1, 1)])
def test_global_pooling(op: str, sizes: tuple[int, ...]) -> None:
    for channels in CHANNELS:
        agree(one(op, "", (1, channels, *sizes), (1, channels, *(1 for _ in sizes))))


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset", [11, 13])
def test_softmax(op: str, opset: int) -> None:
    for channels in CHANNELS:
        for shape in (
            (1, channels, 5, 7),
            (1, channels, 9),
            (1, channels),
            (5, channels),
            (1, 2, channels, 3, 5),
        ):
            for axis in range(-1, len(shape)):
                agree(one(op, f"<axis = {axis}>", shape, shape, opset))
        agree(one(op, "", (1, channels, 9), (1, channels, 9), opset))


def test_open_sizes_stay_open() -> None:
    text = """(float[1, 3, H, W] x) => (float[1, 3, 1, 1] y, float[1, 3, H, W] z, float[1, H, W] m) {
        y = GlobalAveragePool(x) z = Softmax <axis = 1> (x) m = ReduceMax <axes = [1], keepdims = 0> (x)
    }"""
    agree(build(text), {"x": (1, 3, 4, 5)}, {"x": (1, 3, 7, 2)})


def test_a_mean_over_a_plane_is_pooling() -> None:
    assert types(agree(reduce("ReduceMean", (1, 3, 4, 5), (2, 3), True, 17)))[0] == "Pooling"


def test_axes_that_are_given_are_reduced_whatever_no_axes_would_mean() -> None:
    text = "(float[1, 3, 4] x) => (float[1, 3] y) { y = ReduceSum <noop_with_empty_axes = 1, keepdims = 0> (x, axes) }"
    agree(build(text, axes=np.array([2])))


@pytest.mark.parametrize("op", sorted({*OPERATIONS, "ReduceLogSumExp"}))
def test_a_reduction_of_nothing(op: str) -> None:
    text = f"(float[2, 3] x) => (float[a, b] y) {{ p = Exp(x) y = {op}<noop_with_empty_axes = 1>(p) }}"
    agree(build(text, opset=18))
