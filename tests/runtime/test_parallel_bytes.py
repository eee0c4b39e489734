"""Bytes that the cost model says, beside those that moves count in a step; and what `auto` makes of them."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import onnx
import pytest
import torch

from onnx_lathe.errors import UsageError
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training.parallel import link
from onnx_lathe.runtime.training.parallel.choice import Placed, choose, uniform
from onnx_lathe.runtime.training.parallel.costs import Group, Machine
from onnx_lathe.runtime.training.parallel.layers import Network
from onnx_lathe.runtime.training.parallel.placer import Placer, split_by
from onnx_lathe.runtime.training.parallel.proposals import (
    as_planned,
    explained,
    groups_of,
    network_of,
    propose,
)
from onnx_lathe.runtime.training.parallel.rules.table import Choose
from tests.support.parallel import images, in_threads, plain, residual, trained

BATCH = 4
NETWORKS = {
    "residual": (residual("float32"), 2),
    "plain": (plain("float32", 13, (6, 9, 6)), 2),
    "flat": (plain("float32", 16, (6, 8), flat=11), 2),
    "even": (plain("float32", 20, (5, 10, 5)), 5),
    "even, flat": (plain("float32", 20, (5, 10, 5), flat=15), 5),
}
"""(network, workers). Of parts that differ in size a sum or a gather costs some worker more than an even share; two workers
send the same even then.
"""
WIDE = Machine(rate=1e12, latency=1e-9, bandwidth=1e6)
"""Arithmetic costs nothing, and bytes do."""


def layers(model: onnx.ModelProto) -> Network:
    batches = images(model, 1, 2)
    return network_of(GraphModule(model).eval(), batches[0][0])


def counted(model: onnx.ModelProto, workers: int, choose: Choose) -> list[Mapping[str, int]]:
    """Bytes that each worker sends of activations in a step, by kind of move."""
    batches = images(model, 1, BATCH)
    results = in_threads(workers, lambda mesh: trained(model, batches, mesh, choose))
    return [_by_kind(placer) for _, placer, _ in results if placer is not None]


def _by_kind(placer: Placer) -> Mapping[str, int]:
    found: dict[str, int] = defaultdict(int)
    for (kind, _), size in placer.traffic.sent.items():
        found[kind] += size
    return found


def predicted(placed: Sequence[Placed]) -> float:
    return sum(one.cost.moved for one in placed)


@pytest.mark.parametrize("how", ["height", "width", "filter", "channel"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_model_says_what_the_busiest_worker_sends(network: str, how: str) -> None:
    model, workers = NETWORKS[network]
    said = predicted(uniform(layers(model).layers, how, Group(workers, BATCH)))
    assert max(sum(one.values()) for one in counted(model, workers, split_by(how))) == said
    assert said > 0


def test_what_auto_proposes_is_placed_as_planned_and_sends_what_it_says() -> None:
    """By filters, channels and rows, as slow links want it; none of the three alone sends as little."""
    model, workers = NETWORKS["residual"]
    network = layers(model)
    group = Group(workers, BATCH)
    placed = choose(network.layers, group, WIDE)
    sent = [
        sum(one.values()) for one in counted(model, workers, as_planned(network, [one.way for one in placed]))
    ]
    assert max(sent) == predicted(placed)
    total = sum(one.cost.sent for one in placed)
    for how in ("height", "filter", "channel"):
        assert total < sum(one.cost.sent for one in uniform(network.layers, how, group))
    assert len({one.way for one in placed}) > 2


def test_auto_weighs_groups_against_samples_alone() -> None:
    model, _ = NETWORKS["flat"]
    network, groups = layers(model), groups_of(4, 4, 16)
    assert [(one.data, one.parts) for one in groups] == [(4, 1), (2, 2), (1, 4)]
    slow, fast = Machine(1e9, 1e-6, 1e4), Machine(1e9, 1e-3, 1e12)
    for machine, parts in ((slow, {2, 4}), (fast, {1})):
        found = propose(network.layers, groups, machine)
        assert [one.grid.parts for one in found] == [1, 2, 4]
        best = min(found, key=lambda one: one.seconds)
        assert best.grid.parts in parts
        # gradients are summed a few layers at once, and while the backward pass goes on
        assert found[0].seconds < sum(machine.seconds(one.cost) for one in found[0].placed)
        lines = list(explained(best, machine, 16))
        assert all("ms" in line and "by samples" in line for line in lines)
        products = [one.layer.name for one in best.placed if one.layer.kind in ("conv", "gemm")]
        assert products[0] in lines[0]
        assert products[-1] in lines[-1]


def test_memory_decides_before_time() -> None:
    """Weights that one worker has no room for are shared, whatever it costs; and less than all ways take is an error."""
    model, _ = NETWORKS["flat"]
    network, groups = layers(model), groups_of(2, 2, 4)
    roomy = Machine(1e9, 1e-3, 1e12)
    alone = sum(one.cost.memory for one in uniform(network.layers, "data", groups[0].shared))
    tight = Machine(1e9, 1e-3, 1e12, alone - 1)
    assert min(propose(network.layers, groups, roomy), key=lambda one: one.seconds).grid.parts == 1
    assert [one.grid.parts for one in propose(network.layers, groups, tight)] == [2]
    with pytest.raises(UsageError, match="cannot hold the network"):
        propose(network.layers, groups, Machine(1e9, 1e-3, 1e12, 100.0))


def test_a_layer_is_timed_at_the_shape_that_a_worker_would_have() -> None:
    """Every product that the model can ask for has a rate of its own, measured on one of that very size."""
    network = layers(NETWORKS["residual"][0])
    cuts = [
        (Group(3, BATCH), way) for way in ("data", "whole", "height", "width", "filter", "channel", "local")
    ]
    seen = set()
    for layer in network.layers:
        for group, way in cuts:
            product = link._product(layer, way, group)
            if product is not None:
                own, samples = link._own(layer, way, group)
                assert own.product(samples) == product, (layer.name, way)
                seen.add(product)
    rate = link.rates(network.layers, cuts, torch.device("cpu"), lambda *values: list(values))
    assert len(seen) > 20
    assert all(0 < rate(product) < math.inf for product in seen)
    assert len({rate(product) for product in seen}) > len(seen) / 2
    assert link.free_bytes(torch.device("cpu"), 2, lambda *values: list(values)) > 0
