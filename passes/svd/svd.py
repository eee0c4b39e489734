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
import onnx

from onnx_lathe import metadata
from onnx_lathe.errors import UsageError
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Calibrator, Context, Timer
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.ancestors import model_up_to
from onnx_lathe.passes.graph.initializers import not_float
from onnx_lathe.passes.graph.layers import Weight, read, weights
from onnx_lathe.passes.graph.macs import Shape, network_macs, sized_shapes
from onnx_lathe.passes.graph.model import export_model, node_metadata, sparse_tensors
from onnx_lathe.passes.graph.patterns import by_weight
from onnx_lathe.passes.graph.rewire import captured_names
from onnx_lathe.passes.graph.skeleton import runtime_inputs
from onnx_lathe.passes.numerics.rank.low_rank import balanced, fit, fit_relu, truncated, weight_spectrum
from onnx_lathe.passes.numerics.rank.rank_choice import Ladder, rank_for_energy, saving_ranks, within_budget
from onnx_lathe.passes.numerics.rank.responses import Responses, as_rows
from onnx_lathe.passes.svd.two_layers import Layer, alone, describe, not_spatial, split, split_macs

MACS = 0.5
"""Share of the network's MACs that is kept when no option says how much is."""
MET = "the budget of MACs is met without it"
MOST_CHANNELS = 4096
"""Channels up to which the covariance of responses is taken (128 MB)."""
MOST_RELU_CHANNELS = 1024
"""Channels up to which a ReLU is taken into account: the solver's time grows with their cube."""
COVARIANCE_BYTES = 1 << 28
"""Covariances that are streamed at a time."""


@dataclass(frozen=True)
class _Ranks:
    rank: int | None = option(None, "rank of every layer", low=1)
    energy: float | None = option(None, "share of its energy that every layer keeps", low=0.0, high=1.0)
    macs: float | None = option(
        None, f"share of the network's MACs that is kept; {MACS} if nothing else is given", low=0.0, high=1.0
    )
    layers: dict[str, int] = option(
        {}, "rank of weights or layers by name pattern; 0 leaves one as it is", low=0
    )
    # Convolution kernels of runtimes work on blocks of 8 or 16 channels, and pad what is left over with
    # zeros.
    multiple: int = option(8, "energy= and macs= choose ranks that are multiples of this", low=1)
    least: float = option(
        0.1, "macs= chooses no rank below this share of a layer's full rank", low=0.0, high=1.0
    )
    always: bool = option(False, "split even where that saves no MACs; to see what splitting alone does")
    timed: bool = option(
        False,
        "time each layer alone in ONNX Runtime, whole and split, and leave it whole where that is faster",
    )


@dataclass(frozen=True)
class _Fitting:
    asymmetric: bool = option(
        True, "fit layers to the original's responses, from the input that they get behind earlier splits"
    )
    rounds: int = option(
        24,
        "asymmetric: at most so many groups of layers are fitted one after the other; each runs the data",
        low=1,
    )
    nonlinear: bool = option(True, "where a ReLU follows, make the error behind it small")
    positions: int = option(3000, "responses that are sampled for nonlinear", low=10)


