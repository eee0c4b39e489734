"""ConvTranspose of LiteRT where the batch, or height and width, stay open: its kernel is told the sizes of its result."""

import pytest

from tests.support.builders import build, random
from tests.support.litert_operators import agree

pytest.importorskip("ai_edge_litert")

CASES = [
    "strides = [2, 2]",
    "strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]",
    "strides = [2, 2], pads = [0, 1, 1, 0]",
    'auto_pad = "SAME_UPPER", strides = [2, 2]',
    "pads = [1, 1, 1, 1]",
]


@pytest.mark.parametrize("attributes", CASES)
@pytest.mark.parametrize("other", [(3, 4, 5, 6), (2, 4, 7, 9)])
def test_images(attributes: str, other: tuple[int, ...]) -> None:
    text = f"(float[N, 4, H, W] x) => (float[A, B, C, D] y) {{ y = ConvTranspose<{attributes}>(x, w, b) }}"
    model = build(text, w=random(4, 3, 3, 3), b=random(3))
    codes = agree(model, sizes={"x": (1, 4, 5, 6)}, others={"x": other})
    assert "TRANSPOSE_CONV" in codes


def test_lines() -> None:
    text = (
        "(float[N, 4, L] x) => (float[A, B, C] y) { y = ConvTranspose<strides = [3], pads = [1, 0]>(x, w) }"
    )
    agree(build(text, w=random(4, 2, 4)), sizes={"x": (1, 4, 5)}, others={"x": (2, 4, 9)})
