"""A batch in pieces, each of as many samples as an engine takes, and the outputs of these put together again."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.errors import ModelError

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


def joined(name: str, opened: bool, pieces: Sequence[Piece], parts: Sequence[np.ndarray]) -> np.ndarray:
    """An output's rows of all samples, from its `parts` by piece. `opened`: whether the engine leaves its first size
    open, as that of a batch is.

    Raises ModelError for an output without a batch: it is computed from all samples of a call, and so neither of the
    pieces nor of samples that are repeated.
    """
    fits = opened and all(len(part) % piece.room == 0 for piece, part in zip(pieces, parts, strict=True))
    each = {len(part) // piece.room for piece, part in zip(pieces, parts, strict=True)} if fits else set()
    if len(each) != 1:
        reason = (
            "takes these samples only in pieces: feed fewer"
            if len(pieces) > 1
            else f"takes {pieces[0].room} samples or more: feed these"
        )
        raise ModelError(f"output '{name}' has no batch, and the engine {reason}")
    (rows,) = each
    return np.concatenate([part[: rows * piece.count] for piece, part in zip(pieces, parts, strict=True)])
