"""Operators of LiteRT that move values, or give them other dimensions: attributes, opsets, and sizes that stay open."""

import numpy as np
import onnx
import pytest

from tests.support.builders import build, random
from tests.support.litert_operators import agree, refusals

pytest.importorskip("ai_edge_litert")

OPEN = {"x": (1, 8, 6, 4)}, {"x": (3, 8, 10, 4)}
"""Sizes N, 8, H, 4 at which the model is looked at."""


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def reasons(model: onnx.ModelProto, *sizes: dict[str, tuple[int, ...]]) -> list[str]:
    return [reason for _, _, reason in refusals(model, *sizes)]


def opened(body: str, result: str, **stored: np.ndarray) -> list[str]:
    """The codes of a model that takes x [N, 8, H, 4]."""
    model = build(f"(float[N, 8, H, 4] x) => (float[{result}] y) {{ {body} }}", **stored)
    return agree(model, sizes=OPEN[0], others=OPEN[1])


@pytest.mark.parametrize("shape", [(0, -1), (3, 2, -1), (-1, 4, 1, 5), (1, 60), (60,)])
def test_reshape(shape: tuple[int, ...]) -> None:
    dims = ", ".join("?" for _ in shape)
    model = build(f"(float[3, 4, 5] x) => (float[{dims}] y) {{ y = Reshape(x, s) }}", s=ints(*shape))
    assert agree(model) == ["RESHAPE"]


@pytest.mark.parametrize("axis", [0, 1, 2, -1, 3])
def test_flatten(axis: int) -> None:
    agree(build(f"(float[3, 4, 5] x) => (float[A, B] y) {{ y = Flatten<axis = {axis}>(x) }}"))


def test_a_batch_is_not_baked_into_a_shape() -> None:
    assert opened("y = Flatten<axis = 3>(x)", "A, B") == ["RESHAPE"]
    assert opened("y = Reshape(x, s)", "A, B, C, D", s=ints(0, 2, -1, 4))[-1] == "RESHAPE"


def test_dimensions_of_1_come_and_go_where_several_sizes_are_open() -> None:
    assert opened("y = Unsqueeze(x, a)", "A, B, C, D, E", a=ints(1)) == ["EXPAND_DIMS"]
    codes = opened(
        "u = Unsqueeze(x, a) s = Slice(u, b, e, c) y = Squeeze(s, a)",
        "A, B, C, D",
        a=ints(1),
        b=ints(1),
        e=ints(2),
        c=ints(4),
    )
    assert codes[0] == "EXPAND_DIMS"
    assert codes[-1] == "SQUEEZE"


def test_a_shape_with_several_open_sizes_is_computed_when_it_runs() -> None:
    codes = opened("y = Reshape(x, s)", "A, B, C, D, E", s=ints(0, 2, 4, -1, 4))
    assert codes[-1] == "RESHAPE"
    assert "SHAPE" in codes


def test_sizes_are_computed_when_it_runs() -> None:
    body = """s = Shape(x) n = Gather(s, zero) h = Gather(s, two) more = Mul(h, three) half = Div(h, twice)
        shape = Concat<axis = 0>(n, eight, half, twice, four) y = Reshape(x, shape)"""
    stored = {
        "zero": ints(0),
        "two": ints(2),
        "three": ints(3),
        "twice": ints(2),
        "eight": ints(8),
        "four": ints(4),
    }
    opened(body, "A, B, C, D, E", **stored)


def test_expand_and_constants_of_open_sizes() -> None:
    opened("s = Shape(x) y = Expand(c, s)", "A, B, C, D", c=random(1, 8, 1, 4))
    opened("s = Shape(x) z = ConstantOfShape(s) y = Add(x, z)", "A, B, C, D")
    body = "s = Shape(x) h = Gather(s, two) r = Range(nought, h, one) f = Cast<to = 1>(r) u = Unsqueeze(f, zero) y = Add(x, u)"
    opened(body, "A, B, C, D", two=np.array(2), nought=np.array(0), one=np.array(1), zero=ints(1))


def test_expand() -> None:
    for before, after in (((3, 1), (3, 4)), ((1,), (2, 3, 5)), ((2, 1, 4), (1, 5, 1)), ((3, 4), (3, 4))):
        shape = np.broadcast_shapes(before, after)
        text = f"(float[{', '.join(map(str, before))}] x) => (float[{', '.join(map(str, shape))}] y) {{ y = Expand(x, s) }}"
        agree(build(text, s=ints(*after)))


