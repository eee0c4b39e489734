"""What TensorRT says of the kernels of an engine: their kind, the types that they read, and the nodes of the ONNX
model that they compute. From the builder's log, or from the JSON of the engine inspector.

The log, where the profiling verbosity is DETAILED, in one record of severity VERBOSE:

    Name: conv1_myl0_2, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [1,4,8,8], Datatype: Int8, ... }],
    Constants: [ { Name: w, Dimensions: [16,4,3,3], Datatype: Int8, ... }], Outputs: [ ... ],
    TacticName: ..., Metadata: [ONNX Layer: conv1][ONNX Layer: w_DequantizeLinear]

The inspector gives the same as an object with these keys. TensorRT 10 writes "Format/Datatype": "Row major Int8
format" where TensorRT 11 and TensorRT-RTX write "Datatype": "Int8", and separates the names in the metadata by control
characters. Other wordings are not guessed at.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LAYER = ", LayerType: "
"""In every line of the log that describes a kernel."""

_PRODUCTS = re.compile(r"conv|correlation|gemm|fully_connected|matrix_?mul|matmul|fprop", re.IGNORECASE)
"""Kinds of kernels that multiply by weights, or names of their tactics."""
_FUSED = re.compile(r"fusion", re.IGNORECASE)
_FUSED_PRODUCT = re.compile(r"_myl_(?:[A-Z][a-z]*)*?(?:Fc|Conv|Gemm|MatMul|Correlation)(?![a-z])")
"""A kernel made of several operators is named after them: __myl_CastMulCastCastMulFc_myl0_1."""
_INTEGERS = re.compile(r"i8i8|imma", re.IGNORECASE)
"""In the tactic's name of a kernel that multiplies INT8 by INT8."""
_TYPES = {
    "int8": "int8", "float": "float32", "fp32": "float32", "half": "float16", "fp16": "float16", "bf16": "bfloat16",
    "bfloat16": "bfloat16", "fp8": "float8", "int4": "int4", "fp4": "float4", "int32": "int32", "int64": "int64",
    "uint8": "uint8", "bool": "bool",
}  # fmt: skip
_TYPE = re.compile(rf"\b({'|'.join(_TYPES)})\b", re.IGNORECASE)
_TENSOR = re.compile(r"(?:\bDimensions: \[([^\]]*)\][^{]*?)?\bDatatype: ([^,}]*)")
_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: \[(?P<inputs>.*?)\]"
    r"(?:, Constants: \[(?P<constants>.*?)\])?, Outputs: \[",
    re.DOTALL,
)
_WEIGHTS = re.compile(r"\bWeights: \{\s*\"?Type\"?: \"?(\w+)")
_TACTIC = re.compile(r"\bTacticName: ([^,]*)")
_METADATA = re.compile(r"\bMetadata: (.*)$", re.DOTALL)
_NUMBER = re.compile(r"_myl\d+_\d+$")
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f\s,]*(?:\[ONNX Layer: |$))", re.DOTALL)
_RECORDS = re.compile(r"\n(?=Name: )|\n\s*\n")
"""Between two kernels, and behind the last: a name may hold a line break, and TensorRT writes it as it is."""


@dataclass(frozen=True)
class _Tensor:
    """What a kernel reads. `shape` is empty where TensorRT does not state it."""

    type: str | None
    shape: tuple[int, ...] = ()

    @property
    def may_be_weight(self) -> bool:
        """Scales of channels, such as [1, 50, 1, 1], and gemm's alpha, [1], are constants of a kernel as well."""
        return not self.shape or sum(size != 1 for size in self.shape) > 1


@dataclass(frozen=True)
class Kernel:
    """One layer of an engine. `reads`: types of its inputs, None where TensorRT states none; `weight`: type of its
    weight; `nodes`: names of the ONNX nodes that it computes, wholly or in part.
    """

    name: str
    kind: str
    tactic: str
    reads: tuple[str | None, ...]
    weight: str | None
    nodes: tuple[str, ...]

    @property
    def multiplies(self) -> bool:
        """Whether this is where a layer's products are computed, and not what prepares or finishes them."""
        if not self.fused:
            return bool(_PRODUCTS.search(self.kind))
        return bool(_PRODUCTS.search(self.tactic) or _FUSED_PRODUCT.search(self.name))

    @property
    def fused(self) -> bool:
        """Whether it may decode what it reads before it multiplies."""
        return bool(_FUSED.search(self.kind))

    @property
    def named_after(self) -> list[str]:
        """The nodes in `conv1 + relu1 || conv2`, or in `conv1_myl0_2`; a kernel is named after what it is mainly."""
        return re.split(r" (?:\+|\|\|) ", _NUMBER.sub("", self.name))

    @property
    def type(self) -> str | None:
        """The type that it multiplies in; None where TensorRT does not say."""
        first = self.reads[0] if self.reads else None
        if first not in (None, "int8"):
            return first
        if self.fused or first is None:
            return "int8" if _INTEGERS.search(self.tactic) else None
        return first if self.weight in (None, "int8") else self.weight


