"""Weights that change column by column, each making up for its error in the columns behind it: they become zero, or go
to a level or a shared value.

    e_j = (w_j - q_j) / U_jj,   w_k -= e_j U_jk for k > j      H^-1 = U' U,  q_j = 0 or w_j | nearest level | nearest value

What depends on several columns is chosen when the sweep reaches them, from the weights as they are then: which become
zero, by w_j^2 / U_jj^2, and the scale of a group.
Sources: Frantar et al., "GPTQ", ICLR 2023, sections 3 and 4; Frantar and Alistarh, "SparseGPT", ICML 2023, section 3;
Hassibi and Stork, "Optimal Brain Surgeon", 1992.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from onnx_lathe.passes.numerics.quantization import int4

BLOCK = 128


class Rule(Protocol):
    """What becomes of weights. `columns` of them are reached at a time."""

    @property
    def columns(self) -> int: ...

    def reach(self, start: int, values: np.ndarray, scores: np.ndarray) -> None:
        """`values` [groups, r, columns] of the columns from `start` on as they are now; `scores`: what each costs if it
        becomes zero, 0 where it is.
        """

    def __call__(self, column: int, values: np.ndarray) -> np.ndarray:
        """What the values [groups, r] of a column that was reached become."""


class Zeros:
    """A rule by which scores say what becomes zero."""

    def stay(self, scores: np.ndarray) -> np.ndarray:
        """Which of the weights with these scores [groups, r, columns] stay, bool."""
        raise NotImplementedError

    def reach(self, start: int, values: np.ndarray, scores: np.ndarray) -> None:
        self._start, self._stays = start, self.stay(scores)

    def __call__(self, column: int, values: np.ndarray) -> np.ndarray:
        return np.where(self._stays[..., column - self._start], values, 0.0)


@dataclass
class Share(Zeros):
    """`count` of `total` weights become zero, of each block its part; those of score 0 are among them. `each_row`: as
    many of every row as of any other, for layers whose rows have few weights: none of them is emptied.
    """

    count: int
    total: int
    each_row: bool = False
    columns: int = BLOCK
    _seen: int = field(default=0, init=False)
    _zeros: int = field(default=0, init=False)

    def stay(self, scores: np.ndarray) -> np.ndarray:
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
class OfGroup(Zeros):
    """`n` of every `m` columns next to each other stay in each row."""

    n: int
    m: int

    @property
    def columns(self) -> int:
        return self.m

    def stay(self, scores: np.ndarray) -> np.ndarray:
        order = np.argsort(-scores, axis=-1, kind="stable").argsort(axis=-1, kind="stable")
        stays: np.ndarray = (order < self.n) & (scores > 0)
        return stays


@dataclass
class Grid:
    """Levels of a scale for each row, [groups, r], that is there already."""

    scale: np.ndarray
    lowest: int
    highest: int
    columns: int = BLOCK

    def reach(self, start: int, values: np.ndarray, scores: np.ndarray) -> None:
        """Nothing depends on other columns."""

    def __call__(self, column: int, values: np.ndarray) -> np.ndarray:
        return self.levels(values[..., None])[..., 0] * self.scale

    def levels(self, values: np.ndarray) -> np.ndarray:
        """Of values [groups, r, d], float64."""
        found: np.ndarray = np.clip(np.rint(values / self.scale[..., None]), self.lowest, self.highest)
        return found


@dataclass
class Blocks:
    """Levels of 4 bits; `columns` next to each other share a scale in each row, as int4.encode chooses it."""

    columns: int
    symmetric: bool
    search: bool
    _levels: list[np.ndarray] = field(default_factory=list, init=False)
    _scales: list[np.ndarray] = field(default_factory=list, init=False)
    _zeros: list[np.ndarray] = field(default_factory=list, init=False)

    def reach(self, start: int, values: np.ndarray, scores: np.ndarray) -> None:
        rows = values.reshape(-1, values.shape[-1]).astype(np.float32)
        found = int4.encode(rows, rows.shape[1], self.symmetric, self.search)
        zeros = np.zeros(found.scale.shape) if found.zeros is None else found.zeros.astype(np.float64)
        self._scales.append(found.scale.reshape(values.shape[:2]))
        self._zeros.append(zeros.reshape(values.shape[:2]))

    def __call__(self, column: int, values: np.ndarray) -> np.ndarray:
        scale, zero = self._scales[-1].astype(np.float64), self._zeros[-1]
        levels = np.clip(np.rint(values / scale) + zero, *((-8, 7) if self.symmetric else (0, 15)))
        self._levels.append(levels)
        found: np.ndarray = (levels - zero) * scale
        return found

    def encoded(self) -> int4.Levels:
        """Of all columns, [groups * r, d]."""

        def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
            return np.stack([one.reshape(-1) for one in parts], axis=1)

        kind = int4.kind(self.symmetric)
        levels, zeros = (joined(parts).astype(np.int8).astype(kind) for parts in (self._levels, self._zeros))
        return int4.Levels(levels, joined(self._scales), None if self.symmetric else zeros)


@dataclass
class Values:
    """The nearest of the ascending values of each row's table; `table` [groups, r] is its number among `tables`."""

    tables: Sequence[np.ndarray]
    table: np.ndarray
    columns: int = BLOCK

    def reach(self, start: int, values: np.ndarray, scores: np.ndarray) -> None:
        """Nothing depends on other columns."""

    def __call__(self, column: int, values: np.ndarray) -> np.ndarray:
        found = np.zeros(values.shape)
        for number, (shared, place) in enumerate(zip(self.tables, self._nearest(values), strict=True)):
            found[self.table == number] = shared[place]
        return found

    def places(self, values: np.ndarray) -> np.ndarray:
        """Of the nearest values to these [groups, r, d] in their row's table; uint8."""
        found = np.zeros(values.shape, np.uint8)
        for number, place in enumerate(self._nearest(values)):
            found[self.table == number] = place
        return found

    def _nearest(self, values: np.ndarray) -> Iterator[np.ndarray]:
        """For each table, the places of the nearest values to those of its rows."""
        for number, shared in enumerate(self.tables):
            exact = shared.astype(np.float64)
            yield np.searchsorted((exact[1:] + exact[:-1]) / 2, values[self.table == number], side="right")


