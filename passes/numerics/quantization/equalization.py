"""Scales that make channels alike on both sides: s_u = P_u^alpha / W_u^(1 - alpha), up to a factor that a
whole group of channels shares.

P_u is how large channel u is (its largest value on data, or the largest weight that writes it), W_u the
largest weight that reads it. With alpha = 0.5 and P from the weights, both sides get the same range.
Channels that cannot be scaled keep 1, and the others are made like them.
Sources: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019,
section 4.1; Xiao et al., "SmoothQuant", ICML 2023, section 4, equation 4.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONVERGED = 0.01
"""Rounds end when no scale changes by more than this, in octaves."""

NEGLIGIBLE = 20.0
"""A channel that contributes less than the largest of its group by this many octaves is scaled with them,
but not what they go by.
"""


@dataclass(frozen=True)
class Matrices:
    """Magnitudes of a weight, [G, R, C]: each of G groups computes R channels, `written` [G, R], from C,
    `read` [G, C].

    Channels are numbers from 0; -1 stands for one that cannot be scaled and whose range counts for nothing.
    """

    magnitudes: np.ndarray
    written: np.ndarray
    read: np.ndarray

    def row_ranges(self, scale: np.ndarray) -> np.ndarray:
        """Largest magnitude of each row, [G, R], once the columns are scaled."""
        ranges: np.ndarray = (self.magnitudes * scale[self.read][:, None, :]).max(axis=2)
        return ranges

    def column_ranges(self, scale: np.ndarray) -> np.ndarray:
        """Largest magnitude of each column, [G, C], once the rows are scaled."""
        ranges: np.ndarray = (self.magnitudes / scale[self.written][:, :, None]).max(axis=1)
        return ranges


@dataclass(frozen=True)
class Rule:
    """`alpha` 0 to 1: 0 makes the reading weights' ranges alike, 1 the channels. `max_scale`: largest s and
    1 / s. `rounds`: most sweeps.

    A group stays as it is if no channel of it that is not negligible would change by more than the factor
    `min_scale`.
    """

    alpha: float
    min_scale: float
    max_scale: float
    rounds: int


def balance(
    weights: Sequence[Matrices], group: np.ndarray, free: np.ndarray, sizes: np.ndarray | None, rule: Rule
) -> tuple[np.ndarray, int]:
    """Scale of each channel, float64 [N] (1 where `free`, bool [N], is false), and how many rounds it took.

    `group`, int [N]: channels with the same number are in one tensor and share a scale factor that does not
    matter. `sizes`, [N]: how large the channels are before scaling; None: as the weights that write them. A
    channel that nothing writes or reads, or that is zero or not finite, gets 1.
    """
    scale, live, rounds = _sweep(weights, group, free, sizes, rule)
    changed = np.unique(group[live & (np.abs(np.log2(scale)) > math.log2(rule.min_scale))])
    if changed.size == np.unique(group[free]).size:
        return scale, rounds
    scale, _, more = _sweep(weights, group, free & np.isin(group, changed), sizes, rule)
    return scale, rounds + more


def _sweep(
    weights: Sequence[Matrices], group: np.ndarray, free: np.ndarray, sizes: np.ndarray | None, rule: Rule
) -> tuple[np.ndarray, np.ndarray, int]:
    """(scale, which channels are not negligible, rounds)."""
    count = group.size
    live = np.zeros(count, bool)
    order = _members(group, free)
    writers: dict[int, list[Matrices]] = {one: [] for one in order}
    readers: dict[int, list[Matrices]] = {one: [] for one in order}
    for weight in weights:
        for touched, channels in ((writers, weight.written), (readers, weight.read)):
            for one in {*group[channels[channels >= 0]].tolist()} & order.keys():
                touched[one].append(weight)
    scale = np.ones(count + 1)  # -1 is the last
    produced, consumed = np.zeros(count + 1), np.zeros(count + 1)
    done, change = 0, math.inf
    while order and done < rule.rounds and change > CONVERGED:
        done, change = done + 1, 0.0
        for one, members in order.items():
            consumed[members] = 0.0  # weights write into other groups too, which begin anew in their turn
            for weight in readers[one]:
                np.maximum.at(consumed, weight.read, weight.column_ranges(scale))
            produced[members] = 0.0 if sizes is None else sizes[members]
            if sizes is None:
                for weight in writers[one]:
                    np.maximum.at(produced, weight.written, weight.row_ranges(scale))
            new, live[members] = _group_scale(produced[members], consumed[members], free[members], rule)
            change = max(change, float(np.abs(np.log2(new / scale[members])).max()))
            scale[members] = new
    return scale[:count], live, done


def _members(group: np.ndarray, free: np.ndarray) -> dict[int, np.ndarray]:
    """The channels of each group that has a free one, both in ascending order."""
    by_group = np.argsort(group, kind="stable")
    numbers, starts = np.unique(group[by_group], return_index=True)
    wanted = set(group[free].tolist())
    pieces = zip(numbers.tolist(), np.split(by_group, starts[1:]), strict=False)  # none of none is one piece
    return {one: members for one, members in pieces if one in wanted}


def _group_scale(
    produced: np.ndarray, consumed: np.ndarray, free: np.ndarray, rule: Rule
) -> tuple[np.ndarray, np.ndarray]:
    """(scale, which channels are not negligible) of the channels of one group."""
    known = (produced > 0) & (consumed > 0) & np.isfinite(produced + consumed)
    if not (known & free).any():
        return np.ones(free.size), known
    first, second = (np.log2(ranges, out=np.zeros(free.size), where=known) for ranges in (produced, consumed))
    octaves = rule.alpha * first - (1 - rule.alpha) * second
    contribution = first + second  # the same at every scale
    live = known & (contribution > contribution[known].max() - NEGLIGIBLE)
    anchors = live & ~free
    octaves -= octaves[anchors if anchors.any() else live].mean()
    limit = math.log2(rule.max_scale)
    return np.where(known & free, np.exp2(np.clip(octaves, -limit, limit)), 1.0), live
