"""The description that lies beside a context file: what goes in and out, and which chips it is for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from onnx_lathe.errors import TargetError
from onnx_lathe.runtime.targets.bundle import description
from onnx_lathe.runtime.targets.bundle.pixels import pixels_of
from onnx_lathe.runtime.targets.bundle.ports import Port, type_name
from onnx_lathe.runtime.targets.qnn import library
from onnx_lathe.runtime.targets.qnn.options import QnnConfig
from onnx_lathe.runtime.targets.qnn.sizes import Shape

DESCRIPTION = "model_ctx.json"


def ports(
    model: onnx.ModelProto, shapes: Mapping[str, Shape], compiled: onnx.ModelProto
) -> tuple[list[Port], list[Port]]:
    """(inputs, outputs). `compiled`: the context file, whose outputs have sizes. Raises TargetError for an output of a
    size that depends on values.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    outputs = {value.name: value for value in compiled.graph.output}
    return (
        [_port(value, shapes[value.name]) for value in model.graph.input if value.name not in stored],
        [_port(value, _fixed(outputs[value.name])) for value in model.graph.output],
    )


def _fixed(value: onnx.ValueInfoProto) -> Shape:
    dims = value.type.tensor_type.shape.dim
    if not all(dim.dim_value > 0 for dim in dims):
        raise TargetError(
            f"output '{value.name}' has a size that depends on values: a chip's program has none such"
        )
    return tuple(dim.dim_value for dim in dims)


def _port(value: onnx.ValueInfoProto, shape: Shape) -> Port:
    tensor = value.type.tensor_type
    kind = type_name(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    dims = [
        dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim
    ]  # some write -1 for an open one
    said = tuple(dims) if len(dims) == len(shape) else (None,) * len(shape)
    return Port(value.name, value.name, shape, kind, tuple(range(len(shape))), kind, shape, said)


def described(
    files: Sequence[Path],
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    options: QnnConfig,
    verified: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    choices = {
        "chips": [
            {"name": chip.name, "soc_model": chip.soc_model, "htp_arch": chip.htp_arch}
            for chip in options.chips
        ],
        "provider_options": library.provider_options(options.chips),
        "vtcm_mb": options.vtcm_mb,
        "optimization": options.optimization,
    }
    return description.describe(
        "qnn",
        files,
        inputs,
        outputs,
        pixels_of(options.preprocess, inputs),
        choices,
        verified=verified,
        libraries=library.versions(),
    )
