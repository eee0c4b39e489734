"""How near a model's outputs are to another's, output by output and slice by slice, and how right they are.

An output may join values of different ranges along its channels (runtime/running/joins.py): boxes of 0 to 640
beside scores of 0 to 1. As one signal, the large values hide what became of the small ones. Such an output is
judged per slice: the parts whose largest magnitudes lie together, apart from the others by a factor of `APART`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from onnx_lathe.runtime.running.joins import Join

APART = 16.0
"""Parts whose peaks differ by this factor, with none between, hold values of different kinds."""
MOST_RUNS = 4
"""A slice of more runs of channels is named by the first."""

NOT_FINITE = "it is not finite where the original is"
NO_SIGNAL = "the original's holds zeros, or nothing finite, on all of this data"

Outputs = Mapping[str, np.ndarray]


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
class _Closeness:
    """What is known of one float output."""

    signal: float = 0.0
    noise: float = 0.0
    compared: bool = False
    reason: str = ""
    """Why it cannot be compared, if it cannot."""
    joins: Sequence[Join] = ()
    axes: dict[int, _Sums] = field(default_factory=dict)

    def add(self, original: np.ndarray, output: np.ndarray) -> None:
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
        self._add_axes(np.abs(base), signal, noise)

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
        return _decibels(self.signal, self.noise) if self.compared and not self.reason else None

    def per_slice(self, slices: Slices) -> Iterator[tuple[str, float | None]]:
        sums = self.axes.get(slices.axis)
        for group in slices.groups:
            if sums is not None and self.compared and not self.reason:
                yield _runs(group), _decibels(float(sums.signal[group].sum()), float(sums.noise[group].sum()))


class Scores:
    """Sums over batches; `metrics` at the end. `joins`: those of the original; `slices`: what is to be judged
    by itself, and `labelled` the output that labels belong to, if that is known from the original's values.
    """

    def __init__(
        self,
        joins: Mapping[str, Sequence[Join]] = MappingProxyType({}),
        slices: Mapping[str, Slices] | None = None,
        labelled: str | None = None,
    ) -> None:
        self._joins, self._slices, self._labelled_output = joins, slices, labelled
        self._close: dict[str, _Closeness] = {}
        self._agreeing: dict[str, tuple[int, int]] = {}
        """Output -> (answers that are the original's, answers)."""
        self._right: dict[str, np.ndarray] = {}
        """Output -> samples whose label is first, samples whose label is among the first five."""
        self._classes: dict[str, int] = {}
        self._labelled = 0
        self._largest_label = -1

    def add(
        self, outputs: Outputs, labels: np.ndarray | None, originals: Outputs, alone: bool = False
    ) -> None:
        """`alone`: they are of one sample, which is a call, so that an output [classes] is of that sample."""
        if labels is not None:
            self._labelled += len(labels)
            self._largest_label = max(self._largest_label, int(labels.max(initial=-1)))
            for name, output in outputs.items():
                self._add_labels(name, _row(output, alone), labels)
        for name, original in originals.items():
            # of a sequence that is shorter, a tensor of another shape
            output = outputs.get(name, np.zeros((0,) * (original.ndim + 1), original.dtype))
            if is_float(original):
                found = self._close.setdefault(name, _Closeness(joins=self._joins.get(name, ())))
                found.add(original, output)
            self._compare_answers(name, _row(original, alone), _row(output, alone))

    def slices(self) -> dict[str, Slices]:
        """The outputs that join ranges, by their values here."""
        found = {name: one.slices() for name, one in self._close.items()}
        return {name: slices for name, slices in found.items() if slices is not None}

    def reasons(self) -> dict[str, str]:
        """Float outputs that could not be compared -> why."""
        return {
            name: one.reason or (NOT_FINITE if one.signal else NO_SIGNAL)
            for name, one in self._close.items()
            if one.sqnr() is None
        }

    def metrics(self) -> dict[str, float]:
        """`top1`, `top5`; `agreement` and `sqnr`, the worst of all outputs and slices, and those of each as
        `agreement[OUTPUT]`, `sqnr[OUTPUT]` and `sqnr[OUTPUT][CHANNELS]`.
        """
        return self._accuracy() | self._agreement() | self._sqnr()

    def _add_labels(self, name: str, output: np.ndarray, labels: np.ndarray) -> None:
        if classifies(output) and len(output) == len(labels):
            self._classes[name] = output.shape[1]
            best = output.argmax(1) == labels
            five = best
            if output.shape[1] > 5:
                five = (np.argpartition(-output, 5, axis=1)[:, :5] == labels[:, None]).any(1)
        elif np.issubdtype(output.dtype, np.integer) and output.size == len(labels):
            five = best = output.reshape(-1) == labels
        else:
            return
        found = np.array([int(best.sum()), int(five.sum())])
        self._right[name] = self._right.get(name, 0) + found

    def _compare_answers(self, name: str, original: np.ndarray, output: np.ndarray) -> None:
        if is_float(original) and not classifies(original):
            return
        agreeing, count = self._agreeing.get(name, (0, 0))
        answers = original.argmax(1) if classifies(original) else original
        same = 0
        if original.shape == output.shape:
            given = output.argmax(1) if classifies(original) else output
            same = int(np.sum(given == answers))
        self._agreeing[name] = agreeing + same, count + answers.size

    def labelled(self) -> str | None:
        """The output that the labels belong to: among those with enough classes the one that is right most
        often, or else one that gives a class each.
        """
        fitting = [name for name, classes in self._classes.items() if classes > self._largest_label]
        names = fitting or [name for name in self._right if name not in self._classes]
        return max(names, key=lambda name: int(self._right[name][0]), default=None)

    def _accuracy(self) -> dict[str, float]:
        name = self.labelled() if self._labelled_output is None else self._labelled_output
        if name not in self._right or not self._labelled:
            return {}
        top1, top5 = self._right[name] / self._labelled
        return {"top1": float(top1)} | ({"top5": float(top5)} if self._classes.get(name, 0) > 5 else {})

    def _agreement(self) -> dict[str, float]:
        found = {name: same / count for name, (same, count) in self._agreeing.items() if count}
        each = {f"agreement[{name}]": value for name, value in found.items()}
        return ({"agreement": min(found.values())} if found else {}) | each

    def _sqnr(self) -> dict[str, float]:
        found: dict[str, float] = {}
        slices = self.slices() if self._slices is None else self._slices
        for name, one in self._close.items():
            if (whole := one.sqnr()) is None:
                continue
            parts = {} if name not in slices else dict(one.per_slice(slices[name]))
            known = {channels: value for channels, value in parts.items() if value is not None}
            found[f"sqnr[{name}]"] = min([whole, *known.values()])
            found |= {f"sqnr[{name}][{channels}]": value for channels, value in known.items()}
        return ({"sqnr": min(found.values())} if found else {}) | found


def is_float(array: np.ndarray) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating))


def _row(output: np.ndarray, alone: bool) -> np.ndarray:
    return output[None] if alone and output.ndim == 1 and len(output) > 1 else output


def classifies(output: np.ndarray) -> bool:
    """Whether an output is [samples, classes]."""
    return output.ndim == 2 and output.shape[1] > 1 and is_float(output)


def _decibels(signal: float, noise: float) -> float | None:
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
