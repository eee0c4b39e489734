"""What every kind of data is to the rest: a source of batches, and the ways to divide one."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from onnx_lathe.errors import DataError
from onnx_lathe.runtime.data.preprocess import is_float, is_integer
from onnx_lathe.runtime.files.signature import InputSpec

CALIBRATION_SAMPLES = 512
EVALUATION_SHARE = 0.2
LEAST_SAMPLES = 5

_CHUNK = 1024


@dataclass(frozen=True)
class Place:
    """Where one worker's samples stand in a batch that several share: `mine` samples, from number `first`
    of `total` on.
    """

    first: int
    mine: int
    total: int
    workers: int


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs of `count` samples by name, each [n, ...] and ready to feed; labels int64 [n], or None.

    `place` is set where the batch is one worker's part of a larger one. A worker for which no sample is
    left gets one that does not count, so that all workers take the same number of steps.

    `per_call`: each sample is a call of its own, [n, *the input's whole shape]; see runtime/data/fitting.py.
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray | None = None
    place: Place | None = None
    per_call: bool = False
    truth: Sequence[Any] | None = None
    """Labels of any form, one per sample, where they are asked for (runtime/data/truth.py)."""

    @property
    def count(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def mine(self) -> int:
        """Samples that count: all, or none."""
        return self.count if self.place is None else self.place.mine

    @property
    def total(self) -> int:
        """Samples that all workers have of this batch."""
        return self.count if self.place is None else self.place.total

    @property
    def weight(self) -> float:
        """What a mean over these samples is multiplied by, so that its mean over all workers is the mean
        over all samples.
        """
        return 1.0 if self.place is None else self.place.workers * self.place.mine / self.place.total

    def __getitem__(self, rows: slice) -> "Batch":
        inputs = {name: array[rows] for name, array in self.inputs.items()}
        labels = None if self.labels is None else self.labels[rows]
        truth = None if self.truth is None else self.truth[rows]
        return Batch(inputs, labels, per_call=self.per_call, truth=truth)

    def call(self, row: int) -> dict[str, np.ndarray]:
        """Of a batch that is `per_call`, what one sample feeds."""
        return {name: np.asarray(array[row]) for name, array in self.inputs.items()}


class DataSource(ABC):
    """Batches that can be read again and again.

    `count`: samples, None if unknown. `fingerprint`: changes with the data or its preprocessing.
    `description`: a phrase for the report. `notes`: sentences for it, such as the order of classes; `warnings`:
    what the user should know before trusting the figures.
    """

    labelled: bool
    count: int | None
    fingerprint: str
    description: str
    class_names: Sequence[str] = ()
    """Names of the classes by index, where the data has names for them."""
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()

    @property
    def total(self) -> int | None:
        """Samples of all workers."""
        return self.count

    @abstractmethod
    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        """Batches of `size` samples, the last one perhaps shorter. One seed gives one order; without a
        seed, the source's own order.

        Raises DataError when data turns out to be broken.
        """


class IndexedSource(DataSource):
    """Data whose samples can be read in any order, so that it can be shuffled exactly and split."""

    count: int

    @abstractmethod
    def read(self, rows: np.ndarray) -> Batch:
        """The samples with these numbers, int64 [n], in this order."""

    @abstractmethod
    def identities(self, rows: np.ndarray) -> np.ndarray:
        """uint64 [n], equal for equal samples: a hash of the content, or of the file's place."""

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """What these samples are numbered, from 0, in the file or folder that they come from."""
        return rows

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        return map(self.read, self.row_batches(size, shuffle_seed))

    def row_batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[np.ndarray]:
        """The numbers of the samples of each batch."""
        order = np.arange(self.count)
        if shuffle_seed is not None:
            np.random.default_rng(shuffle_seed).shuffle(order)
        for start in range(0, self.count, size):
            yield order[start : start + size]


