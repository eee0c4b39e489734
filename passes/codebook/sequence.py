"""Rounding with compensation layer by layer: shared values by what the original network answers, of what the layers before,
with shared values already, leave to read.

    W, b   becomes   codebook[indices], b'        nearest in E |codebook[indices] x' + b' - (W x + b)|^2

Unlike compensation.py, in which each layer is taken by itself: here settings of one layer change those behind it.
Source: Frantar et al., "GPTQ", ICLR 2023, with the nearest of shared values in place of levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_lathe.passes.codebook.compensation import NEAREST, Chosen, Outcome, fitted
from onnx_lathe.passes.codebook.sharing import ClusterJob
from onnx_lathe.passes.codebook.writer import Part, stored_bytes
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Constant, Graph
from onnx_lathe.passes.graph.answers.aligned import Layer
from onnx_lathe.passes.graph.answers.changing import change_layers
from onnx_lathe.passes.graph.answers.choosing import Candidate, Judged
from onnx_lathe.passes.graph.answers.forms import form_of
from onnx_lathe.passes.graph.initializers import read, write
from onnx_lathe.passes.graph.layers import Weight
from onnx_lathe.passes.graph.model import taken_names
from onnx_lathe.passes.numerics.clustering.codebook_pools import decoded
from onnx_lathe.passes.numerics.clustering.entropy_constrained import entropy_bits
from onnx_lathe.passes.numerics.clustering.kmeans import Rule
from onnx_lathe.passes.numerics.second_order.fitting import fit_free
from onnx_lathe.passes.numerics.second_order.paired import SplitJointMoments


@dataclass(frozen=True)
class _Way:
    """One way to share values, as it was judged."""

    outcome: Outcome
    candidate: Candidate
    cost: float


def in_sequence(
    graph: Graph,
    jobs: Sequence[ClusterJob],
    rules: Sequence[Rule],
    context: Context,
    report: PassReport,
) -> dict[str, Chosen]:
    """By weight, its shared values, which it has in the graph from then on. A job whose layer cannot be measured has its
    nearest values; one that would take no less space stays as it is.
    """
    found: dict[str, Chosen] = {}
    known = {job.weights[0].name: (job, rule) for job, rule in zip(jobs, rules, strict=True)}
    taken = taken_names(graph)

    def otherwise(weight: Weight, reason: str) -> None:
        job, rule = known[weight.name]
        nearest, values = job.encoded(job.values(), rule), read(weight.tensor)
        if _is_smaller(graph, weight, nearest):
            write(weight.tensor, decoded(job.values(), nearest)[weight.name])
        found[weight.name] = Chosen(nearest, NEAREST.format(reason), values=values)

    def change(layer: Layer, moments: SplitJointMoments) -> None:
        weight = layer.rows.weight
        job, rule = known[weight.name]
        context.progress(f"compensating {weight.name}")
        judged = Judged.of(graph, form_of(graph, layer.rows), moments)
        nearest, *ways = _ways(job, rule, layer, judged)
        best = min([nearest, *ways], key=lambda way: way.cost)
        values = read(weight.tensor)
        said = NEAREST.format("compensation finds nothing better")
        if best is not nearest:
            errors = judged.decibels(best.candidate.error), judged.decibels(nearest.candidate.error)
            said = f"answers {errors[0]}, {errors[1]} by nearest values"
        if _is_smaller(graph, weight, best.outcome):
            judged.take(graph, best.candidate, taken)
        found[weight.name] = Chosen(best.outcome, said, values=values)

    weights = {weight.name: weight for job in jobs for weight in job.weights}
    change_layers(graph, weights, change, otherwise, "rounding=hessian", context, report)
    return found


def _is_smaller(graph: Graph, weight: Weight, outcome: Outcome) -> bool:
    """Whether the weight takes less space with these shared values, which are its own."""
    parts = [Part(Constant("", one.centroids), indices) for _, one in outcome for indices in one.indices]
    own = sum(one.centroids.nbytes for _, one in outcome)
    return own + stored_bytes(graph, weight.name, parts) < read(weight.tensor).nbytes


def _ways(job: ClusterJob, rule: Rule, layer: Layer, judged: Judged) -> Sequence[_Way]:
    """Nearest values, those that compensate, and those that also make up for what the layers before lost."""
    rows, form, moments = layer.rows, judged.form, judged.moments.fitted
    values, now = job.values(), form.now / form.alpha
    zeros = now == 0 if job.keep_zero else None
    free = np.ones(now.shape, bool) if zeros is None else ~zeros
    target, covariance = fit_free(moments, form.now, free) / form.alpha, moments.regular()
    start = job.encoded(values, replace(rule, tradeoff=0.0, mantissa=None))
    outcomes = [
        job.encoded(values, rule),
        fitted(rule, rows, now, covariance, zeros, start),
        fitted(rule, rows, target, covariance, zeros, start),
        fitted(rule, rows, target, covariance, zeros, start, swept=True),
    ]

    def judge(outcome: Outcome) -> _Way:
        weight = rows.of(decoded(values, outcome)[rows.weight.name].astype(np.float64)) * form.alpha
        candidate = judged.best([weight], scaled=False)
        bits = sum(entropy_bits(one.counts()) * sum(part.size for part in one.indices) for _, one in outcome)
        # what answers vary by: of a single sample that is kept apart they do not
        error = candidate.error / float(moments.yy.sum())
        return _Way(outcome, candidate, error + rule.tradeoff * bits / weight.size)

    return [judge(outcome) for outcome in outcomes]
