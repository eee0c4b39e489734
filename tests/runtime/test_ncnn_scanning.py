"""CumSum and GridSample as ncnn's layers, against ONNX Runtime."""

import pytest

from tests.support.builders import build
from tests.support.ncnn import agree, refusals

CHANNELS = (1, 3, 8, 16, 17)


@pytest.mark.parametrize("channels", CHANNELS)
def test_sums_along_each_axis(channels: int) -> None:
    for axis in (1, 2, 3):
        for reverse in (0, 1):
            nodes = f"axis = Constant <value_int = {axis}> () y = CumSum <reverse = {reverse}> (x, axis)"
            agree(build(f"(float[1, {channels}, 5, 6] x) => (float[1, {channels}, 5, 6] y) {{ {nodes} }}"))


def test_sums_without_their_own_value_are_refused() -> None:
    text = "(float[1, 5] x) => (float[1, 5] y) { axis = Constant <value_int = 1> () y = CumSum <exclusive = 1> (x, axis) }"
    assert refusals(build(text))[0][2] == "its sums leave out the value at their own place"


@pytest.mark.parametrize("channels", CHANNELS)
def test_sampled(channels: int) -> None:
    for edges in ("zeros", "border"):
        for aligned in (0, 1):
            text = f"""(float[1, {channels}, 7, 6] x, float[1, 4, 9, 2] g) => (float[1, {channels}, 4, 9] y) {{
                y = GridSample <mode = "bilinear", padding_mode = "{edges}", align_corners = {aligned}> (x, g)
            }}"""
            agree(build(text, opset=16))


@pytest.mark.parametrize(
    "mode, edges", [("nearest", "zeros"), ("bilinear", "reflection"), ("bicubic", "zeros")]
)
def test_samples_that_ncnn_takes_at_other_places_are_refused(mode: str, edges: str) -> None:
    text = f"""(float[1, 3, 7, 6] x, float[1, 4, 9, 2] g) => (float[1, 3, 4, 9] y) {{
        [sample] y = GridSample <mode = "{mode}", padding_mode = "{edges}"> (x, g)
    }}"""
    ((node, _, reason),) = refusals(build(text, opset=16))
    assert node == "sample"
    assert mode in reason
