"""Channel pruning: whole channels leave the network, with everything that is coupled to them.

    Conv(W1 [O, I, ...], b1 [O]) -> Relu -> Conv(W2 [P, O, ...])
    Conv(W1 [O', I, ...], b1 [O']) -> Relu -> Conv(W2 [P, O', ...])       O' = O - round(sparsity * O)

The result is the network in which every weight that reads a removed channel is zero, and it is smaller and
faster on any runtime. Which channels go together is found by passes/graph/coupling/analysis.py: a group is all
that layers write into one sum, or what one layer writes alone. Importances are shares of a layer's, so that
layers compare; macs= takes the least importance per MAC saved first. importance=obs knows what channels cost the
answers of the layers that read them, and fits these layers: passes/prune_channels/answers.py. Sources: Li et al., "Pruning Filters
for Efficient ConvNets", ICLR 2017; Molchanov et al., ICLR 2017, section 2; Fang et al., "DepGraph", CVPR
2023, sections 3.3 and 3.4.
"""

from dataclasses import dataclass, fields

import numpy as np

from onnx_lathe.errors import UsageError, first_few
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.coupling.removal import remove
from onnx_lathe.passes.graph.coupling.state import WRITTEN
from onnx_lathe.passes.graph.model import export_model, set_sparse_tensors, sparse_tensors
from onnx_lathe.passes.prune_channels.amount import Amount
from onnx_lathe.passes.prune_channels.answers import OBS, fit
from onnx_lathe.passes.prune_channels.importance import IMPORTANCES
from onnx_lathe.passes.prune_channels.plan import RemovalPlan, plan_channels

_NEEDS = {"activation": ("calibrator",), "taylor": ("trainer", "gradients"), OBS: ("calibrator",)}
"""Services, by importance."""


@register
class PruneChannels(Pass):
    """Removes the least important channels, with everything that is coupled to them."""

    name = "prune_channels"
    after = {"fold": "a folded batch normalization changes the magnitudes that are compared"}
    before = {
        "codebook": "channels are taken out of float weights",
        "int8": "the INT8 scales are chosen for the weights that are left",
    }

    @dataclass(frozen=True)
    class Config:
        sparsity: float = option(0.5, "fraction of channels that go; below 1", low=0.0, high=1.0)
        scope: str = option(
            "layer", "what loses that fraction: every layer, or all together", choices=("layer", "global")
        )
        macs: float | None = option(
            None, "share of the network's MACs to be left, instead of sparsity", low=0.01, high=1.0
        )
        importance: str = option(
            "l2",
            "how channels are compared; activation, taylor and obs ask the data; obs: by what layers that read them cannot "
            "make up for",
            choices=(*IMPORTANCES, OBS),
        )
        refit: bool | None = option(
            None,
            "fit the layers that are left to what they answered before, on calibration data without labels; none: with "
            "importance=obs",
        )
        layers: dict[str, float] = option(
            {}, "fraction for weights or layers by name pattern; 0 leaves one as it is", low=0.0, high=1.0
        )
        keep_multiple: int = option(
            1, "the number left is rounded up to a multiple of it, or nothing goes", low=1
        )

        def __post_init__(self) -> None:
            if max(self.sparsity, *self.layers.values(), 0.0) >= 1:
                raise UsageError(
                    "prune_channels: a sparsity must be below 1; a layer without channels computes nothing"
                )
            if self.macs is not None:
                for given in fields(self):
                    if given.name in ("sparsity", "scope") and getattr(self, given.name) != given.default:
                        raise UsageError(f"prune_channels: {given.name} says nothing with macs; leave it out")

    def __init__(self, config: "PruneChannels.Config | None" = None) -> None:
        super().__init__(config)
        self.refits = self.config.importance == OBS if self.config.refit is None else self.config.refit
        measured = _NEEDS.get(self.config.importance, ())
        self.needs = tuple(dict.fromkeys((*measured, *(("calibrator",) if self.refits else ()))))
        if "calibrator" in self.needs:
            what = f"importance={self.config.importance}" if "calibrator" in measured else "refit=true"
            self.measuring = (what,)

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report, config = PassReport(), self.config
        amount = Amount(config.sparsity, config.scope, config.layers, config.macs, config.keep_multiple)
        plan = plan_channels(graph, context, config.importance, amount, report)
        _record(plan, report)
        if plan.removed.any():
            before = export_model(graph) if self.refits else None
            remove(graph, plan.coupling, plan.removed)
            _forget_patterns(graph, plan)
            if before is not None:
                fit(graph, plan.coupling, plan.removed, before, context, report)
        return report


def _forget_patterns(graph: Graph, plan: RemovalPlan) -> None:
    """A weight that lost inputs may no longer be N:M along them; its zeros stay."""
    sparse, roots = sparse_tensors(graph), plan.coupling.units.roots(np.arange(len(plan.coupling.units)))
    for (name, _), slot in plan.coupling.slots.items():
        if name in sparse and slot.role != WRITTEN and plan.removed[roots[slot.units]].any():
            sparse[name] = "unstructured"
    set_sparse_tensors(graph, sparse)


def _record(plan: RemovalPlan, report: PassReport) -> None:
    for group, layers in plan.groups.layers.items():
        lost = [(node, int(plan.removed[written].sum()), written.size) for node, written in layers]
        shorter = [(node.name, count, size) for node, count, size in lost if count]
        if shorter:
            (name, count, size), *others = shorter
            named = first_few([other for other, _, _ in others])
            report.edit(
                name,
                f"{count} of {size} channels are removed" + (f", with those of {named}" if others else ""),
            )
        elif (plan.free & (plan.groups.of == group)).any():
            report.skip(layers[0][0].name, "none of its channels is among the least important")
    prunable = plan.groups.widths() * np.isin(plan.groups.of, np.unique(plan.groups.of[plan.free]))
    if prunable.any():
        report.metrics["channels_removed"] = float(prunable[plan.removed].sum() / prunable.sum())
