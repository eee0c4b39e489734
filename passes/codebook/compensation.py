"""Rounding with compensation: shared values by what layers answer on calibration data, not by the weights alone.

    W, b   becomes   codebook[indices], b + (W - codebook[indices]) E[x]        nearest in E |(W - W') (x - E[x])|^2

Each layer is taken by itself, as the network in front of it is before this pass: settings of one layer change no other.
Where the samples that are kept apart find the nearest values as good, these are taken.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_lathe.passes.codebook.sharing import ClusterJob
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.input_moments import ENOUGH_SAMPLES, Rows, few_samples, input_moments, rows_of
from onnx_lathe.passes.graph.model import export_model
from onnx_lathe.passes.graph.quantization.bias_places import BiasPlace, bias_place, shift
from onnx_lathe.passes.numerics.clustering.codebook_pools import CodebookGroup, decoded
from onnx_lathe.passes.numerics.clustering.entropy_constrained import entropy_bits
from onnx_lathe.passes.numerics.clustering.kmeans import Encoded, Rule
from onnx_lathe.passes.numerics.second_order.moments import SplitMoments, response_energy
from onnx_lathe.passes.numerics.second_order.shared_values import Task, compensate
from onnx_lathe.passes.numerics.second_order.sweep import Values, sweep

Outcome = list[tuple[CodebookGroup, Encoded]]
NEAREST = "nearest values: {}"


@dataclass(frozen=True)
class Chosen:
    """What a job's weight becomes, what to say of how it was found, and by how much its layer's bias moves with it
    [output channels].
    """

    outcome: Outcome
    said: str
    place: BiasPlace | None = None
    change: np.ndarray | None = None
    values: np.ndarray | None = None
    """The weight as it was, if it is its shared values in the graph already, and its bias has moved."""

    def arrays(self, job: ClusterJob) -> dict[str, np.ndarray]:
        """The weights as they were."""
        return job.values() if self.values is None else {job.weights[0].name: self.values}

    def move_bias(self, graph: Graph, taken: set[str]) -> None:
        """`taken`: names that the graph has."""
        if self.place is not None and self.change is not None:
            shift(graph, self.place, self.change, taken)


def compensated(
    graph: Graph, jobs: Sequence[ClusterJob], rules: Sequence[Rule], context: Context, report: PassReport
) -> dict[str, Chosen]:
    """By weight, its shared values. A job whose layers cannot be measured has its nearest values."""
    found: dict[str, Chosen] = {}
    layers: list[tuple[ClusterJob, Rule, Rows]] = []
    for job, rule in zip(jobs, rules, strict=True):
        rows = _rows(job, graph)
        if isinstance(rows, Rows):
            layers.append((job, rule, rows))
        else:
            found[job.weights[0].name] = Chosen(job.encoded(job.values(), rule), NEAREST.format(rows))
    measured = input_moments(
        export_model(graph), [rows for _, _, rows in layers], context.need_calibrator(), context.progress
    )
    samples = ENOUGH_SAMPLES
    for (job, rule, rows), (_, moments) in zip(layers, measured, strict=True):
        samples = min(samples, moments.samples)
        context.progress(f"compensating {rows.weight.name}")
        found[rows.weight.name] = _choose(graph, job, rule, rows, moments)
    report.warnings += few_samples("rounding=hessian", samples)
    return found


def _rows(job: ClusterJob, graph: Graph) -> Rows | str:
    if len(job.weights) > 1:
        return "they are shared by several weights"
    return rows_of(job.weights[0], graph.opset)


def _choose(graph: Graph, job: ClusterJob, rule: Rule, rows: Rows, moments: SplitMoments) -> Chosen:
    """The better one of nearest values and those that compensate."""
    values = job.values()
    nearest = job.encoded(values, rule)
    place = bias_place(graph, rows.weight.nodes[0]) if len(rows.weight.nodes) == 1 else None
    if reason := moments.refusal(centered=place is not None):
        return Chosen(nearest, NEAREST.format(f"its inputs {reason} on calibration data"))
    judge = _Judge(job, rows, moments, place is not None, values)
    better = _fitted(job, rule, rows, moments, judge)
    errors = [judge.error(one) for one in (nearest, better)]
    costs = [
        error + rule.tradeoff * judge.bits(one) for error, one in zip(errors, (nearest, better), strict=True)
    ]
    chosen = better if costs[1] < costs[0] else nearest
    said = NEAREST.format("compensation finds nothing better")
    if chosen is better:
        said = f"responses {_decibels(errors[1])}, {_decibels(errors[0])} by nearest values"
    change = np.matmul(-judge.change(chosen), moments.mean[..., None]).reshape(-1)
    return Chosen(chosen, said, place, change * rows.weight.nodes[0].attrs.get("alpha", 1.0))


def _decibels(error: float) -> str:
    return f"{-10 * math.log10(error):.1f} dB" if error > 0 else "exact"


class _Judge:
    """Measures choices for one weight on the samples that are kept apart, if there are any."""

    def __init__(
        self,
        job: ClusterJob,
        rows: Rows,
        moments: SplitMoments,
        centered: bool,
        values: Mapping[str, np.ndarray],
    ) -> None:
        self.rows, self.values, self.name, self.centered = rows, values, job.weights[0].name, centered
        self.weight = rows.of(values[self.name].astype(np.float64))
        self.moments = moments.judging(centered)
        self.energy = max(response_energy(self.weight, self.moments), np.finfo(np.float64).tiny)

    def change(self, outcome: Outcome) -> np.ndarray:
        """[groups, rows, inputs], float64."""
        return self.rows.of(decoded(self.values, outcome)[self.name].astype(np.float64)) - self.weight

    def error(self, outcome: Outcome) -> float:
        """Of the responses' energy."""
        return response_energy(self.change(outcome), self.moments) / self.energy

    def bits(self, outcome: Outcome) -> float:
        """Of an ideal code, for each weight."""
        bits = sum(entropy_bits(one.counts()) * sum(part.size for part in one.indices) for _, one in outcome)
        return bits / self.weight.size


