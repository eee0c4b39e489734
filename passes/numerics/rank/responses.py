"""What a layer answers over calibration data: means and covariances of its responses, streamed, and a
bounded sample of them.

A response is the vector of a layer's output channels at one position, before the activation. Where the
network in front of the layer has changed, two responses belong together: `wanted`, of the original network,
and `found`, of the same layer in the changed one. Source of the merging of means and covariances: Chan,
Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979; of the
sample: Vitter, "Random Sampling with a Reservoir", 1985, in the form that keeps the smallest of random
keys.
"""

import numpy as np

CHUNK_ROWS = 1 << 14
"""Rows that are in memory as float64 at a time."""


class Responses:
    """Moments of paired responses of `channels` channels, and `sample` of the pairs, each as likely as any
    other.
    """

    def __init__(self, channels: int, sample: int = 0, seed: int = 0) -> None:
        self.count = 0
        self.wanted_mean = np.zeros(channels)
        self.found_mean = np.zeros(channels)
        self._found = np.zeros((channels, channels))
        self._cross: np.ndarray | None = None
        self.paired = False
        self.sample = sample
        self._generator = np.random.default_rng(seed)
        self._keys = np.zeros(0)
        self._rows = np.zeros((2, 0, channels), np.float32)

    def add(self, wanted: np.ndarray, found: np.ndarray | None = None) -> None:
        """`wanted`, `found`: [rows, channels]. Without `found`, both are the same; all calls have it, or
        none.
        """
        if found is not None and self._cross is None:
            self._cross, self.paired = np.zeros_like(self._found), True
        for start in range(0, len(wanted), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            with np.errstate(invalid="ignore", over="ignore"):  # `is_finite` tells
                self._merge(
                    wanted[part].astype(np.float64), None if found is None else found[part].astype(np.float64)
                )
        if self.sample:
            self._draw(wanted, wanted if found is None else found)

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

    @property
    def covariance(self) -> np.ndarray:
        """Covariance of the responses found, [channels, channels], float64."""
        return self._found / max(self.count, 1)

    @property
    def cross(self) -> np.ndarray:
        """Covariance of those wanted (rows) with those found (columns), [channels, channels], float64."""
        return self.covariance if self._cross is None else self._cross / max(self.count, 1)

    @property
    def sampled(self) -> tuple[np.ndarray, np.ndarray]:
        """Sampled pairs: (wanted, found), each float32 [at most `sample`, channels]."""
        return self._rows[0], self._rows[1]

    def is_finite(self) -> bool:
        return bool(
            np.isfinite(self._found).all() and (self._cross is None or np.isfinite(self._cross).all())
        )

    def spectrum(self) -> np.ndarray:
        """Variance of the responses along their principal directions, descending, [channels]."""
        return np.maximum(np.linalg.eigvalsh(self.covariance)[::-1], 0.0)


def as_rows(values: np.ndarray, axis: int) -> np.ndarray:
    """A tensor as [positions, channels], `axis` being that of the channels."""
    moved = np.moveaxis(values, axis, -1)
    return moved.reshape(-1, moved.shape[-1])
