"""Weight sharing: each weight becomes one of a few shared values, stored as a codebook and 4-bit or 8-bit
indices.

    W f32[shape]   becomes   Gather(codebook f32[K], Cast(indices UINT4 or UINT8 [shape] -> INT32)) -> W

Values are shared within one tensor (or all, or a group of output channels), and chosen by k-means from a
linear start (passes/numerics/clustering/kmeans.py says why). Retraining then trains the codebook: the
gradient of Gather sums over all weights that share a value. Zeros named in `lathe.sparse` stay exactly
zero, and nothing else becomes zero: what was pruned is the choice of `prune`, and a weight that fell to
zero here could not be trained any more. Training, if asked for, computes with shared values.
Source: Han, Mao and Dally, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained
Quantization and Huffman Coding", ICLR 2016, section 3; with a price on code length, Chou, Lookabaugh and
Gray, "Entropy-Constrained Vector Quantization", 1989; while training runs, Choi, El-Khamy and Lee, "Towards
the Limit of Network Quantization", ICLR 2017.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import groupby

import numpy as np

from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.passes.codebook.compensation import Chosen, compensated
from onnx_lathe.passes.codebook.options import HESSIAN, Meanwhile, Sharing
from onnx_lathe.passes.codebook.sequence import in_sequence
from onnx_lathe.passes.codebook.sharing import (
    ClusterJob,
    Small,
    ValueCounts,
    ladder,
    value_counts,
    with_four_bits,
)
from onnx_lathe.passes.codebook.summary import Total, entropy_of, how_many, quality
from onnx_lathe.passes.codebook.trial_model import TrialModel
from onnx_lathe.passes.codebook.writer import CodebookWriter, Part, index_bits, stored_bytes
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.core.training_options import (
    IN_TRAINING,
    TrainingOptions,
    check_training,
    take_over,
    trainer_settings,
)
from onnx_lathe.passes.graph import Constant, Graph
from onnx_lathe.passes.graph.biases import biases
from onnx_lathe.passes.graph.bodies import all_tensors
from onnx_lathe.passes.graph.initializers import read, write
from onnx_lathe.passes.graph.layers import Weight, codebook_of, not_float, other_use, stored_in, weights
from onnx_lathe.passes.graph.model import export_model, sparse_tensors
from onnx_lathe.passes.graph.patterns import by_weight
from onnx_lathe.passes.numerics.clustering.bit_choice import fewest_bytes
from onnx_lathe.passes.numerics.clustering.codebook_pools import Clustered
from onnx_lathe.passes.numerics.clustering.kmeans import Rule, distinct_values, signal_and_noise
from onnx_lathe.passes.numerics.clustering.mantissa import round_mantissa


@register
class Codebook(Pass):
    """Gives the weights of each layer a few shared values (k-means), stored as a codebook and indices."""

    name = "codebook"
    streams = True
    after = {"fold": "a folded batch normalization gives every channel values of its own"}
    before = {
        "int8": "values are shared among float weights; int8 then quantizes what the codebook decodes to"
    }
    moved = {name: hint for name, hint in IN_TRAINING.items() if name != "seed"}

    @dataclass(frozen=True)
    class Config(Meanwhile, Sharing):
        training: TrainingOptions | None = option(
            None, "trains with shared values, which change meanwhile; none: chosen at once, without training"
        )

        def __post_init__(self) -> None:
            check_training(self, "codebook", [given.name for given in fields(Meanwhile)])
            if self.seed and self.init != "kmeans++":
                raise UsageError(
                    "codebook: seed is about init=kmeans++; "
                    f"for the order of the data, write training={{seed: {self.seed}}}"
                )
            self.check_rounding("training" if self.training is not None else None)
            if self.training is not None and self.min_sqnr is not None:
                raise UsageError(
                    "codebook: min_sqnr bounds what sharing alone does; "
                    "train without it, or in a retrain step of its own"
                )

    def __init__(self, config: "Codebook.Config | None" = None) -> None:
        super().__init__(config)
        self.needs = _needs(self.config)
        self.trains = self.config.training is not None
        self.rule = Rule(
            start=self.config.init,
            exact=self.config.method == "exact",
            tradeoff=self.config.tradeoff,
            iterations=self.config.iterations,
            seed=self.config.seed,
            mantissa=self.config.mantissa,
        )

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        found = list(weights(graph, refuse=report.skip, bodies=True, everywhere=True))
        refused = [skip.node for skip in report.skips]
        counts = value_counts(self.config, found, refused)
        own = by_weight(self.config.layer_tradeoffs, found, refused, "codebook(layer_tradeoffs=...)")
        jobs = self._jobs(graph, found, counts, own, report)
        total = Total()
        if self.config.rounding == HESSIAN:
            jobs, _ = with_four_bits(graph, jobs, [], report)
            rules = [self._rule(job) for job in jobs]
            choose = in_sequence if self.config.sequential else compensated
            chosen = choose(graph, jobs, rules, context, report)
            self._store(graph, jobs, chosen, total, context, report)
            found = list(weights(graph, refuse=lambda node, reason: None, bodies=True, everywhere=True))
            small = self._small(graph, found, counts, report)
        else:
            small = self._small(graph, found, counts, report)
            if self.config.min_sqnr is not None and (jobs or small):
                jobs = self._fewest_bits(graph, jobs, small, context, report)
            jobs, small = with_four_bits(graph, jobs, small, report)
            if self.trains and (jobs or small):
                self._train(graph, jobs, small, context, report)
            self._store(graph, jobs, {}, total, context, report)
        for _, items in groupby(small, key=lambda item: (item.kind, item.node)):
            self._write(list(items), report)
        report.metrics.update(total.metrics(self._priced, nearest=self._priced and not self.trains))
        return report

    @property
    def _priced(self) -> bool:
        """Whether codes have a price in any layer."""
        return self.config.tradeoff > 0 or any(self.config.layer_tradeoffs.values())

    def _rule(self, job: ClusterJob) -> Rule:
        return self.rule if job.tradeoff is None else replace(self.rule, tradeoff=job.tradeoff)

    def _jobs(
        self, graph: Graph, found: list[Weight], counts: ValueCounts, tradeoffs: Mapping[str, float],
        report: PassReport,
    ) -> list[ClusterJob]:  # fmt: skip
        """What is clustered together; a weight with a number of values or a tradeoff of its own has a codebook of
        its own, too.
        """
        sparse, members = sparse_tensors(graph), dict[str, list[Weight]]()
        for weight in found:
            if reason := self._refusal(graph, weight, counts.of(weight.name)):
                report.skip(weight.nodes[0].name, reason)
            else:
                alone = self.config.share != "network" or weight.name in {**counts.own, **tradeoffs}
                members.setdefault(weight.name if alone else "", []).append(weight)
        jobs = []
        groups = self.config.groups if self.config.share == "channel_group" else 1
        for together in members.values():
            first = together[0].name
            keep_zero = any(weight.name in sparse for weight in together)
            job = ClusterJob.of(together, counts.of(first), keep_zero, groups, first in counts.own)
            job = replace(job, tradeoff=tradeoffs.get(first))
            if job.keep_zero and job.k < 3 and (self.trains or not job.has_few_values()):
                reason = (
                    "its zeros must stay, and negative, zero and positive weights "
                    "need at least 3 values; give it 2 bits"
                )
                _skip(job, reason, report)
            else:
                jobs.append(job)
        return jobs

    def _refusal(self, graph: Graph, weight: Weight, k: int) -> str | None:
        if codebook_of(weight.tensor) is not None:
            return "its weight is a codebook already"
        if reason := not_float(weight.tensor, self.name):
            return reason
        size = int(np.prod(weight.tensor.shape))
        if size < self.config.min_size:
            return f"its weight has {size} elements, fewer than min_size={self.config.min_size}"
        if k == 0:
            return "its bits are set to 0"
        if reason := other_use(graph, weight):
            return reason
        return None if _is_finite(weight.tensor) else "its weight has NaN or infinite elements"

    def _fewest_bits(
        self, graph: Graph, jobs: list[ClusterJob], small: list[Small], context: Context, report: PassReport
    ) -> list[ClusterJob]:
        """The jobs with the bits that min_sqnr takes, beside what small tensors become; those that need
        more than 8 are skipped.
        """
        candidate, least = TrialModel(export_model(graph), context.need_runner()), float(self.config.min_sqnr)
        beside = {item.tensor.name: item.decoded(self.rule) for item in small}
        ladders = []
        for job in jobs:
            context.progress(f"measuring {job.weights[0].name}")
            ladders.append(ladder(job, self._rule(job), candidate))

        def measure(bits: tuple[int | None, ...]) -> float:
            context.progress("measuring all layers")
            changed = [
                job.with_bits(chosen) for job, chosen in zip(jobs, bits, strict=True) if chosen is not None
            ]
            return candidate.noise(
                beside
                | {name: array for job in changed for name, array in job.decoded(self._rule(job)).items()}
            )

        bits, noise = fewest_bytes(ladders, 10 ** (-least / 10), measure)
        sqnr = -10 * math.log10(noise) if noise else math.inf
        if sqnr < least:
            raise PassError(
                "what layers=, layer_centroids=, biases= and mantissa= fix leaves "
                f"{sqnr:.1f} dB, below min_sqnr={least:g}; give them more"
            )
        report.metrics |= {"sqnr_db": sqnr} if math.isfinite(sqnr) else {}
        report.metrics["runs"] = float(candidate.runs)
        for job, chosen in zip(jobs, bits, strict=True):
            if chosen is None:
                _skip(
                    job,
                    f"with a codebook of up to 8 bits the outputs would not keep min_sqnr={least:g} dB",
                    report,
                )
        return [job.with_bits(chosen) for job, chosen in zip(jobs, bits, strict=True) if chosen is not None]

    def _rounded_codebooks(self, found: list[Weight], counts: ValueCounts) -> list[Small]:
        """Codebooks of earlier steps whose values have more bits of mantissa than the option says."""
        if self.config.mantissa is None:
            return []
        small: dict[str, Small] = {}
        for weight in found:
            if (
                counts.of(weight.name) == 0
                or weight.is_initializer
                or weight.tensor.inputs[0].op not in ("Gather", "Concat")
            ):
                continue
            for leaf in stored_in(weight.tensor) if codebook_of(weight.tensor) is not None else ():
                if (
                    leaf.dtype == np.float32
                    and (self.trains or not self._is_rounded(read(leaf)))
                    and leaf.shape[0] <= 256
                ):
                    small.setdefault(leaf.name, Small(weight.nodes[0].name, leaf, 256, "codebook"))
        return list(small.values())

    def _small(
        self, graph: Graph, found: list[Weight], counts: ValueCounts, report: PassReport
    ) -> list[Small]:
        return self._rounded_codebooks(found, counts) + self._small_biases(graph, found, counts, report)

    def _small_biases(
        self, graph: Graph, found: list[Weight], counts: ValueCounts, report: PassReport
    ) -> list[Small]:
        if not self.config.biases:
            return []
        small, k = [], 2**self.config.biases
        left = {node.name for weight in found if counts.of(weight.name) == 0 for node in weight.nodes}
        for node, tensor in biases(graph, refuse=report.skip):
            if node.name in left:
                continue
            distinct = distinct_values([read(tensor)], k) if _is_finite(tensor) else None
            if not _is_finite(tensor):
                report.skip(node.name, "its bias has NaN or infinite elements")
            elif (
                distinct is not None
                and self._is_rounded(distinct)
                and (not self.trains or read(tensor).size <= k)
            ):
                report.skip(
                    node.name,
                    f"its bias has {distinct.size} distinct value{'s' * (distinct.size > 1)} already",
                )
            else:
                small.append(Small(node.name, tensor, k, "bias"))
        return small

    def _is_rounded(self, values: np.ndarray) -> bool:
        return bool((round_mantissa(values, self.config.mantissa) == values).all())

    def _train(
        self, graph: Graph, jobs: list[ClusterJob], small: list[Small], context: Context, report: PassReport
    ) -> None:
        """Writes the trained values into the graph: those of jobs and small tensors have few distinct ones
        already.
        """
        groups = [(group, self._rule(job)) for job in jobs for group in job.groups]
        groups += [(item.group, replace(self.rule, tradeoff=0.0)) for item in small]
        shaping = Clustered(groups, self.config.every, self.config.freeze)
        result = context.need_trainer().train(export_model(graph), trainer_settings(self.config), shaping)
        tensors, shaped = all_tensors(graph), {piece.tensor for group, _ in groups for piece in group.pieces}
        for name in take_over(graph, result, report):
            if name not in shaped:
                report.edit(tensors[name].outputs[0].name, f"{name} was trained")
        report.metrics.update(result.metrics)

    def _store(
        self,
        graph: Graph,
        jobs: list[ClusterJob],
        chosen: Mapping[str, Chosen],
        total: Total,
        context: Context,
        report: PassReport,
    ) -> None:
        writer = CodebookWriter(graph)
        for job in jobs:
            context.progress(f"clustering {job.weights[0].name}")
            self._store_one(writer, job, chosen.get(job.weights[0].name), total, report)

    def _store_one(
        self, writer: CodebookWriter, job: ClusterJob, chosen: Chosen | None, total: Total, report: PassReport
    ) -> None:
        """Puts the codebooks of a job into the graph, those that are chosen already or by value; or says why not."""
        trained = self.trains and job.has_few_values()
        rule = self._rule(job)
        if chosen is None:
            arrays = job.values()
            outcome = job.encoded(arrays, replace(rule, tradeoff=0.0) if trained else rule)
        else:
            arrays, outcome = chosen.arrays(job), chosen.outcome
        codebooks = [
            writer.codebook(job.codebook_name(number), encoded.centroids)
            for number, (_, encoded) in enumerate(outcome)
        ]
        own_bytes = sum(encoded.centroids.nbytes for _, encoded in outcome) / len(job.weights)
        entropy = entropy_of(outcome) if self._priced else (0.0, 0.0)
        for weight in job.weights:
            values, parts, signal, noise = arrays[weight.name], list[Part](), 0.0, 0.0
            for (group, encoded), codebook in zip(outcome, codebooks, strict=True):
                for piece, indices in zip(group.pieces, encoded.indices, strict=True):
                    if piece.tensor == weight.name:
                        parts.append(Part(codebook, indices))
                        more = signal_and_noise(piece.of(values), encoded.centroids, indices)
                        signal, noise = signal + more[0], noise + more[1]
            stored = round(own_bytes + stored_bytes(writer.graph, weight.name, parts))
            if stored >= values.nbytes:
                report.skip(weight.nodes[0].name, f"its {values.nbytes} bytes would become {stored}")
                if self.trains:
                    report.edit(weight.nodes[0].name, f"{weight.name} was trained")
                continue
            bits = max(index_bits(writer.graph, part.codebook.shape[0]) for part in parts)
            what = [
                how_many(job, outcome),
                f"{bits}-bit indices",
                "trained" if trained else quality(signal, noise),
            ]
            if rule.tradeoff > 0:
                what.append(
                    f"{entropy[0]:.2f} bits per weight"
                    + ("" if trained else f" ({entropy[1]:.2f} by nearest value)")
                )
            if chosen is not None:
                what.append(chosen.said)
                chosen.move_bias(writer.graph, writer.taken)
            if self.config.min_sqnr is not None and not job.fixed:
                what.append(f"{job.k.bit_length() - 1} bits chosen")
            writer.replace(weight.tensor, parts, weight.axis)
            report.edit(weight.nodes[0].name, ", ".join(what))
            total.add(values.size, signal, 0.0 if trained else noise, entropy)

    def _write(self, items: list[Small], report: PassReport) -> None:
        """Makes the values of a layer's bias, or of its codebooks, few or rounded where they stand."""
        signal, noise, most = 0.0, 0.0, 0
        for item in items:
            values, encoded = read(item.tensor), item.encoded(self.rule)
            own = signal_and_noise(values, encoded.centroids, encoded.indices[0])
            signal, noise, most = signal + own[0], noise + own[1], max(most, encoded.centroids.size)
            write(item.tensor, encoded.centroids[encoded.indices[0]])
        what = (
            f"{items[0].kind} {items[0].tensor.name}: "
            if len(items) == 1
            else f"{len(items)} codebooks: up to "
        )
        outcome = "trained" if self.trains and not noise else quality(signal, noise)
        report.edit(items[0].node, f"{what}{most} distinct values, {outcome}")


def _needs(config: Codebook.Config) -> tuple[str, ...]:
    if config.training is not None:
        return ("trainer",)
    if config.rounding == HESSIAN:
        return ("calibrator",)
    return ("runner",) if config.min_sqnr is not None else ()


def _skip(job: ClusterJob, reason: str, report: PassReport) -> None:
    for weight in job.weights:
        report.skip(weight.nodes[0].name, reason)


def _is_finite(tensor: Constant) -> bool:
    values = read(tensor)
    return bool(np.isfinite([values.min(), values.max()]).all())
