"""How many bits each layer gets: the fewest bytes whose error in the network's output stays within a bound.

Errors of different layers are nearly independent of each other, so their powers add up in the output.
Greedy steps, most error removed per byte first, then come near the best allocation; how the powers really
add up is measured, and the bound on their sum corrected.
Source: Shoham and Gersho, "Efficient Bit Allocation for an Arbitrary Set of Quantizers", IEEE Transactions
on Acoustics, Speech and Signal Processing 36(9), 1988; additivity over layers: Zhe, Lin, Chandrasekhar and
Girod, "Optimizing the Bit Allocation for Compression of Weights and Activations of Deep Neural Networks",
ICIP 2019.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MOST_RUNS = 10
"""Runs of the whole network that the search takes after its layers have been measured one by one."""
_NARROW = 1.05
"""Ratio of two bounds that are not told apart."""


@dataclass(frozen=True)
class Rung:
    """One way to store a layer: its bits (None: as it is), bytes, and the error power that this is expected
    to add to the outputs.
    """

    bits: int | None
    size: float
    noise: float


Ladder = Sequence[Rung]
"""The ways to store one layer, of rising size."""


def expected_noise(distortion: Mapping[int, float], measured: Mapping[int, float]) -> dict[int, float]:
    """Error power in the outputs by bits, from the squared error of the weights by bits and the power
    measured at a few of these.

    The ratio of the two changes slowly with the bits, so its logarithm is interpolated. Weights have errors
    at the measured bits.
    """
    known = [bits for bits in sorted(measured) if measured[bits] > 0]
    if not known:  # the outputs do not depend on these weights, or none of them changes
        return dict.fromkeys(distortion, 0.0)
    ratios = [math.log(measured[bits] / distortion[bits]) for bits in known]
    return {
        bits: error * math.exp(float(np.interp(bits, known, ratios))) for bits, error in distortion.items()
    }


def choose(ladders: Sequence[Ladder], bound: float) -> tuple[int | None, ...]:
    """Bits for each ladder, so that the expected noises add up to at most `bound`, or the last rungs' if
    none do.
    """
    chosen = [0] * len(ladders)
    while sum(ladder[at].noise for ladder, at in zip(ladders, chosen, strict=True)) > bound:
        steps = [
            ((ladder[at].noise - ladder[to].noise) / (ladder[to].size - ladder[at].size), number, to)
            for number, (ladder, at) in enumerate(zip(ladders, chosen, strict=True))
            for to in range(at + 1, len(ladder))
        ]
        if not steps:
            break
        _, number, to = max(steps)
        chosen[number] = to
    return tuple(ladder[at].bits for ladder, at in zip(ladders, chosen, strict=True))


def fewest_bytes(
    ladders: Sequence[Ladder], bound: float, measure: Callable[[tuple[int | None, ...]], float]
) -> tuple[tuple[int | None, ...], float]:
    """(bits for each ladder, noise of the whole as `measure` finds it): the fewest bytes found within the
    bound.

    Bisects the bound on the sum of the expected noises. If nothing was within the bound, the answer is the
    last rung of every ladder.
    """
    sizes = [{rung.bits: rung.size for rung in ladder} for ladder in ladders]
    tried: dict[tuple[int | None, ...], float] = {}
    low, high, expected = 0.0, math.inf, bound
    while high > _NARROW * low:
        bits = choose(ladders, expected)
        if bits not in tried:
            if len(tried) == MOST_RUNS:
                break
            tried[bits] = measure(bits)
        if tried[bits] <= bound:
            low = expected
            if bits == choose(ladders, math.inf):
                break
            expected = 2 * low if high == math.inf else math.sqrt(low * high)
        elif bits == choose(ladders, 0.0):
            break
        else:
            high = expected
            expected = math.sqrt(low * high) if low else expected / 2
    within = [bits for bits, noise in tried.items() if noise <= bound]
    if within:
        best = min(within, key=lambda bits: sum(size[one] for size, one in zip(sizes, bits, strict=True)))
        return best, tried[best]
    last = choose(ladders, 0.0)
    return last, tried[last] if last in tried else measure(last)
