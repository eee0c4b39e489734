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
    """The model without the data of its big initializers: those become graph inputs, and so do optional
    inputs. Valid for the checker and shape inference.
    """
    light = onnx.ModelProto(ir_version=max(model.ir_version, 4), producer_name=model.producer_name)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph, source = light.graph, model.graph
    graph.name = source.name or "graph"
    graph.node.extend(source.node)
    graph.output.extend(source.output)
    optional = {value.name for value in optional_inputs(model)}
    graph.sparse_initializer.extend(
        sparse for sparse in source.sparse_initializer if sparse.values.name not in optional
    )
    required = {value.name for value in runtime_inputs(model)}
    graph.input.extend(value for value in source.input if value.name in required | optional)
    for tensor in source.initializer:
        if tensor.name in optional:
            continue
        if _is_small(tensor):
            graph.initializer.append(tensor)
        else:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return light


def _is_small(tensor: onnx.TensorProto) -> bool:
    """Protobuf measures by writing, which fails over 2 GiB; elements are counted first, of 4 bits at least. Data in
    another file cannot be looked at.
    """
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return False
    return math.prod(tensor.dims) <= 2 * SKELETON_LIMIT_BYTES and tensor.ByteSize() <= SKELETON_LIMIT_BYTES


def runtime_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs that a caller must feed: IR version 3 lists initializers among the inputs too."""
    stored = _stored(model)
    return [value for value in model.graph.input if value.name not in stored]


def optional_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Inputs with a default, which is an initializer; up to IR version 3 those are plain weights."""
    stored = _stored(model) if model.ir_version >= 4 else ()
    return [value for value in model.graph.input if value.name in stored]


def _stored(model: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in model.graph.initializer} | {
        sparse.values.name for sparse in model.graph.sparse_initializer
    }


def signature(model: onnx.ModelProto) -> dict[str, tuple[str, str, int, tuple[int | str, ...]]]:
    """Name -> (input, optional input or output, name, element type, shape) of everything a caller sees."""
    values = [
        *(("input", value) for value in runtime_inputs(model)),
        *(("optional input", value) for value in optional_inputs(model)),
        *(("output", value) for value in model.graph.output),
    ]
    return {f"{role} '{value.name}'": (role, value.name, *_type(value)) for role, value in values}


def _type(value: onnx.ValueInfoProto) -> tuple[int, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    return tensor.elem_type, tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim
    )
