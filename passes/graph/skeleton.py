"""A model without the data of its big initializers, and what a caller sees of a model: cheap to check,
infer and compare.
"""

import math

import onnx

SKELETON_LIMIT_BYTES = 1 << 14
"""Initializers up to this size stay in the skeleton: shape inference reads the values of shapes, axes and
pads.
"""


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the data of its big initializers: those become graph inputs. Valid for the checker
    and shape inference.
    """
    light = onnx.ModelProto(ir_version=max(model.ir_version, 4), producer_name=model.producer_name)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph, source = light.graph, model.graph
    graph.name = source.name or "graph"
    graph.node.extend(source.node)
    graph.output.extend(source.output)
    graph.sparse_initializer.extend(source.sparse_initializer)
    graph.input.extend(runtime_inputs(model))
    for tensor in source.initializer:
        if _is_small(tensor):
            graph.initializer.append(tensor)
        else:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return light


def _is_small(tensor: onnx.TensorProto) -> bool:
    """Protobuf measures by writing, which fails over 2 GiB; elements are counted first, of 4 bits at least."""
    return math.prod(tensor.dims) <= 2 * SKELETON_LIMIT_BYTES and tensor.ByteSize() <= SKELETON_LIMIT_BYTES


def runtime_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs that a caller feeds: IR version 3 lists initializers among the inputs too."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def signature(model: onnx.ModelProto) -> dict[str, tuple[str, str, int, tuple[int | str, ...]]]:
    """Name -> (input or output, name, element type, shape) of everything a caller sees."""
    values = [("input", value) for value in runtime_inputs(model)] + [
        ("output", value) for value in model.graph.output
    ]
    return {f"{role} '{value.name}'": (role, value.name, *_type(value)) for role, value in values}


def _type(value: onnx.ValueInfoProto) -> tuple[int, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    return tensor.elem_type, tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim
    )
