"""Convolutions of few terms (CP), nearest to a wanted one in the norm of what they read: see tucker.py.

    M[o, i, k] = sum_r U[o, r] K[r, k] V[r, i]      1 x 1, depthwise k x k, 1 x 1

By alternating least squares: U in closed form, K and V by conjugate gradients.
Source: Lebedev, Ganin, Rakhuba, Oseledets and Lempitsky, "Speeding-up Convolutional Neural Networks Using Fine-tuned
CP-Decomposition", ICLR 2015. There the kernel's two sides are factors of their own; as one they need hardly more MACs, a
layer less, and lose less.
"""

from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.numerics.rank.tucker import (
    LEAST,
    SETTLED,
    Problem,
    inverse_of,
    least_squares,
    unit_rows,
)

SWEEPS = 60
"""Rounds at most: CP settles slowly."""
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


def cp(problem: Problem, rank: int, sweeps: int = SWEEPS) -> Cp:
    """Of this rank, from Tucker's main directions at each place of the kernel."""
    now = _cp_start(problem, rank)
    error = problem.error(now.weight())
    for _ in range(sweeps):
        first = _cp_factor(problem, now, of_first=True)
        now = Cp(unit_rows(first), now.core * np.linalg.norm(first, axis=1)[:, None], now.last)
        core = _cp_factor(problem, now, of_first=False)
        now = _with_last(problem, now.first, unit_rows(core))
        new = problem.error(now.weight())
        if new > (1 - SETTLED) * error:
            break
        error = new
    return now


def _cp_start(problem: Problem, rank: int) -> Cp:
    """The main terms of the singular value decompositions at the places of the kernel, each with its own place alone; a
    term that is already there points at the next place.
    """
    inputs, kernel = problem.sizes[1:]
    firsts, sizes, places = [], [], []
    for place in range(kernel):
        channels = problem.norm.reshape(inputs, kernel, inputs, kernel)[:, place, :, place]
        values, vectors = np.linalg.eigh(channels)
        root = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
        _, own, right = np.linalg.svd(problem.target[:, :, place] @ root, full_matrices=False)
        backwards = vectors / np.sqrt(
            np.maximum(values, LEAST * max(float(values[-1]), np.finfo(np.float64).tiny))
        )
        firsts.append(right @ (backwards @ vectors.T))
        sizes.append(own)
        places.append(np.full(len(own), place))
    order = np.argsort(-np.concatenate(sizes), kind="stable")[:rank]
    core = np.eye(kernel)[np.concatenate(places)[order]]
    return _with_last(problem, unit_rows(np.concatenate(firsts)[order]), core)


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
        return gathered(np.tensordot(outer, problem.weighed(expanded(own)), axes=1))

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
