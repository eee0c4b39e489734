"""Samples that stay in memory: what is judged on hundreds of times is read and decoded once."""

import hashlib
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

    def pick(self, chosen: np.ndarray, part: str) -> "KeptSource":
        """The samples for which `chosen`, bool [count], is true."""
        found, start = list[Batch](), 0
        for batch in self.kept:
            rows = np.flatnonzero(chosen[start : start + batch.count])
            start += batch.count
            if len(rows):
                found.append(_rows(batch, rows))
        return KeptSource(found, self, part)

    def identities(self) -> np.ndarray:
        """uint64 [count], a hash of each sample's inputs."""
        found = []
        for batch in self.kept:
            for row in range(batch.count):
                digest = hashlib.blake2b(digest_size=8)
                for name in sorted(batch.inputs):
                    one = np.ascontiguousarray(batch.inputs[name][row])
                    digest.update(f"{name} {one.shape} {one.dtype}".encode() + one.tobytes())
                found.append(int.from_bytes(digest.digest(), "little"))
        return np.array(found, np.uint64)


def _rows(batch: Batch, rows: np.ndarray) -> Batch:
    return Batch(
        {name: array[rows] for name, array in batch.inputs.items()},
        None if batch.labels is None else batch.labels[rows],
        per_call=batch.per_call,
        truth=None if batch.truth is None else [batch.truth[row] for row in rows],
    )


def part_off(whole: KeptSource, share: float, seed: int) -> tuple[KeptSource, KeptSource] | None:
    """(most samples, about the share of them), at random; equal samples are in one of the two. None if nearly all
    are equal, so that one would be empty.
    """
    _, group, sizes = np.unique(whole.identities(), return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    apart = np.zeros(len(sizes), bool)
    apart[order] = np.cumsum(sizes[order]) <= share * len(group)
    chosen = apart[group.reshape(-1)]
    if not chosen.any() or chosen.all():
        return None
    return whole.pick(~chosen, f"without a part by {seed}"), whole.pick(chosen, f"a part by {seed}")


def keep(source: DataSource, count: int, batch: int = 250) -> KeptSource:
    """At most `count` samples, spread over the source, in memory."""
    return KeptSource(list(take(source, count).batches(batch)), source)


def hold_apart(
    source: DataSource,
    most: int,
    calibrating: int,
    training: bool,
    seed: int,
    unused: DataSource | None = None,
) -> tuple[KeptSource, DataSource, IndexedSource | None]:
    """(up to `most` samples that judge settings, others that train or calibrate, what neither takes, which is not
    read yet). No sample is in two of them, nor one equal to it, and none of `unused`, the evaluation data, in any.

    training: the others are four fifths, as in `split`; else as few as calibrate, so that more can judge. Of a
    function, whose samples have no numbers, each fifth batch judges. Raises DataError for fewer than 5 samples.
    """
    if not isinstance(source, IndexedSource):
        return *_of_batches(source, most, calibrating, training), None
    source = _without(source, unused)
    if training:
        parts = split(source, seed)
        return keep(parts.evaluation, most), parts.train, _rest(parts.evaluation, most)
    if source.count < SHARE:
        raise DataError(f"{source.description}: too few to choose settings on; give at least {SHARE}")
    order = np.random.default_rng(seed).permutation(source.count)
    others = max(1, min(calibrating, source.count // 2))
    identities = source.identities(order)
    judging = order[others:][~np.isin(identities[others:], identities[:others])]
    if not len(judging):
        raise DataError(
            f"{source.description}: nearly all samples are equal, so none is left to choose settings on"
        )
    pool = Subset(source, judging)
    return keep(pool, most), Subset(source, order[:others]), _rest(pool, most)


def _rest(pool: DataSource, most: int) -> IndexedSource | None:
    """The samples of the pool that `keep` leaves, and that equal none that it takes; None without one."""
    if not isinstance(pool, IndexedSource) or pool.count <= most:
        return None
    rows, taken = np.arange(pool.count), np.arange(most) * pool.count // most
    identities = pool.identities(rows)
    rest = rows[~np.isin(identities, identities[taken])]
    return Subset(pool, rest) if len(rest) else None


def _without(source: IndexedSource, unused: DataSource | None) -> IndexedSource:
    if not isinstance(unused, IndexedSource):
        return source
    rows = np.arange(source.count)
    known = np.isin(source.identities(rows), unused.identities(np.arange(unused.count)))
    if known.all():
        raise DataError(
            f"{source.description}: are evaluation samples, all of them; name others to choose settings on"
        )
    return Subset(source, rows[~known]) if known.any() else source


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
