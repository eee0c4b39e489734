"""Which values share one codebook: parts of tensors, by name, and the tensors that come of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from onnx_lathe.errors import PassError
from onnx_lathe.passes.numerics.clustering.kmeans import Encoded, Rule, encode
from onnx_lathe.passes.numerics.clustering.mantissa import round_mantissa

WARM_ITERATIONS = 2
"""Steps of k-means from earlier centroids, which are nearly right, for each optimizer step since."""


@dataclass(frozen=True)
class Piece:
    """A tensor, or positions start to stop on one of its axes."""

    tensor: str
    axis: int = 0
    start: int | None = None
    stop: int | None = None

    def of(self, values: np.ndarray) -> np.ndarray:
        """The view of this piece."""
        return values[(slice(None),) * self.axis + (slice(self.start, self.stop),)]


@dataclass(frozen=True)
class CodebookGroup:
    """Pieces that share at most k values; with `keep_zero` their zeros, and nothing else, stay zero."""

    k: int
    keep_zero: bool
    pieces: tuple[Piece, ...]

    def arrays(self, values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [piece.of(values[piece.tensor]) for piece in self.pieces]

    def encode(self, values: Mapping[str, np.ndarray], rule: Rule) -> Encoded:
        return encode(self.arrays(values), self.k, rule, self.keep_zero)


def channel_groups(tensor: str, axis: int, size: int, groups: int) -> list[Piece]:
    """The tensor in that many pieces, as equal as can be, along its axis of that size; fewer where the axis
    is shorter.
    """
    edges = np.linspace(0, size, min(groups, size) + 1).round().astype(int).tolist()
    return [Piece(tensor, axis, start, stop) for start, stop in pairwise(edges)]


def decoded(
    values: Mapping[str, np.ndarray], outcome: Iterable[tuple[CodebookGroup, Encoded]]
) -> dict[str, np.ndarray]:
    """Copies of the tensors in the groups, with every piece replaced by its shared values."""
    result: dict[str, np.ndarray] = {}
    for group, encoded in outcome:
        for piece, indices in zip(group.pieces, encoded.indices, strict=True):
            if piece.tensor not in result:
                result[piece.tensor] = np.empty_like(values[piece.tensor])
            piece.of(result[piece.tensor])[...] = encoded.centroids[indices]
    return result


class Clustered:
    """An onnx_lathe.protocols.Shaping: while training runs, the network computes with the nearest (or
    cheapest) shared values.

    Until `freeze`, a share of the training, every call clusters the trained weights again, from the last
    centroids on. From then on every weight stays with its centroid, which follows the mean of the trained
    weights underneath: the network that training ends with has at most k values in a group. Zeros of a group
    that keeps them are those of the first call.
    """

    def __init__(self, groups: Iterable[tuple[CodebookGroup, Rule]], every: int, freeze: float) -> None:
        self.every, self.freeze = every, freeze
        self.shares = [_Share(group, rule, WARM_ITERATIONS * every) for group, rule in groups]

    def __call__(self, done: float, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        trained = [
            share for share in self.shares if all(piece.tensor in weights for piece in share.group.pieces)
        ]
        return decoded(
            weights, [(share.group, share.encoded(weights, done >= self.freeze)) for share in trained]
        )

    def state(self) -> dict[str, np.ndarray]:
        return {
            f"{number}/{name}": array
            for number, share in enumerate(self.shares)
            for name, array in share.state().items()
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        for number, share in enumerate(self.shares):
            own = f"{number}/"
            share.restore(
                {name.removeprefix(own): array for name, array in state.items() if name.startswith(own)}
            )


class _Share:
    """One group through a training."""

    def __init__(self, group: CodebookGroup, rule: Rule, iterations: int) -> None:
        self.group, self.rule = group, rule
        self.warm = replace(rule, iterations=min(rule.iterations, iterations), exact=False)
        self.zeros: list[np.ndarray] | None = None
        self.centroids: np.ndarray | None = None
        self.frozen: Encoded | None = None

    def encoded(self, weights: Mapping[str, np.ndarray], freeze: bool) -> Encoded:
        arrays = self.group.arrays(weights)
        if self.group.keep_zero:
            if self.zeros is None:
                self.zeros = [array == 0 for array in arrays]
            arrays = [
                np.where(zero, np.float32(0), array) for zero, array in zip(self.zeros, arrays, strict=True)
            ]
        if self.frozen is not None:
            return Encoded(self._means(self.frozen, arrays), self.frozen.indices, self.frozen.nearest_counts)
        result = self._clustered(arrays)
        if freeze:
            self.frozen = result
        return result

    def state(self) -> dict[str, np.ndarray]:
        arrays = {} if self.centroids is None else {"centroids": self.centroids}
        arrays |= {f"zeros{position}": zero for position, zero in enumerate(self.zeros or [])}
        if self.frozen is not None:
            arrays |= {"frozen": self.frozen.centroids, "nearest": self.frozen.nearest_counts}
            arrays |= {f"indices{position}": indices for position, indices in enumerate(self.frozen.indices)}
        return arrays

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        pieces = range(len(self.group.pieces))
        self.centroids = state.get("centroids")
        self.zeros = [state[f"zeros{position}"] for position in pieces] if "zeros0" in state else None
        if "frozen" in state:
            self.frozen = Encoded(
                state["frozen"], [state[f"indices{position}"] for position in pieces], state["nearest"]
            )
        else:
            self.frozen = None

    def _clustered(self, arrays: list[np.ndarray]) -> Encoded:
        rule = self.rule if self.centroids is None else self.warm
        try:
            result = encode(arrays, self.group.k, rule, self.group.keep_zero, self.centroids)
        except ValueError as error:
            names = ", ".join(piece.tensor for piece in self.group.pieces)
            raise PassError(
                f"training made {names} NaN or infinite; the model is left as it was; "
                "give codebook a smaller rate in training={...}"
            ) from error
        moving = result.centroids[result.centroids != 0] if self.group.keep_zero else result.centroids
        self.centroids = moving.astype(np.float64) if moving.size else None
        return result

    def _means(self, frozen: Encoded, arrays: list[np.ndarray]) -> np.ndarray:
        """Of what each centroid stands for now; a zero that is kept is the mean of zeros."""
        size = frozen.centroids.size
        indices = [index.reshape(-1) for index in frozen.indices]
        total = sum(
            np.bincount(i, weights=a.reshape(-1), minlength=size)
            for i, a in zip(indices, arrays, strict=True)
        )
        return round_mantissa((total / frozen.counts()).astype(np.float32), self.rule.mantissa)
