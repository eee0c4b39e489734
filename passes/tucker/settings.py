"""What may become of a convolution: forms, ranks, what they cost, and what the layer loses by them, as measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.graph.answers.aligned import Layer
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.macs import Shape, positions
from onnx_lathe.passes.numerics.rank.cp import FEWEST, SWEEPS, WORK, Cp, cp, rounds
from onnx_lathe.passes.numerics.rank.rank_choice import allowed_ranks
from onnx_lathe.passes.numerics.rank.tucker import Problem, Tucker, behind, input_directions, tucker

SHARES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)
"""Of a layer's MACs, near which its settings are."""
GRID = 12
"""Ranks of the inputs that are looked at, at most."""
SCOUTED = 6
"""Rounds of alternating least squares from which an error is judged before ranks are chosen, at most."""
SCOUTING = 2e10
"""Multiply-accumulates of these, about, beyond which there is one round."""
Ranks = tuple[int, ...]
"""Tucker: (of the inputs, of the outputs); CP: (terms,)."""


@dataclass(frozen=True)
class Setting:
    """`lost`: relative squared error of the layer's answers on held-back samples, or of its weight without data; 0 where
    the ranks are given.
    """

    ranks: Ranks
    macs: float
    lost: float = 0.0


@dataclass(frozen=True)
class Sizes:
    """Of a convolution: channels of [outputs, inputs], places of its kernel, and how often it and a 1 x 1 convolution of
    its input multiply.
    """

    outputs: int
    inputs: int
    kernel: int
    before: int
    behind: int

    @classmethod
    def of(cls, layer: Layer, shapes: Mapping[str, Shape]) -> "Sizes":
        outputs, inputs, *kernel = layer.rows.shape
        source = shapes.get(layer.source, (1, 1))
        return cls(
            outputs,
            inputs,
            int(np.prod(kernel)),
            int(np.prod([*source[:1], *source[2:]])),
            positions(layer.node, shapes),
        )

    @property
    def whole(self) -> float:
        return float(self.behind * self.outputs * self.inputs * self.kernel)

    @property
    def most_terms(self) -> int:
        """Of CP: with as many, nothing is lost."""
        return self.kernel * min(self.outputs, self.inputs)

    def macs(self, ranks: Ranks) -> float:
        if len(ranks) == 1:
            return float(ranks[0] * (self.before * self.inputs + self.behind * (self.kernel + self.outputs)))
        first, last = ranks
        core = self.behind * (self.kernel * first * last + last * self.outputs)
        return float(self.before * self.inputs * first + core)

    def fixed(self, form: str, rank: int) -> Ranks:
        """What a rank that was given means."""
        if form == "cp":
            return (min(rank, self.most_terms),)
        first = min(rank, self.inputs)
        return first, min(rank, self.outputs, first * self.kernel)


def problem_of(layer: Layer, weight: np.ndarray, norm: np.ndarray | None) -> Problem:
    """`weight` [o, c k] float64; without a norm, Frobenius's."""
    outputs, inputs = layer.rows.shape[:2]
    size = weight.shape[1]
    return Problem(weight.reshape(outputs, inputs, -1), np.eye(size) if norm is None else norm)


def weight_of(layer: Layer) -> np.ndarray:
    found: np.ndarray = layer.rows.of(read(layer.rows.weight.tensor))[0].astype(np.float64)
    return found


def decomposed(problem: Problem, ranks: Ranks, scouted: bool = False) -> Tucker | Cp:
    """Of these ranks, by their number; `scouted`: in few rounds, to see what they cost."""
    if len(ranks) == 1:
        limits = (SCOUTED, SCOUTING, 1) if scouted else (SWEEPS, WORK, FEWEST)
        return cp(problem, ranks[0], rounds(problem, ranks[0], *limits))
    pair = (ranks[0], ranks[1])
    if not scouted:
        return tucker(problem, pair)
    return tucker(problem, pair, 1 if problem.large else SCOUTED)


def settings(
    problem: Problem,
    judge: Callable[[np.ndarray], float],
    sizes: Sizes,
    form: str,
    multiple: int,
    least: float,
) -> list[Setting]:
    """From the cheapest to the dearest, each better than those before it. `judge`: the error of a weight [o, c, k]."""
    found: list[Setting] = []
    for ranks in _candidates(problem, sizes, form, multiple, least):
        lost = judge(decomposed(problem, ranks, scouted=True).weight())
        if not found or lost < found[-1].lost:
            found.append(Setting(ranks, sizes.macs(ranks), lost))
    return found


def _candidates(problem: Problem, sizes: Sizes, form: str, multiple: int, least: float) -> Iterator[Ranks]:
    """Ranks that save MACs, with more and more of these; about one for each of SHARES, or for every other one of a
    large problem.
    """
    known: dict[Ranks, float] = {}
    if form == "cp":
        full = min(sizes.most_terms, int(sizes.whole / sizes.macs((1,))))
        terms = allowed_ranks(full, multiple, 0.0)
        fewest = least * min(sizes.inputs, sizes.outputs)
        known = {(rank,): -float(rank) for rank in terms if rank >= fewest}
    else:
        known = _tucker_errors(problem, sizes, multiple, least)
    seen: set[Ranks] = set()
    for share in SHARES[1::2] if problem.large else SHARES:
        within = [ranks for ranks in known if sizes.macs(ranks) <= share * sizes.whole]
        if within:
            best = min(within, key=lambda ranks: (known[ranks], sizes.macs(ranks)))
            if best not in seen:
                seen.add(best)
                yield best


def _tucker_errors(problem: Problem, sizes: Sizes, multiple: int, least: float) -> dict[Ranks, float]:
    """What all pairs of ranks leave of the target, from the main directions of the inputs, without alternating."""
    directions = input_directions(problem)
    firsts = [one for one in allowed_ranks(sizes.inputs, multiple, least) if one <= len(directions)]
    step = max(1, -(-len(firsts) // (GRID // 2 if problem.large else GRID)))
    found: dict[Ranks, float] = {}
    for first in firsts[::-step]:
        explained = np.cumsum(behind(problem, directions[:first])[2])
        for last in allowed_ranks(sizes.outputs, multiple, least):
            if last <= len(explained) and sizes.macs((first, last)) < sizes.whole:
                found[first, last] = -float(explained[last - 1])
    return found


def cheapest_of(settings: Sequence[Setting], energy: float) -> Setting | None:
    """The first that keeps this share of the answers' energy."""
    return next((one for one in settings if one.lost <= 1 - energy), None)
