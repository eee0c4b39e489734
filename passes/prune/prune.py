"""Pruning: the least important weights become zero, at once or while the model is retrained, and
`lathe.sparse` says that zeros must stay.

    Conv(x, W)   becomes   Conv(x, W')   with W' = W, but 0 for the round(sparsity * n) least important w

scope=layer takes that fraction of every weight tensor; scope=global takes it of all of them together, by
one threshold: of magnitudes, so that layers with many small weights give most, or of scores that make
layers comparable (passes/numerics/sparsity/lamp.py). Zeros that are there already are the least important:
they count, and they stay. Next are the weights of hidden units that nothing reads. Ties go by position.
pattern=channels removes whole channels (channels.py), pattern=2:4 makes groups of neighbours alike
(n_of_m.py). With epochs, zeros grow in number while the model is trained, and which weights they are may
change (passes/numerics/sparsity/gradual.py).
Source: Han, Pool, Tran and Dally, "Learning both Weights and Connections for Efficient Neural Networks",
NeurIPS 2015, section 3.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from onnx_lathe.errors import UsageError
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.core.training_options import TrainingOptions, check_shaped, take_over
from onnx_lathe.passes.graph import Constant, Graph
from onnx_lathe.passes.graph.initializers import read, write, write_float
from onnx_lathe.passes.graph.layers import Weight, not_float, other_use, weights
from onnx_lathe.passes.graph.model import export_model, import_model, set_sparse_tensors, sparse_tensors
from onnx_lathe.passes.graph.patterns import by_weight
from onnx_lathe.passes.numerics.sparsity.gradual import SCHEDULES, Gradual
from onnx_lathe.passes.numerics.sparsity.hidden_units import Link
from onnx_lathe.passes.numerics.sparsity.weight_choice import SCORES, Choice, Pool, choose
from onnx_lathe.passes.prune.chains import find_links
from onnx_lathe.passes.prune.channels import Amount, prune_channels
from onnx_lathe.passes.prune.importance import IMPORTANCES
from onnx_lathe.passes.prune.n_of_m import prune_nm


@dataclass(frozen=True)
class _What:
    sparsity: float = option(
        0.5, "fraction of zeros, or of channels with pattern=channels; below 1", low=0.0, high=1.0
    )
    scope: str = option(
        "layer", "what loses that fraction: every layer, or all together", choices=("layer", "global")
    )
    score: str = option(
        "magnitude", "what is compared; lamp makes layers comparable, for scope=global", choices=tuple(SCORES)
    )
    layers: dict[str, float] = option(
        {}, "fraction for weights or layers by name pattern; 0 leaves one as it is", low=0.0, high=1.0
    )
    # What zeros save in 64 weights (256 bytes) is about what naming the tensor in lathe.sparse costs.
    min_size: int = option(64, "smaller weights are left as they are", unit="elements", low=1)
    clean: bool = option(True, "weights of hidden units that nothing reads become zero first")
    sensitivity: bool = option(False, "measure what the zeros of each layer alone do to the outputs")


@dataclass(frozen=True)
class _Pattern:
    pattern: str = option(
        "unstructured",
        "what goes: single weights (unstructured), whole channels, or all but N of M neighbours, such as 2:4",
    )
    importance: str = option(
        "l2",
        "with channels: how they are compared; activation and taylor ask the data",
        choices=tuple(IMPORTANCES),
    )
    keep_multiple: int = option(
        1, "with channels: the number left is rounded up to a multiple of it, or nothing goes", low=1
    )
    macs: float | None = option(
        None, "with channels: share of the network's MACs to be left, instead of sparsity", low=0.01, high=1.0
    )

    @property
    def neighbours(self) -> tuple[int, int] | None:
        """(N, M) of the pattern N:M."""
        n, colon, m = self.pattern.partition(":")
        return (int(n), int(m)) if colon and n.isdecimal() and m.isdecimal() and 0 < int(n) < int(m) else None


@dataclass(frozen=True)
class _When:
    schedule: str = option("cubic", "with epochs: how the number of zeros grows", choices=tuple(SCHEDULES))
    rounds: int = option(50, "with epochs: how many times zeros are chosen until there are enough", low=1)
    until: float = option(
        0.6, "with epochs: share of the training after which there are enough zeros", low=0.01, high=1.0
    )
    settle: float = option(
        0.8, "with epochs: share of the training after which zeros stay where they are", low=0.0, high=1.0
    )
    regrow: bool = option(
        True, "with epochs: what reads as zero is trained on, and comes back when it outgrows others"
    )


@register
class Prune(Pass):
    """Sets the least important weights to zero, at once or while the model is retrained, or removes whole
    channels.
    """

    name = "prune"
    after = {"fold": "a folded batch normalization changes the magnitudes that are compared"}
    before = {
        "codebook": "a weight that shares its value cannot become zero alone",
        "int8": "the INT8 scales are chosen for the weights that are left",
    }

    @dataclass(frozen=True)
    class Config(TrainingOptions, _When, _Pattern, _What):
        epochs: int = option(
            0, "passes over the training data while zeros grow; 0: all at once, without training", low=0
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            check_shaped(self, "prune")
            self._check_pattern()
            if max(self.sparsity, *self.layers.values(), 0.0) >= 1:
                lost = "without channels" if self.pattern == "channels" else "of nothing but zeros"
                raise UsageError(f"prune: a sparsity must be below 1; a layer {lost} computes nothing")
            if self.score == "lamp" and self.scope == "layer":
                raise UsageError(
                    "prune: score=lamp compares weights of different layers; give scope=global with it"
                )
            idle = [] if self.epochs else [*fields(TrainingOptions), *fields(_When)]
            for given in idle:
                if getattr(self, given.name) != given.default and given.name != "epochs":
                    raise UsageError(
                        f"prune: {given.name} is about training, and there is none; give epochs as well, or leave it out"
                    )

        def _check_pattern(self) -> None:
            """Raises UsageError for an option that is about another pattern."""
            if self.pattern not in ("unstructured", "channels") and self.neighbours is None:
                raise UsageError(
                    f"prune(pattern=...) must be unstructured, channels or N:M such as 2:4, with N below M, not '{self.pattern}'"
                )
            if self.pattern == "unstructured":
                foreign = ["importance", "keep_multiple", "macs"]
            elif self.pattern == "channels":
                foreign = ["score", "clean", "min_size", "sensitivity"] + ["sparsity", "scope"] * (
                    self.macs is not None
                )
            else:
                foreign = [
                    "score",
                    "clean",
                    "sensitivity",
                    "sparsity",
                    "scope",
                    "importance",
                    "keep_multiple",
                    "macs",
                ]
            defaults = {given.name: given.default for given in fields(self)}
            for name in foreign:
                if getattr(self, name) != defaults[name]:
                    beside = f"pattern={self.pattern}" + (
                        " and macs" if name in ("sparsity", "scope") and self.macs is not None else ""
                    )
                    raise UsageError(f"prune: {name} says nothing with {beside}; leave it out")
            if self.neighbours and any(self.layers.values()):
                raise UsageError(
                    f"prune: with pattern={self.pattern} a value in layers can only be 0, which leaves a layer as it is"
                )
            if self.epochs and self.pattern != "unstructured":
                raise UsageError(
                    f"prune: pattern={self.pattern} is made at once; leave epochs out, and let a retrain step follow"
                )

    def __init__(self, config: "Prune.Config | None" = None) -> None:
        super().__init__(config)
        by_data = {"activation": ("calibrator",), "taylor": ("trainer", "gradients")}.get(
            self.config.importance, ()
        )
        self.needs = ("trainer",) * (self.config.epochs > 0) + ("runner",) * self.config.sensitivity + by_data

    def apply(self, graph: Graph, context: Context) -> PassReport:
        config = self.config
        if config.pattern == "channels":
            amount = Amount(config.sparsity, config.scope, config.layers, config.macs, config.keep_multiple)
            return prune_channels(graph, context, config.importance, amount)
        if config.neighbours is not None:
            n, m = config.neighbours
            return prune_nm(graph, context, n, m, config.layers, config.min_size)
        report = PassReport()
        pools, members = self._pools(graph, report)
        if not members:
            return report
        links = find_links(graph, members) if self.config.clean else []
        tensors = graph.tensors()
        alone: Mapping[str, str] = {}
        if self.config.sensitivity or not self.config.epochs:
            choice = choose(pools, lambda name: read(tensors[name]), links, self.config.score)
            if self.config.sensitivity:
                alone = _sensitivity(graph, choice, context, report)
        if self.config.epochs:
            been_zero = self._train(graph, context, pools, members, links, report)
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

    def _pools(self, graph: Graph, report: PassReport) -> tuple[list[Pool], "dict[str, _Member]"]:
        """The weights to be pruned, and which of them compete."""
        found = list(weights(graph, refuse=report.skip))
        single = by_weight(
            self.config.layers, found, [skip.node for skip in report.skips], "prune(layers=...)"
        )
        groups: dict[str, tuple[float, list[_Member]]] = {}
        for weight in found:
            sparsity = single.get(weight.name, self.config.sparsity)
            member = self._member(graph, weight, sparsity)
            if isinstance(member, str):
                report.skip(weight.nodes[0].name, member)
            else:
                pool = "" if self.config.scope == "global" and weight.name not in single else weight.name
                groups.setdefault(pool, (sparsity, []))[1].append(member)
        pools = [
            Pool(
                tuple(member.weight.name for member in group),
                round(sparsity * sum(member.size for member in group)),
            )
            for sparsity, group in groups.values()
        ]
        return pools, {member.weight.name: member for _, group in groups.values() for member in group}

    def _member(self, graph: Graph, weight: Weight, sparsity: float) -> "_Member | str":
        """A weight to be pruned, or why not."""
        if reason := not_float(weight.tensor, self.name):
            return reason
        size = int(np.prod(weight.tensor.shape))
        if size < self.config.min_size:
            return f"its weight has {size} elements, fewer than min_size={self.config.min_size}"
        if sparsity == 0:
            return "its sparsity is set to 0"
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
        pools: Sequence[Pool],
        members: "Mapping[str, _Member]",
        links: Sequence[Link],
        report: PassReport,
    ) -> Mapping[str, np.ndarray]:
        """Retrains with growing zeros. Returns, by weight name, what was zero at some time."""
        config, start = self.config, [sum(members[name].zeros for name in pool.names) for pool in pools]
        pools = [Pool(pool.names, max(pool.count, zeros)) for pool, zeros in zip(pools, start, strict=True)]
        shaping = Gradual(
            pools,
            start,
            links,
            config.score,
            config.schedule,
            config.rounds,
            config.until,
            max(config.settle, config.until),
            config.regrow,
        )
        result = context.need_trainer().train(export_model(graph), asdict(config), shaping)
        tensors = graph.tensors()
        for name, change in take_over(graph, result).items():
            if name not in members:
                report.edit(tensors[name].outputs[0].name, f"{name} changed by {100 * change:.3g} %")
        report.metrics.update(result.metrics)
        return shaping.been_zero


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
        tensor = candidate.tensors()[name]
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
        if zeros == 0 and returned is None:
            report.skip(node, "none of its weights is among the smallest")
        elif zeros == member.zeros and name in sparse and returned is None:
            report.skip(node, f"{zeros:,} of its {member.size:,} weights are zero already")
        else:
            if zeros:
                # another pattern still holds: zeros have only been added
                sparse.setdefault(name, "unstructured")
            what = f"{zeros:,} of {member.size:,} weights are zero ({100 * zeros / member.size:.1f} %), {member.zeros:,} before"
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