def from_log(text: str) -> list[Kernel]:
    """The kernels that a builder's log describes; none if it is worded otherwise than above."""
    found = []
    for line in _RECORDS.split(text):
        match = _LINE.search(line)
        metadata = _METADATA.search(line)
        if match is None or metadata is None:
            continue
        stated, tactic = _WEIGHTS.search(line), _TACTIC.search(line)
        inputs, constants = (
            [
                _Tensor(_type(kind), _shape(sizes.split(",") if sizes else []))
                for sizes, kind in _TENSOR.findall(match[group] or "")
            ]
            for group in ("inputs", "constants")
        )
        found.append(
            _kernel(
                match["name"],
                match["kind"],
                tactic[1] if tactic else "",
                inputs,
                constants,
                _type(stated[1]) if stated else None,
                _nodes(metadata[1]),
            )
        )
    return found


def from_inspector(text: str) -> list[Kernel]:
    """The kernels that the inspector's JSON describes; none if it is no such JSON, or says names only."""
    return [_inspected(layer) for layer in inspected(text)]


def inspected(text: str) -> list[Mapping[str, Any]]:
    """The inspector's own objects of layers; none if it is no such JSON, or says names only."""
    try:
        table = json.loads(text, strict=False)
    except ValueError:
        return []
    layers = table.get("Layers") if isinstance(table, dict) else None
    if not isinstance(layers, list):
        return []
    return [layer for layer in layers if isinstance(layer, dict) and "LayerType" in layer]


def nodes_of(layer: Mapping[str, Any]) -> tuple[str, ...]:
    """The ONNX nodes that an inspected layer computes, wholly or in part."""
    return _nodes(str(layer.get("Metadata", "")))


def types_of(layer: Mapping[str, Any], key: str) -> list[tuple[str, str | None]]:
    """(name, type) of the tensors that an inspected layer lists as `Inputs`, `Outputs` or `Constants`; a type that is
    not stated is None.
    """
    return [(str(tensor.get("Name", "")), _stated(tensor)) for tensor in _listed(layer, key)]


def _listed(layer: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    listed = layer.get(key)
    return [tensor for tensor in (listed if isinstance(listed, list) else []) if isinstance(tensor, dict)]


def _stated(tensor: Mapping[str, Any]) -> str | None:
    return _type(str(tensor.get("Datatype", tensor.get("Format/Datatype", ""))))


def _inspected(layer: Mapping[str, Any]) -> Kernel:
    weights = layer.get("Weights")
    return _kernel(
        str(layer.get("Name", "")),
        str(layer["LayerType"]),
        str(layer.get("TacticName", "")),
        _tensors(layer, "Inputs"),
        _tensors(layer, "Constants"),
        _type(str(weights.get("Type", ""))) if isinstance(weights, dict) else None,
        nodes_of(layer),
    )


def _kernel(
    name: str,
    kind: str,
    tactic: str,
    inputs: Sequence[_Tensor],
    constants: Sequence[_Tensor],
    stated: str | None,
    nodes: tuple[str, ...],
) -> Kernel:
    """stated: the type of the weight where it is said apart."""
    reads = tuple(tensor.type for tensor in inputs or constants[:1])
    return Kernel(name, kind.strip(), tactic, reads, stated or _weight(inputs, constants), nodes)


def _weight(inputs: Sequence[_Tensor], constants: Sequence[_Tensor]) -> str | None:
    """The type of the weight: the first constant that may be one, or the second of a product of two constants. A
    weight that is decoded at run time is no constant, but the second input.
    """
    left = constants if inputs else constants[1:]
    fitting = [tensor for tensor in left if tensor.may_be_weight]
    return next((tensor.type for tensor in (*fitting, *inputs[1:2], *left)), None)


def _tensors(layer: Mapping[str, Any], key: str) -> list[_Tensor]:
    return [_Tensor(_stated(tensor), _shape(tensor.get("Dimensions"))) for tensor in _listed(layer, key)]


def _shape(sizes: object) -> tuple[int, ...]:
    """Empty where not all sizes are numbers."""
    try:
        return tuple(int(size) for size in sizes) if isinstance(sizes, list) else ()
    except (TypeError, ValueError):
        return ()


def _type(text: str) -> str | None:
    """`Int8`, or the type in `Thirty-two wide channel vectorized row major Int8 format`."""
    found = _TYPE.search(text)
    return _TYPES[found[1].lower()] if found else None


def _nodes(metadata: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_NODE.findall(metadata)))
