"""Parts of tensors as ncnn's layers: Slice, Split, Gather and tables, against ONNX Runtime."""

from typing import Any

import numpy as np
import pytest

from onnx_lathe.runtime.targets.ncnn import running
from onnx_lathe.runtime.targets.ncnn.algorithms import count_chosen
from tests.support.builders import build, random
from tests.support.ncnn import agree, refusals, types

CHANNELS = (1, 3, 8, 16, 17)
FAR = 2**63 - 1
SMALL, LARGE = {"x": (1, 16, 9, 8)}, {"x": (1, 16, 12, 15)}


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def sliced(shape: str, rank: int, *parts: tuple[int, int, int, int]):  # type: ignore[no-untyped-def]
    """parts: (start, end, axis, step)."""
    starts, ends, axes, steps = (integers(*column) for column in zip(*parts, strict=True))
    target = ",".join("ABCDE"[:rank])
    text = f"(float[{shape}] x) => (float[{target}] y) {{ [cut] y = Slice(x, starts, ends, axes, steps) }}"
    return build(text, starts=starts, ends=ends, axes=axes, steps=steps)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(
    "parts, layers",
    [
        ([(1, FAR, 2, 1)], ["Crop"]),
        ([(-3, -1, 3, 1), (0, 4, 2, 1)], ["Crop"]),
        ([(0, FAR, 2, 2), (1, FAR, 3, 2)], ["Crop", "Pooling"]),
        ([(-1, -FAR, 1, -1)], ["Flip"]),
        ([(-1, -FAR, 3, -2), (7, -FAR, 2, -1)], ["Crop", "Flip", "Pooling"]),
        ([(-1, FAR, 1, 1)], None),
        ([(0, FAR, 1, 3)], None),
    ],
)
def test_parts_of_an_image(channels: int, parts: list[tuple[int, int, int, int]], layers: list[str]) -> None:
    found = types(agree(sliced(f"1, {channels}, 9, 7", 4, *parts)))
    assert layers is None or found == layers


@pytest.mark.parametrize("channels", CHANNELS)
def test_parts_of_other_dimensions(channels: int) -> None:
    agree(sliced(f"1, {channels}, 6, 5, 7", 5, (1, 3, 2, 1), (1, 6, 4, 2)))
    agree(sliced(f"1, {channels}, 9", 3, (1, -1, 2, 1)))
    agree(sliced(f"1, {channels}", 2, (-1, FAR, 1, 1)))


def test_the_attributes_of_old_slices() -> None:
    text = "(float[1, 3, 9, 7] x) => (float[1, 3, 8, 5] y) { y = Slice <axes = [2, 3], starts = [1, -6], ends = [100, -1]> (x) }"
    assert types(agree(build(text, opset=9))) == ["Crop"]


@pytest.mark.parametrize(
    "part",
    [
        (1, FAR, 2, 1),
        (-3, -1, 3, 1),
        (0, 5, 2, 1),
        (0, FAR, 3, 2),
        (-1, -FAR, 3, -1),
        (0, 10, 2, 1),
        (-4, FAR, 2, 1),
    ],
)
def test_parts_of_open_sizes(part: tuple[int, int, int, int]) -> None:
    agree(sliced("1, 16, H, W", 4, part), SMALL, LARGE)


@pytest.mark.parametrize(
    "part", [(0, 20, 2, 1), (1, 20, 2, 1), (-7, FAR, 2, 1), (-7, FAR, 3, 1), (0, 20, 2, 2)]
)
@pytest.mark.parametrize("sizes", [((9, 8), (12, 15)), ((15, 18), (40, 64))])
def test_a_part_is_right_at_sizes_it_was_not_written_for(
    part: tuple[int, int, int, int], sizes: tuple[tuple[int, int], ...]
) -> None:
    model = sliced("1, 16, H, W", 4, part)
    for other in ((4, 3), (31, 33), (48, 70)):
        agree(model, *({"x": (1, 16, *size)} for size in sizes), elsewhere=[{"x": (1, 16, *other)}])


def test_a_backward_slice_whose_end_larger_sizes_reach_is_refused() -> None:
    model = sliced("1, 16, H, W", 4, (-1, -70, 2, -1))
    assert [reason for *_, reason in refusals(model, SMALL, LARGE)] == [
        "it steps backwards along axis 2, whose size is open"
    ]


def test_a_part_that_depends_on_another_size_is_refused() -> None:
    text = """(float[1, 16, H, W] x) => (float[1, 16, P, W] y) {
        width = Shape <start = 3> (x)
        half = Div(width, two)
        [cut] y = Slice(x, zero, half, axis)
    }"""
    model = build(text, two=integers(2), zero=integers(0), axis=integers(2))
    ((node, _, reason),) = refusals(model, SMALL, LARGE)
    assert node == "cut"
    assert reason == "how much it takes along axis 2 depends on the size of the input"


def test_a_part_up_to_a_distance_from_an_open_end() -> None:
    text = """(float[1, 16, H, W] x) => (float[1, 16, P, W] y) {
        size = Shape(x)
        height = Gather(size, axis)
        end = Sub(height, three)
        y = Slice(x, one, end, axis)
    }"""
    model = build(text, one=integers(1), three=integers(3), axis=integers(2))
    layers = agree(model, SMALL, LARGE)
    assert [layer.params[10] for layer in layers if layer.type == "Crop"] == [[-3]]


