"""How near one float output is to the original's: over all of it, slice by slice, and sample by sample.

An output may join values of different ranges along its channels (runtime/running/joins.py): boxes of 0 to 640
beside scores of 0 to 1. As one signal, the large values hide what became of the small ones. Such an output is
judged per slice: the parts whose largest magnitudes lie together, apart from the others by a factor of `APART`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_lathe.runtime.running.joins import Join

APART = 16.0
"""Parts whose peaks differ by this factor, with none between, hold values of different kinds."""
MOST_RUNS = 4
"""A slice of more runs of channels is named by the first."""

NOT_FINITE = "it is not finite where the original is"
NO_SIGNAL = "the original's holds zeros, or nothing finite, on all of this data"


@dataclass(frozen=True)
class Slices:
    """Channels of one output by the range of their values: `groups` of indices along `axis`."""

    axis: int
    groups: Sequence[np.ndarray]


@dataclass
class _Sums:
    """Energies along one axis, [channels] each."""

    signal: np.ndarray
    noise: np.ndarray
    peak: np.ndarray


@dataclass
class Closeness:
    """What is known of one float output."""

    signal: float = 0.0
    noise: float = 0.0
    compared: bool = False
    reason: str = ""
    """Why it cannot be compared, if it cannot."""
    joins: Sequence[Join] = ()
    judged: Slices | None = None
    """The slices that are judged, where they are known before the values are."""
    axes: dict[int, _Sums] = field(default_factory=dict)
    samples: list[np.ndarray] = field(default_factory=list)
    """Of each sample: energies of the original, of the difference, of the output, and what the first and last share;
    then the first two of each slice.
    """

    def add(self, original: np.ndarray, output: np.ndarray, rows: int = 1, axis: int = 0) -> None:
        """`rows`: how many samples the axis counts; 1 if it counts none, and all is of one."""
        if original.shape != output.shape:
            self.reason = f"its shape depends on its values ({list(original.shape)} and {list(output.shape)})"
            return
        known = np.isfinite(original)
        base = np.where(known, original, 0).astype(np.float64)
        with np.errstate(invalid="ignore"):
            same = known | (original == output) | (np.isnan(original) & np.isnan(output))
            error = np.where(known, output.astype(np.float64) - base, np.where(same, 0.0, np.inf))
        signal, noise = np.square(base), np.square(error)
        self.compared = True
        self.signal += float(signal.sum())
        self.noise += float(noise.sum())
        with np.errstate(invalid="ignore", over="ignore"):
            given = np.where(known, output, 0).astype(np.float64)
            energies = (signal, noise, np.square(given), base * given)
            parts = self._parts(signal, noise, None if rows == 1 else axis)
            self.samples.append(np.stack([_each(part, rows, axis) for part in (*energies, *parts)], axis=1))
        self._add_axes(np.abs(base), signal, noise)

    def _parts(self, signal: np.ndarray, noise: np.ndarray, axis: int | None) -> Iterator[np.ndarray]:
        """Signal and noise of each slice; nothing where they lie along the axis of samples, or have other channels."""
        slices = self.judged
        if slices is None or slices.axis == axis or slices.axis >= signal.ndim:
            return
        if max(int(group.max()) for group in slices.groups) < signal.shape[slices.axis]:
            for group in slices.groups:
                yield from (np.take(energy, group, slices.axis) for energy in (signal, noise))

    def ratios(self) -> np.ndarray | None:
        """(signal, noise) of the whole and of each slice, [samples, 2 or more]; None if a slice is not known so."""
        widths = {sample.shape[1] for sample in self.samples}
        slices = () if self.judged is None else self.judged.groups
        if widths != {4 + 2 * len(slices)}:
            return None
        rows = np.concatenate(self.samples)
        return np.concatenate([rows[:, :2], rows[:, 4:]], axis=1)

    def _add_axes(self, magnitude: np.ndarray, signal: np.ndarray, noise: np.ndarray) -> None:
        for axis, channels in {join.axis: sum(join.sizes) for join in self.joins}.items():
            if axis >= signal.ndim or signal.shape[axis] != channels or not signal.size:
                continue
            others = tuple(index for index in range(signal.ndim) if index != axis)
            known = self.axes.setdefault(axis, _Sums(*np.zeros((3, channels))))
            known.signal += signal.sum(others)
            known.noise += noise.sum(others)
            known.peak = np.maximum(known.peak, magnitude.max(others))

    def slices(self) -> Slices | None:
        """The slices of this output by what it holds; None if it is of one kind."""
        best: tuple[float, Slices] | None = None
        for join in self.joins:
            if join.axis in self.axes:
                groups, gap = _groups(self.axes[join.axis].peak, join.sizes)
                if len(groups) > 1 and (best is None or gap > best[0]):
                    best = gap, Slices(join.axis, groups)
        return best[1] if best else None

    def sqnr(self) -> float | None:
        return decibels(self.signal, self.noise) if self.compared and not self.reason else None

    def cosines(self) -> np.ndarray | None:
        """Of the angle between each sample's output and the original's, [samples]: 1 where both are zero. None where
        they cannot be compared.
        """
        if self.sqnr() is None:
            return None
        before, _, after, shared = np.concatenate([sample[:, :4] for sample in self.samples]).T
        lengths = np.sqrt(before) * np.sqrt(after)
        some = lengths > 0
        return np.where(some, shared / np.where(some, lengths, 1), before == after)

    def per_slice(self, slices: Slices) -> Iterator[tuple[str, float | None]]:
        sums = self.axes.get(slices.axis)
        for group in slices.groups:
            if sums is not None and self.compared and not self.reason:
                yield _runs(group), decibels(float(sums.signal[group].sum()), float(sums.noise[group].sum()))


def _each(energy: np.ndarray, rows: int, axis: int) -> np.ndarray:
    """Of each of `rows` samples along the axis, or of the whole."""
    first = energy if rows == 1 else np.moveaxis(energy, axis, 0)
    return first.reshape(rows, -1).sum(1)


def decibels(signal: float, noise: float) -> float | None:
    """None if the noise is not finite, or if neither has any energy; infinite without noise. Noise where there
    should be zeros alone counts as beside the least signal.
    """
    if noise == 0:
        return float("inf") if signal else None
    if not np.isfinite(noise):
        return None
    return 10 * float(np.log10(max(signal, 1e-30)) - np.log10(noise))


def _groups(peak: np.ndarray, sizes: Sequence[int]) -> tuple[list[np.ndarray], float]:
    """(channels of the parts whose peaks are of one order of magnitude, the largest gap as a factor)."""
    parts = np.split(np.arange(len(peak)), np.cumsum(sizes)[:-1])
    peaks = np.array([peak[part].max(initial=0) for part in parts])
    order = np.argsort(peaks, kind="stable")
    order = order[peaks[order] > 0]
    if len(order) < 2:
        return [], 1.0
    ratio = peaks[order[1:]] / peaks[order[:-1]]
    cuts = np.flatnonzero(ratio >= APART) + 1
    groups = [np.sort(np.concatenate([parts[index] for index in group])) for group in np.split(order, cuts)]
    return sorted(groups, key=lambda group: int(group[0])), float(ratio.max())


def _runs(channels: np.ndarray) -> str:
    """0-3,5-14 for channels 0 to 3 and 5 to 14."""
    pieces = np.split(channels, np.flatnonzero(np.diff(channels) > 1) + 1)
    shown = [f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in pieces[:MOST_RUNS]]
    more = sum(len(part) for part in pieces[MOST_RUNS:])
    return ",".join(shown) + (f" and {more} more" if more else "")
