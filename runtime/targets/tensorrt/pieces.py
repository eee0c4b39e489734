"""A batch in pieces, each of as many samples as an engine takes, and the outputs of these put together again."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.running.mixing import differ
from onnx_lathe.runtime.running.scores import is_float

TOLERANCE = 0.01
"""Of an output's largest value, and of all integers: kernels in float16 round no worse in another place."""

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Piece:
    """Feeds of one call, of `count` samples, the last of which is repeated up to `room`."""

    feeds: Feeds
    count: int = 1
    room: int = 1

    @classmethod
    def of(cls, feeds: Feeds, batched: Collection[str], first: int, last: int, least: int) -> "Piece":
        """Samples `first` up to `last` of the inputs that have a batch, repeated up to `least`."""
        room = max(last - first, least)
        rows = np.minimum(np.arange(first, first + room), last - 1)
        chosen = {name: value[rows] if name in batched else value for name, value in feeds.items()}
        return cls(chosen, last - first, room)

    @property
    def padded(self) -> bool:
        return self.room > self.count


def are_alike(piece: Piece, batched: Collection[str]) -> bool:
    """Whether all samples of a piece are the same."""
    rows = (piece.feeds[name] for name in batched)
    return all(np.array_equal(row, np.repeat(row[:1], piece.room, 0)) for row in rows)


def moved(piece: Piece, batched: Collection[str]) -> Feeds:
    """The first sample of a piece in the last place, with other neighbours: copies of itself, or ones where it had these,
    or zeros where that is the same again.
    """
    first = {name: piece.feeds[name][:1] for name in batched}
    others = first
    if are_alike(piece, batched):
        others = {
            name: np.zeros_like(row) if (row == 1).all() else np.ones_like(row) for name, row in first.items()
        }
    rows = {name: np.concatenate([others[name]] * (piece.room - 1) + [first[name]]) for name in batched}
    return {**piece.feeds, **rows}


def is_mixed(output: np.ndarray, again: np.ndarray, room: int) -> bool:
    """Whether an output of `room` samples has other values for the first of them in the last place, where `again` has
    it (`moved`): then what stands there depends on its place, or on the other samples.
    """
    if output.shape != again.shape:
        return True
    each = len(output) // room
    first, last = output[:each], again[len(again) - each :]
    if is_float(output):
        return differ(first, last, TOLERANCE)
    return bool(np.mean(first != last) > TOLERANCE) if first.size else False


def limits(pieces: Sequence[Piece]) -> str:
    """Why the feeds do not go in as they are, and what to do."""
    if len(pieces) > 1:
        return "the engine takes these samples only in pieces: feed fewer"
    return f"the engine takes {pieces[0].room} samples or more: feed these"


def joined(name: str, opened: bool, pieces: Sequence[Piece], parts: Sequence[np.ndarray]) -> np.ndarray:
    """An output's rows of all samples, from its `parts` by piece. `opened`: whether the engine leaves its first size
    open, as that of a batch is.

    Raises ModelError for an output without a batch: it is computed from all samples of a call, and so neither of the
    pieces nor of samples that are repeated.
    """
    fits = opened and all(len(part) % piece.room == 0 for piece, part in zip(pieces, parts, strict=True))
    each = {len(part) // piece.room for piece, part in zip(pieces, parts, strict=True)} if fits else set()
    if len(each) != 1:
        raise ModelError(f"output '{name}' has no batch, and {limits(pieces)}")
    (rows,) = each
    return np.concatenate([part[: rows * piece.count] for piece, part in zip(pieces, parts, strict=True)])