@pytest.mark.parametrize("channels", CHANNELS)
def test_split(channels: int) -> None:
    text = f"""(float[1, {channels + 1}, 4, 6] x) => (float[1, A, 4, 6] a, float[1, 1, 4, 6] b, float[1, B, 4, 2] c, float[1, B, 4, 1] d) {{
        a, b = Split <axis = 1> (x, sizes)
        c, unread, e = Split <axis = -1> (x)
        f, d = Split <axis = 3> (e, ones)
    }}"""
    agree(build(text, sizes=integers(channels, 1), ones=integers(1, 1)))


def test_a_last_part_that_is_smaller() -> None:
    text = "(float[1, 7, 5] x) => (float[1, 3, 5] a, float[1, 3, 5] b, float[1, 1, 5] c) { a, b, c = Split <axis = 1, num_outputs = 3> (x) }"
    (layer,) = [one for one in agree(build(text, opset=18)) if one.type == "Slice"]
    assert layer.params[0] == [3, 3, 1]


def test_halves_of_an_open_size() -> None:
    text = "(float[1, 16, H, W] x) => (float[1, 16, P, W] a, float[1, 16, P, W] b) { a, b = Split <axis = 2> (x) }"
    agree(build(text), {"x": (1, 16, 4, 7)}, {"x": (1, 16, 10, 9)})


@pytest.mark.parametrize("channels", [3, 8, 16, 17])
@pytest.mark.parametrize(
    "places", [(2,), (0, 1), (2, 1, 0, 2, 2), (0, 2), (2, 1, 0), (-1, 0), (-1,), (1, 1, 1)]
)
def test_gathered_places(channels: int, places: tuple[int, ...]) -> None:
    text = f"""(float[1, {channels}, 5, 4] x) => (float[1, A, 5, 4] a, float[1, {channels}, B, 4] b, float[1, {channels}, 4] c) {{
        a = Gather <axis = 1> (x, places)
        b = Gather <axis = 2> (x, places)
        c = Gather <axis = 2> (x, one)
    }}"""
    agree(build(text, places=integers(*places), one=np.array(places[0])))


def test_the_last_of_an_open_size() -> None:
    text = "(float[1, T, 6] x) => (float[1, 6] y) { y = Gather <axis = 1> (x, last) }"
    agree(build(text, last=np.array(-1)), {"x": (1, 4, 6)}, {"x": (1, 9, 6)})


@pytest.mark.parametrize("shape", ["1, 5", "2, 5"])
def test_rows_of_a_table(shape: str) -> None:
    text = f"(int64[{shape}] x) => (float[{shape}, 6] y) {{ y = Gather(table, x) }}"
    assert "Embed" in types(agree(build(text, table=random(9, 6))))


@pytest.mark.parametrize(
    "body",
    [
        "(int64[1, 6] x) => (float[1, 3, 6] y) { a, b = Split <axis = 1> (x) y = Gather(table, b) }",
        "(int64[1, 6] x) => (float[1, 6, 6] y, float[1, 2, 6] z) { y = Gather(table, x) s = Slice(x, i1, i3, i1) z = Gather(table, s) }",
        "(int64[1, 3, 6] x) => (float[1, 18, 6] y) { r = Reshape(x, flat) y = Gather(table, r) }",
        "(int64[1, 3] x, int64[1, 4] u) => (float[1, 7, 6] y, int64[1, 7] c) { c = Concat <axis = 1> (x, u) y = Gather(table, c) }",
    ],
)
def test_integers_that_point_survive_storage_in_half_precision(
    body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 stands for float16 here, which ncnn stores on ARM alone: both are cast in one place."""
    usual = running._set

    def with_halves(options: Any, settings: running.Settings) -> None:
        usual(options, settings)
        options.use_bf16_storage = True

    monkeypatch.setattr(running, "_set", with_halves)
    stored = {"table": random(9, 6), "i1": integers(1), "i3": integers(3), "flat": integers(1, 18)}
    agree(build(body, **{name: value for name, value in stored.items() if name in body}), tolerance=1e-2)


def test_layers_that_keep_bits_are_no_chosen_convolutions() -> None:
    text = "(int64[1, 6] x) => (float[1, 3, 6] y) { a, b = Split <axis = 1> (x) y = Gather(table, b) }"
    layers = agree(build(text, table=random(9, 6)))
    assert [layer.params.get(31) for layer in layers if layer.type == "Slice"] == [7]
    assert count_chosen(layers) == 0


def test_as_many_rows_as_there_are_words() -> None:
    text = "(int64[1, T] x) => (float[1, T, 6] y) { y = Gather(table, x) }"
    agree(build(text, table=random(9, 6)), {"x": (1, 3)}, {"x": (1, 8)})


def test_indices_that_a_layer_computes_are_refused() -> None:
    text = "(float[1, 5] x) => (float[1, 6] y) { i = ArgMax <axis = 1, keepdims = 0> (x) [row] y = Gather(table, i) }"
    reasons = {node: reason for node, _, reason in refusals(build(text, table=random(5, 6)))}
    assert reasons["row"] == "its indices are computed at run time"


@pytest.mark.parametrize("places", [(1, 0, -1), (0, -1, -2), (-1, 0, 1), (-1, -2, -3), (0, 2, 4)])
def test_places_on_both_sides_of_the_ends_of_an_open_size(places: tuple[int, ...]) -> None:
    text = "(float[1, 3, H] x) => (float[1, 3, P] y) { y = Gather <axis = 2> (x, places) }"
    agree(build(text, places=integers(*places)), {"x": (1, 3, 6)}, {"x": (1, 3, 9)})
