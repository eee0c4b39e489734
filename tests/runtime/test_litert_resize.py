"""Resize and Upsample in LiteRT: all modes and places, sizes up and down, channels first and last, sizes that stay open."""

import itertools

import numpy as np
import onnx
import pytest

from tests.support.builders import build
from tests.support.litert_operators import agree, refusals

pytest.importorskip("ai_edge_litert")

SIZES = [(4, 8), (5, 15), (7, 10), (10, 7), (9, 4), (1, 5), (5, 1), (6, 4), (13, 29)]
WAYS = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]
ROUNDINGS = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
LAST = "1, 2"
"""Axes of height and width with channels last."""


def resize(before: int, after: int, opset: int = 19, last: bool = True, **attributes: str) -> onnx.ModelProto:
    words = ", ".join(f'{name} = "{value}"' for name, value in attributes.items())
    height, width = before, before + 2
    shape = f"1, {height}, {width}, 3" if last else f"1, 3, {height}, {width}"
    sizes = np.array([1, after, after + 1, 3] if last else [1, 3, after, after + 1])
    text = f'(float[{shape}] x) => (float[A, B, C, D] y) {{ y = Resize<{words}>(x, "", "", s) }}'
    return build(text, opset, s=sizes)


@pytest.mark.parametrize("way, rounding", list(itertools.product(WAYS, ROUNDINGS)))
def test_nearest(way: str, rounding: str) -> None:
    for before, after in SIZES:
        model = resize(
            before, after, mode="nearest", coordinate_transformation_mode=way, nearest_mode=rounding
        )
        codes = agree(model)
        assert codes == ["RESIZE_NEAREST_NEIGHBOR"] or set(codes) == {"GATHER"}


@pytest.mark.parametrize("mode, way", list(itertools.product(["linear", "cubic"], WAYS)))
def test_interpolated(mode: str, way: str) -> None:
    for before, after in SIZES:
        last = mode == "linear"  # ONNX Runtime's cubic has channels first
        agree(resize(before, after, last=last, mode=mode, coordinate_transformation_mode=way))


@pytest.mark.parametrize(
    "attributes, code",
    [
        ({"mode": "linear", "coordinate_transformation_mode": "half_pixel"}, "RESIZE_BILINEAR"),
        ({"mode": "linear", "coordinate_transformation_mode": "align_corners"}, "RESIZE_BILINEAR"),
        ({"mode": "linear", "coordinate_transformation_mode": "asymmetric"}, "RESIZE_BILINEAR"),
        (
            {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
            "RESIZE_NEAREST_NEIGHBOR",
        ),
        (
            {
                "mode": "nearest",
                "coordinate_transformation_mode": "align_corners",
                "nearest_mode": "round_prefer_ceil",
            },
            "RESIZE_NEAREST_NEIGHBOR",
        ),
    ],
)
def test_what_litert_has_is_one_operator(attributes: dict[str, str], code: str) -> None:
    for before, after in SIZES[:5]:
        assert agree(resize(before, after, **attributes)) == [code]
    assert agree(resize(4, 8, last=False, **attributes)) == ["TRANSPOSE", code, "TRANSPOSE"]


def test_a_line_is_an_image_of_one_column() -> None:
    for shape, scales in (("1, 5, 3", [1, 2, 1]), ("1, 3, 5", [1, 1, 2])):
        text = f'(float[{shape}] x) => (float[A, B, C] y) {{ y = Resize<mode = "linear">(x, "", s) }}'
        assert "RESIZE_BILINEAR" in agree(build(text, s=np.array(scales, np.float32)))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample(mode: str) -> None:
    text = f'(float[1, 2, 3, 5] x) => (float[A, B, C, D] y) {{ y = Upsample<mode = "{mode}">(x, s) }}'
    agree(build(text, 9, s=np.array([1, 1, 2, 3], np.float32)))
    text = f'(float[1, 2, 3, 5] x) => (float[A, B, C, D] y) {{ y = Upsample<mode = "{mode}", scales = [1.0, 1.0, 2.0, 2.0]>(x) }}'
    agree(build(text, 7))


def test_scales_that_end_between_two_sizes() -> None:
    for scale in (0.6, 1.7, 2.3):
        for mode, way in itertools.product(("nearest", "linear"), ("half_pixel", "asymmetric")):
            text = f'(float[1, 5, 7, 2] x) => (float[A, B, C, D] y) {{ y = Resize<mode = "{mode}", coordinate_transformation_mode = "{way}">(x, "", s) }}'
            agree(build(text, s=np.array([1, scale, scale, 1], np.float32)))


def test_open_sizes() -> None:
    sizes, others = {"x": (1, 4, 6, 3)}, {"x": (2, 6, 9, 3)}
    way = 'mode = "linear", coordinate_transformation_mode = "half_pixel"'
    text = f'(float[N, H, W, 3] x) => (float[A, B, C, D] y) {{ y = Resize<{way}>(x, "", s) }}'
    agree(build(text, s=np.array([1, 2, 2, 1], np.float32)), sizes=sizes, others=others)
    body = f'h = Shape(x) c = Concat<axis = 0>(n, hw, n) k = Mul(h, c) y = Resize<{way}>(x, "", "", k)'
    text = f"(float[N, H, W, 3] x) => (float[A, B, C, D] y) {{ {body} }}"
    agree(build(text, n=np.array([1]), hw=np.array([2, 2])), sizes=sizes, others=others)


def test_what_litert_has_not_of_open_sizes_is_refused() -> None:
    text = '(float[1, 3, H, W] x) => (float[A, B, C, D] y) { y = Resize<mode = "cubic">(x, "", s) }'
    model = build(text, s=np.array([1, 1, 2, 2], np.float32))
    ((_, _, reason),) = refusals(model, {"x": (1, 3, 4, 6)}, {"x": (1, 3, 6, 9)})
    assert (
        reason
        == "it resizes with mode cubic, half_pixel, which LiteRT has not, and its sizes depend on the input's"
    )


def test_an_antialiased_reduction_is_refused() -> None:
    text = '(float[1, 9, 9, 3] x) => (float[A, B, C, D] y) { y = Resize<mode = "linear", antialias = 1>(x, "", s) }'
    ((_, _, reason),) = refusals(build(text, 18, s=np.array([1, 0.3, 0.3, 1], np.float32)))
    assert "values for one" in reason
