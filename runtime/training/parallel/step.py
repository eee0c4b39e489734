"""One synchronous step of training in time: layer by layer forward, back again, and gradients summed meanwhile.

Activations are waited for. Gradients of weights are summed in buckets of 25 MiB, the first of 1 MiB, as they become known, one
bucket after another, while the backward pass goes on, as DistributedDataParallel does (Li et al., "PyTorch Distributed",
VLDB 2020, section 3.2); a link carries no more than its bandwidth in all. Packing them takes the worker's own time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnx_lathe.runtime.training.parallel.choice import Placed
from onnx_lathe.runtime.training.parallel.costs import ELEMENT_BYTES, Cost, Machine

BUCKET_BYTES = 25 * 2**20
"""PyTorch's `bucket_cap_mb`."""
FIRST_BUCKET_BYTES = 2**20
"""PyTorch's `dist._DEFAULT_FIRST_BUCKET_BYTES`: smaller, so that the first sum begins early."""


@dataclass(frozen=True)
class Step:
    """Seconds: of arithmetic; of moves of activations, which are waited for; of sums of gradients; and of the whole step,
    in which part of the sums is hidden. `memory`: bytes of a worker. `packing`: seconds of packing and unpacking gradients.
    """

    arithmetic: float
    moves: float
    exchanges: float
    seconds: float
    memory: float = 0.0
    packing: float = 0.0

    @property
    def exposed(self) -> float:
        """Of the sums of gradients, what is not hidden behind the backward pass."""
        return max(0.0, self.seconds - self.arithmetic - self.moves - self.packing)


def step_of(placed: Sequence[Placed], machine: Machine) -> Step:
    """Of layers that are shared as `placed` says."""
    arithmetic = sum(machine.arithmetic(one.cost) for one in placed)
    moves = sum(machine.communication(one.cost.moves, one.cost.moved) for one in placed)
    sending, now, free, exchanges, packing = machine.gradients, 0.0, 0.0, 0.0, 0.0
    for one in placed:
        now += _forward(one.cost, machine) + _half_moves(one.cost, machine)
    for last, messages, sent, held in _buckets(placed):
        for one in last:
            now += machine.arithmetic(one.cost) - _forward(one.cost, machine) + _half_moves(one.cost, machine)
        if not messages:
            continue
        took, packed = machine.communication(messages, sent / sending.ratio), held * sending.packing
        now += packed
        free = max(free, now) + took
        if sending.waits:
            now = free
        exchanges += took
        packing += packed
    seconds = max(now, free, moves + exchanges)
    return Step(arithmetic, moves, exchanges, seconds, sum(one.cost.memory for one in placed), packing)


def _buckets(placed: Sequence[Placed]) -> Iterator[tuple[list[Placed], int, float, float]]:
    """(layers from the last to the first, messages, bytes sent, bytes of weights) of each bucket."""
    layers: list[Placed] = []
    held = sent = 0.0
    messages, most = 0, FIRST_BUCKET_BYTES
    for one in reversed(placed):
        layers.append(one)
        held += ELEMENT_BYTES * one.layer.weights
        sent += one.cost.exchanged
        messages = max(messages, one.cost.exchanges)
        if held >= most:
            yield layers, messages, sent, held
            layers, held, sent, messages, most = [], 0.0, 0.0, 0, BUCKET_BYTES
    yield layers, messages, sent, held


def _forward(cost: Cost, machine: Machine) -> float:
    return machine.arithmetic(cost) / cost.passes if cost.passes else 0.0


def _half_moves(cost: Cost, machine: Machine) -> float:
    return machine.communication(cost.moves, cost.moved) / 2
