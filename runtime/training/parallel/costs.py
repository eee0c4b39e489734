"""What a layer costs when several workers share it: bytes sent, memory, arithmetic, time. Shapes in, figures out.

A layer is the product [M, K] x [K, N] with M = b oh ow rows (b samples), K = c kh kw and N = d filters, and each way to
share it cuts one of the three (Gholami et al., "Integrated Model, Batch, and Domain Parallelism", SPAA 2018):

| way | reads | makes | cuts | a worker sends forward and backward, in elements |
|---|---|---|---|---|
| whole | whole | whole | nothing | 2 (P-1)/P d c kh kw |
| data | batch | batch | M | 2 (P-1)/P d c kh kw |
| height, width | rows | rows | M | the same, and a halo: at most 4 (kh // 2) w c b between two neighbours |
| filter | whole | channels | N | of its input, if that is cut by channels, 2 (S-1)/S b c h w |
| channel | channels | whole | K | 4 (S-1)/S b d oh ow |
| local | channels | channels | groups | nothing: own groups, depthwise convolutions among them; pooling |

S workers share the layer, in D groups that have a batch of b each, P = S D. A weight that is cut is summed over the D groups
alone: 2 (D-1)/D of it. The halo is counted exactly: output rows [o0, o1) need input rows [o0 s - p, (o1 - 1) s - p +
extent), and what is missing of these is fetched, and its gradient sent back. Sums are all-reduces that send 2 (S-1)/S of n
elements in 2 log2 S messages (Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in
MPICH", IJHPCA 2005); every backward move is the forward one turned round.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from onnx_lathe.errors import UsageError
from onnx_lathe.runtime.training.parallel.geometry import (
    CONCAT,
    CONV,
    FLATTEN,
    GEMM,
    JOIN,
    MEAN,
    OTHER,
    PLACE,
    POOL,
    Layer,
    Product,
    even,
    largest,
)

ELEMENT_BYTES = 4
"""Weights, activations and gradients are float32."""
COPIES = 3
"""Of each weight: itself, its gradient, its momentum."""

WHOLE, BATCH, HEIGHT, WIDTH, CHANNELS = "whole", "batch", "height", "width", "channels"
"""Layouts of a tensor among the S workers of a group: which axis is cut."""


@dataclass(frozen=True)
class Way:
    """How the workers share a layer: the layout that it reads, and the one that it makes."""

    name: str
    reads: str
    makes: str


WAYS = {
    one.name: one
    for one in (
        Way("whole", WHOLE, WHOLE),
        Way("data", BATCH, BATCH),
        Way("height", HEIGHT, HEIGHT),
        Way("width", WIDTH, WIDTH),
        Way("filter", WHOLE, CHANNELS),
        Way("channel", CHANNELS, WHOLE),
        Way("local", CHANNELS, CHANNELS),
        Way("sum of rows", HEIGHT, WHOLE),
        Way("sum of columns", WIDTH, WHOLE),
        Way("rows to channels", HEIGHT, CHANNELS),
        Way("columns to channels", WIDTH, CHANNELS),
    )
}
_SPATIAL = {HEIGHT: 0, WIDTH: -1}
"""Layout -> place of its axis among the spatial ones."""


@dataclass(frozen=True)
class Group:
    """`workers` share every layer, and `data` such groups have a batch each of `batch` samples in all."""

    workers: int
    batch: int
    data: int = 1

    def __post_init__(self) -> None:
        for name in ("workers", "batch", "data"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} takes a number from 1 on, not {getattr(self, name)}")

    @property
    def own_batch(self) -> int:
        """Samples of the largest group."""
        return -(-self.batch // self.data)


Rate = Callable[[Product], float]
"""FLOP/s of one worker at a product."""


@dataclass(frozen=True)
class Compression:
    """How gradients of weights are sent. `ratio`: their bytes over those sent; `packing`: seconds that a worker takes to pack
    and unpack a byte of them; `waits`: the backward pass goes on after the exchange of a bucket, not meanwhile.
    """

    ratio: float = 1.0
    packing: float = 0.0
    waits: bool = False


@dataclass(frozen=True)
class Machine:
    """`rate`: FLOP/s of one worker, or a function of the product that gives it; `latency`: seconds a message;
    `bandwidth`: bytes a second that a worker sends; `memory`: bytes a worker has; `gradients`: how they are sent.
    """

    rate: float | Rate
    latency: float = 0.0
    bandwidth: float = math.inf
    memory: float = math.inf
    gradients: Compression = Compression()

    def seconds(self, cost: "Cost") -> float:
        """Arithmetic, then messages, one after another."""
        return self.arithmetic(cost) + self.communication(cost.messages, cost.sent)

    def arithmetic(self, cost: "Cost") -> float:
        if cost.product is None or not cost.product.flops:
            return 0.0
        rate = self.rate(cost.product) if callable(self.rate) else self.rate
        return cost.passes * cost.product.flops / rate

    def communication(self, messages: int, sent: float) -> float:
        return self.latency * messages + sent / self.bandwidth


@dataclass(frozen=True)
class Cost:
    """Of one worker, the busiest, in one step of training. `sent`: bytes of activations and their gradients; `exchanged`:
    bytes of gradients of weights; `messages` one after another, and `exchanges` for weights. `product` is computed `passes`
    times. `weights` and `kept` in bytes of memory.
    """

    moved: float = 0.0
    exchanged: float = 0.0
    moves: int = 0
    exchanges: int = 0
    product: Product | None = None
    passes: int = 0
    weights: float = 0.0
    kept: float = 0.0

    @property
    def sent(self) -> float:
        return self.moved + self.exchanged

    @property
    def messages(self) -> int:
        return self.moves + self.exchanges

    @property
    def memory(self) -> float:
        return self.weights + self.kept


def rounds(workers: int) -> int:
    """Messages one after another until all have heard of all."""
    return (workers - 1).bit_length()


def way_of(layer: Layer, strategy: str) -> str:
    """How a layer goes by a strategy: groups of a convolution have their own channels and filters."""
    return "local" if strategy in ("filter", "channel") and layer.groups > 1 else strategy


def refusal(layer: Layer, way: str, workers: int) -> str:
    """Why the layer cannot be shared so; empty if it can."""
    kind = layer.kind
    if way == "whole":
        return ""
    if way == "data":
        return ""
    if kind == OTHER:
        return "it runs whole"
    if way in ("height", "width"):
        if not layer.axes or kind not in (CONV, POOL, JOIN, CONCAT, PLACE):
            return f"it has no {way}"
        axis = layer.axes[_SPATIAL[way]]
        if len(layer.axes) == 1 and way == WIDTH:
            return "it has one axis, the height"
        if min(axis.size, axis.out) < workers:
            return f"{min(axis.size, axis.out)} of {way} are too few for {workers}"
        return ""
    if way == "local":
        if kind == CONV and layer.groups > 1:
            few = layer.groups < workers
            return f"{layer.groups} groups are too few for {workers}" if few else ""
        if kind in (POOL, MEAN, JOIN, FLATTEN):
            few = layer.channels < workers
            return f"{layer.channels} channels are too few for {workers}" if few else ""
        return "its channels depend on each other"
    if way in ("sum of rows", "sum of columns"):
        return "" if kind == MEAN else "it is no mean"
    if way in ("rows to channels", "columns to channels"):
        return "" if kind == FLATTEN and layer.axes else "it keeps its axes"
    if kind not in (CONV, GEMM):
        return "it has no weights to cut"
    parts, what = (layer.filters, "filters") if way == "filter" else (layer.channels, "channels")
    if layer.groups > 1:
        return f"its {layer.groups} groups are cut as they are"
    return f"{parts} {what} are too few for {workers}" if parts < workers else ""


def halo(layer: Layer, way: str, workers: int) -> tuple[int, int, int]:
    """(elements a sample that the busiest worker sends forward and backward, those that the worker with the most of them
    fetches and keeps, messages one after another) of a layer cut by height or width.
    """
    place = _SPATIAL[way]
    axis = layer.axes[place]
    owned, outputs = even(axis.size, workers), even(axis.out, workers)
    needed = [axis.needed(part) for part in outputs]
    across = layer.input_size // axis.size
    sent, fetched, peers = [0] * workers, [0] * workers, [0] * workers
    for reader, (first, last) in enumerate(needed):
        if owned[reader][0] <= first and last <= owned[reader][1]:
            continue
        for owner in _owners(first, last, axis.size, workers):
            rows = min(last, owned[owner][1]) - max(first, owned[owner][0])
            if owner != reader and rows > 0:
                sent[owner] += rows
                fetched[reader] += rows
                peers[reader] += 1
    busiest = max(out + back for out, back in zip(sent, fetched, strict=True))
    return busiest * across, max(fetched) * across, 2 * max(peers)


def _owners(first: int, last: int, size: int, workers: int) -> range:
    """The workers whose even parts may hold [first, last)."""
    return range(max(0, first * workers // size - 1), min(workers, (last * workers) // size + 2))


def halo_bound(layer: Layer, way: str, batch: int) -> int:
    """Bytes by the formula, 4 (k // 2) w c b elements between two neighbours: what an inner worker sends at most, if the
    padding is k // 2 and nothing is dilated.
    """
    axis = layer.axes[_SPATIAL[way]]
    return ELEMENT_BYTES * 4 * (axis.kernel // 2) * (layer.input_size // axis.size) * batch


def cost_of(layer: Layer, way: str, group: Group) -> Cost:
    """The layer itself, without the move of what it reads into the layout that the way reads. Raises UsageError for a way
    that it does not go.
    """
    workers, batch = group.workers, group.own_batch
    if reason := refusal(layer, way, workers):
        raise UsageError(f"{layer.name}: cannot be shared by {way}: {reason}")
    passes = 3 if layer.reads else 2  # nobody asks for the gradient of the model's inputs
    parts = workers if way in ("filter", "channel", "local") else 1
    weights = largest(layer.matrix, parts) + largest(layer.vectors, 1 if way == "channel" else parts)
    exchanged, exchanges = _exchange(layer, way, group, parts)
    moved, moves, fetched = _moves(layer, way, workers)
    kept = _share(layer.kept_input, WAYS[way].reads, workers, batch) + batch * fetched
    kept += _share(layer.kept_result, WAYS[way].makes, workers, batch)
    return Cost(
        moved=ELEMENT_BYTES * batch * moved,
        exchanged=ELEMENT_BYTES * exchanged,
        moves=moves,
        exchanges=exchanges,
        product=_part(layer, way, workers, batch),
        passes=passes,
        weights=COPIES * ELEMENT_BYTES * weights,
        kept=ELEMENT_BYTES * kept,
    )


def _exchange(layer: Layer, way: str, group: Group, parts: int) -> tuple[float, int]:
    """(elements that a worker sends of gradients of weights, messages). Of a layer whose channels are cut, the vectors are
    whole: they belong to what lies behind the sum.
    """
    everyone = group.data * group.workers
    whole = layer.weights if parts == 1 else layer.vectors if way == "channel" else 0
    cut = layer.weights - whole
    sent = 2 * (everyone - 1) / everyone * whole + 2 * (group.data - 1) / group.data * cut / parts
    return sent, 2 * rounds(everyone if whole else group.data) if layer.weights else 0


def _moves(layer: Layer, way: str, workers: int) -> tuple[float, int, int]:
    """(elements a sample that a worker sends, messages, elements a sample that it keeps of others)."""
    if workers == 1:
        return 0.0, 0, 0
    share = (workers - 1) / workers
    if way in ("height", "width") and layer.kind in (CONV, POOL):
        if not layer.reads:  # every worker reads the model's inputs whole
            return 0.0, 0, 0
        sent, fetched, messages = halo(layer, way, workers)
        return float(sent), messages, fetched if layer.kind == CONV else 0
    if way == "channel":
        return 4 * share * layer.result_size, 4 * rounds(workers), 0
    if way in ("sum of rows", "sum of columns"):
        return 4 * share * layer.channels, 4 * rounds(workers), 0
    if way in ("rows to channels", "columns to channels"):
        return 2 * share / workers * layer.input_size, 2 * rounds(workers), 0
    return 0.0, 0, 0


def move(elements: int, old: str, new: str, group: Group) -> Cost:
    """A tensor of so many elements a sample from one layout into another, and its gradient back. To cut what is whole is
    free, and so is its gradient, which every worker has a part of.
    """
    workers = group.workers
    if workers == 1 or new == old or old == WHOLE:
        return Cost()
    share = (workers - 1) / workers
    sent = 2 * share * elements if new == WHOLE else 2 * share / workers * elements
    batch = group.own_batch
    return Cost(moved=ELEMENT_BYTES * batch * sent, moves=2 * rounds(workers))


def _share(elements: int, layout: str, workers: int, batch: int) -> int:
    """Of a batch of tensors, what the worker with the most holds."""
    if layout == WHOLE:
        return batch * elements
    return largest(batch, workers) * elements if layout == BATCH else batch * largest(elements, workers)


def _part(layer: Layer, way: str, workers: int, batch: int) -> Product:
    """The product of the worker with the most."""
    whole = layer.product(batch)
    if way == "data":
        return layer.product(largest(batch, workers))
    if layer.kind not in (CONV, GEMM):
        return whole
    if way in _SPATIAL:
        axis = layer.axes[_SPATIAL[way]]
        return replace(whole, m=whole.m // axis.out * largest(axis.out, workers))
    if way == "channel":
        return replace(whole, k=whole.k // layer.channels * largest(layer.channels, workers))
    if way == "local":
        return replace(whole, groups=largest(layer.groups, workers))
    if way == "filter":
        return replace(whole, n=largest(layer.filters, workers))
    return whole
