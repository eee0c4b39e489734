"""Convolutions of few terms (CP), nearest to a wanted one in the norm of what they read: see tucker.py.

    M[o, i, k] = sum_r U[o, r] K[r, k] V[r, i]      1 x 1, depthwise k x k, 1 x 1

By alternating least squares: U in closed form, K and V by conjugate gradients. Each round starts further on in the
direction of the last, which halves their number.
Sources: Lebedev, Ganin, Rakhuba, Oseledets and Lempitsky, "Speeding-up Convolutional Neural Networks Using Fine-tuned
CP-Decomposition", ICLR 2015. There the kernel's two sides are factors of their own; as one they need hardly more MACs, a
layer less, and lose less. Extrapolation with restarts: Mitchell, Ye and De Sterck, "Nesterov Acceleration of Alternating
Least Squares for Canonical Tensor Decomposition", 2020.
"""

from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.numerics.rank.tucker import (
    SETTLED,
    STEPS,
    Problem,
    inverse_of,
    least_squares,
    unit_rows,
)

SWEEPS = 30
"""Rounds at most: CP settles slowly."""
WORK = 2.5e11
"""Multiply-accumulates of all rounds at most, about."""
FEWEST = 4
"""Rounds that are made however much work they are."""
FURTHER, FASTER = 0.5, 1.1
"""Of a round's change, by which the next starts further on at first; and by what this grows, up to 1."""
RIDGE = 1e-8
"""Of the mean of the terms' second moments: terms that nearly cancel would grow without bounds."""


@dataclass(frozen=True)
class Cp:
    """first [r, c], core [r, k], last [o, r]."""

    first: np.ndarray
    core: np.ndarray
    last: np.ndarray

    def weight(self) -> np.ndarray:
        return np.tensordot(self.last, self.first[:, :, None] * self.core[:, None], axes=1)


def rounds(problem: Problem, rank: int, most: int, work: float, fewest: int) -> int:
    """Of alternating least squares for so many terms: `most`, or what the work allows, and no fewer than `fewest`."""
    size = len(problem.norm)
    each = (2 * STEPS + 3) * rank * size * (size + rank)
    return min(most, max(fewest, int(work / each)))


def cp(problem: Problem, rank: int, sweeps: int = SWEEPS) -> Cp:
    """Of this rank, from Tucker's main directions at each place of the kernel."""
    best = start = _cp_start(problem, rank)
    error, further = problem.error(best.weight()), FURTHER
    for _ in range(sweeps):
        found = one_round(problem, start)
        new = problem.error(found.weight())
        if new < error:
            settled = new > (1 - SETTLED) * error
            start = _further(best, found, further)
            best, error, further = found, new, min(1.0, further * FASTER)
            if settled:
                break
        elif start is best:
            break
        else:  # it went too far
            start, further = best, further / 2
    return best


def one_round(problem: Problem, now: Cp) -> Cp:
    """Of alternating least squares: one factor after another."""
    first = _cp_factor(problem, now, of_first=True)
    now = Cp(unit_rows(first), now.core * np.linalg.norm(first, axis=1)[:, None], now.last)
    core = _cp_factor(problem, now, of_first=False)
    return _with_last(problem, now.first, unit_rows(core))


def _further(before: Cp, now: Cp, share: float) -> Cp:
    pairs = ((before.first, now.first), (before.core, now.core), (before.last, now.last))
    first, core, last = (new + share * (new - old) for old, new in pairs)
    return Cp(first, core, last)


def _cp_start(problem: Problem, rank: int) -> Cp:
    """The main terms of the singular value decompositions at the places of the kernel, each with its own place alone; a
    term that is already there points at the next place.
    """
    sizes, firsts, places = problem.terms
    order = np.argsort(-sizes, kind="stable")[:rank]
    return _with_last(problem, unit_rows(firsts[order]), np.eye(problem.sizes[2])[places[order]])


def _with_last(problem: Problem, first: np.ndarray, core: np.ndarray) -> Cp:
    """`last` in closed form."""
    terms = first[:, :, None] * core[:, None]
    weighed = problem.weighed(terms).reshape(len(terms), -1)
    seen = weighed @ terms.reshape(len(terms), -1).T
    seen[np.diag_indices_from(seen)] += RIDGE * np.trace(seen) / len(seen) + 1e-300
    return Cp(first, core, np.linalg.solve(seen, weighed @ problem.matrix.T).T)


def _cp_factor(problem: Problem, now: Cp, of_first: bool) -> np.ndarray:
    """`first` [r, c] or `core` [r, k] fitted to the two others."""
    other = now.core if of_first else now.first
    outer = now.last.T @ now.last

    def expanded(own: np.ndarray) -> np.ndarray:
        first, core = (own, other) if of_first else (other, own)
        return first[:, :, None] * core[:, None]

    def gathered(terms: np.ndarray) -> np.ndarray:
        return np.einsum("rik,rk->ri" if of_first else "rik,ri->rk", terms, other, optimize=True)

    def apply(own: np.ndarray) -> np.ndarray:
        return gathered(problem.coupled(outer, expanded(own)))

    inputs, kernel = problem.sizes[1:]
    norm = problem.norm.reshape(inputs, kernel, inputs, kernel)
    if of_first:
        inner = inverse_of(np.einsum("ikjk->ij", norm) / kernel)
    else:
        inner = inverse_of(np.einsum("ikil->kl", norm) / inputs)
    # the Hadamard product of two Gram matrices, of `last` and of what stays, is the curvature between terms
    between = inverse_of(outer * (other @ other.T))
    wanted = gathered(np.tensordot(now.last.T, problem.weighed_target, axes=1))
    start = now.first if of_first else now.core
    return least_squares(apply, wanted, start, lambda residual: between @ residual @ inner)
