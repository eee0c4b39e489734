"""Samples that stay in memory: what is judged on hundreds of times is read and decoded once."""

from collections.abc import Iterator, Sequence

import numpy as np

from onnx_lathe.errors import DataError
from onnx_lathe.runtime.data.source import Batch, DataSource, IndexedSource, Subset, fingerprint, split, take

STORED_BATCH = 50
SHARE = 5
"""Of the batches of a function, each so-manyth is held apart."""


class KeptSource(DataSource):
    """Batches in memory, in their order; they may differ in shape from one to the next."""

    def __init__(self, kept: Sequence[Batch], of: DataSource, part: str = "") -> None:
        self.kept, self.labelled = kept, of.labelled
        self.count = sum(batch.count for batch in kept)
        self.description = f"{self.count:,} of {of.description}"
        self.fingerprint = fingerprint(of.fingerprint.encode(), f"{self.count} {part}".encode())

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        order = np.arange(len(self.kept))
        if shuffle_seed is not None:
            np.random.default_rng(shuffle_seed).shuffle(order)
        for index in order:
            batch = self.kept[int(index)]
            for start in range(0, batch.count, size):
                yield batch[start : start + size]

    def first(self, count: int) -> "KeptSource":
        """The first `count` samples, or all."""
        rest, found = count, list[Batch]()
        for batch in self.kept:
            if rest <= 0:
                break
            found.append(batch[:rest])
            rest -= batch.count
        return KeptSource(found, self, "first")


def keep(source: DataSource, count: int, batch: int = 250) -> KeptSource:
    """At most `count` samples, spread over the source, in memory."""
    return KeptSource(list(take(source, count).batches(batch)), source)


def hold_apart(
    source: DataSource, most: int, calibrating: int, training: bool, seed: int
) -> tuple[KeptSource, DataSource]:
    """(up to `most` samples that judge settings, others that train or calibrate). No sample is in both.

    training: the others are four fifths, as in `split`; else as few as calibrate, so that more can judge. Of a
    function, whose samples have no numbers, each fifth batch judges. Raises DataError for fewer than 5 samples.
    """
    if not isinstance(source, IndexedSource):
        return _of_batches(source, most, calibrating, training)
    if training:
        parts = split(source, seed)
        return keep(parts.evaluation, most), parts.train
    if source.count < SHARE:
        raise DataError(f"{source.description}: too few to choose settings on; give at least {SHARE}")
    order = np.random.default_rng(seed).permutation(source.count)
    others = max(1, min(calibrating, source.count // 2))
    return keep(Subset(source, order[others:]), most), Subset(source, order[:others])


def _of_batches(
    source: DataSource, most: int, calibrating: int, training: bool
) -> tuple[KeptSource, KeptSource]:
    judging, others = list[Batch](), list[Batch]()
    judges, helps = 0, 0
    for number, batch in enumerate(source.batches(STORED_BATCH)):
        wanted = number % SHARE != 0 if training else helps < calibrating and number % 2 == 1
        if wanted:
            others.append(batch)
            helps += batch.count
        elif judges < most:
            judging.append(batch)
            judges += batch.count
        elif not training and helps >= calibrating:
            break
    if not judging or not others:
        raise DataError(
            f"{source.description}: too few to choose settings on; give at least {2 * STORED_BATCH} samples"
        )
    return KeptSource(judging, source, "judging").first(most), KeptSource(others, source, "others")
