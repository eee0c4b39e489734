"""score=obs: what becomes zero is chosen by what layers answer on calibration data, and the weights that are left make up
for it.

From the inputs on, each layer sees what the pruned network before it computes: its weights become zero column by column
(passes/numerics/second_order/sweep.py), those that are left are fitted to what the network before pruning answered
there, and the deviation and mean of each channel are set right. With scope=global each layer has the share of zeros with
which all of them together lose least, by the relative error of each layer alone.
Sources: Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022; "SparseGPT", ICML 2023; "SPDY", ICML 2022.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.answers.aligned import Layer, answers
from onnx_lathe.passes.graph.answers.choosing import Judged
from onnx_lathe.passes.graph.answers.forms import form_of
from onnx_lathe.passes.graph.initializers import read, write_float
from onnx_lathe.passes.graph.input_moments import input_moments, rows_of
from onnx_lathe.passes.graph.layers import Weight
from onnx_lathe.passes.graph.model import export_model, taken_names
from onnx_lathe.passes.graph.quantization.bias_places import bias_place
from onnx_lathe.passes.numerics.allocation import allocate
from onnx_lathe.passes.numerics.second_order.fitting import fit_free
from onnx_lathe.passes.numerics.second_order.moments import SplitMoments, response_energy
from onnx_lathe.passes.numerics.second_order.paired import SplitJointMoments
from onnx_lathe.passes.numerics.second_order.sweep import Share, sweep
from onnx_lathe.passes.numerics.sparsity.magnitude import smallest, with_zeros
from onnx_lathe.passes.numerics.sparsity.weight_choice import Budget

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Of zeros, that a layer may have with scope=global."""
FEW = 32
"""A layer whose rows have fewer weights, as a depthwise convolution, loses as many of each."""


def prune_by_answers(
    graph: Graph,
    budgets: Sequence[Budget],
    weights: Mapping[str, Weight],
    context: Context,
) -> dict[str, str]:
    """Prunes weights as the budgets say. Returns, by weight, what to say of it.

    Raises PassError without calibration data.
    """
    calibrator, original = context.need_calibrator(), export_model(graph)
    layers, unmeasured = _layers(graph, weights)
    counts = _counts(graph, budgets, weights, layers, context)
    said: dict[str, str] = {}
    for name, reason in unmeasured.items():
        said[name] = _by_magnitude(weights[name], counts[name], reason)
    taken = taken_names(graph)
    for layer, moments in answers(graph, layers, original, calibrator):
        weight = layer.rows.weight
        context.progress(f"pruning {weight.name}")
        reason = moments if isinstance(moments, str) else moments.refusal()
        if reason is None and not isinstance(moments, str):
            said[weight.name] = _by_answers(graph, layer, moments, counts[weight.name], taken)
        else:
            said[weight.name] = _by_magnitude(weight, counts[weight.name], str(reason))
    return said


def _layers(graph: Graph, weights: Mapping[str, Weight]) -> tuple[list[Layer], dict[str, str]]:
    """The layers that can be measured, in the order of the graph, and why each other weight cannot."""
    layers, others = [], {}
    for name, weight in weights.items():
        rows = rows_of(weight, graph.opset)
        if isinstance(rows, str):
            others[name] = rows
        elif len(weight.nodes) > 1:
            others[name] = "it is shared by several layers"
        else:
            layers.append(Layer(weight.nodes[0], rows))
    order = {id(node): place for place, node in enumerate(graph.nodes)}
    return sorted(layers, key=lambda layer: order[id(layer.node)]), others


def _counts(
    graph: Graph,
    budgets: Sequence[Budget],
    weights: Mapping[str, Weight],
    layers: Sequence[Layer],
    context: Context,
) -> dict[str, int]:
    """How many elements of each weight become zero."""
    counts: dict[str, int] = {}
    for budget in budgets:
        if len(budget.names) == 1:
            counts[budget.names[0]] = budget.count
            continue
        sizes = {name: int(np.prod(weights[name].tensor.shape)) for name in budget.names}
        share = budget.count / sum(sizes.values())
        together = [layer for layer in layers if layer.rows.weight.name in sizes]
        rest = {name: round(share * size) for name, size in sizes.items()}
        counts |= rest
        if together:
            left = budget.count - sum(
                rest[name] for name in sizes if name not in {one.rows.weight.name for one in together}
            )
            counts |= _shared_out(graph, together, sizes, left, context)
    return counts


def _shared_out(
    graph: Graph, layers: Sequence[Layer], sizes: Mapping[str, int], count: int, context: Context
) -> dict[str, int]:
    """`count` zeros, where they cost the answers of the layers least."""
    names = [layer.rows.weight.name for layer in layers]
    losses, costs = [], []
    for layer, loss in zip(layers, _losses(graph, layers, context), strict=True):
        losses.append(loss)
        costs.append(sizes[layer.rows.weight.name] * (1 - np.array(SHARES)))
    chosen = allocate(losses, costs, sum(sizes[name] for name in names) - count)
    if chosen is None:  # more zeros than the largest share has
        return {name: round(count * sizes[name] / sum(sizes[one] for one in names)) for name in names}
    found = {name: round(SHARES[place] * sizes[name]) for name, place in zip(names, chosen, strict=True)}
    return found


def _losses(graph: Graph, layers: Sequence[Layer], context: Context) -> Iterator[np.ndarray]:
    """For each layer, the relative squared error of its answers at each of SHARES, made up for by the weights left."""
    measured = input_moments(
        export_model(graph), [layer.rows for layer in layers], context.need_calibrator(), context.progress
    )
    for layer, (rows, moments) in zip(layers, measured, strict=True):
        context.progress(f"measuring what zeros cost {rows.weight.name}")
        yield _loss(rows.of(read(rows.weight.tensor)), moments, bias_place(graph, layer.node) is not None)


def _loss(weight: np.ndarray, moments: SplitMoments, centered: bool) -> np.ndarray:
    if moments.refusal(centered):
        return np.zeros(len(SHARES))
    covariance, judging = moments.fitted.regular(centered), moments.judging(centered)
    energy = response_energy(weight.astype(np.float64), judging)
    found = np.zeros(len(SHARES))
    for place, share in enumerate(SHARES[1:], 1):
        change = sweep(weight, covariance, _share(weight, round(share * weight.size))) - weight
        found[place] = response_energy(change, judging) / max(energy, np.finfo(np.float64).tiny)
    return np.maximum.accumulate(found)


def _share(weight: np.ndarray, count: int) -> Share:
    return Share(count, weight.size, each_row=weight.shape[-1] < FEW)


def _by_answers(graph: Graph, layer: Layer, moments: SplitJointMoments, count: int, taken: set[str]) -> str:
    form = form_of(graph, layer.rows)
    judged = Judged.of(graph, form, moments)
    fitted = judged.moments.fitted
    swept = sweep(form.now, fitted.regular(), _share(form.now, count))
    best = judged.best([fit_free(fitted, swept, swept != 0), swept])
    return f"; {judged.take(graph, best, taken)}" if best is not None else ""


def _by_magnitude(weight: Weight, count: int, reason: str) -> str:
    """Its smallest weights become zero."""
    values = read(weight.tensor)
    write_float(weight.tensor, with_zeros(values, smallest([values], count)[0]))
    return f"; by magnitude: {reason}"
