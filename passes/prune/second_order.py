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

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.answers.aligned import Layer
from onnx_lathe.passes.graph.answers.changing import measurable, prune_layers
from onnx_lathe.passes.graph.initializers import read, write_float
from onnx_lathe.passes.graph.input_moments import Rows, input_moments
from onnx_lathe.passes.graph.layers import Weight
from onnx_lathe.passes.graph.model import export_model
from onnx_lathe.passes.graph.quantization.bias_places import bias_place
from onnx_lathe.passes.numerics.allocation import allocate
from onnx_lathe.passes.numerics.second_order.moments import SplitMoments, response_energy
from onnx_lathe.passes.numerics.second_order.sweep import Share, factored, sweep
from onnx_lathe.passes.numerics.sparsity.magnitude import smallest, with_zeros
from onnx_lathe.passes.numerics.sparsity.weight_choice import Budget

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Of zeros, that a layer may have with scope=global."""
ENOUGH_ROWS = 256
"""Of a layer's rows so many tell what zeros cost it."""
FEW = 32
"""A layer whose rows have fewer weights, as a depthwise convolution, loses as many of each."""


def prune_by_answers(
    graph: Graph,
    budgets: Sequence[Budget],
    weights: Mapping[str, Weight],
    context: Context,
    report: PassReport,
) -> dict[str, str]:
    """Prunes weights as the budgets say. Returns, by weight, what to say of it.

    Raises PassError without calibration data.
    """
    context.need_calibrator()
    counts = _counts(graph, budgets, weights, context, report)

    def swept(rows: Rows, weight: np.ndarray, moments: np.ndarray) -> np.ndarray:
        return sweep(weight, moments, _share(weight, counts[rows.weight.name]))

    def by_magnitude(weight: Weight) -> None:
        values = read(weight.tensor)
        write_float(weight.tensor, with_zeros(values, smallest([values], counts[weight.name])[0]))

    said = prune_layers(graph, weights, swept, by_magnitude, context, report)
    return {name: f"; {what}" for name, what in said.items()}


def _share(weight: np.ndarray, count: int) -> Share:
    return Share(count, weight.size, each_row=weight.shape[-1] < FEW)


def _counts(
    graph: Graph,
    budgets: Sequence[Budget],
    weights: Mapping[str, Weight],
    context: Context,
    report: PassReport,
) -> dict[str, int]:
    """How many elements of each weight become zero. Of several that share a budget, those that cannot be measured have
    the share of all.
    """
    layers, _ = measurable(graph, weights)
    counts: dict[str, int] = {}
    for budget in budgets:
        sizes = {name: int(np.prod(weights[name].tensor.shape)) for name in budget.names}
        known = [layer for layer in layers if layer.rows.weight.name in sizes]
        share = budget.count / sum(sizes.values())
        counts |= {name: round(share * size) for name, size in sizes.items()}
        if len(known) > 1:
            names = [layer.rows.weight.name for layer in known]
            left = budget.count - sum(counts[name] for name in sizes if name not in names)
            counts |= _shared_out(graph, known, [sizes[name] for name in names], left, context, report)
    return counts


def _shared_out(
    graph: Graph,
    layers: Sequence[Layer],
    sizes: Sequence[int],
    count: int,
    context: Context,
    report: PassReport,
) -> dict[str, int]:
    """`count` zeros, where they cost the answers of the layers least."""
    losses = list(_losses(graph, layers, context))
    costs = [size * (1 - np.array(SHARES)) for size in sizes]
    chosen = allocate(losses, costs, sum(sizes) - count)
    names = [layer.rows.weight.name for layer in layers]
    if chosen is None:
        report.warnings.append(
            f"more than {SHARES[-1]:.0%} of the weights are to be zero: every layer loses the same share"
        )
        return {name: round(count * size / sum(sizes)) for name, size in zip(names, sizes, strict=True)}
    return {name: round(SHARES[place] * size) for name, place, size in zip(names, chosen, sizes, strict=True)}


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
    weight = weight[:, :: -(-weight.shape[1] // ENOUGH_ROWS)]
    energy, upper = response_energy(weight.astype(np.float64), judging), factored(covariance)
    found = np.zeros(len(SHARES))
    for place, share in enumerate(SHARES[1:], 1):
        rule = _share(weight, round(share * weight.size))
        change = sweep(weight, covariance, rule, upper=upper) - weight
        found[place] = response_energy(change, judging) / max(energy, np.finfo(np.float64).tiny)
    return np.maximum.accumulate(found)
