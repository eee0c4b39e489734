"""Tucker-2 and CP: a k x k convolution becomes three that need fewer multiply-accumulates (MACs) together, on any runtime.

    Conv(W k x k, c -> d)   becomes   Conv(1 x 1, c -> r) -> Conv(k x k, r -> s) -> Conv(1 x 1, s -> d)         form=tucker
    Conv(W k x k, c -> d)   becomes   Conv(1 x 1, c -> r) -> Conv(k x k, depthwise) -> Conv(1 x 1, r -> d)      form=cp

With calibration data the three are fitted to what the layer answered in the network as it came, given the input that it
really gets behind the layers already split: by alternating least squares in the norm of the inputs' second moments,
from the higher-order SVD. Without data they come nearest to the weight alone, and the report says so. Ranks that are not
given are those with which all layers together lose least of their answers on held-back samples within the budget of MACs.
Sources: Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications", ICLR
2016, section 3; Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition", ICLR 2015;
ranks: Frantar and Alistarh, "SPDY", ICML 2022, section 3.2.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe import metadata
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.rank_options import MET, RankOptions
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.answers.aligned import Layer, layer_of
from onnx_lathe.passes.graph.data_sizes import data_sizes
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.input_moments import input_moments
from onnx_lathe.passes.graph.layer_times import choose_timed
from onnx_lathe.passes.graph.layers import Weight, not_float, weights
from onnx_lathe.passes.graph.macs import Shape, network_macs, sized_shapes
from onnx_lathe.passes.graph.model import Snapshot, export_model, node_metadata, sparse_tensors
from onnx_lathe.passes.graph.patterns import by_weight
from onnx_lathe.passes.numerics.second_order.moments import SplitMoments, response_energy
from onnx_lathe.passes.tucker.fitting import latencies, split_by_answers, split_by_weight
from onnx_lathe.passes.tucker.plans import LayerPlan, choose
from onnx_lathe.passes.tucker.settings import Setting, Sizes, problem_of, settings, weight_of

PARTS = 3
"""Layers that one becomes."""


@register
class TuckerPass(Pass):
    """Splits k x k convolutions in three, by Tucker-2 or CP, fitted to what they answer."""

    name = "tucker"
    after = {"fold": "a batch normalization behind a convolution is split with it once it is folded"}
    before = {
        "codebook": "a weight with few values has factors with many",
        "int8": "the INT8 scales are chosen for the layers that are left",
    }

    @dataclass(frozen=True)
    class Config(RankOptions):
        form: str = option(
            "tucker",
            "tucker: k x k between fewer channels; cp: depthwise k x k, fewest MACs for the same answers",
            choices=("tucker", "cp"),
        )

        def __post_init__(self) -> None:
            self.check("tucker")

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        found = list(weights(graph, refuse=report.skip))
        own = by_weight(self.config.layers, found, [skip.node for skip in report.skips], "tucker(layers=...)")
        layers = list(self._layers(graph, found, own, report))
        if not layers:
            return report
        snapshot = Snapshot(graph)
        shapes = sized_shapes(snapshot.frame, data_sizes(snapshot, context.calibrator))
        now, whole = network_macs(graph, shapes, self.name, PARTS)
        if self.config.by_budget and not own and now <= self.config.share * whole:
            for layer in layers:
                report.skip(layer.node.name, MET)
            return report
        plans = list(self._plans(graph, layers, own, shapes, context, report))
        chosen = self._choose(graph, plans, (now, whole), shapes, context, report)
        report.chosen = {plan.layer.rows.weight.name: max(plan.chosen, default=0) for plan in plans}
        if context.calibrator is None:
            split_by_weight(graph, chosen, context, report)
        else:
            split_by_answers(graph, chosen, context.calibrator, context, report)
        split = {edit.node for edit in report.edits}
        kept = (now - sum(plan.saved for plan in chosen if plan.name in split)) / whole
        report.warnings += self.config.over_budget(self.name, kept)
        if report.edits:
            report.metrics["macs_kept"] = kept
            if context.calibrator is None:
                report.warnings.append(
                    "without calibration data, ranks and factors are nearest to the weights and not to what the layers "
                    "answer; --data or --calibration gives some"
                )
        return report

    def _layers(
        self, graph: Graph, found: Sequence[Weight], own: Mapping[str, int], report: PassReport
    ) -> Iterator[Layer]:
        """In the order of the graph."""
        sparse = sparse_tensors(graph)
        order = {id(node): place for place, node in enumerate(graph.nodes)}
        kept = []
        for weight in found:
            reason: Layer | str = (
                not_float(weight.tensor, self.name)
                or self._refusal(weight, own.get(weight.name), sparse)
                or layer_of(graph, weight)
            )
            if isinstance(reason, str):
                report.skip(weight.nodes[0].name, reason)
            else:
                kept.append(reason)
        yield from sorted(kept, key=lambda layer: order[id(layer.node)])

    def _refusal(self, weight: Weight, own: int | None, sparse: Collection[str]) -> str | None:
        node, shape = weight.nodes[0], weight.tensor.shape
        if own == 0:
            return "its rank is set to 0"
        if node_metadata(node).get(metadata.PASS) == self.name:
            return "it is part of a layer that is split already"
        if node.op != "Conv":
            return f"it is a {node.op}; {self.name} splits Conv, and svd this too"
        if node.attrs.get("group", 1) != 1:
            return "its convolution is grouped: each group is a small layer already"
        if math.prod(shape[2:]) == 1:
            return f"its kernel is {' x '.join(map(str, shape[2:]))}; svd splits it in two"
        if weight.name in sparse:
            return (
                f"its zeros must stay ({metadata.SPARSE}), and factors would have none; "
                f"{self.name} before prune"
            )
        values = read(weight.tensor)
        if not np.isfinite([values.min(), values.max()]).all():
            return "its weight has NaN or infinite elements"
        return None if values.any() else "its weight is 0"

    def _plans(
        self,
        graph: Graph,
        layers: Sequence[Layer],
        own: Mapping[str, int],
        shapes: Mapping[str, Shape],
        context: Context,
        report: PassReport,
    ) -> Iterator[LayerPlan]:
        """With settings that are measured, or with the one that is asked for."""
        ranks = [own.get(layer.rows.weight.name, self.config.fixed) for layer in layers]
        free = [layer.rows for layer, rank in zip(layers, ranks, strict=True) if rank is None]
        measured: Iterator[SplitMoments | None] = iter([None] * len(free))
        if context.calibrator is not None and free:
            network = export_model(graph)
            measured = (one for _, one in input_moments(network, free, context.calibrator, context.progress))
        for layer, rank in zip(layers, ranks, strict=True):
            sizes = Sizes.of(layer, shapes)
            if rank is not None:
                fixed = sizes.fixed(self.config.form, rank)
                yield LayerPlan(layer, sizes, [Setting(fixed, sizes.macs(fixed))], given=True)
                continue
            moments = next(measured)
            refusal = None if moments is None else moments.refusal(centered=True)
            if refusal is None:
                context.progress(f"measuring what ranks cost {layer.rows.weight.name}")
                yield LayerPlan(layer, sizes, self._settings(layer, sizes, moments), given=False)
            else:
                report.skip(layer.node.name, f"its inputs on the calibration data {refusal}")

    def _settings(self, layer: Layer, sizes: Sizes, moments: SplitMoments | None) -> list[Setting]:
        weight = weight_of(layer)
        problem = problem_of(layer, weight, None if moments is None else moments.fitted.regular(True)[0])
        judging = None if moments is None else moments.judging(True)
        energy = None if judging is None else response_energy(weight[None], judging)

        def judge(found: np.ndarray) -> float:
            if judging is None or not energy:
                return problem.error(found)
            return response_energy((found - problem.target).reshape(1, len(weight), -1), judging) / energy

        return settings(problem, judge, sizes, self.config.form, self.config.multiple, self.config.least)

    def _choose(
        self,
        graph: Graph,
        plans: Sequence[LayerPlan],
        macs: tuple[int, int],
        shapes: Mapping[str, Shape],
        context: Context,
        report: PassReport,
    ) -> list[LayerPlan]:
        """The plans that get a setting; `macs` are the network's, as it is and without earlier splits."""

        def ranks(plans: Sequence[LayerPlan], report: PassReport) -> list[LayerPlan]:
            return choose(plans, self.config, *macs, report)

        if not self.config.timed:
            return ranks(plans, report)

        def timed(plan: LayerPlan) -> tuple[float, float] | None:
            context.progress(f"timing {plan.layer.rows.weight.name}")
            return latencies(plan, shapes, graph.opset, context.need_timer())

        return choose_timed(plans, timed, ranks, report)