def nearest(weight: np.ndarray, rule: Rule) -> np.ndarray:
    """What the rule makes of the weight [groups, r, d] if no column makes up for another; float64."""
    size = weight.shape[-1]
    eyes = np.broadcast_to(np.eye(size), (len(weight), size, size))
    return sweep(weight, eyes, rule, upper=eyes)  # an identity is its own factor


def sweep(
    weight: np.ndarray,
    covariance: np.ndarray,
    rule: Rule,
    order: np.ndarray | None = None,
    zero: np.ndarray | None = None,
    upper: np.ndarray | None = None,
) -> np.ndarray:
    """What the rule makes of the weight [groups, r, d], float64, of inputs whose second moments are `covariance` [groups,
    d, d], positive definite. What is zero already stays so; or what `zero` says. `order`: of the columns, as the rule
    sees them. `upper`: `factored(covariance)` where there is no order and several sweeps share it.
    """
    zero = weight == 0 if zero is None else zero
    if order is not None:
        found = sweep(weight[..., order], covariance[:, order][:, :, order], rule, zero=zero[..., order])
        return found[..., np.argsort(order)]
    found = weight.astype(np.float64)
    upper = factored(covariance) if upper is None else upper
    diagonal = np.einsum("gii->gi", upper)
    size, start = found.shape[-1], 0
    while start < size:
        stop = min(_stop(start, rule.columns), size)
        errors = np.zeros((*found.shape[:2], stop - start))
        for column in range(start, stop):
            if column % rule.columns == 0:
                part = slice(column, min(column + rule.columns, size))
                values = np.where(zero[..., part], 0.0, found[..., part])
                rule.reach(column, values, np.square(values / diagonal[:, None, part]))
            value = rule(column, np.where(zero[..., column], 0.0, found[..., column]))
            value = np.where(zero[..., column], 0.0, value)
            error = (found[..., column] - value) / diagonal[:, None, column]
            found[..., column:stop] -= error[..., None] * upper[:, None, column, column:stop]
            found[..., column], errors[..., column - start] = value, error
        found[..., stop:] -= errors @ upper[:, start:stop, stop:]
        start = stop
    return found


def factored(covariance: np.ndarray) -> np.ndarray:
    """U of H^-1 = U' U, [groups, d, d]."""
    return np.linalg.cholesky(np.linalg.inv(covariance)).transpose(0, 2, 1)


def _stop(start: int, columns: int) -> int:
    """Where the block from `start` on ends: changes behind it are made when it ends, and what is reached together must
    have all of them.
    """
    if columns <= BLOCK:
        return start + BLOCK // columns * columns
    return min(start + BLOCK, (start // columns + 1) * columns)
