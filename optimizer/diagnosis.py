"""What is wrong with a model that ONNX Runtime refuses: the node, in one line, where its own words name a kernel."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx
from onnx import TensorProto

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.files.tensors import all_nodes, without_big
from onnx_lathe.runtime.running import ort

_FIRST_ERROR = re.compile(r"\(op_type:(\w+), node name: ([^)]*)\): (.*?)(?= \(op_type:|$)")
_KNOWN_DOMAINS = re.compile(r"|ai\.onnx(\..*)?|com\.microsoft(\..*)?")
_NO_NUMBERS = (TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128)
AGAIN = "export the model again"
Shape = tuple[int | None, ...]


def refuse_broken(path: Path, model: onnx.ModelProto) -> None:
    """Raises ModelError for a model that is wrong by the standard's own rules, and that ONNX Runtime refuses, too."""
    reason = problem(model)
    if not reason:
        return
    try:
        session = ort.session(path)
        ort.run(session, ort.random_feeds(session))
    except ModelError as error:
        raise ModelError(f"{path}: {reason}") from error


def problem(model: onnx.ModelProto) -> str:
    """The first thing found wrong, and what to do; empty if all seems right."""
    checks = (_inputs, _operators, _nodes, _inferred, _names)
    return next((reason for check in checks for reason in check(model)), "")


def _inputs(model: onnx.ModelProto) -> Iterator[str]:
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in stored:
            continue
        if not value.type.HasField("tensor_type"):
            kind = str(value.type.WhichOneof("value")).removesuffix("_type")
            yield f"input '{value.name}' is a {kind}, not a tensor; cut it off the model"
            continue
        tensor = value.type.tensor_type
        if tensor.elem_type in _NO_NUMBERS:
            kind = TensorProto.DataType.Name(tensor.elem_type)
            yield f"input '{value.name}' is {kind}, not numbers; cut it off the model"
        for axis, dim in enumerate(tensor.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value == 0:
                yield (
                    f"input '{value.name}' has size 0 in dimension {axis}, so it takes nothing; "
                    "export the model with its size, or with that dimension left open"
                )


def _operators(model: onnx.ModelProto) -> Iterator[str]:
    functions = {(function.domain, function.name) for function in model.functions}
    for node in all_nodes(model):
        known = _KNOWN_DOMAINS.fullmatch(node.domain) or (node.domain, node.op_type) in functions
        if not known:
            yield (
                f"node {_named(node)}: {node.domain}.{node.op_type} is not an operator of the ONNX standard; "
                f"{ort.UNKNOWN_OPERATOR}"
            )


def _names(model: onnx.ModelProto) -> Iterator[str]:
    """Comes last: ONNX Runtime takes nodes of one name, which are seldom why it refuses a model."""
    names = [node.name for node in model.graph.node if node.name]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        yield f"several nodes have the one name '{twice[0]}'; {AGAIN}, or give each its own"


def _nodes(model: onnx.ModelProto) -> Iterator[str]:
    """Quantizers and convolutions that do not fit what they read."""
    shapes = _shapes(model)
    for node in model.graph.node:
        if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
            yield from _quantizer(node, shapes)
        elif node.op_type == "Conv":
            yield from _convolution(node, shapes)


def _convolution(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> Iterator[str]:
    weight, read = shapes.get(node.input[1], ()), shapes.get(node.input[0], ())
    if len(weight) < 2 or None in weight:
        return
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    channels = (weight[1] or 0) * groups
    if len(read) > 1 and read[1] not in (None, channels):
        yield (
            f"node {_named(node)}: its weight '{node.input[1]}' is for {channels} input channels, "
            f"and its input has {read[1]}; {AGAIN}"
        )
    for attribute in node.attribute:
        if attribute.name == "kernel_shape" and tuple(attribute.ints) != weight[2:]:
            yield (
                f"node {_named(node)}: it says a kernel of {_by(attribute.ints)}, and its weight '{node.input[1]}' has "
                f"one of {_by(weight[2:])}; {AGAIN}"
            )


def _quantizer(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> Iterator[str]:
    shape, scale = shapes.get(node.input[0]), shapes.get(node.input[1])
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if not scale or scale == (1,) or None in scale or attributes.get("block_size") or shape is None:
        return
    axis = attributes.get("axis", 1)
    if not -len(shape) <= axis < len(shape):
        yield f"node {_named(node)}: axis {axis} is not one of its {len(shape)} dimensions; {AGAIN}"
    elif shape[axis] is not None and scale != (shape[axis],):
        yield f"node {_named(node)}: it has {_by(scale)} scales, and {shape[axis]} values along axis {axis}; {AGAIN}"


def _by(sizes: Iterable[int | None]) -> str:
    return " x ".join(map(str, sizes))


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Of each tensor whose rank is known; None for a size that is not."""
    try:
        light = onnx.shape_inference.infer_shapes(_light(model))
    except (onnx.shape_inference.InferenceError, RuntimeError):
        light = model
    found: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*light.graph.value_info, *light.graph.input):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            found.setdefault(value.name, tuple(dim.dim_value if dim.dim_value > 0 else None for dim in dims))
    return found


def _inferred(model: onnx.ModelProto) -> Iterator[str]:
    light = _light(model)
    del light.graph.value_info[:]
    for value in light.graph.output:  # what a model says of its outputs is often wrong, and does no harm
        value.type.tensor_type.ClearField("shape")
    try:
        onnx.shape_inference.infer_shapes(light, check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if found := _FIRST_ERROR.search(text):
            op, name, reason = found.groups()
            reason = re.sub(r"^(\[\w+\] )+", "", reason).rstrip(". ")
            named = f"'{name}'" if name else op
            yield f"node {named}: {reason}; {AGAIN}"


def _light(model: onnx.ModelProto) -> onnx.ModelProto:
    def as_input(graph: onnx.GraphProto, tensor: TensorProto) -> None:
        if tensor.name not in {value.name for value in graph.input}:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )

    return without_big(model, as_input)


def _named(node: onnx.NodeProto) -> str:
    return f"'{node.name}'" if node.name else f"{node.op_type} that writes '{node.output[0]}'"
