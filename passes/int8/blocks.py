"""Rounding by blocks: levels, scales and biases of a block of layers, trained until the block answers as in the float network.

    x' -> Conv(W_int8) -> Relu -> Conv(V_int8) -> Add -> Relu   answers nearly as   x -> Conv(W) -> Relu -> Conv(V) -> Add -> Relu

From the input on, without labels: a block reads what the quantized network before it gives, and is held to what the float one
gives in its place. Before that, each layer gets levels that answer best together, and scales and biases with which its
channels have their deviations and means (refit): training that begins with the nearest levels does not catch up with that.
Layers of a block that stay float are trained with it. Samples that are kept apart decide, layer by layer and block by block,
whether anything is taken.
Source: Li et al., "BRECQ", ICLR 2021; see runtime/training/rounding/reconstruction.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import ModelError
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.answers.aligned import SAMPLES, answers
from onnx_lathe.passes.graph.answers.blocks import Block, blocks_of
from onnx_lathe.passes.graph.answers.fitting import fit_layer
from onnx_lathe.passes.graph.answers.walk import Walk
from onnx_lathe.passes.graph.initializers import write
from onnx_lathe.passes.graph.input_moments import ENOUGH_SAMPLES, few_samples
from onnx_lathe.passes.graph.layers import Weight, constant_value, weights
from onnx_lathe.passes.graph.model import export_model, import_model, taken_names
from onnx_lathe.passes.graph.quantization.placement import is_depthwise
from onnx_lathe.passes.int8.block_model import BlockModel, block_model
from onnx_lathe.passes.int8.rounding import NEAREST, Rounded, rounded_layers
from onnx_lathe.passes.int8.starting import begin, float_layers
from onnx_lathe.protocols import BlockTask, FittedBlock

HELD_OUT = 8
"""One sample of so many judges a block; they are among those that judge layers."""
SAMPLE_BYTES = 512 << 20
"""Of what a block reads and should answer."""


def fit_blocks(
    graph: Graph,
    original: onnx.ModelProto,
    quantized: Sequence[Weight],
    largest: Mapping[str, int],
    context: Context,
    config: Any,
    report: PassReport,
) -> None:
    """Fits the layers of weights that are quantized already, block by block: each layer begins with what the trained blocks
    before it give. `original` is the model before quantization; `largest`: the largest level of weights of fewer than 8
    bits.

    Raises PassError if the context has no calibration data or no fitter.
    """
    layers = rounded_layers(graph, graph, original, quantized, largest, report)
    known = {one.layer.response: one for one in layers}
    plain = float_layers(graph, {id(one.layer.node) for one in layers}, original)
    order = {id(node): place for place, node in enumerate(graph.nodes)}
    together = sorted([*(one.layer for one in layers), *plain], key=lambda layer: order[id(layer.node)])
    blocks = [one for one in _blocks(original) if known.keys() & set(one.layers)]
    training = _Training(graph, original, blocks, known, context, config.block_steps)
    within = {name: block for block in blocks for name in block.layers}
    last = {within[layer.response].answer: layer.response for layer in together if layer.response in within}
    since = {name: block.layers[0] for name, block in within.items()}
    taken, samples = taken_names(graph), ENOUGH_SAMPLES
    for layer, moments in answers(graph, together, original, context.need_calibrator(), since):
        context.progress(f"rounding {layer.rows.weight.name}")
        samples = samples if isinstance(moments, str) else min(samples, moments.samples)
        one = known.get(layer.response)
        reason = moments if isinstance(moments, str) else moments.refusal()
        if reason is not None or isinstance(moments, str):
            if one is not None:
                report.skip(one.name, NEAREST.format(reason))
        elif one is None:
            fit_layer(graph, layer, moments, taken, report)
        elif (said := begin(graph, one, moments, config.rounding_steps, taken)) is not None:
            report.edit(one.name, said)
        block = within.get(layer.response)
        if block is not None and last[block.answer] == layer.response:
            training.next(block, report)
    report.warnings += few_samples("rounding=blocks", samples)
    report.metrics |= {"blocks": float(len(blocks)), "blocks_trained": float(training.taken)}


def _blocks(original: onnx.ModelProto) -> list[Block]:
    floats = weights(import_model(original), refuse=lambda node, reason: None)
    return blocks_of(
        original,
        {
            node.outputs[0].name: is_depthwise(node, constant_value(weight.tensor, weight.opset).shape)
            for weight in floats
            if not weight.place
            for node in weight.nodes
        },
    )


class _Training:
    """Trains blocks of the graph, one after the other. `known`: its quantized layers, by what they write."""

    def __init__(
        self,
        graph: Graph,
        original: onnx.ModelProto,
        blocks: Sequence[Block],
        known: Mapping[str, Rounded],
        context: Context,
        steps: int,
    ) -> None:
        self.graph, self.original, self.blocks, self.known = graph, original, blocks, known
        self.context, self.fitter, self.steps = context, context.need_fitter(), steps
        calibrator = context.need_calibrator()
        self.now = Walk(calibrator.held(export_model(graph), SAMPLES), [(block.source,) for block in blocks])
        self.wanted = Walk(calibrator.held(original, SAMPLES), [(block.answer,) for block in blocks])
        self.taken = 0

    def next(self, block: Block, report: PassReport) -> None:
        """Trains the block, in the graph, if samples kept apart gain by it."""
        self.context.progress(f"fitting the block up to {block.answer}")
        found = self._fit(block, self.blocks.index(block))
        node = self.known[next(name for name in block.layers if name in self.known)].name
        what = f"block of {len(block.layers)} layers up to {block.answer}"
        if isinstance(found, str):
            report.skip(node, f"its block is not trained: {found}")
        elif not found.levels:
            report.skip(node, f"{what}: nothing better was found (error {_share(found.before)})")
        else:
            self.taken += 1
            report.edit(node, f"{what}: error {_share(found.before)} -> {_share(found.after)}")

    def _fit(self, block: Block, place: int) -> FittedBlock | str:
        network = export_model(self.graph)
        pairs = zip(
            self.now.observe(network, place, block.layers[0]),
            self.wanted.observe(self.original, place),
            strict=True,
        )
        x, target = _samples(
            [(read[block.source], asked[block.answer], read.samples) for read, asked in pairs]
        )
        model = block_model(self.graph, network, block, self.known)
        if isinstance(model, str):
            return model
        if len(x) < 2:
            return "it computes nothing on calibration data that a sample of its own belongs to"
        if not (np.isfinite(x).all() and np.isfinite(target).all()):
            return "it computes NaN or infinity on calibration data"
        held = (np.arange(len(x)) + 1) % min(HELD_OUT, len(x)) == 0
        task = BlockTask(**model.parts, x=x, target=target, held=held, batch=_fixed_batch(self.original))
        try:
            found = self.fitter.fit(task, self.steps)
        except ModelError as error:
            return f"PyTorch cannot run it ({' '.join(str(error).split())})"
        _write(model, found)
        return found


def _share(error: float) -> str:
    return f"{100 * error:.3g} % of its variance"


def _samples(batches: Sequence[tuple[np.ndarray, np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    """What is read and asked for, sample by sample, float32; nothing where the first axis is not theirs."""
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    size = 0
    for read_, asked, samples in batches:
        if min(len(read_), len(asked)) < samples or len(read_) != len(asked):
            return np.empty(0), np.empty(0)
        for part, values in zip(parts, (read_, asked), strict=True):
            part.append(values[:samples].astype(np.float32, copy=False))
        size += parts[0][-1].nbytes + parts[1][-1].nbytes
        if size > SAMPLE_BYTES:
            break
    if not parts[0] or any(one.shape[1:] != part[0].shape[1:] for part in parts for one in part):
        return np.empty(0), np.empty(0)
    return np.concatenate(parts[0]), np.concatenate(parts[1])


def _fixed_batch(model: onnx.ModelProto) -> int | None:
    """How many samples the network insists on."""
    dims = [value.type.tensor_type.shape.dim for value in model.graph.input]
    sizes = {dim[0].dim_value for dim in dims if len(dim) and dim[0].HasField("dim_value")}
    return min(sizes) if sizes else None


def _write(model: BlockModel, found: FittedBlock) -> None:
    for name, (levels, step) in found.levels.items():
        stored, scale = model.stored[name]
        write(stored, levels)
        write(scale, step.reshape(scale.shape).astype(np.float32))
    for name, values in found.values.items():
        write(model.floats[name], values.reshape(model.floats[name].shape).astype(np.float32))
