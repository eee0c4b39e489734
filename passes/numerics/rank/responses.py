"""What a layer answers over calibration data: means and covariances of its responses, streamed, and a
bounded sample of them.

A response is the vector of a layer's output channels at one position, before the activation. Where the
network in front of the layer has changed, two responses belong together: `wanted`, of the original network,
and `found`, of the same layer in the changed one. Source of the merging of means and covariances: Chan,
Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979; of the
sample: Vitter, "Random Sampling with a Reservoir", 1985, in the form that keeps the smallest of random
keys.
"""

from typing import Any

import numpy as np

CHUNK_ROWS = 1 << 14
"""Rows that are in memory as float64 at a time."""
FEW = 4
"""Up to one row in so many channels, the rows are kept as they are: they say less than a covariance would hold."""


KEPT_FITS = 4
"""Ranks whose fit is kept."""


class Responses:
    """Moments of paired responses of `channels` channels, and `sample` of the pairs, each as likely as any
    other.
    """

    def __init__(self, channels: int, sample: int = 0, seed: int = 0) -> None:
        self.count = 0
        self.wanted_mean = np.zeros(channels)
        self.found_mean = np.zeros(channels)
        self._few: list[tuple[np.ndarray, np.ndarray | None]] | None = []
        """All rows, (wanted, found), as long as they are few; None from then on."""
        self._found = np.zeros((0, 0))
        self._cross: np.ndarray | None = None
        self.paired = False
        self.sample = sample
        self._generator = np.random.default_rng(seed)
        self._keys = np.zeros(0)
        self._rows = np.zeros((2, 0, channels), np.float32)
        self.fits: dict[Any, Any] = {}
        """What low_rank.py has fitted to them, KEPT_FITS at most."""

    @staticmethod
    def most_bytes(channels: int, sample: int) -> int:
        """What they take at most, with what is fitted to them."""
        return 8 * channels * (2 * channels + sample + 2 * KEPT_FITS * channels)

    def add(self, wanted: np.ndarray, found: np.ndarray | None = None) -> None:
        """`wanted`, `found`: [rows, channels]. Without `found`, both are the same; all calls have it, or
        none.
        """
        self.paired = self.paired or found is not None
        if not len(wanted):
            return
        self.fits.clear()
        if self._few is not None and self.count + len(wanted) <= len(self.wanted_mean) // FEW:
            self._few.append((wanted.copy(), None if found is None else found.copy()))
            self._step(wanted, found)
        else:
            self._take_moments(wanted, found)
        if self.sample:
            self._draw(wanted, wanted if found is None else found)

    def _take_moments(self, wanted: np.ndarray, found: np.ndarray | None) -> None:
        earlier, self._few = self._few, None
        if earlier is not None:
            channels, self.count = len(self.wanted_mean), 0
            self.wanted_mean, self.found_mean = np.zeros(channels), np.zeros(channels)
            self._found = np.zeros((channels, channels))
            self._cross = np.zeros_like(self._found) if self.paired else None
        for one, other in [*(earlier or []), (wanted, found)]:
            for start in range(0, len(one), CHUNK_ROWS):
                part = slice(start, start + CHUNK_ROWS)
                with np.errstate(invalid="ignore", over="ignore"):  # `is_finite` tells
                    self._merge(
                        one[part].astype(np.float64),
                        None if other is None else other[part].astype(np.float64),
                    )

    def _step(self, wanted: np.ndarray, found: np.ndarray | None) -> None:
        """Moves the means to those with these rows, too."""
        self.count += len(wanted)
        share = len(wanted) / self.count
        means = [rows.mean(axis=0, dtype=np.float64) for rows in (wanted, wanted if found is None else found)]
        with np.errstate(invalid="ignore", over="ignore"):  # `is_finite` tells
            self.wanted_mean = self.wanted_mean + (means[0] - self.wanted_mean) * share
            self.found_mean = self.found_mean + (means[1] - self.found_mean) * share

    def _merge(self, wanted: np.ndarray, found: np.ndarray | None) -> None:
        rows, total = len(wanted), self.count + len(wanted)
        wanted_mean = wanted.mean(axis=0)
        found_mean = wanted_mean if found is None else found.mean(axis=0)
        wanted -= wanted_mean
        wanted_step, found_step = wanted_mean - self.wanted_mean, found_mean - self.found_mean
        apart = self.count * rows / total
        if found is None:
            self._found += wanted.T @ wanted + apart * np.outer(wanted_step, wanted_step)
        else:
            found -= found_mean
            self._found += found.T @ found + apart * np.outer(found_step, found_step)
            self._cross += wanted.T @ found + apart * np.outer(wanted_step, found_step)
        self.wanted_mean = self.wanted_mean + wanted_step * rows / total
        self.found_mean = self.found_mean + found_step * rows / total
        self.count = total

    def _draw(self, wanted: np.ndarray, found: np.ndarray) -> None:
        keys = self._generator.random(len(wanted))
        limit = self._keys.max() if len(self._keys) == self.sample else np.inf
        new = np.flatnonzero(keys < limit)
        if len(new) > self.sample:
            new = new[np.argpartition(keys[new], self.sample - 1)[: self.sample]]
        keys = np.concatenate([self._keys, keys[new]])
        rows = np.concatenate([self._rows, np.stack([wanted[new], found[new]]).astype(np.float32)], axis=1)
        kept = (
            np.argpartition(keys, self.sample - 1)[: self.sample]
            if len(keys) > self.sample
            else np.arange(len(keys))
        )
        self._keys, self._rows = keys[kept], rows[:, kept]

    def deviations(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(wanted, found): all rows about their means and over the root of their number, float64
        [count, channels], whose products are the covariances; None if there are more than one in FEW channels.
        """
        if self._few is None:
            return None
        wanted, found = (
            np.concatenate([np.zeros((0, mean.size)), *rows]) - mean
            for rows, mean in (
                ([one for one, _ in self._few], self.wanted_mean),
                ([one if other is None else other for one, other in self._few], self.found_mean),
            )
        )
        root = np.sqrt(max(self.count, 1))
        return wanted / root, found / root

    @property
    def covariance(self) -> np.ndarray:
        """Covariance of the responses found, [channels, channels], float64."""
        few = self.deviations()
        return self._found / max(self.count, 1) if few is None else few[1].T @ few[1]

    @property
    def cross(self) -> np.ndarray:
        """Covariance of those wanted (rows) with those found (columns), [channels, channels], float64."""
        if not self.paired:
            return self.covariance
        few = self.deviations()
        return few[0].T @ few[1] if few is not None else np.asarray(self._cross) / max(self.count, 1)

    @property
    def sampled(self) -> tuple[np.ndarray, np.ndarray]:
        """Sampled pairs: (wanted, found), each float32 [at most `sample`, channels]."""
        return self._rows[0], self._rows[1]

    def is_finite(self) -> bool:
        if self._few is not None:  # a mean is finite if all of its rows are
            return bool(np.isfinite([self.wanted_mean, self.found_mean]).all())
        return bool(
            np.isfinite(self._found).all() and (self._cross is None or np.isfinite(self._cross).all())
        )

    def spectrum(self) -> np.ndarray:
        """Variance of the responses along their principal directions, descending, [channels]."""
        few = self.deviations()
        among = self.covariance if few is None else few[1] @ few[1].T
        values = np.maximum(np.linalg.eigvalsh(among)[::-1], 0.0)
        return np.pad(values, (0, len(self.found_mean) - values.size))


def errors_by_rank(fitted: Responses, held: Responses, full: int) -> np.ndarray:
    """Relative squared error of `held` along the first 0, 1, ... `full` principal directions of `fitted` about its mean,
    [full + 1]; of `fitted` itself, if nothing is held.
    """
    judge = held if held.count else fitted
    step = judge.found_mean - fitted.found_mean
    moments = judge.covariance + np.outer(step, step)
    directions = np.linalg.eigh(fitted.covariance)[1][:, ::-1][:, :full]
    explained = np.einsum("ij,ij->j", directions, moments @ directions)
    total = float(np.trace(moments))
    if total <= 0:
        return np.zeros(full + 1)
    return np.maximum(1 - np.concatenate([[0.0], np.cumsum(explained)]) / total, 0.0)


def as_rows(values: np.ndarray, axis: int) -> np.ndarray:
    """A tensor as [positions, channels], `axis` being that of the channels."""
    moved = np.moveaxis(values, axis, -1)
    return moved.reshape(-1, moved.shape[-1])
