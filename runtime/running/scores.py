"""How near a model's outputs are to another's, output by output and slice by slice, and how right they are.

What is known sample by sample is kept so (`sampled`), for confidence intervals.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from onnx_lathe.runtime.running.closeness import NO_SIGNAL, NOT_FINITE, Closeness, Slices
from onnx_lathe.runtime.running.joins import Join
from onnx_lathe.runtime.running.tasks.base import largest
from onnx_lathe.runtime.running.tasks.samples import Measured, Sums, divided, mean, quotient, right

Outputs = Mapping[str, np.ndarray]


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
        self._close: dict[str, Closeness] = {}
        self._agreeing: dict[str, list[np.ndarray]] = {}
        """Output -> of each sample (answers that are the original's, answers)."""
        self._right: dict[str, list[np.ndarray]] = {}
        """Output -> of each sample (whether its label is first, whether it is among the first five)."""
        self._classes: dict[str, int] = {}
        self._labelled = 0
        self._samples = 0
        self.axes: Mapping[str, int] = {}
        """Of outputs whose axis of samples is not the first."""
        self._largest_label = -1

    def add(
        self,
        outputs: Outputs,
        labels: np.ndarray | None,
        originals: Outputs,
        alone: bool = False,
        count: int = 0,
    ) -> None:
        """`alone`: they are of one sample, which is a call, so that an output [classes] is of that sample. `count`:
        of how many samples they are, if that is known.
        """
        count = 1 if alone else count
        self._samples += count
        if labels is not None:
            self._labelled += len(labels)
            self._largest_label = max(self._largest_label, int(labels.max(initial=-1)))
            for name, output in outputs.items():
                self._add_labels(name, _row(output, alone), labels)
        for name, original in originals.items():
            # of a sequence that is shorter, a tensor of another shape
            output = outputs.get(name, np.zeros((0,) * (original.ndim + 1), original.dtype))
            if is_float(original):
                found = self._close.setdefault(name, self._compared(name))
                axis = 0 if alone else self.axes.get(name, 0)
                found.add(original, output, count if _counts(original, count, alone, axis) else 1, axis)
            self._compare_answers(name, _row(original, alone), _row(output, alone), count)

    def _compared(self, name: str) -> Closeness:
        return Closeness(joins=self._joins.get(name, ()), judged=(self._slices or {}).get(name))

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
        """`top1`, `top5`; `agreement`, `cosine` and `sqnr`, the worst of all outputs and slices, and those of each as
        `agreement[OUTPUT]`, `cosine[OUTPUT]`, `sqnr[OUTPUT]` and `sqnr[OUTPUT][CHANNELS]`.
        """
        return self._accuracy() | self._agreement() | self._sqnr() | self._cosine()

    def _add_labels(self, name: str, output: np.ndarray, labels: np.ndarray) -> None:
        if classifies(output) and len(output) == len(labels):
            self._classes[name] = output.shape[1]
            found = largest(output)
            five = best = found == labels
            if output.shape[1] > 5:
                five = (np.argpartition(-output, 5, axis=1)[:, :5] == labels[:, None]).any(1) & (found >= 0)
        elif np.issubdtype(output.dtype, np.integer) and output.size == len(labels):
            five = best = output.reshape(-1) == labels
        else:
            return
        self._right.setdefault(name, []).append(np.stack([best, five], axis=1))

    def _compare_answers(self, name: str, original: np.ndarray, output: np.ndarray, count: int) -> None:
        if is_float(original) and not classifies(original):
            return
        answers = largest(original) if classifies(original) else original
        same = np.zeros(answers.shape, bool)
        if original.shape == output.shape:
            given = largest(output) if classifies(original) else output
            same = np.asarray(given == answers)
        rows = count if _counts(answers, count) else 1
        found = np.full((rows, 2), answers.size / rows)
        found[:, 0] = same.reshape(rows, -1).sum(1)
        self._agreeing.setdefault(name, []).append(found)

    def labelled(self) -> str | None:
        """The output that the labels belong to: among those with enough classes the one that is right most
        often, or else one that gives a class each.
        """
        fitting = [name for name, classes in self._classes.items() if classes > self._largest_label]
        names = fitting or [name for name in self._right if name not in self._classes]
        return max(
            names, key=lambda name: sum(int(part[:, 0].sum()) for part in self._right[name]), default=None
        )

    def sampled(self) -> dict[str, Measured]:
        """What is known sample by sample of the metrics, by the names that `metrics` gives them; nothing of an output
        in which no axis is that of samples.
        """
        return {
            name: one
            for name, one in (
                self._sampled_accuracy() | self._sampled_agreement() | self._sampled_closeness()
            ).items()
            if one.samples == self._samples
        }

    def _accurate(self) -> str | None:
        name = self.labelled() if self._labelled_output is None else self._labelled_output
        return name if name in self._right and self._labelled else None

    def _accuracy(self) -> dict[str, float]:
        return {name: one.whole() for name, one in self._sampled_accuracy(self._labelled).items()}

    def _sampled_accuracy(self, samples: int = 0) -> dict[str, Sums]:
        if (name := self._accurate()) is None:
            return {}
        first, five = np.concatenate(self._right[name]).T
        if len(first) < samples:  # of some batches it was no answer
            first, five = (np.append(hits, np.zeros(samples - len(hits), bool)) for hits in (first, five))
        return {"top1": right(first)} | ({"top5": right(five)} if self._classes.get(name, 0) > 5 else {})

    def _agreement(self) -> dict[str, float]:
        found = {name: divided(np.concatenate(parts).sum(0)) for name, parts in self._agreeing.items()}
        each = {f"agreement[{name}]": float(value) for name, value in found.items() if not np.isnan(value)}
        return ({"agreement": min(each.values())} if each else {}) | each

    def _sampled_agreement(self) -> dict[str, Sums]:
        parts = {name: np.concatenate(found) for name, found in self._agreeing.items()}
        each = {f"agreement[{name}]": _share(rows) for name, rows in parts.items()}
        return each | _least("agreement", list(each.values()))

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

    def _cosine(self) -> dict[str, float]:
        each = {
            f"cosine[{name}]": float(values.mean())
            for name, one in self._close.items()
            if (values := one.cosines()) is not None
        }
        return ({"cosine": min(each.values())} if each else {}) | each

    def _sampled_closeness(self) -> dict[str, Sums]:
        compared = {name: one for name, one in self._close.items() if one.sqnr() is not None}
        cosines = {
            f"cosine[{name}]": mean(values, reach=0)  # what is equal is so because it computes the same
            for name, one in compared.items()
            if (values := one.cosines()) is not None
        }
        found = cosines | _least("cosine", list(cosines.values()))
        rows = {name: one.ratios() for name, one in compared.items()}
        ratios = {f"sqnr[{name}]": Sums(one, _ratio_db) for name, one in rows.items() if one is not None}
        whole = _least("sqnr", list(ratios.values())) if len(ratios) == len(rows) else {}
        return found | ratios | whole | self._sampled_slices(rows)

    def _sampled_slices(self, rows: Mapping[str, np.ndarray | None]) -> dict[str, Sums]:
        """`rows`: of each output (signal, noise) of the whole and of its slices."""
        found = {}
        for name, slices in (self._slices or {}).items():
            if (known := rows.get(name)) is not None:
                for place, (channels, _) in enumerate(self._close[name].per_slice(slices), 1):
                    found[f"sqnr[{name}][{channels}]"] = Sums(known[:, 2 * place : 2 * place + 2], _ratio_db)
        return found


def _least(name: str, each: Sequence[Sums]) -> dict[str, Sums]:
    """The metric of the worst of several outputs."""
    if not each or len({one.samples for one in each}) > 1:
        return {}
    if len(each) == 1:
        return {name: each[0]}

    def least(totals: np.ndarray) -> np.ndarray:
        parts = np.split(totals, ends, axis=-1)
        return np.min([one.value(part) for one, part in zip(each, parts, strict=True)], axis=0)

    ends = np.cumsum([one.rows.shape[1] for one in each])[:-1]
    reaches = {one.reach for one in each}
    reach = reaches.pop() if len(reaches) == 1 else None
    return {name: Sums(np.concatenate([one.rows for one in each], axis=1), least, reach=reach)}


def _share(rows: np.ndarray) -> Sums:
    """Of answers that are the same; with one per sample, the share of samples."""
    return right(rows[:, 0] > 0) if np.all(rows[:, 1] == 1) else quotient(rows[:, 0], rows[:, 1], reach=1)


def _ratio_db(totals: np.ndarray) -> np.ndarray:
    """Decibels of signal over noise, of the worst of several pairs."""
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.log10(np.maximum(totals[..., ::2], 1e-30)) - np.log10(totals[..., 1::2])
    return 10 * each.min(-1)


def _counts(array: np.ndarray, count: int, alone: bool = False, axis: int = 0) -> bool:
    """Whether the axis is that of samples."""
    return not alone and count > 0 and array.ndim > axis and array.shape[axis] == count


def is_float(array: np.ndarray) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating))


def _row(output: np.ndarray, alone: bool) -> np.ndarray:
    return output[None] if alone and output.ndim == 1 and len(output) > 1 else output


def classifies(output: np.ndarray) -> bool:
    """Whether an output is [samples, classes]."""
    return output.ndim == 2 and output.shape[1] > 1 and is_float(output)
