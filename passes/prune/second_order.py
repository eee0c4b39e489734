"""score=obs: what becomes zero is chosen by what layers answer on calibration data, and the weights that are left make up
for it.

From the inputs on, each layer sees what the pruned network before it computes: its weights become zero column by column
(passes/numerics/second_order/sweep.py), those that are left are fitted to what the network before pruning answered
there, and the deviation and mean of each channel are set right. With scope=global each layer has the share of zeros with
which all of them together lose least, by the relative error of each layer alone times what such an error does to the
network's outputs.
Sources: Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022; "SparseGPT", ICML 2023; "SPDY", ICML 2022.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.answers.aligned import Layer
from onnx_lathe.passes.graph.answers.changing import measurable, prune_layers
from onnx_lathe.passes.graph.answers.outputs import LEAST, Outputs, probed
from onnx_lathe.passes.graph.initializers import read, write, write_float
from onnx_lathe.passes.graph.input_moments import Rows, input_moments
from onnx_lathe.passes.graph.layers import Weight
from onnx_lathe.passes.graph.model import export_model, taken_names
from onnx_lathe.passes.graph.quantization.bias_places import bias_place, shift
from onnx_lathe.passes.numerics.allocation import allocate
from onnx_lathe.passes.numerics.second_order.moments import SplitMoments, response_energy
from onnx_lathe.passes.numerics.second_order.sweep import Share, factored, sweep
from onnx_lathe.passes.numerics.sparsity.magnitude import smallest, with_zeros
from onnx_lathe.passes.numerics.sparsity.weight_choice import Budget

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Of zeros, that a layer may have with scope=global."""
OUTPUT_SAMPLES = 16
"""Calibration samples on which outputs are looked at for each layer."""
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
    losses = list(_losses(graph, layers, context, report))
    costs = [size * (1 - np.array(SHARES)) for size in sizes]
    chosen = allocate(losses, costs, sum(sizes) - count)
    names = [layer.rows.weight.name for layer in layers]
    if chosen is None:
        report.warnings.append(
            f"more than {SHARES[-1]:.0%} of the weights are to be zero: every layer loses the same share"
        )
        return {name: round(count * size / sum(sizes)) for name, size in zip(names, sizes, strict=True)}
    return {name: round(SHARES[place] * size) for name, place, size in zip(names, chosen, sizes, strict=True)}


@dataclass(frozen=True)
class _Cost:
    """Of a layer: what its answers lose at each of SHARES, and what the weight [groups, r, d] changes by at `probed`."""

    losses: np.ndarray
    change: np.ndarray
    mean: np.ndarray


def _losses(
    graph: Graph, layers: Sequence[Layer], context: Context, report: PassReport
) -> Iterator[np.ndarray]:
    """For each layer, the relative squared error of its answers at each of SHARES, made up for by the weights left, times
    what such an error does to the network's outputs.
    """
    calibrator = context.need_calibrator()
    outputs = Outputs(graph, calibrator, OUTPUT_SAMPLES)
    report.warnings += [said for said in outputs.warnings("prune") if said not in report.warnings]
    measured = input_moments(
        export_model(graph), [layer.rows for layer in layers], calibrator, context.progress
    )
    costs, worths = list[np.ndarray](), list[float]()
    for layer, (rows, moments) in zip(layers, measured, strict=True):
        context.progress(f"measuring what zeros cost {rows.weight.name}")
        centered = bias_place(graph, layer.node) is not None
        cost = _cost(rows.of(read(rows.weight.tensor)), moments, centered)
        costs.append(cost.losses)
        loss = float(cost.losses[probed(cost.losses)])
        worths.append(outputs.worth(partial(_without, layer=layer, cost=cost), loss))
    least = LEAST * max(worths, default=0.0)
    yield from (losses * max(one, least) for losses, one in zip(costs, worths, strict=True))


def _without(graph: Graph, layer: Layer, cost: _Cost) -> None:
    """Makes the layer lose what it loses at the probed share."""
    (node,) = [one for one in graph.nodes if one.name == layer.node.name]
    tensor = next(one for one in node.inputs if one.name == layer.rows.weight.name)
    write(tensor, np.ascontiguousarray(read(tensor) + layer.rows.back(cost.change), np.float32))
    place = bias_place(graph, node)
    if place is not None:
        shift(graph, place, -np.einsum("grd,gd->gr", cost.change, cost.mean).reshape(-1), taken_names(graph))


def _cost(weight: np.ndarray, moments: SplitMoments, centered: bool) -> _Cost:
    found = np.zeros(len(SHARES))
    if moments.refusal(centered):
        return _Cost(found, np.zeros(weight.shape), moments.mean)
    covariance = moments.fitted.regular(centered)
    upper = factored(covariance)

    def lost(rows: np.ndarray, share: float) -> np.ndarray:
        rule = _share(rows, round(share * rows.size))
        return sweep(rows, covariance, rule, upper=upper) - rows

    some = weight[:, :: -(-weight.shape[1] // ENOUGH_ROWS)]
    judging, energy = moments.judged(some, centered)
    energy = max(energy, np.finfo(np.float64).tiny)
    for place, share in enumerate(SHARES[1:], 1):
        found[place] = response_energy(lost(some, share), judging) / energy
    losses = np.maximum.accumulate(found)
    return _Cost(losses, lost(weight, SHARES[probed(losses)]), moments.mean)
