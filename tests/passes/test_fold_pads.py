"""fold: an explicit Pad in front of a convolution or a pooling becomes part of it, or stays with a reason."""

import numpy as np
import onnx
import pytest

from tests.support.builders import build, random, run
from tests.support.folding import fold, ops

IMAGE = "(float[N, 4, 8, 8] x) => (float[N, C, P, Q] y) {{ {body} }}"
PADS = np.array([0, 0, 0, 1, 0, 0, 1, 2], np.int64)
LOWEST = np.float32(np.finfo(np.float32).min)


def model(body: str, opset: int = 17, **constants: np.ndarray) -> onnx.ModelProto:
    known = {"pads": PADS, "w": random(6, 4, 3, 3), "zero": np.float32(0), "one": np.float32(1)}
    known |= {"lowest": LOWEST, "inf": np.float32(-np.inf), "grouped": random(8, 2, 3, 3)} | constants
    words = set(body.replace(",", " ").replace(")", " ").replace("(", " ").split())
    return build(IMAGE.format(body=body), opset, **{name: known[name] for name in known if name in words})


def layer(folded: onnx.ModelProto, op: str) -> dict[str, object]:
    node = next(node for node in folded.graph.node if node.op_type == op)
    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


def assert_equal(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    feeds = {"x": random(2, 4, 8, 8) - np.float32(0.5)}  # negative values too
    np.testing.assert_allclose(run(after, feeds)["y"], run(before, feeds)["y"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "op", "pads"),
    [
        ("p = Pad (x, pads)  y = Conv (p, w)", "Conv", [0, 1, 1, 2]),
        ("p = Pad (x, pads, zero)  y = Conv <pads = [1, 0, 2, 0]> (p, w)", "Conv", [1, 1, 3, 2]),
        ("p = Pad (x, pads)  y = Conv <strides = [2, 2], dilations = [2, 2]> (p, w)", "Conv", [0, 1, 1, 2]),
        ('p = Pad (x, pads)  y = Conv <auto_pad = "VALID"> (p, w)', "Conv", [0, 1, 1, 2]),
        ("p = Pad (x, pads)  y = Conv <group = 2> (p, grouped)", "Conv", [0, 1, 1, 2]),
        ("p = Pad (x, pads)  y = AveragePool <kernel_shape = [3, 3]> (p)", "AveragePool", [0, 1, 1, 2]),
        (
            "p = Pad (x, pads)  y = AveragePool <kernel_shape = [3, 4], pads = [1, 1, 1, 1], count_include_pad = 1> (p)",
            "AveragePool",
            [1, 2, 2, 3],
        ),
        ("p = Pad (x, pads, inf)  y = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (p)", "MaxPool", [0, 1, 1, 2]),
        ("p = Pad (x, pads, lowest)  y = MaxPool <kernel_shape = [3, 3]> (p)", "MaxPool", [0, 1, 1, 2]),
        ('p = Pad <mode = "edge"> (x, pads)  y = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (p)', "MaxPool", [0, 1, 1, 2]),
        ("r = Relu (x)  p = Pad (r, pads)  y = MaxPool <kernel_shape = [3, 3]> (p)", "MaxPool", [0, 1, 1, 2]),
        ("r = Clip (x, one)  p = Pad (r, pads, one)  y = MaxPool <kernel_shape = [3, 3]> (p)", "MaxPool", [0, 1, 1, 2]),
    ],
)  # fmt: skip
def test_a_pad_goes_into_the_layer(body: str, op: str, pads: list[int]) -> None:
    before = model(body)
    after, report = fold(before)
    assert "Pad" not in ops(after)
    assert layer(after, op)["pads"] == pads
    assert any("folded into its padding" in edit.what for edit in report.edits)
    assert_equal(before, after)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("p = Pad (x, pads, one)  y = Conv (p, w)", "its value is not 0"),
        ('p = Pad <mode = "reflect"> (x, pads)  y = Conv (p, w)', "it does not pad with a constant"),
        ('p = Pad <mode = "edge"> (x, pads)  y = Conv (p, w)', "it does not pad with a constant"),
        ('p = Pad <mode = "edge"> (x, pads)  y = MaxPool <kernel_shape = [4, 4], pads = [1, 1, 1, 1]> (p)', "pads what it repeats"),
        ('p = Pad (x, pads)  y = Conv <auto_pad = "SAME_UPPER"> (p, w)', "chooses its padding by itself"),
        ("p = Pad (x, pads)  y = MaxPool <kernel_shape = [3, 3]> (p)", "its value may be the largest"),
        ("p = Pad (x, pads, inf)  y = MaxPool <kernel_shape = [2, 2]> (p)", "more padding than its kernel"),
        ("p = Pad (x, pads, inf)  y = MaxPool <kernel_shape = [3, 3], dilations = [2, 2]> (p)", "is dilated"),
        ("p = Pad (x, pads)  y = AveragePool <kernel_shape = [3, 3], ceil_mode = 1> (p)", "rounds its size up"),
        ("p = Pad (x, pads)  y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (p)", "does not count its padding"),
        ("p = Pad (x, pads, one)  y = AveragePool <kernel_shape = [3, 3]> (p)", "its value is not 0"),
    ],
)  # fmt: skip
def test_a_pad_that_means_something_else_stays(body: str, reason: str) -> None:
    before = model(body)
    after, report = fold(before)
    assert ops(after).count("Pad") == 1
    assert any(reason in skip.reason for skip in report.skips), report.skips
    assert_equal(before, after)


