"""Which way branches go, where the sizes of inputs decide that.

    If(Equal(Gather(Shape(x), 1), 1))      one of its bodies, whichever runs at these sizes

Exporters write such a branch where a layer drops a dimension of 1. Phones' runtimes have no branches; where the condition is the same
at all sizes that are looked at, the lowering puts that body in the place of the If. Among these are the numbers that
an open size meets on the way to the condition, and those beside them: Equal(H, 48) is the same at nearly all sizes.
Where sizes are asked for between two, between.py proves what is the same at these, and the network is refused others.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnx_lathe.errors import TargetError
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.core.facts import Shape, behind_defaults, free_tensors, free_values
from onnx_lathe.runtime.targets.core.further import further_values, sized_tensors, values_at

COMPARISONS = {
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
}
MEETINGS = frozenset((*COMPARISONS, "Div", "Max", "Min", "Mod", "Mul"))
"""Operators in which a size meets a number that may change what comes of it."""
LARGEST = 65536
"""Larger numbers stand for no end, and are no size."""
Values = Mapping[str, np.ndarray]


def decided(
    model: onnx.ModelProto, sizes: Mapping[str, Shape], others: Mapping[str, Shape]
) -> dict[str, bool]:
    """Condition -> what it is at inputs of these `sizes`, of `others`, further away, and at the numbers that sizes
    meet. Those of branches in other branches' bodies are known once these are in the main graph.
    """
    wanted = conditions(model.graph)
    if not wanted:
        return {}
    looked = (sizes, others) if sizes != others else (sizes,)
    meetings = _meetings(model.graph, wanted) if sizes != others else []
    operands = {name for node in meetings for name in node.input}
    try:
        known = [free_values(model, each, [*dict.fromkeys([*wanted, *operands])]) for each in looked]
    except TargetError:  # the conversion asks for the same sizes, and says what to do
        return {}
    if sizes != others:
        met = _sizes_met(sizes, others, meetings, known[0], known[1])
        known += further_values(model, sizes, others, wanted) + values_at(model, met, sizes, wanted)
    return {
        name: bool(known[0][name])
        for name in wanted
        if all(np.all(one[name] == known[0][name]) for one in known if name in one)
        and not any(
            _goes_either_way(node, known[0], known[1])
            for node in _meetings(model.graph, [name] if len(known) > 1 and sizes != others else [])
        )
    }


def constant(model: onnx.ModelProto) -> dict[str, bool]:
    """Condition -> what it is, of those that follow from constants alone: whatever the sizes are."""
    wanted = conditions(model.graph)
    found = sorted({*wanted} - sized_tensors(model.graph)) if wanted else []
    if not found:
        return {}
    part = _behind(model, found)
    return {name: bool(np.all(value)) for name, value in ort.run(ort.session(part), {}).items()}


def _behind(model: onnx.ModelProto, wanted: Sequence[str]) -> onnx.ModelProto:
    """What these conditions are computed by, from constants on, as a model without inputs: the whole one may not run at
    sizes that are made up.
    """
    needed, nodes = set(wanted), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    part.graph.name = "conditions"
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in needed)
    part.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, None) for name in wanted
    )
    return part


def conditions(graph: onnx.GraphProto) -> list[str]:
    """Those that no input's content decides, and none with a default value either: a caller may give another."""
    found = {node.input[0] for node in graph.node if node.op_type == "If" and not node.domain}
    return sorted(found.intersection(free_tensors(graph)) - behind_defaults(graph)) if found else []


def above(graph: onnx.GraphProto, tensors: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that these free tensors are computed by, from sizes on."""
    sized, wanted, found = sized_tensors(graph), set(tensors), []
    for node in reversed(graph.node):
        if wanted.intersection(node.output) and sized.intersection(node.output):
            wanted.update(sized.intersection(node.input))
            found.append(node)
    return found


def _meetings(graph: onnx.GraphProto, conditions: Sequence[str]) -> list[onnx.NodeProto]:
    free = free_tensors(graph)
    return [
        node
        for node in above(graph, conditions)
        if node.op_type in MEETINGS and not node.domain and free.issuperset(node.input)
    ]


def _sizes_met(
    sizes: Mapping[str, Shape],
    others: Mapping[str, Shape],
    meetings: Sequence[onnx.NodeProto],
    first: Values,
    second: Values,
) -> list[dict[str, Shape]]:
    """The inputs' sizes, with each number that an open size meets, and those beside it, for all that are open."""
    numbers = {
        int(number) + step
        for node in meetings
        if not all(np.array_equal(first[name], second[name]) for name in node.input)
        for name in node.input
        if np.array_equal(first[name], second[name])
        for number in first[name].ravel()
        if np.isfinite(number) and abs(number) < LARGEST
        for step in (-1, 0, 1)
    }
    return [
        {
            name: tuple(a if a == b else number for a, b in zip(shape, others[name], strict=True))
            for name, shape in sizes.items()
        }
        for number in sorted(numbers)
        if number >= 1
    ]


def _goes_either_way(node: onnx.NodeProto, first: Values, second: Values) -> bool:
    """Whether a comparison of what follows an open size with a number is another at that number or beside it. The
    size may be that of a map inside the network, which no size of an input gives directly.
    """
    compare = COMPARISONS.get(node.op_type)
    if compare is None:
        return False
    for place in (0, 1):
        sized, number = node.input[place], first[node.input[1 - place]]
        if np.array_equal(first[sized], second[sized]) or not np.array_equal(
            number, second[node.input[1 - place]]
        ):
            continue
        now = compare(*_ordered(first[sized], number, place))
        for step in (-1, 0, 1):
            near = np.where(number + step >= 1, number + step, first[sized])
            tried = np.where(first[sized] == second[sized], first[sized], near)
            if np.any(compare(*_ordered(tried, number, place)) != now):
                return True
    return False


def _ordered(sized: np.ndarray, number: np.ndarray, place: int) -> tuple[np.ndarray, np.ndarray]:
    return (sized, number) if place == 0 else (number, sized)
