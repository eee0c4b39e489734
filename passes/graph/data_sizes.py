"""Sizes of inputs that a model leaves open, as a sample of the data has them."""

from collections.abc import Mapping

import onnx

from onnx_lathe.passes.core.services import Calibrator
from onnx_lathe.passes.graph.macs import Shape
from onnx_lathe.passes.graph.model import Snapshot
from onnx_lathe.passes.graph.skeleton import runtime_inputs


def data_sizes(original: Snapshot, calibrator: Calibrator | None) -> Mapping[str, Shape]:
    """Shapes of a sample of data, if the model leaves more than the batch open; of float inputs alone can
    they be seen.
    """
    inputs = [
        value
        for value in runtime_inputs(original.frame)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    ]
    if (
        calibrator is None
        or not inputs
        or all(dim.dim_value for value in inputs for dim in value.type.tensor_type.shape.dim[1:])
    ):
        return {}
    names = [value.name for value in inputs]
    batch = next(calibrator.observe(original.up_to(names), names))
    dims = {value.name: value.type.tensor_type.shape.dim for value in inputs}
    return {
        name: (dims[name][0].dim_value or 1, *values.shape[1:])
        for name, values in batch.items()
        if 0 < len(dims[name]) == values.ndim  # an input of no stated shape has none
    }
