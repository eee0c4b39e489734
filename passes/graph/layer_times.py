"""Whether a layer is faster split than whole, timed alone, outside of its network."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
import onnx

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.macs import Shape


class TimedPlan(Protocol):
    """A layer, and what may become of it. `latencies`: milliseconds whole and split, once they are timed."""

    latencies: tuple[float, float] | None

    @property
    def name(self) -> str: ...

    @property
    def chosen(self) -> Hashable: ...


Plan = TypeVar("Plan", bound=TimedPlan)


def choose_timed(
    plans: Sequence[Plan],
    latencies: Callable[[Plan], tuple[float, float] | None],
    choose_ranks: Callable[[Sequence[Plan], PassReport], list[Plan]],
    report: PassReport,
) -> list[Plan]:
    """The plans that get a rank from `choose_ranks`. A layer that is slower when split stays whole, and ranks
    are chosen again for the others.
    """
    known: dict[tuple[str, Hashable], tuple[float, float] | None] = {}
    while True:
        trial = PassReport()
        chosen = choose_ranks(plans, trial)
        slow: dict[str, str] = {}
        for plan in chosen:
            key = plan.name, plan.chosen
            if key not in known:
                known[key] = latencies(plan)
            plan.latencies = known[key]
            if plan.latencies is None:
                slow[plan.name] = "the size of its input is not known, so that it cannot be timed"
            elif plan.latencies[1] > plan.latencies[0]:
                slow[plan.name] = (
                    f"slower when timed: {plan.latencies[1]:.3g} ms against {plan.latencies[0]:.3g} ms"
                )
        if not slow:
            report.skips += trial.skips
            return chosen
        for name, reason in slow.items():
            report.skip(name, reason)
        plans = [plan for plan in plans if plan.name not in slow]


def alone(
    layers: Sequence[Node], adds: Sequence[Node], shapes: Mapping[str, Shape], opset: int
) -> Graph | None:
    """A graph of the layers, with the Add behind each if there are any, and nothing else, to be timed: each has an input
    of its own. None if the size of an input is not known.
    """
    copies: dict[str, Constant] = {}

    def copied(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [
            copies.setdefault(tensor.name, Constant(tensor.name, read(tensor)))
            for tensor in tensors
            if not tensor.is_empty()
        ]

    nodes, inputs, outputs = [], [], []
    for number, node in enumerate(layers):
        source, result = node.inputs[0], Variable(f"{node.name}_timed_output", np.float32)
        shape = tuple(source.shape) if isinstance(source, Constant) else shapes.get(source.name)
        if shape is None:
            return None
        inputs.append(Variable(f"{node.name}_timed_input", np.float32, shape))
        nodes.append(
            Node(node.op, node.name, dict(node.attrs), [inputs[-1], *copied(node.inputs[1:])], [result])
        )
        if adds:
            add, product = adds[number], result
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
