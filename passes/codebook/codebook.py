"""Weight sharing: each weight becomes one of a few shared values, stored as a codebook and 4-bit or 8-bit
indices.

    W f32[shape]   becomes   Gather(codebook f32[K], Cast(indices UINT4 or UINT8 [shape] -> INT32)) -> W

Values are shared within one tensor (or all, or a group of output channels), and chosen by k-means from a
linear start (passes/numerics/clustering/kmeans.py says why). Retraining then trains the codebook: the
gradient of Gather sums over all weights that share a value. Zeros named in `lathe.sparse` stay exactly
zero, and nothing else becomes zero: what was pruned is the choice of `prune`, and a weight that fell to
zero here could not be trained any more. Where training is asked for, the network computes with shared
values while it runs.
Source: Han, Mao and Dally, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained
Quantization and Huffman Coding", ICLR 2016, section 3; with a price on code length, Chou, Lookabaugh and
Gray, "Entropy-Constrained Vector Quantization", 1989; while training runs, Choi, El-Khamy and Lee, "Towards
the Limit of Network Quantization", ICLR 2017.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.passes.codebook.sharing import Small, Unit, ladder
from onnx_lathe.passes.codebook.trial_model import Candidate
from onnx_lathe.passes.codebook.writer import Part, Writer, index_bits, stored_bytes
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.core.training_options import TrainingOptions, check_shaped, take_over
from onnx_lathe.passes.graph import Constant, Graph
from onnx_lathe.passes.graph.biases import biases
from onnx_lathe.passes.graph.initializers import read, write
from onnx_lathe.passes.graph.layers import Weight, codebook_of, not_float, other_use, stored_in, weights
from onnx_lathe.passes.graph.model import export_model, sparse_tensors
from onnx_lathe.passes.graph.patterns import by_weight
from onnx_lathe.passes.numerics.clustering.bit_choice import fewest_bytes
from onnx_lathe.passes.numerics.clustering.codebook_pools import Clustered, Pool
from onnx_lathe.passes.numerics.clustering.entropy_constrained import entropy_bits
from onnx_lathe.passes.numerics.clustering.kmeans import (
    STARTS,
    Encoded,
    Rule,
    distinct_values,
    signal_and_noise,
)
from onnx_lathe.passes.numerics.clustering.mantissa import round_mantissa


@dataclass(frozen=True)
class Sharing:
    """Options that say what shares values, how many there are, and how they are chosen."""

    bits: int = option(
        4,
        "2^bits values are shared; up to 4 bits the file has 4-bit indices, from opset 21 on",
        low=1,
        high=8,
    )
    centroids: int | None = option(None, "number of shared values, instead of 2^bits", low=2, high=256)
    layers: dict[str, int] = option(
        {}, "bits for weights or layers by name pattern; 0 leaves one as it is", low=0, high=8
    )
    layer_centroids: dict[str, int] = option(
        {}, "number of shared values by name pattern, before layers", low=2, high=256
    )
    share: str = option("tensor", "what has one codebook", choices=("tensor", "network", "channel_group"))
    groups: int = option(4, "groups of output channels of a layer, with share=channel_group", low=2)
    init: str = option(
        "linear", "where centroids start: evenly, with equal counts, or far apart by chance", choices=STARTS
    )
    method: str = option(
        "lloyd", "k-means, or the optimum by dynamic programming", choices=("lloyd", "exact")
    )
    tradeoff: float = option(
        0.0,
        "squared error, relative to the weights' square, that is taken to save one bit of a weight's code",
        low=0.0,
    )
    iterations: int = option(300, "most iterations of k-means", low=1)
    min_sqnr: float | None = option(
        None,
        "chooses bits per layer: the fewest that keep the outputs so near to the input model's",
        unit="dB",
        low=0.0,
        high=300.0,
    )
    mantissa: int | None = option(
        None, "bits of mantissa that shared values keep, 7 as bfloat16; none: 23", low=0, high=23
    )
    biases: int = option(
        0,
        "each bias has 2^bits distinct values too, in place; 0: they stay; use after the last training",
        low=0,
        high=8,
    )
    # With 256 weights, a codebook and the two nodes that decode it still cost half of what 4-bit indices
    # save.
    min_size: int = option(256, "smaller weights are left as they are", unit="elements", low=1)
    every: int = option(
        1,
        "with epochs: optimizer steps between two clusterings, for which the network computes with old values",
        low=1,
    )
    freeze: float = option(
        0.8,
        "share of the training after which weights keep their centroids, which still train",
        low=0.0,
        high=1.0,
    )


@register
class Codebook(Pass):
    """Gives the weights of each layer a few shared values (k-means), stored as a codebook and indices."""

    name = "codebook"
    after = {"fold": "a folded batch normalization gives every channel values of its own"}
    before = {
        "int8": "values are shared among float weights; int8 then quantizes what the codebook decodes to"
    }

    @dataclass(frozen=True)
    class Config(TrainingOptions, Sharing):
        epochs: int = option(
            0, "passes over the training data, during which values are shared; 0: no training", low=0
        )
        seed: int = option(0, "seed of the order of the data and of init=kmeans++", low=0)

        def __post_init__(self) -> None:
            super().__post_init__()
            check_shaped(self, "codebook")
            if self.epochs and self.min_sqnr is not None:
                raise UsageError(
                    "codebook: min_sqnr bounds what sharing alone does; train without it, or in a retrain step of its own"
                )

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.needs = ("trainer",) * (self.config.epochs > 0) + ("runner",) * (
            self.config.min_sqnr is not None
        )
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
        found = list(weights(graph, refuse=report.skip))
        sizes = self._sizes(found, [skip.node for skip in report.skips])
        units = self._units(graph, found, sizes, report)
        small = self._rounded_codebooks(found, sizes) + self._small_biases(graph, found, sizes, report)
        if self.config.min_sqnr is not None and (units or small):
            units = self._fewest_bits(graph, units, small, context, report)
        if self.config.epochs and (units or small):
            self._train(graph, units, small, context, report)
        writer, total = Writer(graph), _Total()
        for unit in units:
            context.progress(f"clustering {unit.weights[0].name}")
            self._store(writer, unit, total, report)
        for _, items in groupby(small, key=lambda item: (item.kind, item.node)):
            self._write(list(items), report)
        priced = self.config.tradeoff > 0
        report.metrics.update(total.metrics(entropy=priced, nearest=priced and self.config.epochs == 0))
        return report

    def _sizes(self, found: list[Weight], refused: list[str]) -> dict[str, int]:
        """Number of shared values by weight; 0 for one that is to stay as it is. Those named by an option
        of their own are in `own` too.
        """
        bits = by_weight(self.config.layers, found, refused, "codebook(layers=...)")
        centroids = by_weight(self.config.layer_centroids, found, refused, "codebook(layer_centroids=...)")
        self.own = {name: bits_ and 2**bits_ for name, bits_ in bits.items()} | centroids
        return (
            dict.fromkeys((weight.name for weight in found), self.config.centroids or 2**self.config.bits)
            | self.own
        )

    def _units(
        self, graph: Graph, found: list[Weight], sizes: Mapping[str, int], report: PassReport
    ) -> list[Unit]:
        """What is clustered together; a weight with a number of values of its own has a codebook of its
        own, too.
        """
        sparse, members = sparse_tensors(graph), dict[str, list[Weight]]()
        for weight in found:
            if reason := self._refusal(graph, weight, sizes[weight.name]):
                report.skip(weight.nodes[0].name, reason)
            else:
                alone = self.config.share != "network" or weight.name in self.own
                members.setdefault(weight.name if alone else "", []).append(weight)
        units = []
        for group in members.values():
            groups = self.config.groups if self.config.share == "channel_group" else 1
            unit = Unit.of(
                group, sizes[group[0].name], any(weight.name in sparse for weight in group), groups
            )
            if unit.keep_zero and unit.k < 3 and (self.config.epochs or not unit.has_few_values()):
                reason = "its zeros must stay, and negative, zero and positive weights need at least 3 values; give it 2 bits"
                _skip(unit, reason, report)
            else:
                units.append(unit)
        return units

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
        self, graph: Graph, units: list[Unit], small: list[Small], context: Context, report: PassReport
    ) -> list[Unit]:
        """The units with the bits that min_sqnr takes, beside what small tensors become; those that need
        more than 8 are skipped.
        """
        candidate, least = Candidate(export_model(graph), context.need_runner()), float(self.config.min_sqnr)
        beside = {item.tensor.name: item.decoded(self.rule) for item in small}
        ladders = []
        for unit in units:
            context.progress(f"measuring {unit.weights[0].name}")
            ladders.append(ladder(unit, self.rule, candidate, fixed=unit.weights[0].name in self.own))

        def measure(bits: tuple[int | None, ...]) -> float:
            context.progress("measuring all layers")
            changed = [
                unit.with_bits(chosen) for unit, chosen in zip(units, bits, strict=True) if chosen is not None
            ]
            return candidate.noise(
                beside | {name: array for unit in changed for name, array in unit.decoded(self.rule).items()}
            )

        bits, noise = fewest_bytes(ladders, 10 ** (-least / 10), measure)
        sqnr = -10 * math.log10(noise) if noise else math.inf
        if sqnr < least:
            raise PassError(
                f"what layers=, layer_centroids=, biases= and mantissa= fix leaves {sqnr:.1f} dB, below min_sqnr={least:g}; give them more"
            )
        report.metrics |= {"sqnr_db": sqnr} if math.isfinite(sqnr) else {}
        report.metrics["runs"] = float(candidate.runs)
        for unit, chosen in zip(units, bits, strict=True):
            if chosen is None:
                _skip(
                    unit,
                    f"with a codebook of up to 8 bits the outputs would not keep min_sqnr={least:g} dB",
                    report,
                )
        return [
            unit.with_bits(chosen) for unit, chosen in zip(units, bits, strict=True) if chosen is not None
        ]

    def _rounded_codebooks(self, found: list[Weight], sizes: Mapping[str, int]) -> list[Small]:
        """Codebooks of earlier steps whose values have more bits of mantissa than the option says."""
        if self.config.mantissa is None:
            return []
        small: dict[str, Small] = {}
        for weight in found:
            if (
                sizes[weight.name] == 0
                or weight.is_initializer
                or weight.tensor.inputs[0].op not in ("Gather", "Concat")
            ):
                continue
            for leaf in stored_in(weight.tensor) if codebook_of(weight.tensor) is not None else ():
                if (
                    leaf.dtype == np.float32
                    and (self.config.epochs or not self._is_rounded(read(leaf)))
                    and leaf.shape[0] <= 256
                ):
                    small.setdefault(leaf.name, Small(weight.nodes[0].name, leaf, 256, "codebook"))
        return list(small.values())

    def _small_biases(
        self, graph: Graph, found: list[Weight], sizes: Mapping[str, int], report: PassReport
    ) -> list[Small]:
        if not self.config.biases:
            return []
        small, k = [], 2**self.config.biases
        left = {node.name for weight in found if sizes[weight.name] == 0 for node in weight.nodes}
        for node, tensor in biases(graph, refuse=report.skip):
            if node.name in left:
                continue
            distinct = distinct_values([read(tensor)], k) if _is_finite(tensor) else None
            if not _is_finite(tensor):
                report.skip(node.name, "its bias has NaN or infinite elements")
            elif (
                distinct is not None
                and self._is_rounded(distinct)
                and (not self.config.epochs or read(tensor).size <= k)
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
        self, graph: Graph, units: list[Unit], small: list[Small], context: Context, report: PassReport
    ) -> None:
        """Writes the trained values into the graph: those of units and small tensors have few distinct ones
        already.
        """
        pools = [(pool, self.rule) for unit in units for pool in unit.pools]
        pools += [(item.pool, replace(self.rule, tradeoff=0.0)) for item in small]
        shaping = Clustered(pools, self.config.every, self.config.freeze)
        result = context.need_trainer().train(export_model(graph), asdict(self.config), shaping)
        tensors, shaped = graph.tensors(), {piece.tensor for pool, _ in pools for piece in pool.pieces}
        for name in take_over(graph, result):
            if name not in shaped:
                report.edit(tensors[name].outputs[0].name, f"{name} was trained")
        report.metrics.update(result.metrics)

    def _store(self, writer: Writer, unit: Unit, total: "_Total", report: PassReport) -> None:
        """Puts the codebooks of a unit into the graph, or says why not."""
        trained = self.config.epochs > 0 and unit.has_few_values()
        arrays = unit.values()
        outcome = unit.encoded(arrays, replace(self.rule, tradeoff=0.0) if trained else self.rule)
        codebooks = [
            writer.codebook(unit.codebook_name(number), encoded.centroids)
            for number, (_, encoded) in enumerate(outcome)
        ]
        own_bytes = sum(encoded.centroids.nbytes for _, encoded in outcome) / len(unit.weights)
        entropy = _entropy(outcome) if self.config.tradeoff > 0 else (0.0, 0.0)
        for weight in unit.weights:
            values, parts, signal, noise = arrays[weight.name], list[Part](), 0.0, 0.0
            for (pool, encoded), codebook in zip(outcome, codebooks, strict=True):
                for piece, indices in zip(pool.pieces, encoded.indices, strict=True):
                    if piece.tensor == weight.name:
                        parts.append(Part(codebook, indices))
                        more = signal_and_noise(piece.of(values), encoded.centroids, indices)
                        signal, noise = signal + more[0], noise + more[1]
            stored = round(own_bytes + stored_bytes(writer.graph, weight.name, parts))
            if stored >= values.nbytes:
                report.skip(weight.nodes[0].name, f"its {values.nbytes} bytes would become {stored}")
                if self.config.epochs:
                    report.edit(weight.nodes[0].name, f"{weight.name} was trained")
                continue
            bits = max(index_bits(writer.graph, part.codebook.shape[0]) for part in parts)
            what = [
                _how_many(unit, outcome),
                f"{bits}-bit indices",
                "trained" if trained else _quality(signal, noise),
            ]
            if self.config.tradeoff > 0:
                what.append(
                    f"{entropy[0]:.2f} bits per weight"
                    + ("" if trained else f" ({entropy[1]:.2f} by nearest value)")
                )
            if self.config.min_sqnr is not None and weight.name not in self.own:
                what.append(f"{unit.k.bit_length() - 1} bits chosen")
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
        quality = "trained" if self.config.epochs and not noise else _quality(signal, noise)
        report.edit(items[0].node, f"{what}{most} distinct values, {quality}")


@dataclass
class _Total:
    """What all the weights that became codebooks add up to."""

    elements: int = 0
    signal: float = 0.0
    noise: float = 0.0
    bits: float = 0.0
    nearest_bits: float = 0.0

    def add(self, elements: int, signal: float, noise: float, entropy: tuple[float, float]) -> None:
        self.elements += elements
        self.signal, self.noise = self.signal + signal, self.noise + noise
        self.bits, self.nearest_bits = (
            self.bits + elements * entropy[0],
            self.nearest_bits + elements * entropy[1],
        )

    def metrics(self, entropy: bool, nearest: bool) -> dict[str, float]:
        found = {"weight_sqnr_db": 10 * math.log10(self.signal / self.noise)} if self.noise else {}
        if entropy and self.elements:
            found["entropy_bits"] = float(self.bits / self.elements)
        if nearest and self.elements:
            found["nearest_entropy_bits"] = float(self.nearest_bits / self.elements)
        return found


def _entropy(outcome: Sequence[tuple[Pool, Encoded]]) -> tuple[float, float]:
    """Mean bits per weight of an ideal code for where zeros are and which value the others have; and so by
    nearest value.
    """
    bits = nearest = elements = 0.0
    for pool, encoded in outcome:
        counts = encoded.counts()
        by_value = counts
        if encoded.nearest_counts.size:
            by_value = np.append(
                encoded.nearest_counts, counts[encoded.centroids == 0] if pool.keep_zero else []
            )
        bits, nearest = (
            bits + counts.sum() * entropy_bits(counts),
            nearest + counts.sum() * entropy_bits(by_value),
        )
        elements += counts.sum()
    return bits / elements, nearest / elements


def _how_many(unit: Unit, outcome: Sequence[tuple[Pool, Encoded]]) -> str:
    most = max(encoded.centroids.size for _, encoded in outcome)
    if len(unit.weights) > 1:
        return f"{most} values shared by {len(unit.weights)} weights"
    return (
        f"{len(outcome)} groups of up to {most} shared values"
        if len(outcome) > 1
        else f"{most} shared values"
    )


def _quality(signal: float, noise: float) -> str:
    if noise == 0:
        return "exact"
    return f"{10 * math.log10(signal / noise):.1f} dB signal to noise" if signal else "its zeros have changed"


def _skip(unit: Unit, reason: str, report: PassReport) -> None:
    for weight in unit.weights:
        report.skip(weight.nodes[0].name, reason)


def _is_finite(tensor: Constant) -> bool:
    values = read(tensor)
    return bool(np.isfinite([values.min(), values.max()]).all())