def _fitted(job: ClusterJob, rule: Rule, rows: Rows, moments: SplitMoments, judge: _Judge) -> Outcome:
    """Shared values that compensate, from the nearest ones on."""
    start = job.encoded(judge.values, replace(rule, tradeoff=0.0, mantissa=None))
    zeros = judge.weight == 0 if job.keep_zero else None
    return fitted(rule, rows, judge.weight, moments.fitted.regular(judge.centered), zeros, start)


def fitted(
    rule: Rule,
    rows: Rows,
    weight: np.ndarray,
    covariance: np.ndarray,
    zeros: np.ndarray | None,
    start: Outcome,
    swept: bool = False,
) -> Outcome:
    """Shared values that keep what the weight [groups, rows, inputs] answers to inputs of this covariance, from those of
    `start` on; `swept`: with places that one sweep of the columns finds. `zeros`: see shared_values.Task.
    """
    table = np.zeros(rows.shape, np.int64)
    places = np.zeros(rows.shape, np.uint8)
    for number, (group, encoded) in enumerate(start):
        for piece, indices in zip(group.pieces, encoded.indices, strict=True):
            piece.of(table)[...] = number
            piece.of(places)[...] = indices
    tables, number_of = [encoded.centroids for _, encoded in start], rows.of(table)[:, :, 0]
    covariance = covariance / (
        np.einsum("gii->", covariance) / (covariance.shape[0] * covariance.shape[1])
    )  # float32 follows
    energy = response_energy(weight, covariance)
    task = Task(
        weight,
        covariance,
        number_of,
        price=rule.tradeoff * energy / weight.size,
        zeros=zeros,
        mantissa=rule.mantissa,
    )
    at = rows.of(places)
    if swept:
        at = _swept(task, tables, at)
    found = compensate(task, tables, at)
    indices = np.ascontiguousarray(rows.back(found.indices))
    return [
        (
            group,
            Encoded(
                found.tables[number],
                [piece.of(indices).copy() for piece in group.pieces],
                encoded.nearest_counts,
            ),
        )
        for number, (group, encoded) in enumerate(start)
    ]


def _swept(task: Task, tables: Sequence[np.ndarray], places: np.ndarray) -> np.ndarray:
    """The places that one sweep of the columns finds; of weights that stay zero, as they are."""
    if task.zeros is None:
        rule = Values(tables, task.table)
        return rule.places(sweep(task.weight, task.moments, rule, zero=np.zeros(task.weight.shape, bool)))
    rule = Values([one[one != 0] for one in tables], task.table)
    values = sweep(task.weight, task.moments, rule, zero=task.zeros)
    return np.where(task.zeros, places, Values(tables, task.table).places(values))