@pytest.mark.parametrize(
    ("pads", "reason"),
    [([0, 1, 0, 0, 0, 0, 0, 0], "pads samples or channels"), ([0, 0, -1, 0, 0, 0, 0, 0], "it cuts off")],
)
def test_other_pads_stay(pads: list[int], reason: str) -> None:
    weight = random(6, 4 + pads[1], 3, 3)
    before = model("p = Pad (x, pads)  y = Conv (p, w)", pads=np.array(pads, np.int64), w=weight)
    after, report = fold(before)
    assert ops(after) == ["Pad", "Conv"]
    assert any(reason in skip.reason for skip in report.skips)


def test_pads_by_axes() -> None:
    constants = {"amounts": np.array([1, 0, 2, 0], np.int64), "axes": np.array([-1, 2], np.int64)}
    before = model("p = Pad (x, amounts, , axes)  y = Conv (p, w)", 18, **constants)
    after, _ = fold(before)
    assert (ops(after), layer(after, "Conv")["pads"]) == (["Conv"], [0, 1, 0, 2])
    assert_equal(before, after)


def test_pads_as_attributes() -> None:
    before = model("p = Pad <pads = [0, 0, 1, 0, 0, 0, 1, 0]> (x)  y = Conv (p, w)", 10)
    after, _ = fold(before)
    assert (ops(after), layer(after, "Conv")["pads"]) == (["Conv"], [1, 0, 1, 0])
    assert_equal(before, after)


def test_one_pad_for_two_layers() -> None:
    before = model(
        "p = Pad (x, pads)  a = Conv (p, w)  b = Conv (p, v)  y = Add (a, b)", v=random(6, 4, 3, 3)
    )
    after, _ = fold(before)
    assert ops(after) == ["Conv", "Conv", "Add"]
    assert_equal(before, after)


def test_a_pad_with_another_reader_stays_for_it() -> None:
    before = model(
        "p = Pad (x, pads)  a = Conv (p, w)  g = GlobalMaxPool (p)  b = Conv (g, v)  y = Add (a, b)",
        v=random(6, 4, 1, 1),
    )
    after, _ = fold(before)
    assert sorted(ops(after)) == ["Add", "Conv", "Conv", "GlobalMaxPool", "Pad"]
    assert_equal(before, after)