@register
class Svd(Pass):
    """Splits layers in two of lower rank, fitted to the layers' responses or to their weights."""

    name = "svd"
    after = {
        "fold": "a batch normalization between a layer and its ReLU hides the ReLU, and what both compute together is split"
    }
    before = {
        "codebook": "a weight with few values has two factors with many",
        "int8": "the INT8 scales are chosen for the layers that are left",
    }

    @dataclass(frozen=True)
    class Config(_Fitting, _Ranks):
        method: str = option(
            "response",
            "what is kept: responses or weights; spatial: k x 1, 1 x k",
            choices=("response", "weight", "spatial"),
        )

        def __post_init__(self) -> None:
            given = [name for name in ("rank", "energy", "macs") if getattr(self, name) is not None]
            if len(given) > 1:
                raise UsageError(f"svd: {' and '.join(given)} both choose ranks; give one of them")
            if self.energy == 0 or self.macs == 0:
                raise UsageError(f"svd: {given[0]} must be above 0")
            if self.always and not (self.rank or self.energy or self.layers):
                raise UsageError(
                    "svd: always splits what rank=, energy= or layers= choose, and macs= chooses only what saves MACs"
                )
            if self.always and self.timed:
                raise UsageError(
                    "svd: always splits whatever that costs, and timed only what gets faster; give one of them"
                )
            for idle in fields(_Fitting) if self.method != "response" else ():
                if getattr(self, idle.name) != idle.default:
                    raise UsageError(
                        f"svd: {idle.name} is about method=response, and the method is {self.method}; leave one of them out"
                    )

    def __init__(self, config: "Svd.Config | None" = None) -> None:
        super().__init__(config)
        self.needs = ("calibrator",) * (self.config.method == "response")

    @property
    def by_response(self) -> bool:
        return bool(self.config.method == "response")

    @property
    def by_budget(self) -> bool:
        return self.config.rank is None and self.config.energy is None

    @property
    def share(self) -> float:
        """Of the network's MACs, to be kept."""
        return MACS if self.config.macs is None else float(self.config.macs)

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
        original = export_model(graph)
        shapes = sized_shapes(original, _input_sizes(original, context.calibrator))
        now, whole = network_macs(graph, shapes, self.name)
        if self.by_budget and not own and now <= self.share * whole:
            for layer in layers:
                report.skip(layer.name, MET)
            return report
        plans = [
            self._plan(layer, energies, shapes)
            for layer, energies in self._energies(layers, original, context, report)
        ]
        chosen = self._choose_timed(graph, plans, own, (now, whole), shapes, context, report)
        if self.by_response:
            self._split_by_response(graph, original, chosen, context, report)
        else:
            for plan in chosen:
                context.progress(f"splitting {plan.layer.weight.name}")
                self._split_by_weight(graph, plan.layer, plan.chosen)
                report.edit(plan.layer.name, plan.summary())
        if report.edits:
            report.metrics["macs_kept"] = (now - sum(plan.saved for plan in chosen)) / whole
            report.metrics["energy_kept"] = math.prod(plan.ladder.kept(plan.rank) for plan in chosen)
        return report

    def _describe(
        self, graph: Graph, weight: Weight, own: int | None, captured: Collection[str]
    ) -> Layer | str:
        """What a weight's layers are to be split as, or why they cannot or are not to be."""
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
            return f"its zeros must stay ({metadata.SPARSE}), and factors would have none; {self.name} before prune"
        if self.by_response and weight.tensor.shape[weight.axis] > MOST_CHANNELS:
            return f"it has more than {MOST_CHANNELS:,} channels; method=weight can split it"
        values = read(weight.tensor)
        return (
            None
            if np.isfinite([values.min(), values.max()]).all()
            else "its weight has NaN or infinite elements"
        )

    def _energies(
        self, layers: Sequence[Layer], model: onnx.ModelProto, context: Context, report: PassReport
    ) -> Iterator[tuple[Layer, np.ndarray]]:
        """Each layer with its energies, [full rank], descending."""
        if not self.by_response:
            for layer in layers:
                context.progress(f"decomposing {layer.weight.name}")
                yield (
                    layer,
                    weight_spectrum(layer.plane() if self.config.method == "spatial" else layer.matrix()),
                )
            return
        for group in _groups(layers, len(layers)):
            collected = _collect(context.need_calibrator(), model, None, group, 0)
            for layer, responses in zip(group, collected, strict=True):
                if responses.count == 0 or not responses.is_finite():
                    what = "hold NaN or infinity" if responses.count else "are empty"
                    report.skip(layer.name, f"its responses to the calibration data {what}")
                else:
                    yield layer, responses.spectrum()[: min(layer.channels, layer.inputs)]

    def _plan(self, layer: Layer, energies: np.ndarray, shapes: Mapping[str, Shape]) -> "_Plan":
        whole, per_rank = split_macs(layer, shapes, self.config.method == "spatial")
        ranks = saving_ranks(len(energies), whole, per_rank, self.config.multiple, self.config.least)
        return _Plan(layer, Ladder(energies, whole, per_rank, ranks))

    def _choose_timed(
        self,
        graph: Graph,
        plans: "Sequence[_Plan]",
        own: Mapping[str, int],
        macs: tuple[int, int],
        shapes: Mapping[str, Shape],
        context: Context,
        report: PassReport,
    ) -> "list[_Plan]":
        """As `_choose`. If `timed`, a layer that is slower when split stays whole, and ranks are chosen
        again for the others.
        """
        known: dict[tuple[str, int], tuple[float, float] | None] = {}
        while True:
            trial = PassReport()
            chosen = self._choose(plans, own, *macs, trial)
            slow: dict[str, str] = {}
            for plan in chosen if self.config.timed else ():
                context.progress(f"timing {plan.layer.weight.name}")
                key = plan.layer.weight.name, plan.chosen
                if key not in known:
                    known[key] = self._latencies(graph, plan, shapes, context.need_timer())
                plan.latencies = known[key]
                if plan.latencies is None:
                    slow[plan.layer.name] = "the size of its input is not known, so that it cannot be timed"
                elif plan.latencies[1] > plan.latencies[0]:
                    slow[plan.layer.name] = (
                        f"slower when timed: {plan.latencies[1]:.3g} ms against {plan.latencies[0]:.3g} ms"
                    )
            if not slow:
                report.skips += trial.skips
                return chosen
            for name, reason in slow.items():
                report.skip(name, reason)
            plans = [plan for plan in plans if plan.layer.name not in slow]

    def _latencies(
        self, graph: Graph, plan: "_Plan", shapes: Mapping[str, Shape], timer: Timer
    ) -> tuple[float, float] | None:
        """Milliseconds of the layer (whole, split), with random factors; None if the size of its input is
        not known.
        """
        parts = [alone(plan.layer, shapes, graph.opset) for _ in range(2)]
        if parts[0] is None or parts[1] is None:
            return None
        layer = describe(parts[1], next(weights(parts[1], refuse=lambda node, reason: None)), ())
        if not isinstance(layer, Layer):
            return None
        spatial, generator = self.config.method == "spatial", np.random.default_rng(0)
        rows, columns = (layer.plane() if spatial else layer.matrix()).shape
        left, right = (
            generator.standard_normal((rows, plan.chosen)),
            generator.standard_normal((plan.chosen, columns)),
        )
        has_bias = self.by_response or (layer.bias is not None and not layer.adds)
        factors = layer.spatial_factors(left, right) if spatial else layer.factors(left, right)
        split(parts[1], layer, factors, np.zeros(layer.channels) if has_bias else None)
        return timer.latencies(export_model(parts[0]), export_model(parts[1]))

    def _choose(
        self, plans: "Sequence[_Plan]", own: Mapping[str, int], now: int, whole: int, report: PassReport
    ) -> "list[_Plan]":
        """The plans with a rank, in order; a skip for each without. `now`, `whole`: the network's MACs, and
        those without splits.
        """
        config, free = self.config, []
        for plan in plans:
            plan.rank = None
            energies, rank = plan.ladder.energies, own.get(plan.layer.weight.name, config.rank)
            if rank is None and self.by_budget:
                free.append(plan)
                continue
            rank = (
                rank_for_energy(energies, config.energy, config.multiple)
                if rank is None
                else min(rank, len(energies))
            )
            if config.always or plan.ladder.macs(rank) < plan.ladder.whole:
                plan.rank = rank
            else:
                report.skip(
                    plan.layer.name,
                    f"rank {rank} of {len(energies)} ({100 * plan.ladder.kept(rank):.4g} % of energy) saves no MACs",
                )
        rest = now - sum(plan.saved for plan in plans) - sum(plan.ladder.whole for plan in free)
        budget = self.share * whole - rest
        for plan, rank in zip(free, within_budget([plan.ladder for plan in free], budget), strict=True):
            plan.rank = rank
            if rank is None:
                report.skip(
                    plan.layer.name, MET if plan.ladder.ranks else "no rank that is allowed saves MACs"
                )
        return [plan for plan in plans if plan.rank is not None]

    def _split_by_weight(self, graph: Graph, layer: Layer, rank: int) -> None:
        spatial = self.config.method == "spatial"
        left, right = balanced(*truncated(layer.plane() if spatial else layer.matrix(), rank))
        factors = layer.spatial_factors(left, right) if spatial else layer.factors(left, right)
        split(graph, layer, factors, None if layer.adds or layer.bias is None else layer.bias)

    def _split_by_response(
        self,
        graph: Graph,
        original: onnx.ModelProto,
        chosen: "Sequence[_Plan]",
        context: Context,
        report: PassReport,
    ) -> None:
        """Splits group after group of layers, each fitted to what the network is by then if `asymmetric`."""
        calibrator, config = context.need_calibrator(), self.config
        plans = {plan.layer.weight.name: plan for plan in chosen}
        at_once = math.ceil(len(chosen) / config.rounds) if config.asymmetric else len(chosen)
        for group in _groups([plan.layer for plan in chosen], at_once):
            context.progress(f"fitting {', '.join(layer.weight.name for layer in group)}")
            changed = export_model(graph) if config.asymmetric else None
            collected = _collect(calibrator, original, changed, group, config.positions * config.nonlinear)
            for layer, responses in zip(group, collected, strict=True):
                plan = plans[layer.weight.name]
                better = None
                if config.nonlinear and layer.relu and layer.channels <= MOST_RELU_CHANNELS:
                    low, better = fit_relu(responses, plan.chosen)
                else:
                    low = fit(responses, plan.chosen)
                bias = low.offset if layer.bias is None else low.left @ (low.right @ layer.bias) + low.offset
                left, right = balanced(low.left, low.right @ layer.matrix())
                split(graph, layer, layer.factors(left, right), bias)
                report.edit(
                    layer.name,
                    plan.summary()
                    + ("" if better is None else f", {100 * better:.3g} % of the linear fit's error"),
                )


