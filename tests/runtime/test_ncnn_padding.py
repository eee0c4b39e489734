"""Pad as ncnn's layers, against ONNX Runtime."""

import numpy as np
import pytest

from tests.support.builders import build
from tests.support.ncnn import agree, refusals, types

CHANNELS = (1, 3, 8, 16, 17)


def padded(shape: str, pads: tuple[int, ...], mode: str, value: float = 1.5):  # type: ignore[no-untyped-def]
    target = ",".join("ABCDE"[: len(pads) // 2])
    text = f'(float[{shape}] x) => (float[{target}] y) {{ y = Pad <mode = "{mode}"> (x, pads, value) }}'
    return build(text, pads=np.array(pads), value=np.float32(value))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_padded(channels: int, mode: str) -> None:
    few = mode == "reflect" and channels < 5
    for shape, pads in (
        ("6, 7", (0, 0, 1, 2, 0, 0, 3, 1)),
        ("6, 7", (0, 0, 0, 2, 0, 0, 0, 0)),
        ("6, 7", (0, 4, 0, 0, 0, 4, 0, 0)),
        ("6, 7", (0, 2, 1, 1, 0, 1, 1, 1)),
        ("7", (0, 0, 1, 0, 0, 3)),
        ("7", (0, 1, 2, 0, 0, 3)),
        ("5, 6, 7", (0, 0, 1, 1, 0, 0, 0, 2, 1, 0)),
        ("5, 6, 7", (0, 1, 0, 0, 0, 0, 0, 0, 0, 0)),
    ):
        if not (few and pads[1]):
            agree(padded(f"1, {channels}, {shape}", pads, mode))


@pytest.mark.parametrize("channels", CHANNELS)
def test_negative_padding_takes_away(channels: int) -> None:
    model = padded(f"1, {channels}, 6, 7", (0, 0, -1, 2, 0, 0, 1, -1), "constant")
    assert types(agree(model)) == ["Crop", "Padding"]


def test_padding_of_open_sizes() -> None:
    for mode in ("constant", "edge", "reflect"):
        model = padded("1, 3, H, W", (0, 0, 1, 2, 0, 0, 2, 1), mode)
        agree(model, {"x": (1, 3, 8, 9)}, {"x": (1, 3, 13, 16)})


def test_the_attributes_and_the_axes_of_other_opsets() -> None:
    text = "(float[1, 3, 5, 6] x) => (float[1, 3, 7, 6] y) { y = Pad <pads = [0, 0, 1, 0, 0, 0, 1, 0], value = 2.0> (x) }"
    agree(build(text, opset=10))
    text = "(float[1, 3, 5, 6] x) => (float[1, 3, 7, 6] y) { y = Pad(x, pads, value, axes) }"
    agree(build(text, opset=18, pads=np.array([1, 1]), value=np.float32(0), axes=np.array([-2])))


def test_what_ncnn_cannot_pad_is_refused() -> None:
    wrapped = build(
        '(float[1, 3, 5, 6] x) => (float[1, 3, 7, 6] y) { y = Pad <mode = "wrap"> (x, pads) }',
        opset=19,
        pads=np.array([0, 0, 1, 0, 0, 0, 1, 0]),
    )
    assert refusals(wrapped)[0][2] == "ncnn has no padding of mode 'wrap'"
    endless = padded("1, 3, 5, 6", (0, 0, 1, 0, 0, 0, 1, 0), "constant", float("-inf"))
    assert refusals(endless)[0][2] == "it pads with -inf, which ncnn's files have no number for"
