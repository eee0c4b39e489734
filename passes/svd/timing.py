"""Whether a layer is faster split than whole, timed alone, outside of its network."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Timer
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.layers import weights
from onnx_lathe.passes.graph.macs import Shape
from onnx_lathe.passes.graph.model import export_model
from onnx_lathe.passes.svd.layer_plans import LayerPlan
from onnx_lathe.passes.svd.two_layers import Layer, describe, split


def choose_timed(
    plans: Sequence[LayerPlan],
    latencies: Callable[[LayerPlan], tuple[float, float] | None],
    choose_ranks: Callable[[Sequence[LayerPlan], PassReport], list[LayerPlan]],
    report: PassReport,
) -> list[LayerPlan]:
    """The plans that get a rank from `choose_ranks`. A layer that is slower when split stays whole, and ranks
    are chosen again for the others.
    """
    known: dict[tuple[str, int], tuple[float, float] | None] = {}
    while True:
        trial = PassReport()
        chosen = choose_ranks(plans, trial)
        slow: dict[str, str] = {}
        for plan in chosen:
            key = plan.layer.weight.name, plan.chosen
            if key not in known:
                known[key] = latencies(plan)
            plan.latencies = known[key]
            if plan.latencies is None:
                slow[plan.layer.name] = "the size of its input is not known, so that it cannot be timed"
            elif plan.latencies[1] > plan.latencies[0]:
                slow[plan.layer.name] = (
                    f"slower when timed: {plan.latencies[1]:.3g} ms against {plan.latencies[0]:.3g} ms"
                )
        if not slow:
            report.skips += trial.skips
            return chosen
        for name, reason in slow.items():
            report.skip(name, reason)
        plans = [plan for plan in plans if plan.layer.name not in slow]


def latencies(
    plan: LayerPlan, shapes: Mapping[str, Shape], opset: int, method: str, timer: Timer
) -> tuple[float, float] | None:
    """Milliseconds of the layer (whole, split), with random factors; None if the size of its input is
    not known.
    """
    parts = [_alone(plan.layer, shapes, opset) for _ in range(2)]
    if parts[0] is None or parts[1] is None:
        return None
    layer = describe(parts[1], next(weights(parts[1], refuse=lambda node, reason: None)), ())
    if not isinstance(layer, Layer):
        return None
    spatial, generator = method == "spatial", np.random.default_rng(0)
    rows, columns = (layer.plane() if spatial else layer.matrix()).shape
    left, right = (
        generator.standard_normal((rows, plan.chosen)),
        generator.standard_normal((plan.chosen, columns)),
    )
    has_bias = method == "response" or (layer.bias is not None and not layer.adds)
    factors = layer.spatial_factors(left, right) if spatial else layer.factors(left, right)
    split(parts[1], layer, factors, np.zeros(layer.channels) if has_bias else None)
    return timer.latencies(export_model(parts[0]), export_model(parts[1]))


def _alone(layer: Layer, shapes: Mapping[str, Shape], opset: int) -> Graph | None:
    """A graph of the layers and nothing else, to be timed: each has an input of its own. None if the size
    of an input is not known.
    """
    copies: dict[str, Constant] = {}

    def copied(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [
            copies.setdefault(tensor.name, Constant(tensor.name, read(tensor)))
            for tensor in tensors
            if not tensor.is_empty()
        ]

    nodes, inputs, outputs = [], [], []
    for number, node in enumerate(layer.weight.nodes):
        source, result = node.inputs[0], Variable(f"{node.name}_timed_output", np.float32)
        shape = tuple(source.shape) if isinstance(source, Constant) else shapes.get(source.name)
        if shape is None:
            return None
        inputs.append(Variable(f"{node.name}_timed_input", np.float32, shape))
        nodes.append(
            Node(node.op, node.name, dict(node.attrs), [inputs[-1], *copied(node.inputs[1:])], [result])
        )
        if layer.adds:
            add, product = layer.adds[number], result
            result = Variable(f"{node.name}_timed_sum", np.float32)
            constants = copied([tensor for tensor in add.inputs if isinstance(tensor, Constant)])
            nodes.append(Node("Add", f"{node.name}_timed_add", {}, [product, *constants], [result]))
        outputs.append(result)
    opsets = [onnx.helper.make_opsetid("", opset)]
    # the onnx package's own default may be newer than what the installed ONNX Runtime takes
    ir_version = onnx.helper.find_min_ir_version_for(opsets)
    graph = Graph(nodes, inputs, outputs, opset=opset, ir_version=ir_version)
    graph.metadata = {}
    return graph