@dataclass
class _Plan:
    """A layer, what may become of it, and its rank once that is chosen."""

    layer: Layer
    ladder: Ladder
    rank: int | None = None
    latencies: tuple[float, float] | None = None
    """Milliseconds whole and split, if they were timed."""

    @property
    def chosen(self) -> int:
        """The rank of a layer that is split."""
        return len(self.ladder.energies) if self.rank is None else self.rank

    @property
    def saved(self) -> float:
        return self.ladder.whole - self.ladder.macs(self.rank)

    def summary(self) -> str:
        ladder = self.ladder
        timed = (
            ""
            if self.latencies is None
            else f", {self.latencies[0]:.3g} ms became {self.latencies[1]:.3g} ms"
        )
        return (
            f"rank {self.rank} of {len(ladder.energies)}, {self.saved:,.0f} of {ladder.whole:,.0f} MACs saved "
            f"({100 * self.saved / ladder.whole:.3g} %), {100 * ladder.kept(self.rank):.4g} % of energy kept{timed}"
        )


def _input_sizes(model: onnx.ModelProto, calibrator: Calibrator | None) -> Mapping[str, Shape]:
    """Shapes of a sample of data, if the model leaves more than the batch open; of float inputs alone can
    they be seen.
    """
    inputs = [
        value for value in runtime_inputs(model) if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    ]
    if (
        calibrator is None
        or not inputs
        or all(dim.dim_value for value in inputs for dim in value.type.tensor_type.shape.dim[1:])
    ):
        return {}
    batch = next(calibrator.observe(model, [value.name for value in inputs]))
    dims = {value.name: value.type.tensor_type.shape.dim for value in inputs}
    return {
        name: (dims[name][0].dim_value or 1, *values.shape[1:])
        for name, values in batch.items()
        if 0 < len(dims[name]) == values.ndim  # an input of no stated shape has none
    }


