"""What follows from a model and the options: the picture that it takes, and inputs to try it on."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import UsageError
from onnx_lathe.runtime.data import preprocess
from onnx_lathe.runtime.targets.coreml.convert import Conversion
from onnx_lathe.runtime.targets.coreml.image import LAYOUTS, Image
from onnx_lathe.runtime.targets.coreml.sizes import Sizes, model_inputs, parse_shapes


def picture(model: onnx.ModelProto, options: Any) -> str:
    """The input that takes it. Raises UsageError for a model that has none such."""
    channels, inputs = LAYOUTS[options.image][0], model_inputs(model)
    if len(inputs) != 1:
        raise UsageError(f"option image: the model has {len(inputs)} inputs; Lathe writes a picture for one")
    ((name, value),) = inputs.items()
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    if len(dims) != 4 or dims[1] != channels or value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        shown = ", ".join(str(size) if size > 0 else "?" for size in dims)
        raise UsageError(
            f"option image={options.image} is for an input [N, {channels}, H, W] of floats; '{name}' is [{shown}]"
        )
    batches = {shape[0] for shape in parse_shapes(options.shapes).get(name, ())} or {max(dims[0], 1)}
    if batches != {1}:
        asked = " to ".join(map(str, sorted(batches)))
        raise UsageError(f"option image: the input takes one picture; '{name}' has a batch of {asked}")
    return name


def image_of(model: onnx.ModelProto, options: Any) -> Image | None:
    """None where the input is a tensor. Raises UsageError for a model that takes no such picture."""
    if options.image == "none":
        return None
    name = picture(model, options)
    channels, asked = LAYOUTS[options.image][0], preprocess.parse(options.preprocess)
    mean, std = (
        list(values) if len(values) == channels else [*values] * channels
        for values in (asked.mean, asked.std)
    )
    if not asked.scales or len(mean) != channels or len(std) != channels:
        raise UsageError(
            f"option image: preprocess does not say how {channels} channels are scaled, such as with scale=1/255"
        )
    return Image(name, options.image, mean, std)


def sample(written: Conversion, sizes: Sizes, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs of the first shape: the data's, where it has these sizes, else random ones."""
    found = {}
    for port in written.inputs:
        shape, value = sizes.first[port.tensor], feeds[port.tensor]
        one = value[: shape[0]] if shape and value.ndim == len(shape) else value
        if one.shape != tuple(shape):
            values = np.random.default_rng(0).standard_normal(shape)
            one = values.astype(value.dtype) if value.dtype.kind == "f" else np.zeros(shape, value.dtype)
        found[port.tensor] = one
    return found


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether activations are integers between its layers."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)
