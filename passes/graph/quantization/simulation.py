"""The canonical form as the targets of the request compute it, to be measured: what they make of a range
differs.

The canonical form has INT8 with zero-point 0. A target with `Placement.unsigned` stores the same calibrated
range as UINT8, with a zero-point where the range lies: behind a ReLU its steps are half as wide. What makes
up for the errors of one form is wrong for the other.
"""

import json

import numpy as np
import onnx

from onnx_lathe import metadata
from onnx_lathe.passes.numerics.quantization import affine
from onnx_lathe.placement import Placement


def as_computed(model: onnx.ModelProto, placement: Placement) -> onnx.ModelProto:
    """The model, changed in place: pairs that int8 put around activations quantize as the targets do."""
    if not placement.unsigned:
        return model
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    parameters: dict[str, list[str]] = {}
    """Names of the scale and the zero-point, by that of the integers."""
    for node in model.graph.node:
        text = next((entry.value for entry in node.metadata_props if entry.key == metadata.RANGE), None)
        given = [constants[name] for name in node.input[1:] if name in constants]
        if text is not None and len(given) == 2 and given[1].data_type == onnx.TensorProto.INT8:
            written = np.float32(onnx.numpy_helper.to_array(given[0]).item())
            scale, middle = affine.unsigned_scale(*affine.trained_range(written, *json.loads(text)))
            names = [f"{node.output[0]}_unsigned_{what}" for what in ("scale", "zero_point")]
            for name, value in zip(names, (scale, middle), strict=True):
                model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
            parameters[node.output[0]] = names
            node.input[1:] = names
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in parameters:
            node.input[1:] = parameters[node.input[0]]
    for value in model.graph.value_info:
        if value.name in parameters:
            value.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    return model
