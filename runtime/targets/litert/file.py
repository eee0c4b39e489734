"""A network -> the bytes of a .tflite file, with the schema that the package ships and flatbuffers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnx_lathe.errors import TargetError
from onnx_lathe.runtime.targets.litert.package import schema
from onnx_lathe.runtime.targets.litert.tensors import NUMPY, Operator, Quantization, Tensor

VERSION = 3
IDENTIFIER = b"TFL3"
SIGNATURE = "serving_default"
ALIGNMENT = 16
"""Of every constant, in bytes: XNNPACK and some NPUs read it in place."""
LARGEST = (1 << 31) - 1
PLACEHOLDER = 127
"""Stands in the old field of a byte for operators whose code is above it."""
ENUMERATIONS = {
    "padding": "Padding",
    "fusedActivationFunction": "ActivationFunctionType",
    "mode": "MirrorPadMode",
    "inDataType": "TensorType",
    "outDataType": "TensorType",
    "outputType": "TensorType",
    "outType": "TensorType",
}
"""Field of an operator's options -> the schema's enumeration of its words."""


@dataclass(frozen=True)
class Contents:
    """All of a file. `inputs` and `outputs`: (name in the signature, tensor)."""

    tensors: Sequence[Tensor]
    operators: Sequence[Operator]
    inputs: Sequence[tuple[str, int]]
    outputs: Sequence[tuple[str, int]]
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    description: str = ""


def pack(contents: Contents) -> bytes:
    """Raises TargetError if the package is not installed, or the file would be larger than flatbuffers can address."""
    import flatbuffers

    classes = schema()
    size = sum(one.values.nbytes for one in contents.tensors if one.values is not None)
    if size > LARGEST:
        raise TargetError(
            f"the weights take {size / 1e9:.1f} GB, and a .tflite file holds at most 2 GB: store them in float16 or INT8"
        )
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(_model(contents, classes).Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def _model(contents: Contents, classes: Any) -> Any:
    buffers = _Buffers(classes)
    codes: dict[tuple[str, int], int] = {}
    for one in contents.operators:
        codes.setdefault((one.code, one.version), len(codes))
    graph = classes.SubGraphT()
    graph.name = "main"
    graph.tensors = [_tensor(one, buffers, classes) for one in contents.tensors]
    graph.operators = [_operator(one, codes[one.code, one.version], classes) for one in contents.operators]
    graph.inputs = [place for _, place in contents.inputs]
    graph.outputs = [place for _, place in contents.outputs]
    model = classes.ModelT()
    model.version = VERSION
    model.description = contents.description
    model.operatorCodes = [_code(name, version, classes) for name, version in codes]
    model.subgraphs = [graph]
    model.signatureDefs = [_signature(contents, classes)]
    model.metadata = [_metadata(name, raw, buffers, classes) for name, raw in contents.metadata.items()]
    model.buffers = buffers.all
    return model


class _Buffers:
    """Buffer 0 is empty and means "no data". Constants of equal bytes share one."""

    def __init__(self, classes: Any) -> None:
        self._aligned = _aligned_buffer(classes)
        self.all = [self._aligned()]
        self._known: dict[bytes, int] = {}

    def add(self, raw: bytes) -> int:
        if raw not in self._known:
            self._known[raw] = len(self.all)
            buffer = self._aligned()
            buffer.data = raw
            self.all.append(buffer)
        return self._known[raw]


def _aligned_buffer(classes: Any) -> Any:
    """The schema's Buffer, whose bytes begin at a multiple of ALIGNMENT in the file."""

    class Aligned(classes.BufferT):
        def Pack(self, builder: Any) -> Any:  # noqa: N802 - flatbuffers' name
            offset = None
            if self.data:
                builder.StartVector(1, len(self.data), ALIGNMENT)
                builder.head -= len(self.data)
                builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
                offset = builder.EndVector()
            classes.BufferStart(builder)
            if offset is not None:
                classes.BufferAddData(builder, offset)
            return classes.BufferEnd(builder)

    return Aligned


def stored_bytes(values: np.ndarray, type: str) -> bytes:
    """Little endian; of INT4 two in a byte, the first in its low half."""
    flat: np.ndarray = np.ascontiguousarray(values, NUMPY[type]).reshape(-1)
    if type != "INT4":
        return flat.astype(flat.dtype.newbyteorder("<"), copy=False).tobytes()
    nibbles = np.concatenate([flat, np.zeros(flat.size % 2, np.int8)]).astype(np.uint8) & 0xF
    return (nibbles[0::2] | (nibbles[1::2] << 4)).astype(np.uint8).tobytes()


def _tensor(one: Tensor, buffers: _Buffers, classes: Any) -> Any:
    tensor = classes.TensorT()
    tensor.name = one.name
    tensor.type = getattr(classes.TensorType, one.type)
    tensor.shape = np.array(one.shape, np.int32)
    if None in one.signature:
        tensor.shapeSignature = np.array([-1 if size is None else size for size in one.signature], np.int32)
    tensor.hasRank = True
    tensor.isVariable = one.variable
    tensor.buffer = 0 if one.values is None else buffers.add(stored_bytes(one.values, one.type))
    if one.quantization is not None:
        tensor.quantization = _quantization(one.quantization, classes)
    return tensor


def _quantization(one: Quantization, classes: Any) -> Any:
    found = classes.QuantizationParametersT()
    found.scale = np.array(one.scales, np.float32)
    found.zeroPoint = np.array(one.zero_points, np.int64)
    found.quantizedDimension = one.axis
    return found


def _operator(one: Operator, code: int, classes: Any) -> Any:
    found = classes.OperatorT()
    found.opcodeIndex = code
    found.inputs = np.array(one.inputs, np.int32)
    found.outputs = np.array(one.outputs, np.int32)
    if one.intermediates:
        found.intermediates = np.array(one.intermediates, np.int32)
    if one.options:
        found.builtinOptionsType = getattr(classes.BuiltinOptions, one.options)
        found.builtinOptions = _options(one, classes)
    return found


def _options(one: Operator, classes: Any) -> Any:
    options = getattr(classes, f"{one.options}T")()
    for name, value in one.fields.items():
        if not hasattr(options, name):
            raise AttributeError(f"{one.options} has no field '{name}'")
        if isinstance(value, str):
            value = getattr(getattr(classes, ENUMERATIONS[name]), value)
        setattr(options, name, value)
    return options


def _code(name: str, version: int, classes: Any) -> Any:
    found = classes.OperatorCodeT()
    found.builtinCode = getattr(classes.BuiltinOperator, name)
    found.deprecatedBuiltinCode = min(found.builtinCode, PLACEHOLDER)
    found.version = version
    return found


def _signature(contents: Contents, classes: Any) -> Any:
    found = classes.SignatureDefT()
    found.signatureKey = SIGNATURE
    found.subgraphIndex = 0
    found.inputs = [_named(name, place, classes) for name, place in contents.inputs]
    found.outputs = [_named(name, place, classes) for name, place in contents.outputs]
    return found


def _named(name: str, place: int, classes: Any) -> Any:
    found = classes.TensorMapT()
    found.name, found.tensorIndex = name, place
    return found


def _metadata(name: str, raw: bytes, buffers: _Buffers, classes: Any) -> Any:
    found = classes.MetadataT()
    found.name, found.buffer = name, buffers.add(raw)
    return found
