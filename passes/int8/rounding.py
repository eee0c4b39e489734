"""Adaptive rounding: an INT8 weight goes to the level below or above it, whichever lets its layer go on
answering as in the float network.

    x' -> Conv(W_int8) -> Relu   in the network whose weights are rounded   answers nearly as   x -> Conv(W) -> Relu   in the float network

From the input on, layer by layer, on a bounded sample of inputs and targets; without labels. Activations
are float on both sides, as in the paper: how much INT8 takes of them differs from target to target, and
weights chosen to make up for one target's noise harm on another. Where what was found is no better than
rounding to nearest, on samples that it was not chosen on, nearest is kept.
Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020, sections
3.3 to 3.5.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Calibrator, Context, Rounder
from onnx_lathe.passes.graph import Constant, Graph, Node
from onnx_lathe.passes.graph.ancestors import model_up_to
from onnx_lathe.passes.graph.initializers import read, write
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, Weight, constant_value, is_constant, weights
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.graph.quantization.pairs import decoders
from onnx_lathe.passes.graph.rewire import captured_names, replace_input, sweep
from onnx_lathe.passes.graph.shapes import infer_types
from onnx_lathe.passes.int8.layer_model import LayerModel, layer_model
from onnx_lathe.passes.numerics.quantization.rounding import Axis, Reservoir, crops, neighbours

SAMPLE_BYTES = 64 << 20
"""Of one layer's inputs and targets."""
GROUP_BYTES = 256 << 20
"""Of all layers whose samples are taken in one run of the data."""
ROUNDS = 24
"""At most so many groups of layers are rounded one after the other: each runs the data through both
networks.
"""
EDGE = 8
"""Outputs along each axis of the window that is taken of an image: more of one image say little that is
new.
"""
MOST_UNITS = 1 << 14
"""Rows, or windows, of a sample."""
SEED = 0
NEAREST = "its weight is rounded to nearest: {}"


@dataclass(frozen=True)
class _Layer:
    """A quantized layer: where its levels are, and the float weight that they stand for."""

    model: LayerModel
    levels: Sequence[Constant]
    """In the graph of the pass, and in the one that is run."""
    step: np.ndarray
    """Scales, shaped to be multiplied with levels."""
    original: Weight
    axes: tuple[Axis, ...]
    """The axes that a convolution runs over; there are none for other layers."""

    @property
    def name(self) -> str:
        return str(self.model.node.name)