class Subset(IndexedSource):
    """Some samples of another source, in the order of `rows`."""

    def __init__(self, whole: IndexedSource, rows: np.ndarray) -> None:
        self.whole, self.rows = whole, rows
        self.labelled, self.count = whole.labelled, len(rows)
        self.fingerprint = fingerprint(whole.fingerprint.encode(), rows.astype("<i8").tobytes())
        self.description = f"{len(rows):,} of {whole.description}"

    def read(self, rows: np.ndarray) -> Batch:
        return self.whole.read(self.rows[rows])

    def identities(self, rows: np.ndarray) -> np.ndarray:
        return self.whole.identities(self.rows[rows])

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        return self.whole.numbers(self.rows[rows])


class First(DataSource):
    """The first samples of a source that can only be read from the beginning."""

    def __init__(self, whole: DataSource, limit: int) -> None:
        self.whole, self.limit = whole, limit
        self.labelled, self.count = whole.labelled, None
        self.fingerprint = fingerprint(whole.fingerprint.encode(), str(limit).encode())
        self.description = f"at most {limit:,} of {whole.description}"

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        left = self.limit
        for batch in self.whole.batches(size, shuffle_seed):
            yield batch[:left]
            left -= batch.count
            if left <= 0:
                return


class Share(DataSource):
    """One worker's part: its batches of B are the `rank`-th part of each batch of `workers` * B of the
    whole, which is divided evenly.

    Data that does not know its count might end sooner in one process than in another; for such data all
    workers call `alike` before each batch, with the number of its samples or 0 at the end, and it returns
    whether they all gave the same number.
    """

    def __init__(self, whole: DataSource, rank: int, workers: int, alike: Callable[[int], bool]) -> None:
        self.whole, self.rank, self.workers, self.alike = whole, rank, workers, alike
        self.labelled = whole.labelled
        self.count = None if whole.count is None else -(-whole.count // workers)
        self.fingerprint = fingerprint(whole.fingerprint.encode(), f"{rank} of {workers}".encode())
        self.description = f"one of {workers} parts of {whole.description}"

    @property
    def total(self) -> int | None:
        return self.whole.count

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        if isinstance(self.whole, IndexedSource):
            for rows in self.whole.row_batches(size * self.workers, shuffle_seed):
                place, mine = self._place(len(rows))
                batch = self.whole.read(rows[mine])
                yield replace(batch, place=place)
            return
        whole = self.whole.batches(size * self.workers, shuffle_seed)
        while True:
            found = next(whole, None)
            if not self.alike(0 if found is None else found.count):
                raise DataError(
                    f"{self.whole.description}: differ from worker to worker; seed what is random in them"
                )
            if found is None:
                return
            place, mine = self._place(found.count)
            yield replace(found[mine], place=place)

    def _place(self, count: int) -> tuple[Place, slice]:
        """Of this worker's samples among `count`; if there are none, of the first one."""
        first, end = (count * rank // self.workers for rank in (self.rank, self.rank + 1))
        if first == end:
            return Place(0, 0, count, self.workers), slice(0, 1)
        return Place(first, end - first, count, self.workers), slice(first, end)


def drawn(source: DataSource, size: int, samples: int, random: np.random.Generator) -> Iterator[Batch]:
    """Batches without an end: all `samples` of the source in one random order after another. A source whose order may
    be its own, whatever the seed, is first read from a place at random.
    """
    skipped = 0 if isinstance(source, IndexedSource) else int(random.integers(max(1, samples // size)))
    while True:
        yield from islice(source.batches(size, shuffle_seed=int(random.integers(2**31))), skipped, None)
        skipped = 0


@dataclass(frozen=True)
class Split:
    """One source divided by role. `calibration` is part of `train`; nothing of `evaluation` is in either."""

    train: DataSource
    calibration: DataSource
    evaluation: DataSource
    description: str


def split(source: DataSource, seed: int = 0) -> Split:
    """A random, reproducible fifth for evaluation and the rest for training, of which up to 512 samples
    also calibrate.

    Raises DataError for fewer than 5 samples, and for a function, whose samples have no numbers.
    """
    if not isinstance(source, IndexedSource):
        raise DataError(
            f"{source.description}: cannot be split; name data for each role with --train, --calibration and --eval"
        )
    if source.count < LEAST_SAMPLES:
        raise DataError(
            f"{source.description}: too few to split, at least {LEAST_SAMPLES} are needed; give more, or --train and --eval"
        )
    order = np.random.default_rng(seed).permutation(source.count)
    wanted = max(1, int(source.count * EVALUATION_SHARE))
    # Equal samples go to one side, or what is judged would have been trained on: all of those that the
    # first `wanted` rows repeat.
    identities = source.identities(order)
    order = order[np.argsort(~np.isin(identities, identities[:wanted]), kind="stable")]
    held = int(np.isin(identities, identities[:wanted]).sum())
    if held == source.count:
        raise DataError(
            f"{source.description}: nearly all samples are equal, it cannot be split; give --train and --eval"
        )
    evaluation, train = Subset(source, order[:held]), Subset(source, order[held:])
    calibration = Subset(source, order[held : held + CALIBRATION_SAMPLES])
    return Split(
        train, calibration, evaluation,
        f"split at random (seed {seed}): {train.count:,} samples train, {calibration.count:,} of these calibrate, "
        f"{evaluation.count:,} others evaluate",
    )  # fmt: skip


def take(source: DataSource, count: int) -> DataSource:
    """At most `count` samples, spread evenly so that data sorted by class keeps its classes; of a function,
    the first ones.
    """
    if not isinstance(source, IndexedSource):
        return First(source, count)
    if source.count <= count:
        return source
    return Subset(source, np.arange(count) * source.count // count)


def overlap(training: DataSource, evaluation: DataSource) -> int:
    """How many evaluation samples are known to be training samples too. Of a function only that it is the
    same one: then 1.
    """
    if isinstance(training, IndexedSource) and isinstance(evaluation, IndexedSource):
        known, judged = (source.identities(np.arange(source.count)) for source in (training, evaluation))
        return int(np.isin(judged, known).sum())
    return int(training.fingerprint == evaluation.fingerprint)


def fingerprint(*parts: bytes) -> str:
    """One hash of all parts, each with its length."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def check_labels(labels: np.ndarray, count: int, classes: int | None, where: str) -> np.ndarray:
    """Labels as int64 [count]. Raises DataError for floats, one-hot rows, another count, or a class that
    the model lacks.
    """
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError(
            f"{where} has shape {list(labels.shape)}, wanted is one class number per sample; one-hot rows need .argmax(1)"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{where} is {labels.dtype}, wanted are class numbers; convert it with .astype('int64')"
        )
    if labels.shape not in ((count,), (count, 1)):
        raise DataError(
            f"{where} has shape {list(labels.shape)}, but there are {count} samples; wanted is [{count}]"
        )
    labels = labels.reshape(count).astype(np.int64)
    if count and (labels.min() < 0 or (classes is not None and labels.max() >= classes)):
        bounds = "0 or more" if classes is None else f"0 to {classes - 1}, as the model has {classes} classes"
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"{where} holds {wrong}, wanted are class numbers {bounds}")
    return labels


def check_values(array: np.ndarray, spec: InputSpec, where: str) -> None:
    """Raises DataError for NaN, and for integers that the model's dtype cannot hold."""
    if is_float(array.dtype):
        array = np.atleast_1d(array)
        for start in range(0, len(array), _CHUNK):
            wrong = np.isnan(array[start : start + _CHUNK])
            if wrong.any():
                sample = start + int(np.argwhere(wrong)[0][0])
                raise DataError(f"{where} has NaN in sample {sample}; mend or leave out such samples")
    elif (
        is_integer(array.dtype)
        and is_integer(spec.dtype)
        and array.size
        and not np.can_cast(array.dtype, spec.dtype)
    ):
        low, high, allowed = array.min(), array.max(), np.iinfo(spec.dtype)
        if low < allowed.min or high > allowed.max:
            raise DataError(f"{where} holds {low}..{high}, the model takes {spec.dtype}; convert it")
