"""Pruning: the least important weights become zero, at once or while the model is retrained, and
`lathe.sparse` says that zeros must stay.

    Conv(x, W)   becomes   Conv(x, W')   with W' = W, but 0 for the round(sparsity * n) least important w

scope=layer takes that fraction of every weight tensor; scope=global takes it of all of them together, by
one threshold: of magnitudes, so that layers with many small weights give most, or of scores that make
layers comparable (passes/numerics/sparsity/lamp.py). Zeros that are there already are the least important:
they count, and they stay. Next are the weights of hidden units that nothing reads. Ties go by position.
With training, zeros grow in number while the model is trained, and which weights they are may change
(passes/numerics/sparsity/gradual.py).
Source: Han, Pool, Tran and Dally, "Learning both Weights and Connections for Efficient Neural Networks",
NeurIPS 2015, section 3.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from onnx_lathe.errors import UsageError
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
from onnx_lathe.passes.graph.bodies import all_tensors
from onnx_lathe.passes.graph.initializers import read, write, write_float
from onnx_lathe.passes.graph.layers import Weight, is_embedding, not_float, other_use, weights
from onnx_lathe.passes.graph.model import export_model, import_model, set_sparse_tensors, sparse_tensors
from onnx_lathe.passes.graph.patterns import by_weight
from onnx_lathe.passes.numerics.sparsity.gradual import SCHEDULES, Gradual
from onnx_lathe.passes.numerics.sparsity.hidden_units import Link
from onnx_lathe.passes.numerics.sparsity.weight_choice import SCORES, Budget, Choice, choose
from onnx_lathe.passes.prune.chains import find_links
from onnx_lathe.passes.prune.second_order import prune_by_answers

OBS = "obs"


@dataclass(frozen=True)
class _What:
    sparsity: float = option(0.5, "fraction of zeros; below 1", low=0.0, high=1.0)
    scope: str = option(
        "layer", "what loses that fraction: every layer, or all together", choices=("layer", "global")
    )
    score: str = option(
        "magnitude",
        "what is compared; lamp makes layers comparable, for scope=global; obs: what layers answer on calibration data, "
        "and weights that are left make up for those that are not",
        choices=(*SCORES, OBS),
    )
    layers: dict[str, float] = option(
        {}, "fraction for weights or layers by name pattern; 0 leaves one as it is", low=0.0, high=1.0
    )
    # What zeros save in 64 weights (256 bytes) is about what naming the tensor in lathe.sparse costs.
    min_size: int = option(64, "smaller weights are left as they are", unit="elements", low=1)
    clean: bool = option(
        True, "weights of hidden units that nothing reads become zero first; not by score=obs"
    )
    sensitivity: bool = option(False, "measure what the zeros of each layer alone do to the outputs")


@dataclass(frozen=True)
class _When:
    schedule: str = option("cubic", "with training: how the number of zeros grows", choices=tuple(SCHEDULES))
    rounds: int = option(50, "with training: how many times zeros are chosen until there are enough", low=1)
    until: float = option(
        0.6, "with training: share of it after which there are enough zeros", low=0.01, high=1.0
    )
    settle: float = option(
        0.8, "with training: share of it after which zeros stay where they are", low=0.0, high=1.0
    )
    regrow: bool = option(
        True, "with training: what reads as zero is trained on, and comes back when it outgrows others"
    )


def _pattern(value: Any) -> str:
    """What the option `pattern` became."""
    n, colon, m = str(value).partition(":")
    if colon and n.isdecimal() and m.isdecimal():
        return f"all but {n} of {m} neighbours go with prune_nm(n={n}, m={m})"
    if value == "unstructured":
        return "leave it out: single weights are what prune zeros"
    return "whole channels go with prune_channels(...), all but N of M neighbours with prune_nm(n=2, m=4)"


@register
class Prune(Pass):
    """Sets the least important weights to zero, at once or while the model is retrained."""

    name = "prune"
    streams = True
    after = {"fold": "a folded batch normalization changes the magnitudes that are compared"}
    before = {
        "codebook": "a weight that shares its value cannot become zero alone",
        "int8": "the INT8 scales are chosen for the weights that are left",
    }
    moved = {
        **IN_TRAINING,
        "pattern": _pattern,
        "importance": "write prune_channels(importance={value})",
        "keep_multiple": "write prune_channels(keep_multiple={value})",
        "macs": "write prune_channels(macs={value})",
    }

    @dataclass(frozen=True)
    class Config(_When, _What):
        training: TrainingOptions | None = option(
            None, "trains while zeros grow in number; none: all at once, without training"
        )

        def __post_init__(self) -> None:
            check_training(self, "prune", [given.name for given in fields(_When)])
            if max(self.sparsity, *self.layers.values(), 0.0) >= 1:
                raise UsageError(
                    "prune: a sparsity must be below 1; a layer of nothing but zeros computes nothing"
                )
            if self.score == "lamp" and self.scope == "layer":
                raise UsageError(
                    "prune: score=lamp compares weights of different layers; give scope=global with it"
                )

            if self.score == OBS and (self.training is not None or self.sensitivity):
                other = "training" if self.training is not None else "sensitivity"
                raise UsageError(
                    f"prune: score=obs does not go with {other}; train in a retrain step behind it"
                    if other == "training"
                    else "prune: score=obs does not go with sensitivity; its report says what each layer answers"
                )

    def __init__(self, config: "Prune.Config | None" = None) -> None:
        super().__init__(config)
        self.needs = _needs(self.config)

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        budgets, members = self._budgets(graph, report)
        if not members:
            return report
        if self.config.score == OBS:
            chosen = {name: member.weight for name, member in members.items()}
            said = prune_by_answers(graph, budgets, chosen, context, report)
            zeros = {name: int((read(weight.tensor) == 0).sum()) for name, weight in chosen.items()}
            _record(graph, members, {name: _After(count) for name, count in zeros.items()}, said, report)
            return report
        links = find_links(graph, members) if self.config.clean else []
        tensors = all_tensors(graph)
        alone: Mapping[str, str] = {}
        if self.config.sensitivity or self.config.training is None:
            choice = choose(budgets, lambda name: read(tensors[name]), links, self.config.score)
            if self.config.sensitivity:
                alone = _sensitivity(graph, choice, context, report)
        if self.config.training is not None:
            been_zero = self._train(graph, context, budgets, members, links, report)
            survivors = {name: read(member.weight.tensor) != 0 for name, member in members.items()}
            after = {
                name: _After(kept.size - int(kept.sum()), int((kept & been_zero[name]).sum()))
                for name, kept in survivors.items()
            }
            unread = [~link.read(read(tensors[link.second])) for link in links]
        else:
            after, unread = _zero(members, choice, context), choice.unread
        _record(graph, members, after, alone, report)
        _silence(graph, links, unread, report)
        return report

    def _budgets(self, graph: Graph, report: PassReport) -> tuple[list[Budget], "dict[str, _Member]"]:
        """The weights to be pruned, and which of them compete."""
        found = list(weights(graph, refuse=report.skip, bodies=True, everywhere=True))
        single = by_weight(
            self.config.layers, found, [skip.node for skip in report.skips], f"{self.name}(layers=...)"
        )
        groups: dict[str, tuple[float, list[_Member]]] = {}
        for weight in found:
            sparsity = single.get(weight.name, self.config.sparsity)
            member = self._member(graph, weight, sparsity, weight.name in single)
            if isinstance(member, str):
                report.skip(weight.nodes[0].name, member)
            else:
                together = self.config.scope == "global" and weight.name not in single
                groups.setdefault("" if together else weight.name, (sparsity, []))[1].append(member)
        budgets = [
            Budget(
                tuple(member.weight.name for member in group),
                round(sparsity * sum(member.size for member in group)),
            )
            for sparsity, group in groups.values()
        ]
        return budgets, {member.weight.name: member for _, group in groups.values() for member in group}

    def _member(self, graph: Graph, weight: Weight, sparsity: float, named: bool) -> "_Member | str":
        """A weight to be pruned, or why not; `named`: the option layers does."""
        if reason := not_float(weight.tensor, self.name):
            return reason
        size = int(np.prod(weight.tensor.shape))
        if size < self.config.min_size:
            return f"its weight has {size} elements, fewer than min_size={self.config.min_size}"
        if sparsity == 0:
            return "its sparsity is set to 0"
        tables = [] if named else [node for node in weight.nodes if is_embedding(node)]
        if tables and len(tables) < len(weight.nodes):
            return f"its weight is also read by {tables[0].name}"
        if tables:
            return "a table is looked up, not multiplied with; the option layers can name it"
        if reason := other_use(graph, weight):
            return reason
        values = read(weight.tensor)
        if not np.isfinite([values.min(), values.max()]).all():
            return "its weight has NaN or infinite elements"
        return _Member(weight, size, size - int(np.count_nonzero(values)))

    def _train(
        self,
        graph: Graph,
        context: Context,
        budgets: Sequence[Budget],
        members: "Mapping[str, _Member]",
        links: Sequence[Link],
        report: PassReport,
    ) -> Mapping[str, np.ndarray]:
        """Retrains with growing zeros. Returns, by weight name, what was zero at some time."""
        config, start = self.config, [sum(members[name].zeros for name in budget.names) for budget in budgets]
        budgets = [
            Budget(budget.names, max(budget.count, zeros))
            for budget, zeros in zip(budgets, start, strict=True)
        ]
        shaping = Gradual(
            budgets,
            start,
            links,
            config.score,
            config.schedule,
            config.rounds,
            config.until,
            max(config.settle, config.until),
            config.regrow,
        )
        result = context.need_trainer().train(export_model(graph), trainer_settings(config), shaping)
        tensors = all_tensors(graph)
        for name, change in take_over(graph, result, report).items():
            if name not in members:
                report.edit(tensors[name].outputs[0].name, f"{name} changed by {100 * change:.3g} %")
        report.metrics.update(result.metrics)
        return shaping.been_zero


def _needs(config: Prune.Config) -> tuple[str, ...]:
    needs = []
    if config.training is not None:
        needs.append("trainer")
    if config.sensitivity:
        needs.append("runner")
    if config.score == OBS:
        needs.append("calibrator")
    return tuple(needs)


@dataclass(frozen=True)
class _Member:
    """A weight to be pruned, and its zeros before."""

    weight: Weight
    size: int
    zeros: int


@dataclass(frozen=True)
class _After:
    """Zeros of a weight afterwards; with training, how many others were zero at some time."""

    zeros: int
    returned: int | None = None


def _zero(members: Mapping[str, _Member], choice: Choice, context: Context) -> dict[str, _After]:
    """Sets to zero what was chosen; at any time one weight is in memory."""
    after = {}
    for name, member in members.items():
        data = choice.zeroed(name, read(member.weight.tensor))
        after[name] = _After(member.size - int(np.count_nonzero(np.frombuffer(data, np.float32))))
        if after[name].zeros > member.zeros:
            write_float(member.weight.tensor, data)
        context.progress(f"pruned {name}")
    return after


def _sensitivity(graph: Graph, choice: Choice, context: Context, report: PassReport) -> Mapping[str, str]:
    """Prunes one weight at a time and compares outputs. Returns a phrase for each; the metrics list the
    most sensitive first.
    """
    runner, base = context.need_runner(), export_model(graph)
    measured = {}
    for name in choice.thresholds:
        context.progress(f"measuring {name} pruned alone")
        candidate = import_model(base)
        tensor = all_tensors(candidate)[name]
        write_float(tensor, choice.zeroed(name, read(tensor)))
        measured[name] = runner.compare(base, export_model(candidate))
    ranked = sorted(measured, key=lambda name: measured[name]["sqnr"])
    phrases = {}
    for rank, name in enumerate(ranked, 1):
        sqnr = measured[name]["sqnr"]
        if math.isfinite(sqnr):
            report.metrics[f"sensitivity/{name}"] = sqnr
        phrases[name] = f"; alone {sqnr:.1f} dB, sensitivity rank {rank} of {len(ranked)}"
    return phrases


def _record(
    graph: Graph,
    members: Mapping[str, _Member],
    after: Mapping[str, _After],
    alone: Mapping[str, str],
    report: PassReport,
) -> None:
    """Says in the model whose zeros must stay, and in the report what became of each weight."""
    sparse, size = sparse_tensors(graph), sum(member.size for member in members.values())
    for name, member in members.items():
        zeros, returned, node = after[name].zeros, after[name].returned, member.weight.nodes[0].name
        report.chosen[name] = zeros / member.size
        if zeros == 0 and returned is None:
            report.skip(node, "none of its weights is among the smallest")
        elif zeros == member.zeros and name in sparse and returned is None:
            report.skip(node, f"{zeros:,} of its {member.size:,} weights are zero already")
        else:
            if zeros:
                # another pattern still holds: zeros have only been added
                sparse.setdefault(name, "unstructured")
            what = (
                f"{zeros:,} of {member.size:,} weights are zero "
                f"({100 * zeros / member.size:.1f} %), {member.zeros:,} before"
            )
            report.edit(
                node, what + ("" if returned is None else f", {returned:,} came back") + alone.get(name, "")
            )
    set_sparse_tensors(graph, sparse)
    report.metrics["sparsity"] = sum(one.zeros for one in after.values()) / size
    back = [one.returned for one in after.values() if one.returned is not None]
    if back:
        report.metrics["returned"] = sum(back) / max(size - sum(one.zeros for one in after.values()), 1)


def _silence(graph: Graph, links: Sequence[Link], unread: Sequence[np.ndarray], report: PassReport) -> None:
    """Hidden units that nothing reads lose their bias, too. That changes no output: every weight that reads
    them is zero.
    """
    tensors = graph.tensors()
    for link, units in zip(links, unread, strict=True):
        bias = None if link.bias is None else tensors[link.bias]
        if isinstance(bias, Constant) and np.any(read(bias).reshape(-1)[units]):
            write(bias, np.where(units.reshape(read(bias).shape), np.float32(0), read(bias)))
            report.edit(
                bias.outputs[0].name,
                f"{link.bias} is zero for {int(units.sum())} of {link.units} units, which nothing reads",
            )
    total = sum(int(units.sum()) for units in unread)
    if total:
        report.metrics["dead_units"] = float(total)
