"""Low-rank layers: a layer becomes two thinner ones that need fewer multiply-accumulates (MACs) together,
on any runtime.

    Conv(W k x k, c -> d)   becomes   Conv(k x k, c -> r) -> Conv(1 x 1, r -> d)         method=response, weight
    Conv(W k x k, c -> d)   becomes   Conv(k x 1, c -> r) -> Conv(1 x k, r -> d)         method=spatial
    Gemm, MatMul            becomes   two of them

method=response looks at what the layer answers on calibration data: the second layer spans the subspace
around the mean that the answers lie in. From the input on, each layer is fitted to what it answered in the
original network, given the input that it really gets behind the layers already split (asymmetric); where a
ReLU follows, so that the error behind the ReLU is least (nonlinear).
Source: Zhang, Zou, He and Sun, "Accelerating Very Deep Convolutional Networks for Classification and
Detection", TPAMI 2016, sections 3.1 to 3.4; spatial: Jaderberg, Vedaldi and Zisserman, "Speeding up
Convolutional Neural Networks with Low Rank Expansions", BMVC 2014.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from onnx_lathe import metadata
from onnx_lathe.errors import UsageError
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.rank_options import AUTO, MET, RankOptions
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.data_sizes import data_sizes
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.layer_times import choose_timed
from onnx_lathe.passes.graph.layers import Weight, not_float, weights
from onnx_lathe.passes.graph.macs import Shape, network_macs, sized_shapes
from onnx_lathe.passes.graph.model import Snapshot, node_metadata, sparse_tensors
from onnx_lathe.passes.graph.patterns import by_weight
from onnx_lathe.passes.graph.rewire import captured_names
from onnx_lathe.passes.numerics.rank.principal import principal
from onnx_lathe.passes.numerics.rank.rank_choice import Ladder, saving_ranks
from onnx_lathe.passes.numerics.rank.responses import errors_by_rank
from onnx_lathe.passes.svd.fitting import (
    collect_responses,
    collect_split,
    groups,
    split_by_response,
    split_by_weight,
)
from onnx_lathe.passes.svd.layer_plans import LayerPlan, choose
from onnx_lathe.passes.svd.settings import FittingOptions
from onnx_lathe.passes.svd.timing import latencies
from onnx_lathe.passes.svd.two_layers import Layer, describe, not_spatial, split_macs

KEPT_BYTES = 1 << 28
"""Singular vectors that are kept from the choice of ranks to the split; those of further layers are computed again."""
MOST_CHANNELS = 4096
"""Channels up to which the covariance of responses is taken (128 MB)."""


@register
class Svd(Pass):
    """Splits layers in two of lower rank, fitted to the layers' responses or to their weights."""

    name = "svd"
    after = {
        "fold": "a batch normalization between a layer and its ReLU hides the ReLU, "
        "and what both compute together is split"
    }
    before = {
        "codebook": "a weight with few values has two factors with many",
        "int8": "the INT8 scales are chosen for the layers that are left",
    }

    @dataclass(frozen=True)
    class Config(FittingOptions, RankOptions):
        method: str = option(
            "response",
            "what is kept: responses or weights; spatial: k x 1, 1 x k",
            choices=("response", "weight", "spatial"),
        )

        def __post_init__(self) -> None:
            self.check("svd")
            if self.rank == AUTO and self.method != "response":
                raise UsageError(
                    f"svd: rank=auto measures responses, and the method is {self.method}; leave one of them out"
                )
            for idle in fields(FittingOptions) if self.method != "response" else ():
                if getattr(self, idle.name) != idle.default:
                    raise UsageError(
                        f"svd: {idle.name} is about method=response, and the method is {self.method}; "
                        "leave one of them out"
                    )

    def __init__(self, config: "Svd.Config | None" = None) -> None:
        super().__init__(config)
        self.needs = ("calibrator",) if self.by_response else ()

    @property
    def by_response(self) -> bool:
        return bool(self.config.method == "response")

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        found = list(weights(graph, refuse=report.skip))
        own = by_weight(self.config.layers, found, [skip.node for skip in report.skips], "svd(layers=...)")
        captured = captured_names(graph)
        described = [
            (weight, self._describe(graph, weight, own.get(weight.name), captured)) for weight in found
        ]
        layers = [layer for _, layer in described if isinstance(layer, Layer)]
        for weight, reason in described:
            if isinstance(reason, str):
                report.skip(weight.nodes[0].name, reason)
        if not layers:
            return report
        original = Snapshot(graph)
        shapes = sized_shapes(original.frame, data_sizes(original, context.calibrator))
        now, whole = network_macs(graph, shapes, self.name)
        if self.config.by_budget and not own and now <= self.config.share * whole:
            for layer in layers:
                report.skip(layer.name, MET)
            return report
        if self.by_response:
            plans = [
                self._plan(layer, energies, shapes, errors)
                for layer, energies, errors in self._energies(layers, original, context, report)
            ]
        else:
            plans = self._plans_by_weight(layers, shapes, context)
        chosen = self._choose(graph, plans, own, (now, whole), shapes, context, report)
        report.chosen = {plan.layer.weight.name: plan.rank or 0 for plan in plans}
        if self.by_response:
            split_by_response(graph, original, chosen, self.config, context, report)
        else:
            for plan in chosen:
                context.progress(f"splitting {plan.layer.weight.name}")
                split_by_weight(graph, plan, self.config.method == "spatial")
                plan.vectors = None
                report.edit(plan.layer.name, plan.summary())
        kept = (now - sum(plan.saved for plan in chosen)) / whole
        report.warnings += self.config.over_budget(self.name, kept)
        if report.edits:
            report.metrics["macs_kept"] = kept
            report.metrics["energy_kept"] = math.prod(plan.ladder.kept(plan.rank) for plan in chosen)
        return report

    def _describe(
        self, graph: Graph, weight: Weight, own: int | None, captured: Collection[str]
    ) -> Layer | str:
        """How the layers of a weight can be split, or why they stay whole."""
        layer = (
            not_float(weight.tensor, self.name)
            or self._refusal(graph, weight, own)
            or describe(graph, weight, captured)
        )
        if isinstance(layer, Layer) and self.config.method == "spatial":
            return not_spatial(layer) or layer
        return layer

    def _refusal(self, graph: Graph, weight: Weight, own: int | None) -> str | None:
        if own == 0:
            return "its rank is set to 0"
        if any(node_metadata(node).get(metadata.PASS) == self.name for node in weight.nodes):
            return "it is half of a layer that is split already"
        if weight.name in sparse_tensors(graph):
            return (
                f"its zeros must stay ({metadata.SPARSE}), and factors would have none; "
                f"{self.name} before prune"
            )
        if self.by_response and weight.tensor.shape[weight.axis] > MOST_CHANNELS:
            return f"it has more than {MOST_CHANNELS:,} channels; method=weight can split it"
        values = read(weight.tensor)
        return (
            None
            if np.isfinite([values.min(), values.max()]).all()
            else "its weight has NaN or infinite elements"
        )

    def _energies(
        self, layers: Sequence[Layer], model: Snapshot, context: Context, report: PassReport
    ) -> Iterator[tuple[Layer, np.ndarray, np.ndarray | None]]:
        """Each layer with the energies of its responses, [full rank], descending; and with rank=auto the error at each
        rank, [full rank + 1], on samples that are held back.
        """
        auto, calibrator = self.config.rank == AUTO, context.need_calibrator()
        for group in groups(layers, len(layers)):
            if auto:
                collected = collect_split(calibrator, model, group)
            else:
                whole = collect_responses(calibrator, model, None, group, 0)
                collected = [(responses, responses) for responses in whole]
            for layer, (responses, held) in zip(group, collected, strict=True):
                if responses.count == 0 or not (responses.is_finite() and held.is_finite()):
                    what = "hold NaN or infinity" if responses.count else "are empty"
                    report.skip(layer.name, f"its responses to the calibration data {what}")
                else:
                    full = min(layer.channels, layer.inputs)
                    errors = errors_by_rank(responses, held, full) if auto else None
                    yield layer, responses.spectrum()[:full], errors

    def _plans_by_weight(
        self, layers: Sequence[Layer], shapes: Mapping[str, Shape], context: Context
    ) -> list[LayerPlan]:
        """By the energies of each weight, which are computed with its singular vectors: once for both."""
        plans, kept = [], 0
        for layer in layers:
            context.progress(f"decomposing {layer.weight.name}")
            energies, vectors = principal(
                layer.plane() if self.config.method == "spatial" else layer.matrix()
            )
            plans.append(self._plan(layer, energies, shapes))
            if kept + vectors.nbytes <= KEPT_BYTES:
                plans[-1].vectors, kept = vectors, kept + vectors.nbytes
        return plans

    def _plan(
        self,
        layer: Layer,
        energies: np.ndarray,
        shapes: Mapping[str, Shape],
        errors: np.ndarray | None = None,
    ) -> LayerPlan:
        whole, per_rank = split_macs(layer, shapes, self.config.method == "spatial")
        ranks = saving_ranks(len(energies), whole, per_rank, self.config.multiple, self.config.least)
        return LayerPlan(layer, Ladder(energies, whole, per_rank, ranks, errors))

    def _choose(
        self,
        graph: Graph,
        plans: Sequence[LayerPlan],
        own: Mapping[str, int],
        macs: tuple[int, int],
        shapes: Mapping[str, Shape],
        context: Context,
        report: PassReport,
    ) -> list[LayerPlan]:
        """The plans that get a rank; `macs` are the network's, as it is and without earlier splits."""

        def ranks(plans: Sequence[LayerPlan], report: PassReport) -> list[LayerPlan]:
            return choose(plans, self.config, own, *macs, report)

        if not self.config.timed:
            return ranks(plans, report)

        def timed(plan: LayerPlan) -> tuple[float, float] | None:
            context.progress(f"timing {plan.layer.weight.name}")
            return latencies(plan, shapes, graph.opset, self.config.method, context.need_timer())

        return choose_timed(plans, timed, ranks, report)
