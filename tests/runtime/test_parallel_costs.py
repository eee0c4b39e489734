"""Bytes, memory and arithmetic of shared layers, beside figures by hand and bytes that were counted in real runs."""

import dataclasses
import itertools
import math

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from onnx_lathe.errors import UsageError
from onnx_lathe.runtime.training.parallel import choice, costs
from onnx_lathe.runtime.training.parallel.costs import Group, Machine, cost_of, halo
from onnx_lathe.runtime.training.parallel.geometry import Axis, Layer, Product, even
from onnx_lathe.runtime.training.parallel.layers import layers_of

EARLY = Layer("3x3 64 at 56", "conv", 64, 64, (Axis(56, 56, 3, before=1),) * 2, reads=(0,))
LATE = Layer("3x3 512 at 7", "conv", 512, 512, (Axis(7, 7, 3, before=1),) * 2, reads=(0,))
FC6 = Layer("fc6", "gemm", 25088, 4096, reads=(0,))
FOUR = Group(4, 32)
PLAIN = Machine(rate=1e9, latency=1e-5, bandwidth=1e8)

VGG_LIKE = """(float[8, 3, 96, 96] x, float[32,3,3,3] w1, float[32] b1, float[32,32,3,3] w2, float[32] b2, float[64,32,3,3] w3,
    float[64] b3, float[64,64,3,3] w4, float[64] b4, float[10,64] w5, float[10] b5) => (float[8, 10] y) {
    c1 = Conv <pads = [1,1,1,1]> (x, w1, b1)  r1 = Relu (c1)  c2 = Conv <pads = [1,1,1,1]> (r1, w2, b2)  r2 = Relu (c2)
    p1 = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r2)
    c3 = Conv <pads = [1,1,1,1]> (p1, w3, b3)  r3 = Relu (c3)  c4 = Conv <pads = [1,1,1,1]> (r3, w4, b4)  r4 = Relu (c4)
    m = GlobalAveragePool (r4)  f = Flatten (m)  y = Gemm <transB = 1> (f, w5, b5)
}"""


def layers(text: str, batch: int) -> list[Layer]:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> g {text}')
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    shapes = {one.name: tuple(d.dim_value for d in one.type.tensor_type.shape.dim) for one in values}
    for node in model.graph.node:
        node.name = node.output[0]
    found = layers_of(model.graph.node, shapes, ["x"], batch)
    assert found.left_out == []
    return found.layers


@pytest.mark.parametrize(
    ("layer", "way", "sent"),
    [
        (EARLY, "data", 221_184),
        (EARLY, "height", 221_184 + 1_835_008),
        (LATE, "data", 14_155_776),
        (FC6, "data", 616_562_688),
        (FC6, "channel", 1_572_864),
    ],
)
def test_bytes_of_a_layer_by_hand(layer: Layer, way: str, sent: int) -> None:
    """2 (S-1)/S d c k k; 4 (k // 2) w c b; 4 (S-1)/S b d oh ow, four bytes each."""
    assert cost_of(layer, way, FOUR).sent == sent


@pytest.mark.parametrize(("layer", "sent"), [(EARLY, 38_535_168), (LATE, 4_816_896), (FC6, 4_816_896)])
def test_filters_gather_the_input(layer: Layer, sent: int) -> None:
    """2 (S-1)/S b c h w, if it is cut by channels; nothing if every worker has it."""
    assert costs.move(layer.input_size, costs.CHANNELS, costs.WHOLE, FOUR).sent == sent
    assert costs.move(layer.input_size, costs.WHOLE, costs.WHOLE, FOUR).sent == 0
    assert cost_of(layer, "filter", FOUR).sent == 0


def test_a_product_is_cut_along_m_n_and_k() -> None:
    assert EARLY.product(32) == Product(32 * 56 * 56, 64 * 9, 64)
    assert EARLY.product(32).flops == 2 * 32 * 56 * 56 * 64 * 9 * 64
    cut = {way: cost_of(EARLY, way, FOUR).product for way in ("data", "height", "filter", "channel")}
    assert cut["data"] == cut["height"] == Product(8 * 56 * 56, 576, 64)
    assert cut["filter"] == Product(32 * 56 * 56, 576, 16)
    assert cut["channel"] == Product(32 * 56 * 56, 16 * 9, 64)
    # 7 rows for 4 workers: one has two of them
    assert cost_of(LATE, "height", FOUR).product == Product(32 * 2 * 7, 512 * 9, 512)


