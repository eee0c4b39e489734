"""Adaptive rounding: an INT8 weight goes to the level that lets its layer go on answering as in the float network, which
need not be the nearest.

    x' -> Conv(W_int8)   in the network whose weights are rounded   answers nearly as   x -> Conv(W)   in the float network

From the input on, layer by layer; without labels. The loss of a layer is quadratic in its levels, so that the moments of
what it reads and should answer say all, and no step runs the data. Activations are float on both sides, as in the paper:
how much INT8 takes of them differs from target to target, and weights chosen to make up for one target's noise harm on
another. Where what was found is no better than rounding to nearest, on samples that it was not chosen on, nearest is kept.
Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020, sections 3.1 to 3.5; solved
as in passes/numerics/second_order/levels.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Constant, Graph
from onnx_lathe.passes.graph.answers.aligned import Layer, answers, layer_of
from onnx_lathe.passes.graph.answers.choosing import Judged
from onnx_lathe.passes.graph.answers.forms import form_of
from onnx_lathe.passes.graph.initializers import read, write
from onnx_lathe.passes.graph.input_moments import ENOUGH_SAMPLES, few_samples
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, Weight, constant_value, is_constant, weights
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.graph.quantization.pairs import decoders
from onnx_lathe.passes.graph.rewire import replace_input, sweep
from onnx_lathe.passes.numerics.quantization import affine
from onnx_lathe.passes.numerics.second_order.levels import descend
from onnx_lathe.passes.numerics.second_order.paired import SplitJointMoments

NEAREST = "its weight is rounded to nearest: {}"


@dataclass(frozen=True)
class Rounded:
    """A quantized layer: where its levels are, and the float weight that they stand for."""

    layer: Layer
    """In the graph that is run."""
    levels: Sequence[Constant]
    """In the graph of the pass, and in the one that is run."""
    step: np.ndarray
    """Scales, shaped to be multiplied with levels."""
    original: Weight
    largest: int

    @property
    def name(self) -> str:
        return str(self.layer.node.name)


def adapt_rounding(
    graph: Graph,
    original: onnx.ModelProto,
    quantized: Sequence[Weight],
    largest: Mapping[str, int],
    context: Context,
    rounds: int,
    report: PassReport,
) -> None:
    """Chooses the levels of weights that are quantized already, in graph order. `original` is the model
    before quantization; `largest`: the largest level of weights of fewer than 8 bits.

    Raises PassError if the context has no calibration data.
    """
    calibrator = context.need_calibrator()
    run = without_pairs(graph, original)
    found = {id(one.layer): one for one in rounded_layers(graph, run, original, quantized, largest, report)}
    samples = ENOUGH_SAMPLES
    for layer, moments in answers(run, [one.layer for one in found.values()], original, calibrator):
        one = found[id(layer)]
        context.progress(f"rounding {one.original.name}")
        samples = samples if isinstance(moments, str) else min(samples, moments.samples)
        reason = moments if isinstance(moments, str) else moments.refusal()
        if reason is None and not isinstance(moments, str):
            reason = _round(run, one, moments, rounds, report)
        if reason is not None:
            report.skip(one.name, NEAREST.format(reason))
    report.warnings += few_samples("rounding=adaptive", samples)


def _round(
    run: Graph, one: Rounded, moments: SplitJointMoments, rounds: int, report: PassReport
) -> str | None:
    """Chooses the levels of one layer, or returns why they stay the nearest."""
    rows, node = one.layer.rows, one.layer.node
    alpha = float(node.attrs.get("alpha", 1.0)) if node.op == "Gemm" else 1.0
    exact = constant_value(one.original.tensor, one.original.opset)
    scale = rows.of(np.broadcast_to(one.step, exact.shape))[..., 0] * alpha
    weight, nearest = rows.of(exact) * alpha, rows.of(read(one.levels[0])).astype(np.float32)
    asked = Judged.of(run, form_of(run, rows), moments, moves_bias=False).moments
    limits = np.where(weight == 0, np.float32(0), np.float32(one.largest))  # a zero stays
    fitted = asked.fitted
    found = descend(
        nearest, scale, weight, fitted.regular(), fitted.yx - weight @ fitted.xx, (-limits, limits), rounds
    )
    judge, nothing = asked.judging, np.zeros(scale.shape)
    energy = float(moments.judging.yy.sum())
    before, after = (
        float(judge.error(levels * scale[..., None], nothing).sum()) for levels in (nearest, found)
    )
    if not after < before:
        return f"nothing better was found ({_decibels(energy, before)} signal to noise of what it answers)"
    for levels in one.levels:
        write(levels, np.ascontiguousarray(rows.back(found)).astype(np.int8))
    moved = f"{int(np.count_nonzero(found != nearest)):,} of {exact.size:,} levels are not the nearest"
    gained = f"{_decibels(energy, before)} -> {_decibels(energy, after)} signal to noise of what it answers"
    report.edit(one.name, f"{moved}: {gained}")
    return None


def _decibels(energy: float, error: float) -> str:
    return f"{10 * math.log10(energy / error):.1f} dB" if error > 0 and energy > 0 else "exact"


def without_pairs(graph: Graph, original: onnx.ModelProto) -> Graph:
    """A copy without the pairs that quantize activations, but for those that `original` has."""
    copy, before = (
        import_model(export_model(graph)),
        {name for node in original.graph.node for name in node.output},
    )
    for node in copy.nodes:
        if (
            node.op == "QuantizeLinear"
            and node.outputs[0].name not in before
            and not is_constant(node.inputs[0])
        ):
            for decoder in list(node.outputs[0].outputs):
                for reader in list(decoder.outputs[0].outputs):
                    replace_input(reader, decoder.outputs[0], node.inputs[0])
    sweep(copy)
    return copy


def rounded_layers(
    graph: Graph,
    run: Graph,
    original: onnx.ModelProto,
    quantized: Sequence[Weight],
    largest: Mapping[str, int],
    report: PassReport,
) -> list[Rounded]:
    """The layers whose levels can be chosen, in the order of the graph; the others are skipped with a reason. `run`: the
    graph without pairs of activations.
    """
    floats = {
        weight.name: weight
        for weight in weights(import_model(original), refuse=lambda node, reason: None, filled=True)
    }
    nodes, tensors = {node.name: node for node in run.nodes}, graph.tensors()
    order = {id(node): place for place, node in enumerate(run.nodes)}
    found = []
    for weight in quantized:
        node = nodes[weight.nodes[0].name]
        decoder = node.inputs[WEIGHT_INPUT].inputs[0]
        levels = decoder.inputs[0]
        own = Weight(
            node.inputs[WEIGHT_INPUT], [nodes[one.name] for one in weight.nodes], weight.axis, run.opset
        )
        if "DequantizeLinear" in decoders(floats[weight.name].tensor):
            layer: Layer | str = "it was quantized before"
        elif not isinstance(levels, Constant):
            layer = "it is stored as a codebook"
        else:
            layer = layer_of(run, own)
        if isinstance(layer, str):
            for one in weight.nodes:
                report.skip(one.name, NEAREST.format(layer))
            continue
        rank = len(levels.shape)
        step = np.expand_dims(
            read(decoder.inputs[1]), [axis for axis in range(rank) if axis != weight.axis % rank]
        )
        found.append(
            Rounded(
                layer,
                (tensors[levels.name], levels),
                step,
                floats[weight.name],
                largest.get(weight.name, affine.LEVELS),
            )
        )
    return sorted(found, key=lambda one: order[id(one.layer.node)])
