"""Shared values chosen by what a layer answers: each weight, one input after the other, takes the value that makes up
best for what all others have changed so far, and shared values move to where the responses' error is least.

    cost = tr(D C D') + price * bits of all codes,   D = shared values - W,   C = second moments of the inputs

Coordinate descent: with all other weights of its row fixed, a weight's best real value is its own minus the gradient
over C[j, j]; of the shared values the one is taken that is nearest to it, or cheapest with its code. Every step lowers
the cost. The shared values that are best for given codes solve a linear system, K x K, to which a few steps of
conjugate gradients come near enough. Code lengths follow the counts.
Source: Frantar et al., "GPTQ", ICLR 2023, section 3.3 (columns in blocks); descent in place of their single sweep: Behdin
et al., "QuantEase", 2023; price on codes: Chou, Lookabaugh and Gray, "Entropy-Constrained Vector Quantization", 1989.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.numerics.clustering.mantissa import round_mantissa
from onnx_lathe.passes.numerics.second_order.moments import response_energy

ROUNDS = 8
STABLE = 1e-3
"""Relative fall of the cost below which a round is the last."""
BLOCK = 64
"""Inputs whose changes reach the others at once."""
CONJUGATE_STEPS = 4


@dataclass(frozen=True)
class Task:
    """A weight in groups, [groups, rows, d], the moments of its inputs [groups, d, d], and the table of shared values
    that each row has [groups, rows]. `zeros`: weights that must stay 0, while no other becomes 0; [groups, rows, d].
    `price`: of one bit, in units of the error.
    """

    weight: np.ndarray
    moments: np.ndarray
    table: np.ndarray
    price: float = 0.0
    zeros: np.ndarray | None = None
    mantissa: int | None = None


@dataclass(frozen=True)
class Found:
    """Tables of ascending shared values, float32, and each weight's place in its row's table, uint8 [groups, rows,
    d]; every value is used.
    """

    tables: Sequence[np.ndarray]
    indices: np.ndarray


def compensate(task: Task, tables: Sequence[np.ndarray], indices: np.ndarray) -> Found:
    """From shared values and places that are a start: `tables` of at most 256 values, uint8 `indices` [groups, rows,
    d]. Costs no more than the start does with its values rounded to the bits of mantissa asked for.
    """
    state = _State(task, tables, indices)
    best, least = state.copy(), state.cost()
    for _ in range(ROUNDS):
        state.sweep()
        state.refit()
        cost = state.cost()
        if cost >= least * (1 - STABLE):
            if cost < least:
                best = state.copy()
            break
        best, least = state.copy(), cost
    return state.found(*best)


class _State:
    """Values [tables, K], padded, and places that are being improved."""

    def __init__(self, task: Task, tables: Sequence[np.ndarray], indices: np.ndarray) -> None:
        self.task = task
        self.weight = task.weight.astype(np.float32)
        self.moments = task.moments.astype(np.float32)
        self.diagonal = np.ascontiguousarray(np.einsum("gii->gi", self.moments))
        size = max(len(one) for one in tables)
        self.values = np.zeros((len(tables), size))
        self.there = np.zeros(self.values.shape, np.bool_)
        for number, one in enumerate(tables):
            self.values[number, : len(one)] = round_mantissa(one, task.mantissa)
            self.there[number, : len(one)] = True
        self.fixed = np.zeros(self.values.shape, np.bool_)
        if task.zeros is not None:
            self.fixed = self.there & (self.values == 0)
        self.indices = indices.astype(np.intp)

    def copy(self) -> tuple[np.ndarray, np.ndarray]:
        return self.values.copy(), self.indices.astype(np.uint8)

    def cost(self) -> float:
        counts, prices = self._prices()
        change = self._shared() - self.weight
        bits = float(prices[counts > 0] @ counts[counts > 0])
        return response_energy(change.astype(np.float64), self.task.moments) + bits

    def _shared(self) -> np.ndarray:
        """What each weight is now, float32."""
        return self.values.astype(np.float32)[self.task.table[..., None], self.indices]

    def _summed(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Sums over the weights that share each value, or how many they are; [tables, K]."""
        place = (self.task.table[..., None] * self.values.shape[1] + self.indices).reshape(-1)
        flat = None if weights is None else weights.reshape(-1)
        summed = np.bincount(place, flat, minlength=self.values.size)
        return summed.reshape(self.values.shape)

    def _prices(self) -> tuple[np.ndarray, np.ndarray]:
        """(weights that share each value, price of its code); those that stay zero have no code of their own."""
        counts = np.where(self.fixed, 0, self._summed())
        totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
        with np.errstate(divide="ignore"):
            lengths = np.where(counts > 0, np.log2(totals / np.maximum(counts, 1)), np.inf)
        prices = self.task.price * lengths if self.task.price else np.zeros(lengths.shape)
        prices[~self.there | self.fixed] = np.inf
        return counts, prices

    def sweep(self) -> None:
        """Each weight takes its best value, input after input."""
        _, prices = self._prices()
        values = self.values.astype(np.float32)[self.task.table]
        price = prices.astype(np.float32)[self.task.table]
        shared, size = self._shared(), self.weight.shape[2]
        gradient = np.matmul(shared - self.weight, self.moments)
        for start in range(0, size, BLOCK):
            stop = min(start + BLOCK, size)
            changes = np.zeros((*self.weight.shape[:2], stop - start), np.float32)
            for place in range(start, stop):
                curve = self.diagonal[:, place, None]
                target = shared[:, :, place] - gradient[:, :, place] / curve
                cost = curve[..., None] * np.square(target[..., None] - values) + price
                chosen = cost.argmin(axis=2)
                if self.task.zeros is not None:
                    chosen = np.where(self.task.zeros[:, :, place], self.indices[:, :, place], chosen)
                value = np.take_along_axis(values, chosen[..., None], 2)[..., 0]
                change = value - shared[:, :, place]
                shared[:, :, place], self.indices[:, :, place] = value, chosen
                changes[:, :, place - start] = change
                if place + 1 < stop:
                    gradient[:, :, place + 1 : stop] += (
                        change[..., None] * self.moments[:, None, place, place + 1 : stop]
                    )
            if stop < size:
                gradient[:, :, stop:] += np.matmul(changes, self.moments[:, start:stop, stop:])

    def refit(self) -> None:
        """Moves the shared values towards where the error is least for these places."""
        counts = self._summed()
        free = (counts > 0) & ~self.fixed
        scale = self._summed(np.broadcast_to(self.diagonal[:, None], self.weight.shape))
        scale = np.where(free, scale, 1.0)
        residual = np.where(free, -self._gradient(self._shared() - self.weight), 0.0)
        direction = residual / scale
        size = float((residual * direction).sum())
        for _ in range(CONJUGATE_STEPS):
            if size <= 0:
                break
            spread = direction.astype(np.float32)[self.task.table[..., None], self.indices]
            image = np.where(free, self._gradient(spread), 0.0)
            curvature = float((direction * image).sum())
            if curvature <= 0:
                break
            step = size / curvature
            self.values += step * direction
            residual -= step * image
            conditioned = residual / scale
            new = float((residual * conditioned).sum())
            direction = conditioned + new / size * direction
            size = new
        if self.task.mantissa is not None:
            rounded = round_mantissa(self.values.astype(np.float32), self.task.mantissa)
            self.values = rounded.astype(np.float64)

    def _gradient(self, change: np.ndarray) -> np.ndarray:
        """Of half the error, by each shared value, if the weights change so."""
        return self._summed(np.matmul(change, self.moments).astype(np.float64))

    def found(self, values: np.ndarray, indices: np.ndarray) -> Found:
        """These values and places, in order and without values that nothing uses."""
        tables, places = [], np.zeros(indices.shape, np.uint8)
        for number, row in enumerate(values):
            mine = self.task.table == number
            used = np.unique(indices[mine])
            table, order = np.unique(row[used].astype(np.float32), return_inverse=True)
            renumbered = np.zeros(256, np.uint8)
            renumbered[used] = order
            places[mine] = renumbered[indices[mine]]
            tables.append(table)
        return Found(tables, places)