@pytest.mark.parametrize("kind", ["float", "int64", "int32", "bool"])
def test_moves_of_other_types(kind: str) -> None:
    for body, shape in (
        ("y = Transpose<perm = [2, 0, 1]>(x)", "4, 2, 3"),
        ("y = Tile(x, r)", "4, 3, 12"),
        ("y = Gather<axis = 1>(x, i)", "2, 2, 4"),
        ("y = Slice(x, i, e, a, s)", "1, 3, 4"),
        ("y = Concat<axis = 1>(x, x)", "2, 6, 4"),
    ):
        model = build(
            f"({kind}[2, 3, 4] x) => ({kind}[{shape}] y) {{ {body} }}",
            **({"r": ints(2, 1, 3)} if "Tile" in body else {}),
            **({"i": ints(-1, 0)} if "Gather" in body else {}),
            **({"i": ints(0), "e": ints(1), "a": ints(0), "s": ints(1)} if "Slice" in body else {}),
        )
        agree(model)


def test_transpose_of_many_dimensions() -> None:
    text = "(float[2, 3, 1, 2, 2, 3, 2] x) => (float[A, B, C, D, E, F, G] y) { y = Transpose<perm = [5, 0, 2, 4, 6, 1, 3]>(x) }"
    agree(build(text))
    text = "(float[1, 3, 1, 5] x) => (float[3, 1, 1, 5] y) { y = Transpose<perm = [1, 0, 2, 3]>(x) }"
    assert agree(build(text)) == ["RESHAPE"]


@pytest.mark.parametrize(
    "start, end, axis, step",
    [
        (1, 3, 0, 1), (-2, 2**62, 1, 1), (0, -1, 2, 1), (0, 7, 2, 3), (-1, -(2**62), 2, -1), (5, 1, 2, -2),
        (2, -(2**31), 0, -1), (-100, 100, 1, 2), (0, 2**31 - 1, 2, 5),
    ],
)  # fmt: skip
def test_slice(start: int, end: int, axis: int, step: int) -> None:
    model = build(
        "(float[4, 5, 7] x) => (float[A, B, C] y) { y = Slice(x, b, e, a, s) }",
        b=ints(start), e=ints(end), a=ints(axis), s=ints(step),
    )  # fmt: skip
    agree(model)


def test_slice_of_several_axes_and_before_opset_10() -> None:
    body = "y = Slice(x, b, e, a, s)"
    stored = {"b": ints(1, -1), "e": ints(3, -4), "a": ints(0, -1), "s": ints(1, -1)}
    agree(build(f"(float[4, 5, 7] x) => (float[A, B, C] y) {{ {body} }}", **stored))
    text = (
        "(float[4, 5] x) => (float[A, B] y) { y = Slice<starts = [1, -3], ends = [9, -1], axes = [0, 1]>(x) }"
    )
    agree(build(text, opset=9))


def test_slice_of_open_sizes() -> None:
    for start, end, step in ((1, -1, 1), (-3, 2**62, 1), (0, 2**62, 2), (-1, -(2**62), -1), (-2, 1, -2)):
        stored = {"b": ints(start), "e": ints(end), "a": ints(2), "s": ints(step)}
        assert opened("y = Slice(x, b, e, a, s)", "A, B, C, D", **stored) == ["STRIDED_SLICE"]


def test_split() -> None:
    for body, stored in (
        ("y, z = Split<axis = 1>(x, s)", {"s": ints(2, 4)}),
        ("y, z = Split<axis = -2>(x)", {}),
        ("a, y, z = Split<axis = 1>(x, s)", {"s": ints(1, 3, 2)}),
    ):
        agree(build(f"(float[2, 6, 3] x) => (float[A, B, C] y, float[D, E, F] z) {{ {body} }}", **stored))
    text = "(bool[2, 6] x) => (bool[A, B] y, bool[C, D] z) { y, z = Split<axis = 1>(x) }"
    agree(build(text))
    opened("a, y = Split<axis = 1>(x)", "A, B, C, D")


def test_gather_with_indices_that_are_computed() -> None:
    text = "(float[5, 3] x, int64[2, 2] i) => (float[2, 2, 3] y) { y = Gather(x, i) }"
    feeds = {"x": random(5, 3), "i": np.array([[-1, 0], [4, -5]], np.int64)}
    agree(build(text), feeds)
    text = "(int32[2, 3] i) => (float[2, 3, 4] y) { y = Gather(table, i) }"
    agree(build(text, table=random(7, 4)), {"i": np.array([[0, 6, -7], [3, 2, -1]], np.int32)})


