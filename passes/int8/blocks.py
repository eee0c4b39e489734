"""Rounding by blocks: levels, scales and biases of a block of layers, trained until the block answers as in the float network.

    x' -> Conv(W_int8) -> Relu -> Conv(V_int8) -> Add -> Relu   answers nearly as   x -> Conv(W) -> Relu -> Conv(V) -> Add -> Relu

From the input on, without labels: a block reads what the quantized network before it gives, and is held to what the float one
gives in its place. Before that, each layer gets levels that answer best together, and scales and biases with which its
channels have their deviations and means (refit): training that begins with the nearest levels does not catch up with that.
Layers of a block that stay float are trained with it. Samples that are kept apart decide, layer by layer and block by block,
whether anything is taken.
Source: Li et al., "BRECQ", ICLR 2021; see runtime/training/rounding/reconstruction.py.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import ModelError
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Constant, Graph
from onnx_lathe.passes.graph.answers.aligned import SAMPLES, Layer, answers, layer_of
from onnx_lathe.passes.graph.answers.blocks import Block, blocks_of
from onnx_lathe.passes.graph.answers.choosing import Judged
from onnx_lathe.passes.graph.answers.fitting import fit_layer
from onnx_lathe.passes.graph.answers.forms import form_of
from onnx_lathe.passes.graph.answers.walk import Walk
from onnx_lathe.passes.graph.initializers import read, write
from onnx_lathe.passes.graph.input_moments import ENOUGH_SAMPLES, few_samples
from onnx_lathe.passes.graph.layers import Weight, constant_value, other_use, weights
from onnx_lathe.passes.graph.model import export_model, import_model, taken_names
from onnx_lathe.passes.graph.quantization.placement import is_depthwise
from onnx_lathe.passes.int8.block_model import BlockModel, block_model
from onnx_lathe.passes.int8.rounding import NEAREST, Rounded, rounded_layers
from onnx_lathe.passes.numerics.second_order.levels import descend, rescale
from onnx_lathe.passes.numerics.second_order.paired import SplitJointMoments
from onnx_lathe.protocols import BlockTask, FittedBlock

HELD_OUT = 8
"""One sample of so many judges a block; they are among those that judge layers."""
RESCALED = 4
"""Times that levels are chosen for a scale, and the scale for the levels."""
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
    """Fits the layers of weights that are quantized already. `original` is the model before quantization; `largest`: the
    largest level of weights of fewer than 8 bits.

    Raises PassError if the context has no calibration data or no fitter.
    """
    context.need_fitter()
    layers = rounded_layers(graph, graph, original, quantized, largest, report)
    plain = _float_layers(graph, {id(one.layer.node) for one in layers}, original)
    _start(graph, layers, plain, original, context, config.rounding_steps, report)
    floats = [
        weight
        for weight in weights(import_model(original), refuse=lambda node, reason: None)
        if not weight.place
    ]
    kinds = {
        node.outputs[0].name: is_depthwise(node, constant_value(weight.tensor, weight.opset).shape)
        for weight in floats
        for node in weight.nodes
    }
    known = {one.layer.node.outputs[0].name: one for one in layers}
    blocks = [one for one in blocks_of(original, kinds) if known.keys() & set(one.layers)]
    fitted = 0
    for block, found in _fitted(graph, blocks, known, original, context, config.block_steps):
        node = known[next(name for name in block.layers if name in known)].name
        if isinstance(found, str):
            report.skip(node, f"its block is not trained: {found}")
            continue
        what = f"block of {len(block.layers)} layers up to {block.answer}"
        if not found.levels:
            report.skip(node, f"{what}: nothing better was found (error {_share(found.before)})")
            continue
        fitted += 1
        report.edit(node, f"{what}: error {_share(found.before)} -> {_share(found.after)}")
    report.metrics |= {"blocks": float(len(blocks)), "blocks_trained": float(fitted)}


def _share(error: float) -> str:
    return f"{100 * error:.3g} % of its variance"


def _start(
    graph: Graph,
    layers: Sequence[Rounded],
    plain: Sequence[Layer],
    original: onnx.ModelProto,
    context: Context,
    rounds: int,
    report: PassReport,
) -> None:
    """Levels, scales and biases of one layer after the other, in closed form; of `plain` ones, in float, the weights."""
    found = {id(one.layer): one for one in layers}
    order = {id(node): place for place, node in enumerate(graph.nodes)}
    together = sorted([*(one.layer for one in layers), *plain], key=lambda layer: order[id(layer.node)])
    taken, samples = taken_names(graph), ENOUGH_SAMPLES
    for layer, moments in answers(graph, together, original, context.need_calibrator()):
        one = found.get(id(layer))
        context.progress(f"rounding {layer.rows.weight.name}")
        samples = samples if isinstance(moments, str) else min(samples, moments.samples)
        reason = moments if isinstance(moments, str) else moments.refusal()
        if reason is not None or isinstance(moments, str):
            if one is not None:
                report.skip(one.name, NEAREST.format(reason))
        elif one is None:
            fit_layer(graph, layer, moments, taken, report)
        elif (said := _begin(graph, one, moments, rounds, taken)) is not None:
            report.edit(one.name, said)
    report.warnings += few_samples("rounding=blocks", samples)


def _float_layers(graph: Graph, known: Collection[int], original: onnx.ModelProto) -> list[Layer]:
    """Layers beside the quantized ones whose own weight may be fitted."""
    names = {name for node in original.graph.node for name in node.output}
    found = []
    for weight in weights(graph, refuse=lambda node, reason: None):
        if (
            id(weight.nodes[0]) in known
            or not isinstance(weight.tensor, Constant)
            or other_use(graph, weight)
        ):
            continue
        layer = layer_of(graph, weight)
        if not isinstance(layer, str) and layer.answer in names:
            found.append(layer)
    return found


def _begin(
    graph: Graph, one: Rounded, moments: SplitJointMoments, rounds: int, taken: set[str]
) -> str | None:
    """Changes the layer, if samples kept apart gain by it, and says so."""
    rows, stored = one.layer.rows, one.levels[0]
    form = form_of(graph, rows)
    before = Judged.of(graph, form, moments)
    fitted, nearest = before.moments.fitted, read(stored).copy()
    exact = constant_value(one.original.tensor, one.original.opset)
    weight = rows.of(exact) * form.alpha
    scale = rows.of(np.broadcast_to(one.step, exact.shape))[..., 0] * form.alpha
    limits = np.where(weight == 0, np.float32(0), np.float32(one.largest))
    loss = weight, fitted.regular(), fitted.yx - weight @ fitted.xx
    levels, step = rows.of(nearest), scale
    for _ in range(RESCALED):
        levels = descend(levels, step, *loss, (-limits, limits), rounds)
        step = rescale(levels, step, *loss)
    form.store(form.now, step / scale)
    write(stored, np.ascontiguousarray(rows.back(levels)).astype(np.int8))
    after = Judged.of(graph, form_of(graph, rows), moments)
    choices = [(judged, judged.best([judged.form.now])) for judged in (before, after)]
    judged, best = min(choices, key=lambda choice: choice[1].error)
    if judged is before or not before.is_worth(best):
        write(stored, nearest)
        form.store(form.now, scale / step)
    if not before.is_worth(best):
        return None
    judged.take(graph, best, taken)
    return f"levels, scales and bias that answer together: {before.decibels(before.before)} -> {before.decibels(best.error)}"


def _fitted(
    graph: Graph,
    blocks: Sequence[Block],
    known: Mapping[str, Rounded],
    original: onnx.ModelProto,
    context: Context,
    steps: int,
) -> Iterator[tuple[Block, FittedBlock | str]]:
    """Trains one block after the other, in the graph, or says why one stays."""
    calibrator, fitter = context.need_calibrator(), context.need_fitter()
    held = [calibrator.held(export_model(graph), SAMPLES), calibrator.held(original, SAMPLES)]
    now = Walk(held[0], [block.source for block in blocks])
    wanted = Walk(held[1], [block.answer for block in blocks])
    for place, block in enumerate(blocks):
        context.progress(f"fitting the block up to {block.answer}")
        network = export_model(graph)
        pairs = zip(
            now.observe(network, place, block.layers[0]), wanted.observe(original, place), strict=True
        )
        x, target = _samples(
            [(read[block.source], asked[block.answer], read.samples) for read, asked in pairs]
        )
        model = block_model(graph, network, block, known)
        if isinstance(model, str):
            yield block, model
        elif len(x) < 2:
            yield block, "it computes nothing on calibration data that a sample of its own belongs to"
        elif not (np.isfinite(x).all() and np.isfinite(target).all()):
            yield block, "it computes NaN or infinity on calibration data"
        else:
            judges = (np.arange(len(x)) + 1) % min(HELD_OUT, len(x)) == 0
            task = BlockTask(**model.parts, x=x, target=target, held=judges, batch=_fixed_batch(original))
            try:
                found = fitter.fit(task, steps)
            except ModelError as error:
                yield block, f"PyTorch cannot run it ({' '.join(str(error).split())})"
                continue
            _write(model, found)
            yield block, found


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
