"""Inputs that are taken out of layers one after another, those first whose part the others can best stand in for.

    take out the inputs c of least    sum over layers of  tr(W_c (H^-1_cc)^-1 W_c') / E
    and in each layer                 W -= W_c (H^-1_cc)^-1 H^-1_c:        H^-1 -= H^-1_:c (H^-1_cc)^-1 H^-1_c:

H: second moments of a layer's inputs, E: energy of its answers. H^-1 is not written again each time: what it loses is L L',
a Cholesky factorization whose next columns are chosen as it goes.
Sources: Hassibi and Stork, "Optimal Brain Surgeon", 1992; Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022,
section 4, for blocks of weights; the score over all rows of a column: Kurtic et al., "ZipLM", NeurIPS 2023, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.numerics.second_order.moments import response_energy

LEAST = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Reader:
    """A layer, or a group of a convolution: weight [r, d], float64, and second moments of its inputs [d, d], positive
    definite. `units`, int [d]: which unit each input goes with, -1 for one that stays. `judging` [d, d] and `energy`:
    the moments that errors are told by, and what they are told as a share of.
    """

    weight: np.ndarray
    covariance: np.ndarray
    judging: np.ndarray
    energy: float
    units: np.ndarray


class _Blocks:
    """Units that have as many inputs of a reader: `inputs`, int [n, b], and of H^-1 what is left there, [n, b, b]."""

    def __init__(self, units: np.ndarray, inputs: np.ndarray, inverse: np.ndarray) -> None:
        self.units, self.inputs = units, inputs
        self.left = inverse[inputs[:, :, None], inputs[:, None, :]]

    def scores(self, weight: np.ndarray) -> np.ndarray:
        """tr(W_c (H^-1_cc)^-1 W_c') of each unit; nonsense of those that are out."""
        if self.inputs.shape[1] == 1:
            inputs = self.inputs[:, 0]
            found: np.ndarray = np.square(weight).sum(axis=0)[inputs] / np.maximum(self.left[:, 0, 0], LEAST)
            return found
        rows = weight[:, self.inputs].transpose(1, 0, 2)
        return np.einsum("nrb,nbr->n", rows, np.linalg.solve(self.left, rows.transpose(0, 2, 1)))

    def lower(self, factor: np.ndarray, gone: int) -> None:
        """`factor`: what L has got, [d, b]. Of units that are out the identity stands, which can be solved with."""
        mine = factor[self.inputs]
        self.left -= mine @ mine.transpose(0, 2, 1)
        self.left[self.units == gone] = np.eye(self.inputs.shape[1])


class _Elimination:
    """Of one reader, while units go."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.weight = reader.weight.copy()
        self.inverse = np.linalg.inv(reader.covariance)
        self.factor = np.zeros((len(reader.units), int((reader.units >= 0).sum())))
        self.width = 0
        self.inputs: dict[int, np.ndarray] = {}
        order = np.argsort(reader.units, kind="stable")
        units, starts = np.unique(reader.units[order], return_index=True)
        for unit, places in zip(units.tolist(), np.split(order, starts[1:]), strict=True):
            if unit >= 0:
                self.inputs[unit] = places
        sizes = np.array([places.size for places in self.inputs.values()])
        known = np.array(list(self.inputs))
        self.blocks = [
            _Blocks(
                known[sizes == size],
                np.stack([self.inputs[unit] for unit in known[sizes == size].tolist()]),
                self.inverse,
            )
            for size in np.unique(sizes)
        ]

    def add_scores(self, scores: np.ndarray) -> None:
        """Of every unit, as shares of the energy, to `scores` [units]."""
        for block in self.blocks:
            with np.errstate(over="ignore"):  # of next to no energy; `eliminate` knows infinite scores
                found = block.scores(self.weight) / max(self.reader.energy, LEAST)
            np.add.at(scores, block.units, found)

    def remove(self, unit: int) -> None:
        places = self.inputs.get(unit)
        if places is None:
            return
        known = self.factor[:, : self.width]
        column = self.inverse[:, places] - known @ known[places].T
        root = np.linalg.cholesky(column[places])
        new = np.linalg.solve(root, column.T).T
        self.factor[:, self.width : self.width + places.size] = new
        self.width += places.size
        self.weight -= np.linalg.solve(root, self.weight[:, places].T).T @ new.T
        self.weight[:, places] = 0.0
        for block in self.blocks:
            block.lower(new, unit)

    def loss(self) -> float:
        change = (self.weight - self.reader.weight)[None]
        return response_energy(change, self.reader.judging[None]) / max(self.reader.energy, LEAST)


def eliminate(
    readers: Sequence[Reader], widths: np.ndarray, stops: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """(units in the order in which they go, int [n]; what the readers lose when so many as each of `stops` are out, float64
    [stops], their errors as shares of their energies, added up). `widths`: of each unit 0..n-1, by which its score is
    divided. After the last stop the order is that of the scores as they are then.
    """
    running = [_Elimination(reader) for reader in readers]
    losses, order = np.zeros(len(stops)), np.zeros(widths.size, np.int64)
    out = np.zeros(widths.size, bool)
    for count in range(max(stops, default=0) + 1):
        for place in np.flatnonzero(np.asarray(stops) == count):
            losses[place] = sum(one.loss() for one in running) if count else 0.0
        scores = np.zeros(widths.size)
        for one in running:
            one.add_scores(scores)
        left = np.flatnonzero(~out)
        scores = (scores / np.maximum(widths, 1))[left]
        if count == max(stops, default=0):
            order[count:] = left[np.argsort(scores, kind="stable")]
            break
        order[count] = left[np.argmin(scores)]
        out[order[count]] = True
        for one in running:
            one.remove(int(order[count]))
    return order, np.maximum.accumulate(losses)
