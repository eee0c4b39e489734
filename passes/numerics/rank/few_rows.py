"""The best map of a rank on fewer rows than there are channels, in the space that the rows span.

With X [n, d] the rows found and Y those wanted, each about its mean and over sqrt(n), D = Y - X and a ridge p,
the map of full rank and the covariance of what it gives (`_Regression` in low_rank.py) are

    M = (Y^T X + p I) (X^T X + p I)^-1 = I + D^T X (X^T X + p I)^-1        E = M (X^T X + p I) M^T

Outside of the span of the rows of X and D, of at most 2n directions Q, M is the identity and E is p times it.
So all is computed in Q: no matrix is [d, d], where d is thousands and n a few samples of a layer without
positions. What the rows do not say is free; it is filled with directions at random, the same each time.
"""

import numpy as np


def principal_directions(rows: np.ndarray, rank: int) -> np.ndarray:
    """Orthonormal columns [d, rank], float64, along which `rows` [n, d], which are about their mean, vary
    most.
    """
    directions = np.linalg.svd(rows, full_matrices=False)[2][:rank].T
    return np.hstack([directions, _others(directions, rank - directions.shape[1])])


def regression(
    wanted: np.ndarray, found: np.ndarray, ridge: float, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """(left [d, rank], right [rank, d]) of the best map of that rank from `found` to `wanted`, both [n, d],
    float64, about their means and over sqrt(n).
    """
    change = wanted - found
    span = np.linalg.qr(np.concatenate([found, change]).T)[0]
    inner_found, inner_change = found @ span, change @ span
    covariance = inner_found.T @ inner_found + ridge * np.eye(span.shape[1])
    moved = np.linalg.solve(covariance, inner_found.T @ inner_change).T
    full = moved + np.eye(len(moved))
    energies, vectors = np.linalg.eigh(full @ covariance @ full.T)
    inside = span @ vectors[:, ::-1]
    above = min(int(np.count_nonzero(energies > ridge)), rank)
    outside = _others(span, min(rank - above, len(span) - span.shape[1]))
    left = np.hstack([inside[:, :above], outside, inside[:, above : rank - outside.shape[1]]])
    return left, left.T + ((left.T @ span) @ moved) @ span.T


def _others(known: np.ndarray, number: int) -> np.ndarray:
    """So many orthonormal columns that are orthogonal to the orthonormal ones in `known` [d, k]."""
    if number <= 0:
        return np.zeros((len(known), 0))
    drawn = np.random.default_rng(0).standard_normal((len(known), number))
    return np.linalg.qr(np.hstack([known, drawn]))[0][:, known.shape[1] :]
