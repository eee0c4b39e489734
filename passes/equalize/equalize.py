"""Cross-layer equalization: makes the channels of a tensor alike before one scale has to serve them all.

    Conv(W1, b1) -> Relu -> Conv(W2, b2)         with a scale s > 0 per channel
    Conv(W1 / s, b1 / s) -> Relu -> Conv(W2 * s, b2)   is the same function, because Relu(x / s) = Relu(x) / s

A scale runs through all that commutes with it, and to every reader: pooling, residual additions,
concatenations, flattening, depthwise and grouped convolutions, normalizations
(passes/equalize/scalable.py). s = P^alpha / R^(1 - alpha), where R is the range of the weights that read
the channel, and P that of the weights that write it, or with activations=true the channel's own on the
calibration data. With clip=drop a Clip becomes a Relu if at most 1 in 10,000 calibration values are above
its upper bound: a network that uses its bounds computes something else without them. clip=channels wants
activations=true: by weights alone, channels that ReLU6 has made alike come apart. Sources: Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, sections 4.1 and 5.1.1
(for clip=drop); Xiao et al., "SmoothQuant", ICML 2023, section 4.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.equalize.absorption import absorb
from onnx_lathe.passes.equalize.scalable import (
    CLIPS,
    DROP,
    KEEP,
    TIMES,
    Block,
    Bounds,
    Factor,
    Scaling,
    find_scaling,
)
from onnx_lathe.passes.graph import Constant, Graph, Node, Variable
from onnx_lathe.passes.graph.coupling.state import ChannelSets
from onnx_lathe.passes.graph.initializers import read, write
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, not_float, weights
from onnx_lathe.passes.graph.model import export_model, free_name
from onnx_lathe.passes.numerics.quantization.equalization import Matrices, Rule, balance


@register
class Equalize(Pass):
    """Scales channels between layers so that they are alike, for int8; the network computes the same."""

    name = "equalize"
    lossless = True
    after = {"fold": "folded batch normalization is part of the weights"}
    before = {
        "int8": "quantization is what profits from channels that are alike",
        "codebook": "a codebook's values cannot be scaled per channel",
    }

    @dataclass(frozen=True)
    class Config:
        activations: bool = option(
            False, "make channels alike by their size on the calibration data; false needs no data"
        )
        alpha: float = option(0.5, "0 makes the weights' ranges alike, 1 the activations'", low=0, high=1)
        rounds: int = option(20, "most sweeps over all channels", low=1)
        min_scale: float = option(
            4.0, "a tensor whose channels would all change by less stays as it is", unit="ratio", low=1
        )
        max_scale: float = option(
            1e4, "largest factor by which a channel grows or shrinks", unit="ratio", low=1
        )
        clip: str = option(
            KEEP,
            "what becomes of a Clip such as ReLU6: keep it, give it bounds per channel, drop upper bounds that the data rarely meets",
            choices=CLIPS,
        )
        absorb: bool = option(
            False, "move the part of a bias that no calibration sample undercuts into the next layer's bias"
        )

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        if self.config.activations or self.config.absorb or self.config.clip == DROP:
            self.needs = ("calibrator",)
        self.lossless = self.config.clip != DROP and not self.config.absorb

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        for weight in weights(graph, refuse=report.skip):
            if reason := not_float(weight.tensor, "equalize"):
                for node in weight.nodes:
                    report.skip(node.name, reason)
        scaling = find_scaling(graph, self.config.clip)
        if self.config.clip == DROP and scaling.clips:
            scaling = find_scaling(graph, DROP, _above(scaling, context))
        roots = scaling.units.roots(np.arange(len(scaling.units)))
        free = np.array([scaling.units.lock_of(int(root)) is None for root in roots], bool)
        free &= ~_spared(scaling, roots, context.spared)
        matrices = [_matrices(block, roots) for block in scaling.blocks]
        _skip_locked(scaling, free, matrices, roots, report)
        sizes = self._sizes(scaling, roots, free, context) if self.config.activations and free.any() else None
        rule = Rule(self.config.alpha, self.config.min_scale, self.config.max_scale, self.config.rounds)
        scale, rounds = balance(
            matrices, _groups(scaling, roots)[roots], free & (roots == np.arange(roots.size)), sizes, rule
        )
        _rescale(graph, scaling, scale[roots], report)
        _skip_alike(scaling, scale[roots], self.config.min_scale, report)
        report.metrics |= {
            "channels": float((scale != 1).sum()),
            "largest_scale": float(np.max([scale, 1 / scale], initial=1)),
            "rounds": rounds,
        }
        if self.config.absorb:
            absorb(graph, context, report)
        return report

    def _sizes(self, scaling: Scaling, roots: np.ndarray, free: np.ndarray, context: Context) -> np.ndarray:
        """Largest magnitude of each unit on the calibration data, over all tensors that layers read:
        float64, by root.
        """
        channels = {
            use.node.inputs[0].name: use.source
            for use in scaling.layers
            if use.source is not None and free[use.source.units].any()
        }
        sizes = np.zeros(roots.size)
        if channels:
            context.progress("measuring channels")
            for values in context.need_calibrator().observe(export_model(scaling.graph), list(channels)):
                for name, found in channels.items():
                    axes = tuple(axis for axis in range(values[name].ndim) if axis != found.axis)
                    np.maximum.at(sizes, roots[found.units], np.abs(values[name]).max(axis=axes, initial=0))
        return np.where(np.isfinite(sizes), sizes, 0.0)


def _above(scaling: Scaling, context: Context) -> dict[str, float]:
    """Share of the calibration values that each Clip's upper bound cuts off, by the node's name."""
    context.progress("measuring bounds")
    cut, seen = np.zeros(len(scaling.clips)), np.zeros(len(scaling.clips))
    names = [bounds.node.inputs[0].name for bounds in scaling.clips]
    for values in context.need_calibrator().observe(export_model(scaling.graph), list(dict.fromkeys(names))):
        for index, (name, bounds) in enumerate(zip(names, scaling.clips, strict=True)):
            cut[index] += np.count_nonzero(values[name] > bounds.high)
            seen[index] += values[name].size
    shares = np.divide(cut, seen, out=np.ones_like(cut), where=seen > 0)
    return {bounds.node.name: float(share) for bounds, share in zip(scaling.clips, shares, strict=True)}


def _spared(scaling: Scaling, roots: np.ndarray, names: Collection[str]) -> np.ndarray:
    """Whether each unit is to keep its scale for the sake of a node of these names: bool, by unit."""
    kept = np.zeros(roots.size, bool)
    nodes = [*scaling.births, *((bounds.node, bounds.units) for bounds in scaling.clips)]
    for units in (units for node, units in nodes if node.name in names):
        kept |= np.isin(roots, roots[units])
    return kept


def _groups(scaling: Scaling, roots: np.ndarray) -> np.ndarray:
    """A number for each root: the same for all that are in one tensor."""
    together = ChannelSets()
    together.fresh(roots.size)
    for channels in scaling.channels.values():
        members = np.unique(roots[channels.units])
        together.tie(np.repeat(members[:1], members.size), members)
    return together.roots(np.arange(roots.size))


def _matrices(block: Block, roots: np.ndarray) -> Matrices:
    node, values = block.node, np.abs(read(block.node.inputs[WEIGHT_INPUT]))
    groups, rows = block.written.shape
    if values.ndim == 1:  # the scale of a normalization
        magnitudes = values[:, None, None]
    elif node.op == "Conv":
        magnitudes = values.reshape(groups, rows, values.shape[1], -1).max(axis=3)
    elif node.op == "ConvTranspose":
        magnitudes = (
            values.reshape(groups, -1, rows, math.prod(values.shape[2:])).max(axis=3).transpose(0, 2, 1)
        )
    else:
        magnitudes = (values if node.op == "Gemm" and node.attrs.get("transB", 0) else values.T)[None]
    columns = np.full((groups, magnitudes.shape[2]), -1) if block.read is None else roots[block.read]
    if groups == 1 and np.unique(columns).size < columns.size:  # behind Flatten, a channel is many inputs
        order = np.argsort(columns[0], kind="stable")
        distinct, first = np.unique(columns[0][order], return_index=True)
        magnitudes, columns = np.maximum.reduceat(magnitudes[:, :, order], first, axis=2), distinct[None]
    return Matrices(magnitudes, roots[block.written], columns)


def _skip_locked(
    scaling: Scaling, free: np.ndarray, matrices: list[Matrices], roots: np.ndarray, report: PassReport
) -> None:
    consumed = np.zeros(roots.size, bool)
    for weight in matrices:
        consumed[weight.read[weight.read >= 0]] = True
    for node, written in scaling.births:
        if not free[written].any():
            report.skip(node.name, f"its channels keep their scale: {scaling.units.lock_of(int(written[0]))}")
        elif not consumed[roots[written]].any():
            report.skip(node.name, "no layer reads its channels")


def _rescale(graph: Graph, scaling: Scaling, scale: np.ndarray, report: PassReport) -> None:
    """Writes the parameters anew, with the scale of each unit."""
    for tensor, factors in scaling.parameters.values():
        if any((scale[factor.units] != 1).any() for factor in factors):
            write(tensor, _scaled(read(tensor), factors, scale))
    for bounds in scaling.clips:
        if (scale[bounds.units] != 1).any():
            report.edit(bounds.node.name, _bound(graph, bounds, scale[bounds.units], scaling.clip))
    for node, written in scaling.births:
        mine = scale[written]
        if (mine != 1).any():
            report.edit(
                node.name,
                f"{np.count_nonzero(mine != 1)} channels divided by {mine.min():.3g} to {mine.max():.3g}",
            )


def _skip_alike(scaling: Scaling, scale: np.ndarray, min_scale: float, report: PassReport) -> None:
    known = {skip.node for skip in report.skips}
    for node, written in scaling.births:
        if (scale[written] == 1).all() and node.name not in known:
            report.skip(
                node.name, f"its channels are alike: none would change by more than min_scale={min_scale:g}"
            )


def _scaled(values: np.ndarray, factors: list[Factor], scale: np.ndarray) -> np.ndarray:
    result = values.astype(np.float64)
    for factor in factors:
        by = scale[factor.units] if factor.power == TIMES else 1 / scale[factor.units]
        blocks = np.split(result, len(by)) if by.ndim == 2 else [result]  # equal blocks of rows; views
        for block, one in zip(blocks, np.atleast_2d(by), strict=True):
            block *= one.reshape([-1 if axis == factor.axis else 1 for axis in range(values.ndim)])
    return result.astype(values.dtype)


def _bound(graph: Graph, bounds: Bounds, scale: np.ndarray, clip: str) -> str:
    """Makes the Clip a Relu, or gives it the scaled bounds: a Relu or Max and a Min in its place. Says what
    it did.
    """
    node = bounds.node
    while len(node.inputs) > 1:
        node.inputs.pop()
    node.attrs.clear()  # opset 10 and below have the bounds there
    if clip == DROP:
        node.op = "Relu"
        return f"became a Relu: its upper bound {bounds.high:g} is gone"
    shape = (scale.size, *[1] * bounds.behind)
    steps = [(op, limit) for op, limit in (("Max", bounds.low), ("Min", bounds.high)) if math.isfinite(limit)]
    for index, (op, limit) in enumerate(steps):
        if index == 1:  # the Clip itself became the first of the two
            middle, result = Variable(free_name(graph, f"{node.outputs[0].name}_above")), node.outputs[0]
            node.outputs[0] = middle
            node = Node(op, free_name(graph, f"{node.name}_{op}"), {}, [middle], [result])
            graph.nodes.append(node)
        node.op = op
        if (op, limit) == ("Max", 0):
            node.op = "Relu"
            continue
        node.inputs.append(
            Constant(
                free_name(graph, f"{node.name}_bound"), (limit / scale).astype(np.float32).reshape(shape)
            )
        )
    return f"has bounds per channel: {' and '.join(f'{limit:g}' for _, limit in steps)} over its scale"
