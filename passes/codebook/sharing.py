"""Weights that are clustered together, and small tensors that get few distinct values where they stand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_lathe.passes.codebook.options import Sharing
from onnx_lathe.passes.codebook.trial_model import TrialModel
from onnx_lathe.passes.codebook.writer import FOUR_BIT_VALUES
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Constant, Graph
from onnx_lathe.passes.graph.bodies import all_tensors
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.layers import Weight, weights
from onnx_lathe.passes.graph.model import FOUR_BIT_OPSET
from onnx_lathe.passes.graph.opset import raise_opset
from onnx_lathe.passes.graph.patterns import by_weight
from onnx_lathe.passes.numerics.clustering.bit_choice import Rung, expected_noise
from onnx_lathe.passes.numerics.clustering.codebook_pools import CodebookGroup, Piece, channel_groups, decoded
from onnx_lathe.passes.numerics.clustering.kmeans import Encoded, Rule, distinct_values, signal_and_noise

MOST_BITS = 8
FIXED = 0
"""In place of bits: the number of values that the options name for this job."""
PROBES = (3, 5)
"""Bits at which the error in the outputs is measured; between them and beyond, it follows the weights'
error.
"""


@dataclass(frozen=True)
class ClusterJob:
    """Weights with the same number of values: one weight with a codebook, or several for groups of its
    channels; or weights that share one.

    Arrays are read from the graph when they are needed, so that at any time one job is in memory.
    """

    weights: tuple[Weight, ...]
    k: int
    keep_zero: bool
    groups: tuple[CodebookGroup, ...]
    fixed: bool = False
    """Whether an option names the number of values for this weight."""
    tradeoff: float | None = None
    """Of this job alone, instead of that of all."""

    @classmethod
    def of(cls, weights: Sequence[Weight], k: int, keep_zero: bool, groups: int, fixed: bool) -> "ClusterJob":
        if groups > 1:
            pieces: list[tuple[Piece, ...]] = [
                (piece,) for weight in weights for piece in _in_groups(weight, groups)
            ]
        else:
            pieces = [tuple(Piece(weight.name) for weight in weights)]
        shared = tuple(CodebookGroup(k, keep_zero, one) for one in pieces)
        return cls(tuple(weights), k, keep_zero, shared, fixed)

    def with_bits(self, bits: int) -> "ClusterJob":
        if bits == FIXED:
            return self
        k = 2**bits
        return replace(self, k=k, groups=tuple(replace(group, k=k) for group in self.groups))

    def values(self) -> dict[str, np.ndarray]:
        return {weight.name: read(weight.tensor) for weight in self.weights}

    def has_few_values(self) -> bool:
        """Whether no group has more distinct values than its codebook may have: then nothing is lost."""
        values = self.values()
        return all(distinct_values(group.arrays(values), group.k) is not None for group in self.groups)

    def encoded(self, values: Mapping[str, np.ndarray], rule: Rule) -> list[tuple[CodebookGroup, Encoded]]:
        return [(group, group.encode(values, rule)) for group in self.groups]

    def decoded(self, rule: Rule) -> dict[str, np.ndarray]:
        """The weights as their codebooks would decode them."""
        values = self.values()
        return decoded(values, self.encoded(values, rule))

    def codebook_name(self, number: int) -> str:
        if len(self.weights) > 1:
            return "codebook"
        return f"{self.weights[0].name}_codebook" + (f"_{number}" if len(self.groups) > 1 else "")


def _in_groups(weight: Weight, groups: int) -> list[Piece]:
    return channel_groups(weight.name, weight.axis, weight.tensor.shape[weight.axis], groups)


@dataclass(frozen=True)
class Small:
    """A bias or an earlier step's codebook, of one of the layer `node`'s, and how many distinct values it
    is to have.
    """

    node: str
    tensor: Constant
    k: int
    kind: str

    @property
    def group(self) -> CodebookGroup:
        return CodebookGroup(self.k, False, (Piece(self.tensor.name),))

    def encoded(self, rule: Rule) -> Encoded:
        """Takes the nearest values: a price on codes would be for indices, of which it has none."""
        return self.group.encode({self.tensor.name: read(self.tensor)}, replace(rule, tradeoff=0.0))

    def decoded(self, rule: Rule) -> np.ndarray:
        encoded = self.encoded(rule)
        return encoded.centroids[encoded.indices[0]]


def ladder(job: ClusterJob, rule: Rule, candidate: TrialModel) -> list[Rung]:
    """The ways to store the job's weights, from the fewest bits on; the last is as float. Of a fixed job,
    the one way.

    Few runs: the error of the weights is known for all bits, that of the outputs is measured at some of
    these.
    """
    values = job.values()
    elements = sum(array.size for array in values.values())
    coded = sum(int(np.count_nonzero(array)) for array in values.values()) if job.keep_zero else elements
    if job.fixed:
        return [Rung(FIXED, coded, candidate.noise(job.decoded(rule)))]
    distortion = {
        bits: _distortion(job.with_bits(bits), rule) for bits in range(1 + job.keep_zero, MOST_BITS + 1)
    }
    lossy = [bits for bits, error in distortion.items() if error > 0]
    probes = [bits for bits in PROBES if bits in lossy] or lossy[-1:]
    noise = expected_noise(
        distortion, {bits: candidate.noise(job.with_bits(bits).decoded(rule)) for bits in probes}
    )
    rungs = [Rung(bits, coded * bits / 8 + 4 * 2**bits * len(job.groups), noise[bits]) for bits in distortion]
    return [rung for rung in rungs if rung.size < 4 * elements] + [Rung(None, 4 * elements, 0.0)]


def _distortion(job: ClusterJob, rule: Rule) -> float:
    values = job.values()
    return sum(
        signal_and_noise(array, encoded.centroids, indices)[1]
        for group, encoded in job.encoded(values, rule)
        for array, indices in zip(group.arrays(values), encoded.indices, strict=True)
    )


@dataclass(frozen=True)
class ValueCounts:
    """How many values each weight may have; 0 leaves it as it is. `own`: of those that an option names."""

    general: int
    own: Mapping[str, int]

    def of(self, name: str) -> int:
        return self.own.get(name, self.general)


def value_counts(config: Sharing, found: list[Weight], refused: list[str]) -> ValueCounts:
    bits = by_weight(config.layers, found, refused, "codebook(layers=...)")
    centroids = by_weight(config.layer_centroids, found, refused, "codebook(layer_centroids=...)")
    own = {name: 2**given if given else 0 for name, given in bits.items()}
    return ValueCounts(config.centroids or 2**config.bits, own | centroids)


def with_four_bits(
    graph: Graph, jobs: list[ClusterJob], small: list[Small], report: PassReport
) -> tuple[list[ClusterJob], list[Small]]:
    """Raises the opset if it has no 4-bit indices and a codebook of at most 16 values would have them. Returns
    what is clustered, of the graph as it is then.
    """
    opset, few = graph.opset, any(group.k <= FOUR_BIT_VALUES for job in jobs for group in job.groups)
    if opset >= FOUR_BIT_OPSET or not few:
        return jobs, small
    reason = raise_opset(graph, FOUR_BIT_OPSET)
    if reason is not None:
        report.warnings.append(
            f"indices of up to {FOUR_BIT_VALUES} values take 8 bits, not 4: "
            f"opset {opset} has no 4-bit integers and cannot be raised ({reason}); export at {FOUR_BIT_OPSET} or later"
        )
        return jobs, small
    found = weights(graph, refuse=lambda node, reason: None, bodies=True, everywhere=True)
    again, tensors = {weight.name: weight for weight in found}, all_tensors(graph)
    return (
        [replace(job, weights=tuple(again[weight.name] for weight in job.weights)) for job in jobs],
        [replace(item, tensor=tensors[item.tensor.name]) for item in small],
    )