def _groups(layers: Sequence[Layer], most: int) -> Iterator[list[Layer]]:
    """Layers, in order: at most `most` together, and no more than have their covariances in memory
    together.
    """
    group: list[Layer] = []
    size = 0
    for layer in layers:
        own = 8 * layer.channels**2
        if group and (len(group) == most or size + own > COVARIANCE_BYTES):
            yield group
            group, size = [], 0
        group.append(layer)
        size += own
    if group:
        yield group


def _collect(
    calibrator: Calibrator,
    original: onnx.ModelProto,
    changed: onnx.ModelProto | None,
    layers: Sequence[Layer],
    sample: int,
) -> list[Responses]:
    """The responses of each layer over the calibration data; paired with those in the changed model, if
    anything changed them.
    """
    names = list(dict.fromkeys(tensor.name for layer in layers for tensor in layer.responses))
    before, after = model_up_to(original, names), None if changed is None else model_up_to(changed, names)
    collected = [
        Responses(layer.channels, sample if layer.relu and layer.channels <= MOST_RELU_CHANNELS else 0)
        for layer in layers
    ]
    wanted = calibrator.observe(before, names)
    if after is None or {node.name for node in after.graph.node} == {node.name for node in before.graph.node}:
        pairs: Iterator[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray] | None]] = (
            (batch, None) for batch in wanted
        )
    else:
        pairs = zip(wanted, calibrator.observe(after, names), strict=True)
    for one, other in pairs:
        for layer, responses in zip(layers, collected, strict=True):
            for tensor in layer.responses:
                rows = as_rows(one[tensor.name], layer.response_axis)
                responses.add(
                    rows, None if other is None else as_rows(other[tensor.name], layer.response_axis)
                )
    return collected
