"""Pools as LiteRT's operators, against ONNX Runtime."""

import onnx
import pytest

pytest.importorskip("ai_edge_litert")

from tests.support.builders import build, random
from tests.support.litert import agree, codes, refusals


def pool(op: str, attributes: str, source: str, opset: int = 19) -> onnx.ModelProto:
    listed = f"<{attributes}>" if attributes else ""
    shape = ",".join("NCHW"[: source.count(",") + 1])
    return build(f"(float[{source}] x) => (float[{shape}] y) {{ [layer] y = {op} {listed} (x) }}", opset)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "attributes, source, padded",
    [
        ("kernel_shape = [2, 2], strides = [2, 2]", "1, 3, 8, 8", False),
        ("kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]", "1, 3, 9, 9", False),
        ("kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]", "1, 3, 8, 8", True),
        ("kernel_shape = [3, 2], pads = [0, 1, 2, 0]", "1, 3, 8, 7", True),
        ("kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1", "1, 3, 8, 8", False),
        ('kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER"', "1, 3, 8, 7", False),
        ("kernel_shape = [4], strides = [2], pads = [1, 1]", "1, 3, 12", False),
    ],
)
def test_pools(op: str, attributes: str, source: str, padded: bool) -> None:
    found = codes(agree(pool(op, attributes, source)))
    assert f"{'MAX' if op == 'MaxPool' else 'AVERAGE'}_POOL_2D" in found
    assert bool({"PAD", "PADV2"}.intersection(found)) == padded


def test_a_padded_maximum_of_negative_values() -> None:
    model = pool("MaxPool", "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]", "1, 3, 8, 8")
    agree(model, {"x": -1.0 - abs(random(1, 3, 8, 8))})


def test_a_maximum_of_values_that_are_not_negative_is_padded_with_zero() -> None:
    """XNNPACK takes PAD, and not PADV2."""
    attributes = "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]"
    model = build(
        "(float[1, 8, 8, 3] x) => (float[1, 4, 4, 5] y) { a = Transpose <perm = [0, 3, 1, 2]> (x) b = Conv <pads = [1, 1, 1, 1]> (a, w) c = Relu (b)"
        f" d = Transpose <perm = [0, 2, 3, 1]> (c) e = Transpose <perm = [0, 3, 1, 2]> (d) f = MaxPool <{attributes}> (e) y = Transpose <perm = [0, 2, 3, 1]> (f) }}",
        w=random(5, 3, 3, 3),
    )
    assert codes(agree(model)) == ["CONV_2D", "PAD", "MAX_POOL_2D"]


@pytest.mark.parametrize("source", ["1, 3, 9, 9", "1, 3, 8, 8"])
@pytest.mark.parametrize("ceil", [0, 1])
def test_a_mean_that_counts_its_padding(source: str, ceil: int) -> None:
    attributes = f"kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1, ceil_mode = {ceil}"
    agree(pool("AveragePool", attributes, source))


@pytest.mark.parametrize("op, code", [("GlobalAveragePool", "MEAN"), ("GlobalMaxPool", "REDUCE_MAX")])
def test_global_pools(op: str, code: str) -> None:
    assert code in codes(agree(pool(op, "", "1, 3, 5, 7")))


@pytest.mark.parametrize(
    "attributes, reason",
    [
        (
            "kernel_shape = [2, 2], dilations = [2, 2]",
            "its window is dilated, and those of LiteRT's pools are not",
        ),
        ("kernel_shape = [2, 2, 2]", "it has 3 spatial dimensions; LiteRT's pools have 1 or 2"),
    ],
)
def test_what_is_refused(attributes: str, reason: str) -> None:
    source = "1, 3, 6, 6, 6" if "3 spatial" in reason else "1, 3, 6, 6"
    model = build(f"(float[{source}] x) => (float y) {{ [layer] y = MaxPool <{attributes}> (x) }}")
    assert refusals(model) == [f"layer: {reason}"]


def test_where_maxima_were_is_refused() -> None:
    model = build(
        "(float[1, 3, 6, 6] x) => (float[N, C, H, W] y, int64[N, C, H, W] i) { [layer] y, i = MaxPool <kernel_shape = [2, 2]> (x) }"
    )
    assert refusals(model) == ["layer: it hands out where its maxima were"]
