"""Values of free tensors at further sizes of the inputs, well below and well above those that a network is built with.

    If(Shape(x)[2] > 512)      the same at 224 and at 256, another at 672

What is equal at two sizes that are near each other need not be at others. The network itself does not run for this:
shapes are inferred, and only what is computed from them is.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnx_lathe.errors import LatheError
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.core.facts import BODIES, SIZE_OPS, Facts, Shape, fixed_at

STEP = 32
"""Sizes that are multiples of it stay such: networks halve their maps five times."""
MOST_ROUNDS = 16
LARGE = 1024
"""Weights with more values are kept out of the inference of shapes."""


def further(first: Mapping[str, Shape], second: Mapping[str, Shape]) -> list[dict[str, Shape]]:
    """Half of the smaller size and three times the larger, where they differ; nothing if none do."""
    if first == second:
        return []
    found = []
    for below in (True, False):
        found.append(
            {
                name: tuple(_other(a, b, below) for a, b in zip(shape, second[name], strict=True))
                for name, shape in first.items()
            }
        )
    return found


def _other(first: int, second: int, below: bool) -> int:
    if first == second:
        return first
    if not below:
        return 3 * max(first, second)
    half = max(min(first, second) // 2, 1)
    return half if first % STEP or second % STEP else max(half // STEP, 1) * STEP


def further_values(
    model: onnx.ModelProto, first: Mapping[str, Shape], second: Mapping[str, Shape], wanted: Sequence[str]
) -> list[dict[str, np.ndarray]]:
    """Values of the `wanted` free tensors that depend on sizes, at each further size that the model fits."""
    return values_at(model, further(first, second), first, wanted)


def values_at(
    model: onnx.ModelProto,
    sizes: Sequence[Mapping[str, Shape]],
    first: Mapping[str, Shape],
    wanted: Sequence[str],
) -> list[dict[str, np.ndarray]]:
    """Values of the `wanted` free tensors that depend on sizes, at each of these `sizes` that the model fits; it fits
    `first`.
    """
    wanted = sorted(sized_tensors(model.graph).intersection(wanted))
    if not wanted:
        return []
    found = [_sized_values(model, each, wanted) for each in sizes]
    if (
        None in found and _sized_values(model, first, wanted) is None
    ):  # inference finds fault with it everywhere
        found = [_sized_values(model, each, wanted, strict=False) for each in sizes]
    return [values for values in found if values is not None]


def varying(model: onnx.ModelProto, facts: Facts) -> frozenset[str]:
    """Free tensors of which something is equal at both sizes that the model was looked at, and not at others."""
    first = {name: shapes[0] for name, shapes in facts.inputs.items()}
    second = {name: shapes[1] for name, shapes in facts.inputs.items()}
    both = facts.values[0].keys() & facts.values[1].keys() & facts.free
    others = further_values(model, first, second, sorted(both))
    return frozenset(
        name
        for name in both
        if differs(facts.values[0][name], facts.values[1][name], [one[name] for one in others if name in one])
    )


def _sized_values(
    model: onnx.ModelProto, sizes: Mapping[str, Shape], wanted: Sequence[str], strict: bool = True
) -> dict[str, np.ndarray] | None:
    """The values at these sizes of the inputs. A tensor is missing if the shapes that it is made of cannot be inferred;
    None if the model does not fit the sizes.
    """
    sized = sized_tensors(model.graph)
    graph = fixed_at(model, sizes).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    known: dict[str, np.ndarray] = {}
    for _ in range(MOST_ROUNDS):
        apart = _without_branches(graph)
        shapes = _inferred(model, graph, weights, known, strict and not apart)
        if shapes is None or (apart and strict and _inferred(model, apart, weights, known, strict) is None):
            return None
        before = len(known)
        for node in graph.node:
            if _reads_size(node) and node.input[0] in shapes and node.output[0] not in known:
                known[node.output[0]] = _size(node, shapes[node.input[0]])
        try:
            known |= _ready(model, graph, weights, known, sized)
        except LatheError:
            return None
        taken = _take_branches(graph, known)
        if len(known) == before and not taken:  # the last inference saw all values, and whether they fit
            break
        for body in taken:
            weights |= {tensor.name: tensor for tensor in body.initializer}
        sized |= sized_tensors(graph)
    return {name: known[name] for name in wanted if name in known}


def _without_branches(graph: onnx.GraphProto) -> onnx.GraphProto | None:
    """The graph without Ifs that are there still, and what is computed of them; None if it has none. A body that is not
    taken need not fit the sizes, and may be why there is another.
    """
    if not any(node.op_type == "If" for node in graph.node):
        return None
    found, unknown = onnx.GraphProto(input=graph.input), set[str]()
    for node in graph.node:
        if node.op_type == "If" or unknown.intersection(node.input):
            unknown.update(node.output)
        else:
            found.node.append(node)
    found.output.extend(value for value in graph.output if value.name not in unknown)
    return found


def _take_branches(graph: onnx.GraphProto, known: Mapping[str, np.ndarray]) -> list[onnx.GraphProto]:
    """Puts the body that runs in the place of each If whose condition is known. Returns these bodies."""
    nodes, taken = [], []
    for node in graph.node:
        if node.op_type != "If" or node.domain or node.input[0] not in known:
            nodes.append(node)
            continue
        which = "then_branch" if np.all(known[node.input[0]]) else "else_branch"
        body = next(item.g for item in node.attribute if item.name == which)
        taken.append(body)
        nodes += body.node
        nodes += [
            onnx.helper.make_node("Identity", [value.name], [result])
            for value, result in zip(body.output, node.output, strict=True)
            if result
        ]
    if taken:
        del graph.node[:]
        graph.node.extend(nodes)
    return taken


def sized_tensors(graph: onnx.GraphProto) -> set[str]:
    """Sizes, and what is computed of them and of other tensors."""
    found: set[str] = set()
    for node in graph.node:
        if _reads_size(node) or found.intersection(node.input):
            found.update(name for name in node.output if name)
    return found


def _reads_size(node: onnx.NodeProto) -> bool:
    return node.op_type in SIZE_OPS and not node.domain


def _size(node: onnx.NodeProto, shape: Shape) -> np.ndarray:
    if node.op_type == "Size":
        return np.array(int(np.prod(shape)), np.int64)
    bounds = {item.name: item.i for item in node.attribute}
    return np.array(shape, np.int64)[bounds.get("start", 0) : bounds.get("end")]


def _inferred(
    model: onnx.ModelProto,
    graph: onnx.GraphProto,
    weights: Mapping[str, onnx.TensorProto],
    known: Mapping[str, np.ndarray],
    strict: bool,
) -> dict[str, Shape] | None:
    """Shapes, with the values that are known in the place of the nodes that compute them; None if they do not fit."""
    looked = _like(model)
    looked.graph.input.extend(value for value in graph.input if value.name not in weights)
    looked.graph.output.extend(graph.output)
    for name, tensor in weights.items():
        if np.prod(tensor.dims) > LARGE:
            value = onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
            looked.graph.input.append(value)
        else:
            looked.graph.initializer.append(tensor)
    looked.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in known.items()
    )
    looked.graph.node.extend(node for node in graph.node if not any(name in known for name in node.output))
    try:
        inferred = onnx.shape_inference.infer_shapes(looked, strict_mode=strict, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError):
        return None
    found: dict[str, Shape] = {}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        shape = value.type.tensor_type.shape
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in shape.dim):
            found[value.name] = tuple(dim.dim_value for dim in shape.dim)
    return found


def _ready(
    model: onnx.ModelProto,
    graph: onnx.GraphProto,
    weights: Mapping[str, onnx.TensorProto],
    known: Mapping[str, np.ndarray],
    sized: set[str],
) -> dict[str, np.ndarray]:
    """What can be computed of the known values and constants alone."""
    have = weights.keys() | known.keys()
    nodes = []
    for node in graph.node:
        reads = {name for name in node.input if name}
        is_known = any(name in known for name in node.output)
        if not is_known and node.op_type not in BODIES and reads <= have:
            have = have | {name for name in node.output if name}
            nodes.append(node)
    made = [name for node in nodes for name in node.output if name in sized]
    needed, kept = set(made), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    if not made:
        return {}
    run = _like(model)
    run.graph.node.extend(reversed(kept))
    run.graph.initializer.extend(weights[name] for name in needed if name in weights and name not in known)
    run.graph.initializer.extend(
        onnx.numpy_helper.from_array(known[name], name) for name in needed if name in known
    )
    run.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    return ort.run(ort.session(run, optimized=False), {})


def _like(model: onnx.ModelProto) -> onnx.ModelProto:
    """An empty graph in the words of the model."""
    found = onnx.ModelProto(ir_version=model.ir_version)
    found.opset_import.extend(model.opset_import)
    found.functions.extend(model.functions)
    found.graph.name = "sizes"
    return found


def differs(first: np.ndarray, second: np.ndarray, others: Sequence[np.ndarray]) -> bool:
    """Whether something that is equal in the first two is not in another one."""
    if first.shape != second.shape:
        return False
    same = (first == second) | ((first != first) & (second != second))
    return any(
        other.shape != first.shape or bool(np.any(same & (other != first) & (first == first)))
        for other in others
    )
