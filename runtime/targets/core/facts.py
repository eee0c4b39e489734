"""What is known of a model's tensors before it runs: their sizes, and the values that no input's content decides.

A tensor is free if nothing but constants and sizes of inputs go into it; ONNX Runtime computes it here, and no
layer is written for it. Where an input's height or width is open, the model is looked at with two sizes: what is
equal in both does not depend on them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnx_lathe.errors import ModelError, TargetError
from onnx_lathe.runtime.running import ort

Shape = tuple[int, ...]

SIZE_OPS = ("Shape", "Size")
"""Operators that read sizes and no content."""
BODIES = ("If", "Loop", "Scan")


@dataclass(frozen=True)
class Facts:
    """`shapes` and `values`: of each tensor at the sizes that the model is built for, and at others; both are
    alike where no size is open. `values` has free tensors alone.
    """

    shapes: tuple[Mapping[str, Shape], Mapping[str, Shape]]
    values: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]
    free: frozenset[str]
    inputs: Mapping[str, tuple[Shape, Shape]]
    types: Mapping[str, int] = field(default_factory=dict)
    """Tensor -> ONNX element type, where it is known."""


def gather(model: onnx.ModelProto, sizes: Mapping[str, Shape], others: Mapping[str, Shape]) -> Facts:
    """The facts, at the inputs' `sizes` and at `others`. Raises TargetError where ONNX Runtime cannot run the
    model at these sizes.
    """
    free = free_tensors(model.graph)
    stored = _stored(model.graph)
    first = _look(model, sizes, free, stored)
    second = first if sizes == others else _look(model, others, free, stored)
    return Facts(
        (first[0], second[0]),
        (first[1], second[1]),
        frozenset(free),
        {name: (shape, others[name]) for name, shape in sizes.items()},
        first[2],
    )


def free_values(
    model: onnx.ModelProto, sizes: Mapping[str, Shape], wanted: Sequence[str]
) -> dict[str, np.ndarray]:
    """The values of these free tensors at these sizes."""
    fixed = fixed_at(model, sizes)
    stored = _stored(fixed.graph)
    made = [name for name in wanted if name not in stored]
    return {name: stored[name] for name in wanted if name in stored} | (
        _computed(fixed, sizes, made) if made else {}
    )


def _stored(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Initializers, and what Constant nodes hold as tensors."""
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and not node.domain:
            for item in node.attribute:
                if item.name == "value":
                    found[node.output[0]] = onnx.numpy_helper.to_array(item.t)
    return found


def free_tensors(graph: onnx.GraphProto) -> set[str]:
    """Tensors that no input's content goes into."""
    stored = {tensor.name for tensor in graph.initializer}
    bound = {value.name for value in graph.input} - stored
    free = set(stored)
    for node in graph.node:
        reads = bound.intersection(node.input)
        if (reads and node.op_type not in SIZE_OPS) or node.op_type in BODIES or _is_random(node):
            bound.update(node.output)
        else:
            free.update(name for name in node.output if name)
    return free


def defaults(graph: onnx.GraphProto) -> list[str]:
    """Inputs with a default value: they are stored, too."""
    stored = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name in stored]


def behind_defaults(graph: onnx.GraphProto) -> set[str]:
    """Inputs with a default value, and what is computed of them."""
    found = set(defaults(graph))
    for node in graph.node:
        if found.intersection(node.input) and node.op_type not in SIZE_OPS:
            found.update(name for name in node.output if name)
    return found


def _is_random(node: onnx.NodeProto) -> bool:
    return node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial")


def _look(
    model: onnx.ModelProto, sizes: Mapping[str, Shape], free: set[str], stored: Mapping[str, np.ndarray]
) -> tuple[dict[str, Shape], dict[str, np.ndarray], dict[str, int]]:
    """(shapes, values of free tensors, element types) at these sizes."""
    fixed = fixed_at(model, sizes)
    shapes, types = _inferred(fixed)
    if any(_rounds_up(node) for node in fixed.graph.node):
        shapes = dict(sizes)
    shapes |= {name: value.shape for name, value in stored.items()}
    wanted = _wanted(fixed.graph, free, shapes, stored)
    values = dict(stored)
    if wanted:
        for name, value in _computed(fixed, sizes, wanted).items():
            shapes[name] = value.shape
            if name in free:
                values[name] = value
    return shapes, values, types


def _rounds_up(node: onnx.NodeProto) -> bool:
    """Whether the shape inference of onnx may be wrong about it: with ceil_mode it counts a window that begins in
    the padding, which ONNX Runtime leaves out. Then ONNX Runtime is asked for every shape.
    """
    return any(item.name == "ceil_mode" and item.i for item in node.attribute)


def fixed_at(model: onnx.ModelProto, sizes: Mapping[str, Shape]) -> onnx.ModelProto:
    """A copy whose inputs have these sizes, and that says no other shape."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    _fix_inputs(fixed.graph, sizes)
    return fixed


def _fix_inputs(graph: onnx.GraphProto, sizes: Mapping[str, Shape]) -> None:
    for value in graph.input:
        if value.name in sizes:
            shape = value.type.tensor_type.shape
            shape.ClearField("dim")
            for size in sizes[value.name]:
                shape.dim.add().dim_value = size
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    del graph.value_info[:]


def _inferred(model: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, int]]:
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError):
        return {}, {}
    shapes: dict[str, Shape] = {}
    types: dict[str, int] = {}
    for value in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape") and all(
            dim.HasField("dim_value") and dim.dim_value >= 0 for dim in tensor.shape.dim
        ):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return shapes, types


def _wanted(
    graph: onnx.GraphProto, free: set[str], shapes: Mapping[str, Shape], stored: Mapping[str, np.ndarray]
) -> list[str]:
    """Computed free tensors that something bound reads or that sizes go into, and bound tensors whose shape inference does
    not know.
    """
    sized = _sized(graph)
    made = [name for node in graph.node for name in node.output if name]
    outputs = {value.name for value in graph.output}
    read = {
        name for node in graph.node if any(out not in free for out in node.output) for name in node.input
    } | outputs
    return [
        name
        for name in made
        if ((name in read or name in sized) and name not in stored if name in free else name not in shapes)
    ]


def _sized(graph: onnx.GraphProto) -> set[str]:
    """Tensors that a size goes into, by way of Shape or Size."""
    found: set[str] = set()
    for node in graph.node:
        if node.op_type in SIZE_OPS or found.intersection(node.input):
            found.update(name for name in node.output if name)
    return found


def _computed(
    model: onnx.ModelProto, sizes: Mapping[str, Shape], wanted: Sequence[str]
) -> dict[str, np.ndarray]:
    """These tensors as ONNX Runtime computes them."""
    looked = onnx.ModelProto()
    looked.CopyFrom(model)
    del looked.graph.output[:]
    looked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    described = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in sizes.items())
    try:
        session = ort.session(looked, optimized=False)
        return ort.run(session, ort.random_feeds(session))
    except ModelError as error:
        raise TargetError(f"the model does not run with inputs {described}: {error}") from error
