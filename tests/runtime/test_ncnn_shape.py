"""What moves values as ncnn's layers: shapes, permutations, joining and repeating, against ONNX Runtime."""

from itertools import pairwise, permutations

import numpy as np
import pytest

from onnx_lathe.runtime.targets.ncnn.moving import moves
from tests.support.builders import build, random
from tests.support.ncnn import agree, refusals, types

CHANNELS = (1, 3, 8, 16, 17)
"""Numbers that ncnn packs differently."""


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_every_permutation_beside_the_batch(rank: int) -> None:
    sizes = (17, 8, 5, 3)[:rank]
    orders = list(permutations(range(rank)))
    for order in orders if rank < 6 else orders[::29]:  # 29 divides no block of equal beginnings
        perm = [0, *(place + 1 for place in order)]
        target = ",".join(str(sizes[place]) for place in order)
        source = ",".join(map(str, sizes))
        text = f"(float[1,{source}] x) => (float[1,{target}] y) {{ y = Transpose <perm = {perm}> (x) }}"
        found = types(agree(build(text)))
        assert "Permute" in found or order == tuple(range(rank))


def test_dimensions_of_one_move_without_a_layer() -> None:
    text = """(float[1, 7, 5] x) => (float[1, 7, 5] y) {
        a = Transpose <perm = [1, 0, 2]> (x)
        b = Relu(a)
        c = Squeeze(b, one)
        d = Unsqueeze(c, two)
        y = Transpose <perm = [2, 0, 1]> (d)
    }"""
    assert types(agree(build(text, one=integers(1), two=integers(2)))) == ["ReLU"]


def test_a_shuffle_of_channels() -> None:
    text = """(float[1, 16, 5, 6] x) => (float[1, 16, 5, 6] y) {
        a = Reshape(x, apart)
        b = Transpose <perm = [0, 2, 1, 3, 4]> (a)
        y = Reshape(b, together)
    }"""
    model = build(text, apart=integers(1, 2, 8, 5, 6), together=integers(1, 16, 5, 6))
    assert types(agree(model)) == ["Reshape", "Permute", "Reshape"]


def test_a_shuffle_of_channels_with_open_sizes_uses_an_expression() -> None:
    text = """(float[1, 16, H, W] x) => (float[1, 16, H, W] y) {
        size = Shape <start = 2> (x)
        apart = Concat <axis = 0> (first, size)
        together = Concat <axis = 0> (last, size)
        a = Reshape(x, apart)
        b = Transpose <perm = [0, 2, 1, 3, 4]> (a)
        y = Reshape(b, together)
    }"""
    model = build(text, first=integers(1, 2, 8), last=integers(1, 16))
    layers = agree(model, {"x": (1, 16, 6, 7)}, {"x": (1, 16, 10, 15)})
    assert [layer.params[6] for layer in layers if layer.type == "Reshape"] == ["0w,0h,8,2", "0w,0h,16"]


def test_windows_of_a_vision_transformer_need_no_six_dimensions() -> None:
    text = """(float[1, 8, 8, 6] x) => (float[4, 16, 6] y) {
        a = Reshape(x, apart)
        b = Transpose <perm = [0, 1, 3, 2, 4, 5]> (a)
        y = Reshape(b, together)
    }"""
    model = build(text, apart=integers(1, 2, 4, 2, 4, 6), together=integers(-1, 16, 6))
    assert types(agree(model)) == ["Reshape", "Permute", "Reshape"]


def test_queries_and_keys_of_windows_are_permuted_in_two_steps() -> None:
    text = """(float[4, 9, 24] x) => (float[4, 2, 9, 4] q, float[4, 2, 9, 4] k) {
        a = Reshape(x, apart)
        b = Transpose <perm = [2, 0, 3, 1, 4]> (a)
        q = Gather <axis = 0> (b, first)
        c, d, e = Split <axis = 0> (b)
        k = Squeeze(d, zero)
    }"""
    model = build(text, apart=integers(4, 9, 3, 2, 4), first=np.array(0), zero=integers(0))
    assert types(agree(model)).count("Permute") == 2


@pytest.mark.parametrize("rank", [2, 3, 4, 5, 6])
def test_permutations_of_many_dimensions_are_few_of_four(rank: int) -> None:
    orders = list(permutations(range(rank)))
    for order in orders if rank < 6 else orders[::29]:  # 29 divides no block of equal beginnings
        values = np.arange(2**rank).reshape((2,) * rank)
        found, state = values, list(range(rank))
        for lengths, places in moves(order):
            assert len(lengths) <= 4
            ends = np.cumsum((0, *lengths))
            groups = [state[a:b] for a, b in pairwise(ends)]
            found = found.reshape([2**length for length in lengths]).transpose(places)
            state = [axis for place in places for axis in groups[place]]
        assert np.array_equal(found.reshape((2,) * rank), values.transpose(order))
        assert len(moves(order)) <= 3


