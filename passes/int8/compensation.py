"""Rounding with compensation: the level of each INT8 weight makes up for what those before it lose in its layer's answers.

    x' -> Conv(W_int8)  in the network whose weights are rounded   answers nearly as   x -> Conv(W)  in the float network

From the input on, layer by layer, by second moments of what layers read; without labels. As for rounding=adaptive,
activations are float on both sides. Means are set right by bias correction behind it, or, where biases are to stay, by the
levels themselves.
Source: Frantar et al., "GPTQ", ICLR 2023.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.answers.aligned import Layer
from onnx_lathe.passes.graph.answers.changing import change_layers
from onnx_lathe.passes.graph.answers.choosing import Judged
from onnx_lathe.passes.graph.answers.forms import Steps, form_of
from onnx_lathe.passes.graph.answers.rounding import NEAREST, round_layer
from onnx_lathe.passes.graph.initializers import read, write
from onnx_lathe.passes.graph.layers import Weight, constant_value, weights
from onnx_lathe.passes.graph.model import import_model, sparse_tensors, taken_names
from onnx_lathe.passes.graph.quantization.pair_order import adds_in_pairs, as_added
from onnx_lathe.passes.graph.quantization.pairs import decoders
from onnx_lathe.passes.int8.rounding import without_pairs
from onnx_lathe.passes.numerics.quantization import pair_sums
from onnx_lathe.passes.numerics.quantization.affine import LEVELS
from onnx_lathe.passes.numerics.second_order.paired import SplitJointMoments
from onnx_lathe.passes.numerics.second_order.sweep import Grid


def compensate_rounding(
    graph: Graph,
    original: onnx.ModelProto,
    quantized: Sequence[Weight],
    corrects: bool,
    context: Context,
    report: PassReport,
) -> None:
    """Chooses the levels of weights that are quantized already. `original` is the model before quantization; `corrects`:
    whether biases are corrected afterwards.

    Raises PassError without calibration data.
    """
    run = without_pairs(graph, original)
    chosen = {weight.nodes[0].name for weight in quantized}
    asked = {weight.name: weight for weight in _all(run) if weight.nodes[0].name in chosen}
    before = {weight.nodes[0].name: weight for weight in _all(import_model(original))}
    tensors, taken, sparse = graph.tensors(), taken_names(run), sparse_tensors(graph)

    def otherwise(weight: Weight, reason: str) -> None:
        for node in weight.nodes:
            report.skip(node.name, NEAREST.format(reason))

    def change(layer: Layer, moments: SplitJointMoments) -> None:
        exact, form = before[layer.node.name], form_of(run, layer.rows)
        if "DequantizeLinear" in decoders(exact.tensor):
            otherwise(layer.rows.weight, "it was quantized before")
        elif not isinstance(form, Steps):
            otherwise(layer.rows.weight, "it is stored as a codebook")
        else:
            context.progress(f"rounding {exact.name}")
            values = constant_value(exact.tensor, exact.opset)
            weight = layer.rows.of(values).astype(np.float64) * form.alpha
            judged = Judged.of(run, form, moments, corrects)
            grid = Grid(form.scale(), -LEVELS - 1, LEVELS)
            kept = _without_saturation(layer, form, grid) if context.placement.pairs else None
            best = round_layer(judged, weight, exact.name in sparse, lambda: grid, kept)
            levels = layer.rows.back(grid.levels(best.candidate.weight / form.alpha)).astype(np.int8)
            moved = int(np.count_nonzero(levels != read(form.levels)))
            judged.take(run, best.candidate, taken)
            write(form.levels, levels)
            write(tensors[form.levels.name], levels)
            write(tensors[form.factors.name], read(form.factors))
            report.edit(
                layer.node.name, f"{moved:,} of {levels.size:,} levels are not the nearest: {best.said}"
            )

    change_layers(run, asked, change, otherwise, "rounding=hessian", context, report, original)


def _all(graph: Graph) -> list[Weight]:
    return list(weights(graph, refuse=lambda node, reason: None, bodies=True, everywhere=True, filled=True))


def _without_saturation(layer: Layer, form: Steps, grid: Grid) -> Callable[[np.ndarray], np.ndarray] | None:
    """Has the rows of a weight [groups, r, d], without alpha, whose products may not be added in pairs stay what they are
    (passes/numerics/quantization/pair_sums.py); None where they are not added so.
    """
    if not adds_in_pairs(layer.node, read(form.levels)):
        return None

    def kept(found: np.ndarray) -> np.ndarray:
        levels = np.ascontiguousarray(layer.rows.back(grid.levels(found))).astype(np.int8)
        wrong = pair_sums.saturates(as_added(layer.node, levels)).reshape(found.shape[:2])
        return np.where(wrong[..., None], form.now / form.alpha, found)

    return kept
