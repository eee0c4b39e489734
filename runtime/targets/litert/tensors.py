"""What a network of LiteRT is made of: tensors, constants and operators, before they are packed into a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

NO_TENSOR = -1
"""In an operator's inputs: an optional one that is left out."""

ELEMENTS: Mapping[int, str] = {
    onnx.TensorProto.FLOAT: "FLOAT32",
    onnx.TensorProto.FLOAT16: "FLOAT32",
    onnx.TensorProto.BFLOAT16: "FLOAT32",
    onnx.TensorProto.DOUBLE: "FLOAT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT16: "INT16",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.INT4: "INT4",
}
"""ONNX element type -> the type in the file. Floats of every width are float32 there: most kernels have no other."""

NUMPY = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "INT64": np.int64,
    "INT32": np.int32,
    "INT16": np.int16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
    "INT4": np.int8,
}
"""Type in the file -> of an array with its values; INT4 has a byte each there."""


@dataclass(frozen=True)
class Quantization:
    """real = (stored - zero_point) * scale. One scale and zero point, or as many as `axis` has entries."""

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int = 0

    @property
    def per_channel(self) -> bool:
        return len(self.scales) > 1


@dataclass
class Tensor:
    """`signature`: None for a size that depends on those of the inputs. `values`: of a constant."""

    name: str
    type: str
    shape: tuple[int, ...]
    signature: tuple[int | None, ...] = ()
    quantization: Quantization | None = None
    values: np.ndarray | None = None
    variable: bool = False


@dataclass
class Operator:
    """`options`: the class of the schema without its T, such as Conv2DOptions, and its fields. Words stand for the
    schema's numbers: padding="SAME", fusedActivationFunction="RELU". `nodes`: names of the model's nodes that it stands
    for.
    """

    code: str
    inputs: Sequence[int]
    outputs: Sequence[int]
    options: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1
    nodes: tuple[str, ...] = ()
    intermediates: Sequence[int] = ()


@dataclass
class Stored:
    """What the graph stores in integers. `activations`: tensor -> its type and quantization. `decoded`: float tensor ->
    the activation that it is decoded from. `weights`: the same of constants, with the quantization.
    """

    activations: dict[str, tuple[str, Quantization]] = field(default_factory=dict)
    decoded: dict[str, str] = field(default_factory=dict)
    weights: dict[str, tuple[str, Quantization]] = field(default_factory=dict)
