"""What each layer sends and holds if several workers share the training, strategy by strategy, and which sends least."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer import opening
from onnx_lathe.optimizer.inspecting.analysis import Analysis, Question
from onnx_lathe.optimizer.inspecting.inspecting import UNTOUCHED
from onnx_lathe.optimizer.inspecting.training import Kept, with_constants
from onnx_lathe.runtime.training.parallel.choice import Placed, uniform
from onnx_lathe.runtime.training.parallel.costs import (
    CHANNELS,
    ELEMENT_BYTES,
    WAYS,
    WHOLE,
    Cost,
    Group,
    cost_of,
    move,
    refusal,
    way_of,
)
from onnx_lathe.runtime.training.parallel.geometry import CONV, GEMM, Layer
from onnx_lathe.runtime.training.parallel.grid import SPLITS, Grid, parse_parallel
from onnx_lathe.runtime.training.parallel.layers import Network, layers_of
from onnx_lathe.runtime.training.parallel.products import Cut, cuts

STRATEGIES = ("data", "height", "width", "filter", "channel")
NAMES = {CONV: "conv", GEMM: "fully connected"}


@dataclass(frozen=True)
class Request:
    """`workers` in groups of `parts` that share layers by `split`; all strategies of all workers if `split` is empty."""

    workers: int
    split: str = ""
    parts: int = 1

    def group(self, strategy: str, batch: int) -> Group:
        """The workers by one strategy: data of a grid is all of them."""
        if not self.split or strategy == "data":
            return Group(self.workers, batch)
        return Group(self.parts, batch, self.workers // self.parts)

    @property
    def strategies(self) -> tuple[str, ...]:
        return ("data", self.split) if self.split and self.split != "data" else STRATEGIES


@dataclass(frozen=True)
class SharedLayer:
    """Bytes by strategy: what a worker sends in a step for this layer, and what it holds; why a strategy cannot be."""

    layer: Layer
    kind: str
    product: str
    sent: Mapping[str, float]
    memory: Mapping[str, float]
    refused: Mapping[str, str]
    grid: Cut | None
    wins: str
    why: str

    def as_json(self) -> dict[str, Any]:
        grid = None if self.grid is None else dict(vars(self.grid))
        found = {key: value for key, value in vars(self).items() if key != "layer"}
        return {"layer": self.layer.name, **found, "weights": self.layer.weights, "grid": grid}


@dataclass(frozen=True)
class Strategy:
    """The whole network by one strategy. Bytes that the busiest worker sends in a step, of gradients of weights and of
    activations, by kind of layer; bytes that it holds; `arithmetic`: its share of all, times the workers: 1 is even.
    `whole`: products that run whole.
    """

    name: str
    sent: Mapping[str, float]
    exchanged: float
    moved: float
    weights: float
    kept: float
    arithmetic: float
    whole: int

    @property
    def total(self) -> float:
        return self.exchanged + self.moved

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "total": self.total, "memory": self.weights + self.kept}


@dataclass(frozen=True)
class Sharing:
    request: Request
    batch: int
    layers: Sequence[SharedLayer]
    strategies: Sequence[Strategy]
    notes: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        return {
            **vars(self.request),
            "batch": self.batch,
            "layers": [one.as_json() for one in self.layers],
            "strategies": [one.as_json() for one in self.strategies],
            "notes": list(self.notes),
        }


def parse_sharing(text: str) -> Request:
    """A number of workers, or a grid that `--parallel` of a training takes too. Raises UsageError."""
    if text.strip().isdecimal() and len(text) < 8:
        if not int(text):
            raise UsageError(f"--parallel '{text}': give a number of workers from 1 on")
        return Request(int(text))
    named = dict(parse_parallel(text).words)
    if set(named) - {"data", *SPLITS} or "auto" in named:
        other = next(name for name in named if name not in STRATEGIES)
        raise UsageError(
            f"--parallel '{text}': {other} shares no layer in one way; give a number of workers, or data=, height=, width=, "
            "filter= or channel=, and see optimize simulate"
        )
    split = next((name for name in SPLITS if name in named), "data")
    parts = int(named.get(split, 1))
    workers = parts if split == "data" else parts * int(named.get("data", 1))
    grid = parse_parallel(text).over(workers)
    assert isinstance(grid, Grid)
    return Request(workers, split, parts)


def network_of(analysis: Analysis) -> Network:
    """The layers of the main graph, with what each keeps for the backward pass, of one sample."""
    counted, memory = analysis.counted, analysis.memory
    main = counted.main
    kept = Kept(counted.nodes, memory, with_constants(memory))
    shapes_batch = max(1, analysis.batch // analysis.samples)
    inside = {name: size // analysis.samples for name, size in kept.by_tensor(main.number).items()}
    fed = [key.name for key in memory.inputs]
    found = layers_of(main.graph.node, main.shapes, fed, shapes_batch, inside)
    for name, size in kept.indices(main.number).items():
        if (place := found.results.get(name)) is not None:
            layer = found.layers[place]
            own = size // (ELEMENT_BYTES * analysis.batch)
            found.layers[place] = replace(layer, kept_result=layer.kept_result + own)
    bodies = [scope for scope in main.bodies if scope.node is not None]
    if bodies:
        found.left_out.append(
            (str(bodies[0].node.name if bodies[0].node else ""), "layers in bodies are not shared")
        )
    return found


def open_network(path: Path, question: Question) -> tuple[Network, int]:
    """(the layers of a model, samples of a batch). Raises UsageError for one that has none, or whose sizes are open."""
    analysis = Analysis(opening.open_file(path, UNTOUCHED, question.weights).model, question)
    network = network_of(analysis)
    if not any(layer.kind in NAMES for layer in network.layers):
        reason = f": {network.left_out[0][0]}: {network.left_out[0][1]}" if network.left_out else ""
        if opened := analysis.open_inputs():
            reason += f"; give the sizes of {', '.join(opened)} with --shape"
        raise UsageError(f"{path}: has no convolution or matrix product to share{reason}")
    return network, analysis.batch


def share_file(path: Path, question: Question, request: Request) -> Sharing:
    network, batch = open_network(path, question)
    products = [layer for layer in network.layers if layer.kind in NAMES]
    strategies = [_total(network.layers, name, request.group(name, batch)) for name in request.strategies]
    notes = [f"{name}: {reason}" for name, reason in network.left_out]
    rows = [_row(layer, request, batch) for layer in products]
    return Sharing(request, batch, rows, [one for one in strategies if one is not None], notes)


def alone(layer: Layer, strategy: str, group: Group) -> Cost:
    """A layer by a strategy that the layers before it follow too: filters gather an input that is cut by channels."""
    way = way_of(layer, strategy)
    cost = cost_of(layer, way, group)
    if way == "filter" and layer.reads:
        gathered = move(layer.input_size, CHANNELS, WHOLE, group)
        cost = replace(cost, moved=cost.moved + gathered.moved, moves=cost.moves + gathered.moves)
    return cost


def _row(layer: Layer, request: Request, batch: int) -> SharedLayer:
    groups = {name: request.group(name, batch) for name in request.strategies}
    refused = {
        name: reason
        for name in groups
        if (reason := refusal(layer, way_of(layer, name), groups[name].workers))
    }
    found = {name: alone(layer, name, group) for name, group in groups.items() if name not in refused}
    wins = min(found, key=lambda name: (found[name].sent, found[name].memory))
    grid = next(iter(cuts(layer, request.workers, batch)), None)
    return SharedLayer(
        layer,
        NAMES[layer.kind],
        str(layer.product(batch)),
        {name: cost.sent for name, cost in found.items()},
        {name: cost.memory for name, cost in found.items()},
        refused,
        grid,
        wins,
        _why(wins, found, refused),
    )


def _why(wins: str, found: Mapping[str, Cost], refused: Mapping[str, str]) -> str:
    from onnx_lathe.optimizer.report.units import size

    if len(found) == 1:
        return "; ".join(f"no {name}: {reason}" for name, reason in refused.items())
    best = found[wins]
    other = min((name for name in found if name != wins), key=lambda name: found[name].sent)
    if found[other].sent == best.sent:
        return f"{other} sends as much" + ("" if best.sent else ": nothing")
    parts = []
    if best.exchanged != found[other].exchanged:
        parts.append(f"{size(best.exchanged)} of weights, not {size(found[other].exchanged)}")
    if best.moved != found[other].moved:
        parts.append(f"{size(best.moved)} of activations, not {size(found[other].moved)}")
    return f"{', '.join(parts)} ({other})"


def _total(layers: Sequence[Layer], name: str, group: Group) -> Strategy:
    placed = uniform(layers, name, group)
    flops = sum(layer.product(group.batch).flops for layer in layers) or 1
    own = sum(one.cost.product.flops for one in placed if one.cost.product is not None)
    sent: dict[str, float] = {}
    for one in placed:
        kind = NAMES.get(one.layer.kind, "other")
        sent[kind] = sent.get(kind, 0.0) + one.cost.sent
    return Strategy(
        name,
        sent,
        sum(one.cost.exchanged for one in placed),
        sum(one.cost.moved for one in placed),
        sum(one.cost.weights for one in placed),
        sum(one.cost.kept for one in placed),
        own * group.workers * group.data / flops,
        sum(_runs_whole(one) for one in placed) if group.workers > 1 else 0,
    )


def _runs_whole(one: Placed) -> bool:
    return one.layer.kind in NAMES and WAYS[one.way].name == "whole"