def test_memory_of_a_layer_by_hand() -> None:
    """Weights, gradients and momentum; the input is kept, of filters whole, of rows with the halo."""
    layer = dataclasses.replace(EARLY, kept_input=64 * 56 * 56)
    held = {way: cost_of(layer, way, FOUR) for way in ("whole", "data", "height", "filter", "channel")}
    weights, image = 12 * 64 * 64 * 9, 4 * 32 * 64 * 56 * 56
    assert {way: cost.weights for way, cost in held.items()} == {
        "whole": weights, "data": weights, "height": weights, "filter": weights // 4, "channel": weights // 4,
    }  # fmt: skip
    assert {way: cost.kept for way, cost in held.items()} == {
        "whole": image, "data": image // 4, "height": image // 4 + 2 * 4 * 32 * 64 * 56,
        "filter": image, "channel": image // 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "moved", "exchanged"),
    [
        ("data", 0, 264_872),
        ("height", 245_760 + 2_048, 264_872),
        ("filter", 8_258_720, 0),
    ],
)
def test_what_a_run_counted(strategy: str, moved: int, exchanged: int) -> None:
    """Bytes that two workers sent forward in real runs, batch 8 in all, and the gradients of weights."""
    found = choice.uniform(layers(VGG_LIKE, 8), strategy, Group(2, 8))
    assert sum(one.cost.moved for one in found) == 2 * moved
    assert sum(one.cost.exchanged for one in found) == exchanged


def test_filters_and_channels_in_turn_as_a_run_counted() -> None:
    ways = ["filter", "channel", "whole", "filter", "channel", "whole", "whole", "filter"]
    found = choice.follow(layers(VGG_LIKE, 8), ways, Group(2, 8))
    assert sum(one.cost.moved for one in found) == 2 * (14_155_776 + 160)
    assert sum(one.cost.exchanged for one in found) == 384


def test_inner_workers_send_twice() -> None:
    found = choice.uniform(layers(VGG_LIKE, 8), "height", Group(4, 8))
    convolutions = [one for one in found if one.layer.kind == "conv"]
    assert sum(one.cost.moved for one in convolutions) == 2 * 2 * 245_760


def test_one_machine_sends_nothing() -> None:
    network = layers(VGG_LIKE, 8)
    times = set()
    for strategy in ("whole", "data", "height", "width", "filter", "channel"):
        found = choice.uniform(network, strategy, Group(1, 8))
        assert sum(one.cost.sent for one in found) == sum(one.cost.messages for one in found) == 0
        times.add(sum(PLAIN.seconds(one.cost) for one in found))
    assert len(times) == 1


def test_an_endless_link_leaves_arithmetic() -> None:
    endless = Machine(rate=2e9)
    for way in ("data", "height", "filter", "channel"):
        cost = cost_of(EARLY, way, FOUR)
        assert endless.seconds(cost) == 3 * EARLY.product(32).flops / 4 / 2e9


def test_the_rate_may_depend_on_the_product() -> None:
    slow_when_narrow = Machine(rate=lambda product: 1e9 if product.n >= 64 else 1e8)
    assert slow_when_narrow.seconds(cost_of(EARLY, "filter", FOUR)) == pytest.approx(
        10 * slow_when_narrow.seconds(cost_of(EARLY, "channel", FOUR))
    )


def test_data_beside_a_split_layer_sums_its_part_alone() -> None:
    """2 x 2: the filters' gradients go to the other group only, half a weight: 2 * 1/2 * W / 2."""
    assert cost_of(EARLY, "filter", Group(2, 32, data=2)).exchanged == 4 * 64 * 64 * 9 / 2
    assert cost_of(EARLY, "height", Group(2, 32, data=2)).exchanged == 4 * 2 * 3 / 4 * 64 * 64 * 9


def test_depthwise_layers_are_local() -> None:
    text = """(float[2, 8, 6, 6] x, float[8,8,1,1] w, float[8,1,3,3] v, float[8,8,1,1] u) => (float[2, 8, 6, 6] y) {
        a = Conv (x, w)  b = Conv <group = 8, pads = [1,1,1,1]> (a, v)  y = Conv (b, u) }"""
    found = choice.uniform(layers(text, 2), "filter", Group(2, 2))
    assert [one.way for one in found] == ["filter", "local", "filter"]
    assert [one.cost.moved for one in found] == [0, 0, 4 * 2 * (8 * 36 + 8 * 36)]
    assert found[1].cost.product == Product(2 * 36, 9, 1, 4)