def adapt_rounding(
    graph: Graph,
    original: onnx.ModelProto,
    quantized: Sequence[Weight],
    context: Context,
    steps: int,
    report: PassReport,
) -> None:
    """Chooses the levels of weights that are quantized already, in graph order. `original` is the model
    before quantization.

    Raises PassError if the context has no calibration data or no rounder.
    """
    calibrator, rounder = context.need_calibrator(), context.need_rounder()
    run = without_pairs(graph, original)
    layers = list(_layers(graph, run, original, quantized, report))
    size = max(-(-len(layers) // ROUNDS), 1)
    for start in range(0, len(layers), size):
        group = layers[start : start + size]
        context.progress(f"rounding {', '.join(layer.model.weight for layer in group)}")
        for layer, sample in zip(
            group, _collect(calibrator, original, export_model(run), group), strict=True
        ):
            reason = _round(rounder, layer, sample, steps, report)
            if reason is not None:
                report.skip(layer.name, NEAREST.format(reason))


def _round(
    rounder: Rounder, layer: _Layer, sample: Sequence[np.ndarray], steps: int, report: PassReport
) -> str | None:
    """Chooses the levels of one layer, or returns why they stay the nearest."""
    if not sample:
        return "the layer computes nothing on calibration data"
    if not all(np.isfinite(array).all() for array in sample):
        return "the layer computes NaN or infinity on calibration data"
    *inputs, target = sample
    exact, low, high = neighbours(constant_value(layer.original.tensor, layer.original.opset), layer.step)
    feeds = dict(zip(layer.model.inputs, inputs, strict=True))
    found = rounder.round(
        layer.model.model, layer.model.weight, exact, low, high, layer.step, feeds, target, steps
    )
    if found.levels is None:
        return f"nothing better was found ({found.before:.1f} dB signal to noise behind the layer)"
    moved = int(np.count_nonzero(found.levels != read(layer.levels[0])))
    for levels in layer.levels:
        write(levels, found.levels)
    summary = f"{moved:,} of {exact.size:,} levels are not the nearest"
    report.edit(
        layer.name, f"{summary}: {found.before:.1f} -> {found.after:.1f} dB signal to noise behind the layer"
    )
    return None


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


def _layers(
    graph: Graph, run: Graph, original: onnx.ModelProto, quantized: Sequence[Weight], report: PassReport
) -> Iterator[_Layer]:
    """The layers whose levels can be chosen; the others are skipped with a reason. `run`: the graph without
    pairs of activations.
    """
    floats = {
        weight.name: weight
        for weight in weights(import_model(original), refuse=lambda node, reason: None, filled=True)
    }
    types, captured = infer_types(run), captured_names(run)
    nodes, tensors = {node.name: node for node in run.nodes}, graph.tensors()
    for weight in quantized:
        node = nodes[weight.nodes[0].name]
        decoder = node.inputs[WEIGHT_INPUT].inputs[0]
        levels = decoder.inputs[0]
        if "DequantizeLinear" in decoders(floats[weight.name].tensor):
            reason: LayerModel | str = "it was quantized before"
        elif not isinstance(levels, Constant):
            reason = "it is stored as a codebook"
        elif len(weight.nodes) > 1:
            reason = "it is shared by several layers"
        else:
            reason = layer_model(run, node, levels.shape, types, captured)
        if isinstance(reason, str):
            for one in weight.nodes:
                report.skip(one.name, NEAREST.format(reason))
            continue
        rank = len(levels.shape)
        step = np.expand_dims(
            read(decoder.inputs[1]), [axis for axis in range(rank) if axis != weight.axis % rank]
        )
        yield _Layer(
            reason,
            (tensors[levels.name], levels),
            step,
            floats[weight.name],
            _axes(node, levels.shape[2:]) if node.op == "Conv" else (),
        )


def _axes(node: Node, kernel: Sequence[int]) -> tuple[Axis, ...]:
    ones = [1] * len(kernel)
    strides, dilations = node.attrs.get("strides", ones), node.attrs.get("dilations", ones)
    return tuple(Axis(*one) for one in zip(kernel, strides, dilations, strict=True))


def _collect(
    calibrator: Calibrator, original: onnx.ModelProto, quantized: onnx.ModelProto, group: Sequence[_Layer]
) -> Iterator[list[np.ndarray]]:
    """For each layer, a sample of its inputs with quantized weights, one array each, and of what it gives
    in the original.
    """
    limit = min(SAMPLE_BYTES, GROUP_BYTES // len(group))
    reservoirs = [Reservoir(limit, MOST_UNITS, SEED) for _ in group]
    generator = np.random.default_rng(SEED)
    outputs = list(dict.fromkeys(layer.model.output for layer in group))
    sources = list(dict.fromkeys(name for layer in group for name in layer.model.sources))
    wanted = calibrator.observe(model_up_to(original, outputs), outputs)
    for targets, values in zip(
        wanted, calibrator.observe(model_up_to(quantized, outputs), sources), strict=True
    ):
        for layer, reservoir in zip(group, reservoirs, strict=True):
            inputs = [values[name] for name in layer.model.sources]
            target = targets[layer.model.output]
            reservoir.add(
                _windows(layer, inputs, target, generator)
                if layer.model.is_convolution
                else _rows(inputs, target)
            )
    return (reservoir.sample for reservoir in reservoirs)


def _rows(inputs: Sequence[np.ndarray], target: np.ndarray) -> list[np.ndarray]:
    return [array.reshape(-1, array.shape[-1]) for array in (*inputs, target)]


def _windows(
    layer: _Layer, inputs: Sequence[np.ndarray], target: np.ndarray, generator: np.random.Generator
) -> list[np.ndarray]:
    source, *others = inputs
    padded = np.pad(source, [(0, 0), (0, 0), *_padding(layer, source.shape[2:])])
    return [*crops(padded, [*others, target], layer.axes, EDGE, generator)]


def _padding(layer: _Layer, sizes: Sequence[int]) -> list[tuple[int, int]]:
    attributes, rank = layer.model.node.attrs, len(sizes)
    kind = attributes.get("auto_pad", "NOTSET")
    if kind in ("SAME_UPPER", "SAME_LOWER"):
        return [
            axis.same_padding(size, kind == "SAME_UPPER")
            for axis, size in zip(layer.axes, sizes, strict=True)
        ]
    pads = attributes.get("pads") if kind == "NOTSET" else None
    return [(0, 0)] * rank if pads is None else list(zip(pads[:rank], pads[rank:], strict=True))