def test_gather_of_one_place_and_of_an_open_axis() -> None:
    model = build("(float[2, 3, 4] x) => (float[2, 4] y) { y = Gather<axis = 1>(x, i) }", i=np.array(-1))
    agree(model)
    opened("y = Gather<axis = 2>(x, i)", "A, B, C, D", i=ints(0, 5))
    assert reasons(
        build("(float[N, 4] x) => (float[A, B] y) { y = Gather(x, i) }", i=ints(-1)),
        {"x": (3, 4)},
        {"x": (5, 4)},
    )


def test_scattering() -> None:
    text = '(float[4, 5] x, float[2, 5] u) => (float[4, 5] y) { y = ScatterND<reduction = "%s">(x, i, u) }'
    for reduction in ("none", "add"):
        agree(build(text % reduction, i=np.array([[3], [-3]], np.int64)))
    text = "(float[4, 5] x, float[2, 3] u) => (float[4, 5] y) { y = ScatterElements<axis = 1>(x, i, u) }"
    agree(build(text, i=np.array([[0, 4, 2], [-2, 1, 0]], np.int64)))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    body = f'y = DepthToSpace<blocksize = 2, mode = "{mode}">(x)'
    agree(build(f"(float[2, 12, 3, 4] x) => (float[2, 3, 6, 8] y) {{ {body} }}"))
    sandwich = f"""(float[2, 3, 4, 12] x) => (float[2, 6, 8, 3] y) {{ a = Transpose<perm = [0, 3, 1, 2]>(x)
        b = DepthToSpace<blocksize = 2, mode = "{mode}">(a) y = Transpose<perm = [0, 2, 3, 1]>(b) }}"""
    codes = agree(build(sandwich))
    assert codes == (["DEPTH_TO_SPACE"] if mode == "DCR" else ["GATHER", "DEPTH_TO_SPACE"])


def test_space_to_depth() -> None:
    agree(build("(float[2, 3, 6, 8] x) => (float[2, 12, 3, 4] y) { y = SpaceToDepth<blocksize = 2>(x) }"))


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad(mode: str) -> None:
    for pads in ((0, 1, 2, 1, 0, 3), (1, 0, 0, 0, 1, 1), (0, -1, 2, 0, -1, 1), (2, 4, 6, 2, 4, 6)):
        body = f'y = Pad<mode = "{mode}">(x, p)'
        agree(build(f"(float[3, 5, 7] x) => (float[A, B, C] y) {{ {body} }}", p=ints(*pads)))


def test_pad_with_values_axes_and_many_dimensions() -> None:
    text = "(float[3, 5, 7] x) => (float[A, B, C] y) { y = Pad(x, p, v, a) }"
    stored = {"p": ints(1, 2, 0, 3), "v": np.float32(-0.5), "a": ints(-1, 0)}
    agree(build(text, opset=18, **stored))
    text = "(float[2, 3, 1, 2, 2, 3] x) => (float[A, B, C, D, E, F] y) { y = Pad(x, p) }"
    agree(build(text, p=ints(0, 0, 0, 1, 0, 2, 0, 0, 0, 1, 1, 0)))
    text = "(int64[3, 5] x) => (int64[A, B] y) { y = Pad(x, p, v) }"
    agree(build(text, p=ints(1, 0, 0, 2), v=np.array(7)))


def test_pad_of_open_sizes() -> None:
    assert opened("y = Pad(x, p)", "A, B, C, D", p=ints(0, 0, 1, 0, 0, 0, 2, 1)) == ["PAD"]
    assert opened('y = Pad<mode = "reflect">(x, p)', "A, B, C, D", p=ints(0, 0, 1, 0, 0, 0, 2, 1)) == [
        "MIRROR_PAD"
    ]
    model = build('(float[N, 4] x) => (float[A, B] y) { y = Pad<mode = "edge">(x, p) }', p=ints(1, 0, 0, 0))
    (reason,) = reasons(model, {"x": (2, 4)}, {"x": (3, 4)})
    assert "mode 'edge'" in reason


def test_what_the_input_decides_is_refused() -> None:
    text = "(float[3, 4] x, int64[1] a) => (float[A, B, C] y) { y = Unsqueeze(x, a) }"
    (reason,) = reasons(build(text), {"x": (3, 4), "a": (1,)})
    assert reason == "its shape is computed at run time, from what the input holds"