def test_groups_are_cut_as_they_are() -> None:
    grouped = Layer("g", "conv", 8, 8, (Axis(4, 4, 3, before=1),), groups=2, reads=(0,))
    assert cost_of(grouped, "local", Group(2, 2)).sent == 0
    assert cost_of(grouped, "local", Group(2, 2)).product == Product(2 * 4, 4 * 3, 4, 1)
    assert costs.refusal(grouped, "local", 4) == "2 groups are too few for 4"
    assert "2 groups are cut as they are" in costs.refusal(grouped, "filter", 2)


def test_what_needs_all_channels_gathers_them_and_keeps_rows() -> None:
    text = """(float[2, 4, 8, 8] x, float[4,4,1,1] w, float[4,4,1,1] v) => (float[2, 8] y) {
        a = Conv (x, w)  b = LRN <size = 3> (a)  c = Conv (b, v)  d = Concat <axis = 1> (a, c)
        e = ReduceMean <axes = [2, 3], keepdims = 0> (d)  y = Identity (e) }"""
    network = layers(text, 2)
    assert [layer.kind for layer in network] == ["conv", "place", "conv", "concat", "mean"]
    by_rows = choice.uniform(network, "height", Group(2, 2))
    assert [one.way for one in by_rows] == ["height", "height", "height", "height", "sum of rows"]
    assert [one.cost.moved for one in by_rows] == [0, 0, 0, 0, 4 * 2 * 2 * 8]
    by_filters = choice.uniform(network, "filter", Group(2, 2))
    assert [one.way for one in by_filters] == ["filter", "whole", "filter", "whole", "whole"]


def test_flattened_rows_turn_into_channels() -> None:
    text = """(float[2, 3, 8, 8] x, float[4,3,3,3] w, float[256,10] v, float[10,10] u) => (float[2, 10] y) {
        a = Conv <pads = [1,1,1,1]> (x, w)  b = Relu (a)  c = Flatten (b)  d = Gemm (c, v)  y = Gemm (d, u) }"""
    found = choice.uniform(layers(text, 2), "height", Group(2, 2))
    assert [one.way for one in found] == ["height", "rows to channels", "channel", "whole"]
    # half of the half that a worker has, forward and backward
    assert found[1].cost.moved == 2 * 4 * 2 * 256 / 4
    assert found[2].cost.exchanged == 0


def test_vectors_behind_a_layer_are_its_own() -> None:
    text = """(float[2, 3, 8, 8] x, float[4,3,1,1] w, float[4] s, float[4] t, float[4] m, float[4] v) => (float[2, 4, 8, 8] y) {
        a = Conv (x, w)  b = BatchNormalization (a, s, t, m, v)  y = Relu (b) }"""
    (layer,) = layers(text, 2)
    assert (layer.matrix, layer.vectors) == (12, 8)


def test_refusals_say_why() -> None:
    assert costs.refusal(LATE, "height", 8) == "7 of height are too few for 8"
    assert costs.refusal(FC6, "height", 2) == "it has no height"
    with pytest.raises(UsageError, match="3x3 512 at 7: cannot be shared by height: 7 of height are too few"):
        cost_of(LATE, "height", Group(8, 8))
    with pytest.raises(UsageError, match="batch takes a number from 1 on, not 0"):
        Group(2, 0)


axes = some.builds(
    lambda out, kernel, stride, dilation, before, extra: Axis(
        max(1, (out - 1) * stride + (kernel - 1) * dilation + 1 - before - extra), out, kernel, stride, dilation, before
    ),
    some.integers(4, 30), some.integers(1, 5), some.integers(1, 3), some.integers(1, 2), some.integers(0, 2),
    some.integers(0, 2),
)  # fmt: skip


@settings(deadline=None)
@given(axis=axes, workers=some.integers(2, 4))
def test_a_halo_is_what_is_missing(axis: Axis, workers: int) -> None:
    """By counting row by row who needs what of whom."""
    layer = Layer("c", "conv", 3, 5, (axis, Axis(4, 4)), reads=(0,))
    if costs.refusal(layer, "height", workers):
        return
    owner = {
        row: part for part, (first, last) in enumerate(even(axis.size, workers)) for row in range(first, last)
    }
    traffic, fetched = [0] * workers, [0] * workers
    for worker, (first, last) in enumerate(even(axis.out, workers)):
        lowest = first * axis.stride - axis.before
        highest = (last - 1) * axis.stride - axis.before + axis.extent
        for row in range(max(0, lowest), min(axis.size, highest)):
            if owner[row] != worker:
                traffic[owner[row]] += 1
                traffic[worker] += 1
                fetched[worker] += 1
    sent, most, _ = halo(layer, "height", workers)
    assert (sent, most) == (max(traffic) * 3 * 4, max(fetched) * 3 * 4)