def test_two_open_sizes_that_no_formula_gives_are_refused() -> None:
    text = """(float[1, 8, H, W] x) => (float[1, P, Q] y) {
        size = Shape <start = 2> (x)
        sum = ReduceSum <keepdims = 1> (size)
        shape = Concat <axis = 0> (one, sum, rest)
        [shaped] y = Reshape(x, shape)
    }"""
    sizes = {"x": (1, 8, 4, 4)}, {"x": (1, 8, 8, 8)}
    ((node, op, reason),) = refusals(build(text, one=integers(1), rest=integers(-1)), *sizes)
    assert (node, op) == ("shaped", "Reshape")
    assert "it is not certain how" in reason


def test_a_tensor_of_five_dimensions_is_refused_where_a_layer_would_need_them() -> None:
    text = """(float[1, 64] x) => (float[1, 2, 2, 2, 2, 4] y) {
        a = Reshape(x, shape)
        [flat] b = Relu(a)
        y = Identity(b)
    }"""
    assert "5 dimensions beside the batch" in refusals(build(text, shape=integers(1, 2, 2, 2, 2, 4)))[0][2]


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_and_space(channels: int, mode: str) -> None:
    for block in (2, 3):
        deep, wide = channels * block**2, (5 * block, 6 * block)
        text = f"(float[1, {deep}, 5, 6] x) => (float[1, {channels}, {wide[0]}, {wide[1]}] y)"
        agree(build(f'{text} {{ y = DepthToSpace <blocksize = {block}, mode = "{mode}"> (x) }}'))
        text = f"(float[1, {channels}, {wide[0]}, {wide[1]}] x) => (float[1, {deep}, 5, 6] y)"
        agree(build(f"{text} {{ y = SpaceToDepth <blocksize = {block}> (x) }}"))


@pytest.mark.parametrize("channels", CHANNELS)
def test_joined(channels: int) -> None:
    text = f"""(float[1, {channels}, 4, 5] x, float[1, 7, 4, 5] z) => (float[1, C, 4, 5] a, float[1, {channels}, 4, W] b, float[2, {channels}, 4, 5] c) {{
        a = Concat <axis = 1> (x, z, w)
        b = Concat <axis = -1> (x, x)
        c = Concat <axis = 0> (x, x)
    }}"""
    agree(build(text, w=random(1, 8, 4, 5)))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("repeats", [(1, 2, 1, 3), (2, 1, 1, 1), (1, 1, 3, 1)])
def test_repeated(channels: int, repeats: tuple[int, ...]) -> None:
    text = f"(float[1, {channels}, 4, 5] x) => (float[A, B, C, D] y) {{ y = Tile(x, r) }}"
    assert "Tile" in types(agree(build(text, r=integers(*repeats))))


@pytest.mark.parametrize("channels", CHANNELS)
def test_expanded(channels: int) -> None:
    text = f"(float[{channels}, 1] x) => (float[2, {channels}, 4] y) {{ y = Expand(x, s) }}"
    agree(build(text, s=integers(2, channels, 4)))


def test_what_dropout_leaves_beside_its_result_is_not_missed() -> None:
    text = "(float[1, 4] x) => (float[1, 4] y) { a, mask = Dropout(x) y = Relu(a) }"
    assert types(agree(build(text))) == ["ReLU"]


def test_axes_as_attributes() -> None:
    text = "(float[1, 3, 1, 4] x) => (float[1, 3, 4, 1] z) { y = Squeeze <axes = [2]> (x) z = Unsqueeze <axes = [3]> (y) }"
    agree(build(text, opset=11))


def test_long_names_that_differ_at_their_beginning_alone() -> None:
    long = "é" * 150
    text = f"(float[1, 3] x) => (float[1, 3] a{long}, float[1, 3] b{long}) {{ a{long} = Relu(x) b{long} = Sigmoid(a{long}) }}"
    model = build(text.replace(long, "LONG"))
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [name.replace("LONG", long) for name in names]
    for value in model.graph.output:
        value.name = value.name.replace("LONG", long)
    agree(model)


@pytest.mark.parametrize("op", ["Expand", "Reshape"])
def test_a_shape_that_is_made_of_values_is_refused(op: str) -> None:
    text = """(float[1, 4] x) => (float[a, b] y) {
        m = ReduceMax<keepdims = 0>(x) t = Sigmoid(m) g = Ceil(t) c = Cast<to = 7>(g) u = Unsqueeze(c, zero)
        s = Concat<axis = 0>(u, four) [shaped] y = %s(x, s)
    }"""
    model = build(text % op, zero=integers(0), four=integers(4))
    assert ("shaped", op, "its shape is computed at run time") in refusals(model)
