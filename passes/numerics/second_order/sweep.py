"""Weights that become zero column by column, each making up for its error in the columns behind it.

    e_j = (w_j - q_j) / U_jj,   w_k -= e_j U_jk for k > j      H^-1 = U' U,  q_j = w_j or 0

Which become zero is chosen for a block of columns when the sweep reaches it, by w_j^2 / U_jj^2, from the weights as they
are then.
Sources: Frantar and Alistarh, "SparseGPT", ICML 2023, section 3; Hassibi and Stork, "Optimal Brain Surgeon", 1992.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

BLOCK = 128


class Chooser(Protocol):
    """`columns` at a time. Called with their scores [groups, r, columns]; gives which stay, bool."""

    @property
    def columns(self) -> int: ...

    def __call__(self, scores: np.ndarray) -> np.ndarray: ...


@dataclass
class Share:
    """`count` of `total` weights become zero, of each block its part; those of score 0 are among them. `each_row`: as
    many of every row as of any other, for layers whose rows have few weights: none of them is emptied.
    """

    count: int
    total: int
    each_row: bool = False
    columns: int = BLOCK
    _seen: int = field(default=0, init=False)
    _zeros: int = field(default=0, init=False)

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        self._seen += scores.size
        wanted = round(self.count * self._seen / self.total) - self._zeros
        present = int((scores == 0).sum())
        most = scores.size - (scores[..., 0].size if self.each_row else 0)  # the last of a row stays
        wanted = max(min(wanted, most), present)
        self._zeros += wanted
        if self.each_row:
            rows = scores.reshape(-1, scores.shape[-1])
            order = np.argsort(rows, axis=1, kind="stable").argsort(axis=1, kind="stable")
            # the first zero of every row before the second of any
            found = np.argsort((order + rows / (2 * max(rows.max(), 1e-300))).ravel(), kind="stable")
        else:
            found = np.argsort(scores, axis=None, kind="stable")
        stays = np.ones(scores.size, bool)
        stays[found[:wanted]] = False
        return stays.reshape(scores.shape) & (scores > 0)


@dataclass
class OfGroup:
    """`n` of every `m` columns next to each other stay in each row."""

    n: int
    m: int

    @property
    def columns(self) -> int:
        return self.m

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        order = np.argsort(-scores, axis=-1, kind="stable").argsort(axis=-1, kind="stable")
        stays: np.ndarray = (order < self.n) & (scores > 0)
        return stays


def sweep(
    weight: np.ndarray, covariance: np.ndarray, choose: Chooser, order: np.ndarray | None = None
) -> np.ndarray:
    """The weight [groups, r, d] with zeros, float64, of inputs whose second moments are `covariance` [groups, d, d],
    positive definite. What is zero already stays so. `order`: of the columns, as `choose` sees them.
    """
    if order is not None:
        found = sweep(weight[..., order], covariance[:, order][:, :, order], choose)
        return found[..., np.argsort(order)]
    found, zero = weight.astype(np.float64), weight == 0
    upper = np.linalg.cholesky(np.linalg.inv(covariance)).transpose(0, 2, 1)
    diagonal = np.einsum("gii->gi", upper)
    size = found.shape[-1]
    stays = np.ones(found.shape, bool)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        errors = np.zeros((*found.shape[:2], stop - start))
        for column in range(start, stop):
            if column % choose.columns == 0:
                part = slice(column, min(column + choose.columns, size))
                scores = np.square(found[..., part] / diagonal[:, None, part])
                stays[..., part] = choose(np.where(zero[..., part], 0.0, scores))
            error = np.where(stays[..., column], 0.0, found[..., column]) / diagonal[:, None, column]
            found[..., column:stop] -= error[..., None] * upper[:, None, column, column:stop]
            errors[..., column - start] = error
        found[..., stop:] -= errors @ upper[:, start:stop, stop:]
    return np.where(stays & ~zero, found, 0.0)
