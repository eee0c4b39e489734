"""Resize as ncnn's Interp, against ONNX Runtime: what is not refused has the same values."""

import numpy as np
import onnx
import pytest

from tests.support.builders import build
from tests.support.ncnn import agree, converted, refusals, types

WAYS = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_half_pixel_for_nn"]
FACTORS = [(2, 2), (3, 2), (1, 2), (1.5, 2.5), (0.5, 0.5), (0.6, 0.7), (7, 1)]
SMALL, LARGE = {"x": (1, 16, 9, 8)}, {"x": (1, 16, 12, 15)}


def resized(shape: str, attributes: str, opset: int = 19, **given: np.ndarray) -> onnx.ModelProto:
    """given: scales or sizes."""
    (name,) = given
    text = f"(float[{shape}] x) => (float[A, B, C, D] y) {{ [up] y = Resize <{attributes}> (x, {',' * (name == 'sizes')}, {name}) }}"
    return build(text, opset, **given)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_all_that_is_taken_is_right(mode: str, way: str) -> None:
    roundings = ["round_prefer_floor", "floor", "ceil"] if mode == "nearest" else ["floor"]
    taken = 0
    for rounding in roundings:
        attributes = f'mode = "{mode}", coordinate_transformation_mode = "{way}", nearest_mode = "{rounding}"'
        for channels, height, width in ((3, 8, 10), (16, 7, 9)):
            for a, b in FACTORS:
                scales = np.array([1, 1, a, b], np.float32)
                sizes = np.array([1, channels, int(height * a), int(width * b)])
                shape = f"1, {channels}, {height}, {width}"
                for model in (
                    resized(shape, attributes, scales=scales),
                    resized(shape, attributes, sizes=sizes),
                ):
                    if not converted(model).refused:
                        agree(model)
                        taken += 1
    exact = mode != "nearest" and way in ("half_pixel", "pytorch_half_pixel", "align_corners")
    assert taken >= (20 if exact else 0)


@pytest.mark.parametrize(
    "attributes",
    [
        'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"',
        'mode = "nearest"',
        'mode = "linear"',
        'mode = "linear", coordinate_transformation_mode = "align_corners"',
        'mode = "cubic"',
    ],
)
def test_open_sizes_by_whole_factors(attributes: str) -> None:
    model = resized("1, 16, H, W", attributes, scales=np.array([1, 1, 2, 3], np.float32))
    layers = agree(model, SMALL, LARGE)
    assert layers[-1].params[9] == "*(0w,3),*(0h,2)"


def test_open_sizes_by_other_factors_are_refused() -> None:
    model = resized("1, 16, H, W", 'mode = "linear"', scales=np.array([1, 1, 1, 1.5], np.float32))
    ((node, op, _),) = refusals(model, SMALL, LARGE)
    assert (node, op) == ("up", "Resize")


def test_open_sizes_that_are_the_inputs_by_chance_are_refused() -> None:
    text = """(float[1, 16, H, W] x) => (float[1, 16, P, Q] y) {
        size = Shape <start = 2> (x)
        half = Div(size, two)
        even = Mul(half, two)
        sizes = Concat <axis = 0> (channels, even)
        [up] y = Resize <mode = "linear"> (x, , , sizes)
    }"""
    model = build(text, two=np.array([2]), channels=np.array([1, 16]))
    ((node, _, reason),) = refusals(model, {"x": (1, 16, 8, 6)}, {"x": (1, 16, 12, 18)})
    assert node == "up"
    assert "it is not certain how" in reason


def test_as_large_as_another_tensor() -> None:
    text = """(float[1, 16, H, W] x) => (float[1, 32, H, W] y) {
        small = Slice(x, one, far, axes, steps)
        size = Shape <start = 2> (x)
        sizes = Concat <axis = 0> (channels, size)
        large = Resize <mode = "linear"> (small, , , sizes)
        y = Concat <axis = 1> (x, large)
    }"""
    model = build(
        text,
        one=np.array([1, 0]),
        far=np.array([2**40] * 2),
        axes=np.array([2, 3]),
        steps=np.array([2, 2]),
        channels=np.array([1, 16]),
    )
    (layer,) = [one for one in agree(model, SMALL, LARGE) if one.type == "Interp"]
    assert layer.params[9] == "1w,1h"


def test_one_dimension_and_several_samples() -> None:
    text = '(float[1, 16, 9] x) => (float[1, 16, 18] y) { y = Resize <mode = "linear"> (x, , s) }'
    agree(build(text, s=np.array([1, 1, 2], np.float32)))
    agree(resized("3, 16, 9, 7", 'mode = "nearest"', scales=np.array([1, 1, 2, 2], np.float32)))


def test_a_single_value_is_spread() -> None:
    model = resized("1, 8, 1, 1", 'mode = "linear"', sizes=np.array([1, 8, 5, 6]))
    assert types(agree(model)) == ["Interp"]


def test_other_opsets() -> None:
    text = "(float[1, 16, 9, 7] x) => (float[1, 16, 18, 14] y)"
    scales = np.array([1, 1, 2, 2], np.float32)
    agree(build(f"{text} {{ y = Upsample <scales = [1.0, 1.0, 2.0, 2.0]> (x) }}", opset=7))
    agree(build(f"{text} {{ y = Upsample(x, s) }}", opset=9, s=scales))
    agree(build(f"{text} {{ y = Resize(x, s) }}", opset=10, s=scales))
    agree(build(f"{text} {{ y = Resize(x, r, s) }}", opset=11, s=scales, r=np.zeros(0, np.float32)))
    agree(build(f"{text} {{ y = Resize <axes = [2, 3]> (x, , s) }}", opset=18, s=scales[2:]))


def test_a_refusal_names_the_mode() -> None:
    model = resized(
        "1, 3, 8, 8",
        'mode = "cubic", coordinate_transformation_mode = "asymmetric"',
        scales=np.array([1, 1, 2, 2], np.float32),
    )
    assert (
        refusals(model)[0][2]
        == "ncnn's Interp does not resize 8 to 16 and 8 to 16 with mode cubic, asymmetric"
    )


def test_integers_are_refused() -> None:
    text = '(int32[1, 3, 4, 5] x) => (int32[1, 3, 8, 10] y) { y = Resize <mode = "nearest"> (x, , scales) }'
    ((_, _, reason),) = refusals(build(text, scales=np.array([1, 1, 2, 2], np.float32)))
    assert reason == "it computes with integers, and ncnn with float32"
