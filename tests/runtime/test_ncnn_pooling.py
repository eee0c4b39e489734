"""Pooling as ncnn's layers, against ONNX Runtime on many sizes."""

import itertools

import numpy as np
import onnx
import pytest

from tests.support.builders import build, random
from tests.support.ncnn import agree, refusals, types

CHANNELS = (1, 3, 4, 8, 16, 17)
"""ncnn packs 4, 8 or 16 channels, and has other code for each."""


def pool(op: str, shape: tuple[int, ...], **attributes: object) -> onnx.ModelProto:
    node = onnx.helper.make_node(op, ["x"], ["y"], name="pool", **attributes)
    value = onnx.helper.make_tensor_value_info
    names = [None] * (len(shape) - 2)
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, shape)], [value("y", 1, [*shape[:2], *names])])
    return onnx.helper.make_model(graph, ir_version=9, opset_imports=[onnx.helper.make_opsetid("", 19)])


WINDOWS = [
    {"kernel_shape": [2, 2], "strides": [2, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [0, 1, 2, 0]},
    {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [2, 0, 2, 1]},
    {"kernel_shape": [1, 1], "strides": [2, 2]},
    {"kernel_shape": [5, 4], "strides": [1, 2], "pads": [4, 3, 2, 1]},
]
AUTOMATIC = [
    {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
    {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "VALID"},
]
KINDS = [("MaxPool", {}), ("AveragePool", {}), ("AveragePool", {"count_include_pad": 1})]


@pytest.mark.parametrize("op, kind", KINDS)
@pytest.mark.parametrize("ceil", [0, 1])
def test_windows(op: str, kind: dict[str, int], ceil: int) -> None:
    for found, (height, width) in itertools.product(WINDOWS, itertools.product((5, 6, 7, 8), (5, 8))):
        agree(pool(op, (1, 3, height, width), ceil_mode=ceil, **kind, **found))


@pytest.mark.parametrize("op, kind", KINDS)
def test_packed_channels(op: str, kind: dict[str, int]) -> None:
    for found, channels, ceil in itertools.product(WINDOWS, CHANNELS, (0, 1)):
        agree(pool(op, (1, channels, 9, 7), ceil_mode=ceil, **kind, **found))


@pytest.mark.parametrize("op, kind", KINDS)
def test_automatic_padding(op: str, kind: dict[str, int]) -> None:
    for found, (height, width) in itertools.product(AUTOMATIC, itertools.product((5, 6, 7), (5, 8))):
        agree(pool(op, (1, 3, height, width), **kind, **found))


@pytest.mark.parametrize("op, kind", KINDS)
def test_one_and_three_dimensions(op: str, kind: dict[str, int]) -> None:
    for channels, ceil, size in itertools.product((3, 16), (0, 1), (6, 7, 8)):
        for kernel, stride, pads in ((3, 2, [1, 1]), (2, 2, [0, 1]), (2, 3, [1, 0]), (4, 1, [3, 2])):
            found = {"kernel_shape": [kernel], "strides": [stride], "pads": pads}
            agree(pool(op, (1, channels, size), ceil_mode=ceil, **kind, **found))
            deep = {
                "kernel_shape": [2, kernel, 3],
                "strides": [2, stride, 2],
                "pads": [1, pads[0], 1, 0, pads[1], 2],
            }
            agree(pool(op, (1, channels, 5, size, 7), ceil_mode=ceil, **kind, **deep))


def open_pool(op: str, **attributes: object) -> onnx.ModelProto:
    model = pool(op, (1, 3, 1, 1), **attributes)
    for place, name in ((2, "H"), (3, "W")):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
    return model


@pytest.mark.parametrize("op, kind", KINDS)
def test_open_sizes(op: str, kind: dict[str, int]) -> None:
    for found, size, ceil in itertools.product(WINDOWS[:4], (8, 9), (0, 1)):
        model = open_pool(op, ceil_mode=ceil, **kind, **found)
        agree(model, {"x": (1, 3, size, 7)}, {"x": (1, 3, 11, 12)})
    if op == "MaxPool" or kind:
        for found in AUTOMATIC:
            agree(open_pool(op, **kind, **found), {"x": (1, 3, 8, 7)}, {"x": (1, 3, 11, 12)})


@pytest.mark.parametrize(
    "op, attributes, reason",
    [
        (
            "AveragePool",
            AUTOMATIC[0],
            "its padding depends on the size of the input, and ncnn would count it in",
        ),
        (
            "MaxPool",
            {**WINDOWS[5], "ceil_mode": 1},
            "whether its last window begins in the padding depends on the size of the input",
        ),
        (
            "MaxPool",
            {"kernel_shape": [2, 2], "strides": [3, 3], "auto_pad": "SAME_UPPER"},
            "its steps are wider than its window, and how much it pads depends on the size",
        ),
    ],
)
def test_what_depends_on_an_open_size_is_refused(op: str, attributes: dict[str, object], reason: str) -> None:
    model = open_pool(op, **attributes)
    assert [why for *_, why in refusals(model, {"x": (1, 3, 8, 7)}, {"x": (1, 3, 11, 12)})] == [reason]


def test_gaps_and_several_samples_are_refused() -> None:
    ((*_, reason),) = refusals(pool("MaxPool", (1, 3, 9, 9), kernel_shape=[2, 2], dilations=[2, 2]))
    assert reason == "its window has gaps (dilations); ncnn's has none"
    ((*_, reason),) = refusals(pool("MaxPool", (2, 3, 9, 9), kernel_shape=[2, 2]))
    assert reason == "it takes several samples at once, which are no batch of the model's input"


def test_indices_that_are_read_are_refused() -> None:
    text = "(float[1, 3, 8, 8] x) => (float[1, 3, 4, 4] y, int64[1, 3, 4, 4] i) { y, i = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) }"
    reasons = [reason for *_, reason in refusals(build(text))]
    assert reasons[0] == "its indices are read; ncnn's pooling gives the largest values alone"


def test_padding_is_no_value() -> None:
    """Where all values are below 0, a padding of 0 would be the largest."""
    model = pool("MaxPool", (1, 16, 5, 5), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    agree(model, feeds={"x": -np.abs(random(1, 16, 5, 5)) - np.float32(1)})


def test_a_layer_behind_rounding_up_knows_its_true_size() -> None:
    """The shape inference of onnx counts a window here that ONNX Runtime leaves out."""
    text = """(float[1, 3, 5, 5] x) => (float[1, N] y) {
        a = MaxPool <kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 1, 1], ceil_mode = 1> (x)
        y = Flatten(a)
    }"""
    assert types(agree(build(text))) == ["Pooling", "Reshape"]
