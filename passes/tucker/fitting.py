"""Layers split in three: fitted to what they answer, or to their weights."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Calibrator, Context, Timer
from onnx_lathe.passes.graph import Constant, Graph
from onnx_lathe.passes.graph.answers.aligned import answers
from onnx_lathe.passes.graph.biases import BIAS_INPUT
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.input_moments import ENOUGH_SAMPLES, few_samples
from onnx_lathe.passes.graph.layer_times import alone
from onnx_lathe.passes.graph.macs import Shape
from onnx_lathe.passes.graph.model import export_model
from onnx_lathe.passes.numerics.rank.cp import Cp
from onnx_lathe.passes.numerics.rank.tucker import Tucker
from onnx_lathe.passes.numerics.second_order.fitting import centered_bias, fit_free
from onnx_lathe.passes.numerics.second_order.paired import SplitJointMoments
from onnx_lathe.passes.tucker.plans import LayerPlan
from onnx_lathe.passes.tucker.settings import decomposed, problem_of, weight_of
from onnx_lathe.passes.tucker.writer import weights_of, write_three


def split_by_weight(graph: Graph, chosen: Sequence[LayerPlan], context: Context, report: PassReport) -> None:
    """Each nearest to its weight, all elements counting alike."""
    for plan in chosen:
        layer = plan.layer
        context.progress(f"splitting {layer.rows.weight.name}")
        problem = problem_of(layer, weight_of(layer), None)
        made = weights_of(decomposed(problem, plan.chosen), layer.rows.shape[2:])
        lost = problem.error(made.product())
        summary = f"{plan.summary()}, {100 * lost:.3g} % of the weight's energy lost"
        write_three(graph, layer.node, made, _bias(plan))
        report.edit(plan.name, summary)


def split_by_answers(
    graph: Graph,
    chosen: Sequence[LayerPlan],
    calibrator: Calibrator,
    context: Context,
    report: PassReport,
) -> None:
    """From the inputs on, each fitted to what it answered before any was split, from what it reads by then."""
    original, samples = export_model(graph), ENOUGH_SAMPLES
    plans = {id(plan.layer): plan for plan in chosen}
    for layer, moments in answers(graph, [plan.layer for plan in chosen], original, calibrator):
        plan = plans[id(layer)]
        context.progress(f"fitting {layer.rows.weight.name}")
        refusal = moments if isinstance(moments, str) else moments.refusal()
        if isinstance(moments, str) or refusal is not None:
            report.skip(plan.name, str(refusal))
            continue
        samples = min(samples, moments.samples)
        summary = plan.summary()
        report.edit(plan.name, f"{summary}, answers {_split(graph, plan, moments)}")
    report.warnings += few_samples("tucker", samples)


def _split(graph: Graph, plan: LayerPlan, moments: SplitJointMoments) -> str:
    """Splits the layer. Returns the signal to noise of its answers on held-back samples."""
    layer, fitted = plan.layer, moments.fitted
    weight = weight_of(layer)
    target = fit_free(fitted, weight[None], np.ones((1, *weight.shape), bool))[0]
    found = decomposed(problem_of(layer, target, fitted.regular()[0]), plan.chosen)
    made = weights_of(found, layer.rows.shape[2:])
    product = made.product().reshape(1, len(weight), -1)
    bias = centered_bias(fitted, product)
    write_three(graph, layer.node, made, bias[0])
    error, energy = float(moments.judging.error(product, bias).sum()), float(moments.judging.yy.sum())
    return f"{10 * math.log10(energy / error):.1f} dB" if error > 0 and energy > 0 else "exact"


def _bias(plan: LayerPlan) -> np.ndarray | None:
    inputs = plan.layer.node.inputs
    if len(inputs) <= BIAS_INPUT or not isinstance(inputs[BIAS_INPUT], Constant):
        return None
    return read(inputs[BIAS_INPUT])


def latencies(
    plan: LayerPlan, shapes: Mapping[str, Shape], opset: int, timer: Timer
) -> tuple[float, float] | None:
    """Milliseconds of the layer (whole, split), with random factors; None if the size of its input is not known."""
    node = plan.layer.node
    whole, split = (alone([node], [], shapes, opset) for _ in range(2))
    if whole is None or split is None:
        return None
    outputs, inputs, *kernel = plan.layer.rows.shape
    generator, places = np.random.default_rng(0), math.prod(kernel)

    def drawn(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape)

    if len(plan.chosen) == 1:
        (terms,) = plan.chosen
        found: Tucker | Cp = Cp(drawn(terms, inputs), drawn(terms, places), drawn(outputs, terms))
    else:
        first, last = plan.chosen
        found = Tucker(drawn(first, inputs), drawn(last, first, places), drawn(outputs, last))
    write_three(split, split.nodes[0], weights_of(found, tuple(kernel)), np.zeros(outputs))
    return timer.latencies(export_model(whole), export_model(split))
