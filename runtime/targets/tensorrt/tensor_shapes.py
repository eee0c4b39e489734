"""Shapes of a model's tensors at given sizes of its inputs: by shape inference, and by running the model where that does
not tell.
"""

from collections.abc import Mapping, Sequence

import onnx

from onnx_lathe.errors import LatheError
from onnx_lathe.macs import OpenShape
from onnx_lathe.runtime.files.tensors import without_big
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.tensorrt.dimensions import Shape


def inferred(model: onnx.ModelProto, sizes: Mapping[str, Shape]) -> dict[str, OpenShape]:
    """Tensor -> shape by shape inference; empty if shapes do not fit each other. sizes: shapes of the inputs that
    are not fixed.
    """

    def as_input(graph: onnx.GraphProto, tensor: onnx.TensorProto) -> None:
        if tensor.name not in inputs:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )

    inputs = {value.name for value in model.graph.input}
    light = without_big(model, as_input)
    _fix(light.graph, sizes)
    try:
        graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError):
        return {}
    found: dict[str, OpenShape] = {
        value.name: tuple(dim.dim_value or dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim)
        for value in [*graph.input, *graph.value_info, *graph.output]
        if value.type.tensor_type.HasField("shape")
    }
    return found | {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def computed(
    model: onnx.ModelProto, sizes: Mapping[str, Shape], wanted: Sequence[str]
) -> dict[str, OpenShape]:
    """The shapes of these tensors when ONNX Runtime runs the model once on random input; empty where it cannot. A
    size that depends on the values of the input is that of this input.
    """
    looked = onnx.ModelProto()
    looked.CopyFrom(model)
    _fix(looked.graph, sizes)
    made = {name for node in model.graph.node for name in node.output}
    outputs = {value.name for value in model.graph.output}
    asked = [name for name in wanted if name in made]
    looked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked if name not in outputs)
    try:
        opened = ort.session(looked, optimized=False, integer=False)
        results = ort.run(opened, ort.random_feeds(opened))
    except LatheError:
        return {}
    return {name: results[name].shape for name in asked if name in results}


def _fix(graph: onnx.GraphProto, sizes: Mapping[str, Shape]) -> None:
    """Gives the inputs their sizes, and takes away what is said of all other tensors at others."""
    del graph.value_info[:]
    for value in graph.input:
        if value.name in sizes:
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, sizes[value.name]))
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
