"""Convolutions of lower Tucker-2 rank, nearest to a wanted one in the norm of what they read.

    min  tr((M - W) S (M - W)')      W, M [o, c, k] as [o, c k],  S [c k, c k] the second moments of the inputs

    M[o, i, k] = sum_ab U[o, a] G[a, b, k] V[b, i]      1 x 1, k x k on fewer channels, 1 x 1

k counts the places of the kernel. With S = I the norm is Frobenius's. By alternating least squares from the higher-order
SVD: U and G follow together in closed form from V (reduced-rank regression), V from them by conjugate gradients on normal
equations that are never formed.
Sources: Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications", ICLR
2016, section 3; De Lathauwer, De Moor and Vandewalle, "A Multilinear Singular Value Decomposition", 2000.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

SWEEPS = 12
"""Rounds of alternating least squares at most."""
STEPS = 4
"""Of conjugate gradients for a factor in each round: more rounds bring more than more steps."""
SETTLED = 1e-4
"""Less of the error than this share in one round ends them."""
LARGE = 600
"""Columns of a target, above which products of steps are in float32, and errors are judged from less work."""
LEAST = 1e-9
"""Of the largest eigenvalue: directions below it are none."""


@dataclass(frozen=True)
class Problem:
    """`target` [o, c, k] and `norm` [c k, c k], float64, symmetric and positive definite."""

    target: np.ndarray
    norm: np.ndarray

    @property
    def sizes(self) -> tuple[int, int, int]:
        outputs, inputs, kernel = self.target.shape
        return outputs, inputs, kernel

    @property
    def matrix(self) -> np.ndarray:
        return self.target.reshape(len(self.target), -1)

    @cached_property
    def weighed_target(self) -> np.ndarray:
        return self.weighed(self.target)

    @cached_property
    def energy(self) -> float:
        """Of the target, as the norm has it."""
        return float(np.vdot(self.target, self.weighed_target))

    def weighed(self, weight: np.ndarray) -> np.ndarray:
        """`weight` [n, c, k] times the norm, [n, c, k]."""
        found: np.ndarray = (weight.reshape(len(weight), -1) @ self.norm).reshape(weight.shape)
        return found

    @property
    def large(self) -> bool:
        return len(self.norm) > LARGE

    @cached_property
    def _light_norm(self) -> np.ndarray:
        return self.norm.astype(np.float32)

    def coupled(self, outer: np.ndarray, terms: np.ndarray) -> np.ndarray:
        """`outer` [r, r] times the weighed terms [r, c, k]: a step's product, in float32 of a large problem."""
        if not self.large:
            found: np.ndarray = np.tensordot(outer, self.weighed(terms), axes=1)
            return found
        flat = terms.reshape(len(terms), -1).astype(np.float32) @ self._light_norm
        return (outer.astype(np.float32) @ flat).reshape(terms.shape)

    @cached_property
    def terms(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """At each place of the kernel alone, the target's singular values in the norm, [n], the combinations of inputs
        [n, c] that they belong to, and the place, [n].
        """
        _, inputs, kernel = self.sizes
        firsts, sizes, places = [], [], []
        for place in range(kernel):
            channels = self.norm.reshape(inputs, kernel, inputs, kernel)[:, place, :, place]
            values, vectors = np.linalg.eigh(channels)
            root = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
            _, own, right = np.linalg.svd(self.target[:, :, place] @ root, full_matrices=False)
            least = LEAST * max(float(values[-1]), np.finfo(np.float64).tiny)
            backwards = vectors / np.sqrt(np.maximum(values, least))
            firsts.append(right @ (backwards @ vectors.T))
            sizes.append(own)
            places.append(np.full(len(own), place))
        return np.concatenate(sizes), np.concatenate(firsts), np.concatenate(places)

    def error(self, weight: np.ndarray) -> float:
        """Of [o, c, k], relative to the target's own."""
        change = weight - self.target
        return float(np.vdot(change, self.weighed(change))) / self.energy if self.energy > 0 else 0.0


@dataclass(frozen=True)
class Tucker:
    """first [b, c], core [a, b, k], last [o, a]."""

    first: np.ndarray
    core: np.ndarray
    last: np.ndarray

    def weight(self) -> np.ndarray:
        inner = np.einsum("abk,bi->aik", self.core, self.first, optimize=True)
        return np.tensordot(self.last, inner, axes=1)


def input_directions(problem: Problem) -> np.ndarray:
    """Combinations of input channels [min(c, o k), c], those first on which the target depends most, as the norm has it,
    the places of the kernel alike.
    """
    outputs, inputs, kernel = problem.sizes
    channels = np.einsum("ikjk->ij", problem.norm.reshape(inputs, kernel, inputs, kernel)) / kernel
    values, vectors = np.linalg.eigh(channels)
    values = np.maximum(values, LEAST * max(float(values[-1]), np.finfo(np.float64).tiny))
    root, inverse = (vectors * power @ vectors.T for power in (np.sqrt(values), 1 / np.sqrt(values)))
    mixed = np.tensordot(root, problem.target, axes=(1, 1)).reshape(inputs, -1)
    main = np.linalg.eigh(mixed @ mixed.T)[1][:, ::-1][:, : min(inputs, outputs * kernel)]
    return unit_rows(main.T @ inverse)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    size = np.linalg.norm(rows.reshape(len(rows), -1), axis=1)
    found: np.ndarray = rows / np.where(size > 0, size, 1.0).reshape(-1, *[1] * (rows.ndim - 1))
    return found


def behind(problem: Problem, first: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What stands best behind `first` [b, c]: orthonormal directions of the outputs [o, n], the main one first, the core
    [n, b, k] that leads to each, and how much of the target each of them explains, [n]. Of fewer, the first are best.
    """
    outputs, inputs, kernel = problem.sizes
    half = np.tensordot(problem.norm.reshape(-1, inputs, kernel), first, axes=(1, 1))  # [c k, k, b]
    half = half.transpose(0, 2, 1).reshape(len(problem.norm), -1)
    seen = np.tensordot(first, half.reshape(inputs, -1), axes=1).reshape(-1, half.shape[1])
    seen = (seen + seen.T) / 2
    seen[np.diag_indices_from(seen)] += LEAST * np.trace(seen) / len(seen)
    cross = problem.matrix @ half
    full = np.linalg.solve(seen, cross.T).T
    explained, directions = np.linalg.eigh(full @ cross.T)
    last = directions[:, ::-1][:, : min(outputs, half.shape[1])]
    core = (last.T @ full).reshape(-1, len(first), kernel)
    return last, core, np.maximum(explained[::-1][: last.shape[1]], 0.0)


def tucker(problem: Problem, ranks: tuple[int, int], sweeps: int = SWEEPS) -> Tucker:
    """Of ranks (b, a) of inputs and outputs."""
    first = input_directions(problem)[: ranks[0]]
    best, error = _tucker_behind(problem, first, ranks[1])
    for _ in range(sweeps):
        moved = _moved_first(problem, best)
        found, new = _tucker_behind(problem, moved, ranks[1])
        settled = new > (1 - SETTLED) * error
        if new < error:
            best, error = found, new
        if settled:
            break
    return best


def _tucker_behind(problem: Problem, first: np.ndarray, rank: int) -> tuple[Tucker, float]:
    last, core, explained = behind(problem, first)
    error = 1 - float(explained[:rank].sum()) / max(problem.energy, np.finfo(np.float64).tiny)
    return Tucker(first, core[:rank], last[:, :rank]), error


def _moved_first(problem: Problem, now: Tucker) -> np.ndarray:
    """`first` fitted to the rest. `last` is orthonormal: what it cannot reach, `first` cannot change."""

    def expanded(first: np.ndarray) -> np.ndarray:
        return np.einsum("abk,bi->aik", now.core, first, optimize=True)

    def gathered(weight: np.ndarray) -> np.ndarray:
        return np.einsum("abk,aik->bi", now.core, weight, optimize=True)

    inputs, kernel = problem.sizes[1:]
    channels = np.einsum("ikjk->ij", problem.norm.reshape(inputs, kernel, inputs, kernel)) / kernel
    outer, inner = (
        inverse_of(one) for one in (np.einsum("abk,ack->bc", now.core, now.core, optimize=True), channels)
    )
    return least_squares(
        lambda first: gathered(problem.weighed(expanded(first))),
        gathered(np.tensordot(now.last.T, problem.weighed_target, axes=1)),
        now.first,
        lambda residual: outer @ residual @ inner,
    )


def inverse_of(matrix: np.ndarray) -> np.ndarray:
    regular = matrix + (1e-6 * np.trace(matrix) / len(matrix) + 1e-300) * np.eye(len(matrix))
    return np.linalg.inv(regular)


def least_squares(
    apply: Callable[[np.ndarray], np.ndarray],
    wanted: np.ndarray,
    start: np.ndarray,
    precondition: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Conjugate gradients for apply(x) = wanted from `start`, STEPS at most (Golub and Van Loan, section 11.5)."""
    found, residual = start.copy(), wanted - apply(start)
    limit = 1e-12 * float(np.vdot(wanted, wanted))
    towards = precondition(residual)
    step, size = towards, float(np.vdot(residual, towards))
    for _ in range(STEPS):
        if float(np.vdot(residual, residual)) <= limit or size <= 0:
            break
        image = apply(step)
        curve = float(np.vdot(step, image))
        if curve <= 0:
            break
        found += size / curve * step
        residual = residual - size / curve * image
        towards = precondition(residual)
        new = float(np.vdot(residual, towards))
        step, size = towards + new / size * step, new
    return found