@settings(deadline=None)
@given(size=some.integers(8, 60), kernel=some.sampled_from([1, 3, 5, 7]), workers=some.integers(2, 4))
def test_the_formula_is_never_less_than_the_halo(size: int, kernel: int, workers: int) -> None:
    layer = Layer("c", "conv", 3, 5, (Axis(size, size, kernel, before=kernel // 2), Axis(9, 9)), reads=(0,))
    if size // workers < kernel // 2:
        return
    exact = 4 * halo(layer, "height", workers)[0]
    assert exact <= costs.halo_bound(layer, "height", 1)
    assert exact == costs.halo_bound(layer, "height", 1) or workers == 2  # an inner worker has two neighbours


def joins(found: list[choice.Placed], one: choice.Placed) -> bool:
    """Whether a join has the layout of the first result that is cut, if there is one."""
    made = [found[place].makes for place in one.layer.reads]
    cut = next((layout for layout in made if layout != costs.WHOLE), costs.WHOLE)
    return costs.WAYS[one.way].reads == cut or bool(
        one.way == "whole" and cut == costs.CHANNELS and costs.refusal(one.layer, "local", 2)
    )


@given(
    sizes=some.lists(some.integers(1, 40), min_size=1, max_size=3),
    rows=some.sampled_from([4, 9, 16]),
    batch=some.integers(1, 6),
    skip=some.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_no_other_ways_are_faster(sizes: list[int], rows: int, batch: int, skip: bool) -> None:
    """Against all combinations, with a branch that a join closes."""
    network, read = [], ()
    for number, filters in enumerate(sizes):
        channels = sizes[number - 1] if number else 3
        axis = Axis(rows, rows, 3, before=1)
        network.append(Layer(f"c{number}", "conv", channels, filters, (axis, axis), reads=read))
        read = (number,)
    if skip and len(sizes) > 1:
        last = len(network) - 1
        network.append(
            Layer("sum", "join", sizes[-1], sizes[-1], (Axis(rows, rows),) * 2, reads=(last, last - 1))
        )
    group, machine = Group(2, batch), Machine(1e8, 1e-5, 1e7)
    placed = choice.choose(network, group, machine)
    seconds = sum(machine.seconds(one.cost) for one in placed)
    every = []
    for ways in itertools.product(("whole", "height", "filter", "channel", "local"), repeat=len(network)):
        if any(costs.refusal(layer, way, 2) for layer, way in zip(network, ways, strict=True)):
            continue
        found = choice.follow(network, ways, group)
        if all(one.layer.kind != "join" or joins(found, one) for one in found):
            every.append(sum(machine.seconds(one.cost) for one in found))
    assert seconds == pytest.approx(min(every))
    assert all(one.reason for one in placed)


def test_memory_is_a_constraint() -> None:
    """Filters take less memory than rows where weights are large, and more where images are."""
    wide = [
        dataclasses.replace(FC6, name=f"fc{number}", reads=(number - 1,) if number else ())
        for number in range(2)
    ]
    wide[1] = dataclasses.replace(wide[1], channels=4096)
    roomy = choice.choose(
        wide,
        Group(2, 4096),
        Machine(1e12, bandwidth=1e12),
        layouts=(costs.WHOLE, costs.BATCH, costs.CHANNELS),
    )
    least = sum(cost_of(layer, "filter", Group(2, 4096)).memory for layer in wide)
    assert sum(one.cost.memory for one in roomy) > least
    tight = Machine(1e12, bandwidth=1e12, memory=least)
    found = choice.choose(wide, Group(2, 4096), tight, layouts=(costs.WHOLE, costs.BATCH, costs.CHANNELS))
    assert sum(one.cost.memory for one in found) <= least
    with pytest.raises(
        UsageError, match=r"2 workers of 0\.1 GB each cannot hold the network: it takes .* GB at least"
    ):
        choice.choose(wide, Group(2, 4096), dataclasses.replace(tight, memory=1e8))


def test_late_layers_of_a_small_batch_are_cut_by_filters() -> None:
    """b h w < d k k, as the formulas say."""
    machine = Machine(math.inf, bandwidth=1e9)
    late = dataclasses.replace(LATE, reads=())
    (found,) = choice.choose([late], Group(4, 4), machine)
    assert found.way in ("filter", "channel")
    assert "MB sent" in found.reason
