"""The version of an operator: the lowest whose kernels know what it asks for, so that an older runtime refuses a file
that it cannot run. Source: tensorflow/lite/tools/versioning/op_version.cc of LiteRT 2.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from onnx_lathe.runtime.targets.litert.tensors import Operator, Tensor

INT8_FIRST = frozenset(
    [
        "ADD",
        "SUB",
        "CONCATENATION",
        "MAX_POOL_2D",
        "AVERAGE_POOL_2D",
        "MEAN",
        "TRANSPOSE",
        "SOFTMAX",
        "LOGISTIC",
        "TANH",
        "RELU",
        "RELU6",
        "PAD",
        "PADV2",
        "MIRROR_PAD",
        "SLICE",
        "STRIDED_SLICE",
        "DEQUANTIZE",
        "GATHER",
        "MAXIMUM",
        "MINIMUM",
        "PACK",
        "UNPACK",
        "ABS",
        "REDUCE_MAX",
        "REDUCE_MIN",
        "RSQRT",
        "SPACE_TO_DEPTH",
        "SPLIT_V",
        "SUM",
        "LOG_SOFTMAX",
        "GREATER",
        "LESS",
        "LESS_EQUAL",
        "GREATER_EQUAL",
        "EQUAL",
        "NOT_EQUAL",
        "SQUARED_DIFFERENCE",
        "DEPTH_TO_SPACE",
        "TOPK_V2",
        "ARG_MAX",
        "ARG_MIN",
        "BATCH_MATMUL",
        "L2_NORMALIZATION",
        "EXP",
        "LOG",
        "REDUCE_PROD",
        "FLOOR_MOD",
        "MUL",
        "GELU",
        "SPACE_TO_BATCH_ND",
        "BATCH_TO_SPACE_ND",
        "SELECT",
    ]
)
"""Have version 2 for INT8."""
INT8_THIRD = frozenset(
    ("CONV_2D", "DEPTHWISE_CONV_2D", "REVERSE_V2", "TILE", "FLOOR_DIV", "CAST", "BROADCAST_TO")
)
INT16_THIRD = frozenset(
    [
        "MAX_POOL_2D",
        "AVERAGE_POOL_2D",
        "LOGISTIC",
        "TANH",
        "PAD",
        "PADV2",
        "CONCATENATION",
        "SOFTMAX",
        "MEAN",
        "MIRROR_PAD",
        "REDUCE_MAX",
        "REDUCE_MIN",
        "RELU",
        "RELU6",
        "RSQRT",
        "PACK",
        "ADD",
        "DEQUANTIZE",
        "ABS",
        "BATCH_MATMUL",
        "LESS",
        "GREATER_EQUAL",
        "TOPK_V2",
        "FLOOR_DIV",
        "BROADCAST_TO",
    ]
)
INT16 = {
    "CONV_2D": 4,
    "DEPTHWISE_CONV_2D": 5,
    "FULLY_CONNECTED": 7,
    "MUL": 4,
    "SUB": 5,
    "TRANSPOSE": 5,
    "SLICE": 4,
    "GATHER": 4,
    "SPLIT": 4,
    "MAXIMUM": 4,
    "MINIMUM": 4,
    "UNPACK": 4,
    "RESIZE_BILINEAR": 4,
    "RESIZE_NEAREST_NEIGHBOR": 4,
    "LEAKY_RELU": 2,
    "EXP": 2,
    "LOG": 2,
    "SPACE_TO_BATCH_ND": 4,
    "BATCH_TO_SPACE_ND": 4,
    "GATHER_ND": 3,
    "EQUAL": 4,
}
INT64 = {"ADD": 4, "SUB": 4, "MUL": 5, "RANGE": 2, "DYNAMIC_UPDATE_SLICE": 2}
BOOL = {
    "TRANSPOSE": 3,
    "STRIDED_SLICE": 3,
    "GATHER": 3,
    "REVERSE_V2": 2,
    "UNPACK": 3,
    "GATHER_ND": 5,
    "ARG_MAX": 3,
}
WIDE = {"PAD": 4, "PADV2": 4, "SLICE": 5, "STRIDED_SLICE": 4, "TRANSPOSE": 4}
"""For more than four dimensions."""
BROADCAST_WIDE = {"SUB": 3, "DIV": 2, "MAXIMUM": 3, "MINIMUM": 3}


def version_of(
    code: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], fields: Mapping[str, Any]
) -> int:
    """`inputs`: None for one that is left out."""
    first = inputs[0] if inputs else None
    kind = first.type if first is not None else ""
    least = [1, _special(code, inputs, outputs, fields)]
    if kind == "INT8":
        least.append(2 if code in INT8_FIRST else 3 if code in INT8_THIRD else 1)
    if kind == "INT16":
        least.append(INT16.get(code, 3 if code in INT16_THIRD else 1))
    least.append({"INT64": INT64, "BOOL": BOOL}.get(kind, {}).get(code, 1))
    if first is not None and len(first.shape) > 4:
        least.append(6 if code == "TRANSPOSE" and len(first.shape) > 5 else WIDE.get(code, 1))
    shapes = {one.shape for one in inputs if one is not None}
    if code in BROADCAST_WIDE and len(shapes) > 1 and max(map(len, shapes)) > 4:
        least.append(BROADCAST_WIDE[code])
    return max(least)


def _special(
    code: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], fields: Mapping[str, Any]
) -> int:
    rule = _RULES.get(code)
    return rule(inputs, outputs, fields) if rule else 1


def _type(tensors: Sequence[Tensor | None], place: int) -> str:
    one = tensors[place] if place < len(tensors) else None
    return one.type if one is not None else ""


def _per_channel(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.quantization is not None and tensor.quantization.per_channel


def _conv(inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], fields: Mapping[str, Any]) -> int:
    source, weight = inputs[0], inputs[1]
    grouped = source is not None and weight is not None and source.shape[-1] != weight.shape[-1]
    if grouped:
        return 6
    if _type(inputs, 1) == "INT4":
        return 7
    if _type(inputs, 0) == "FLOAT32" and _type(inputs, 1) == "INT8":
        return 5 if _per_channel(weight) else 2
    return 1


def _depthwise(inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], fields: Mapping[str, Any]) -> int:
    if _type(inputs, 1) == "INT4":
        return 7
    if _type(inputs, 0) == "FLOAT32" and _type(inputs, 1) == "INT8":
        return 6 if _per_channel(inputs[1]) else 4
    dilated = fields.get("dilationWFactor", 1) != 1 or fields.get("dilationHFactor", 1) != 1
    return 2 if dilated else 1


def _fully_connected(
    inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], fields: Mapping[str, Any]
) -> int:
    types = _type(inputs, 0), _type(inputs, 1)
    found = {("INT8", "INT8"): 4, ("INT8", "INT4"): 10, ("INT16", "INT4"): 13, ("FLOAT32", "INT8"): 3}.get(
        types, 1
    )
    if types == ("FLOAT32", "INT8"):
        found = 12 if _per_channel(inputs[1]) else 9 if fields.get("asymmetricQuantizeInputs") else 3
    if len(inputs) == 2:
        found = max(found, 6)
    return max(found, 5) if fields.get("keepNumDims") else found


def _transpose_conv(
    inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], fields: Mapping[str, Any]
) -> int:
    if fields.get("fusedActivationFunction", "NONE") != "NONE":
        return 4
    if len(inputs) == 4 and inputs[3] is not None:
        return 3
    return 2 if _type(inputs, 1) == "INT8" else 1


def _mul(inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], fields: Mapping[str, Any]) -> int:
    known = [one.quantization for one in (*inputs[:2], outputs[0]) if one is not None]
    if _type(inputs, 0) != "INT8" or len(known) != 3 or None in known:
        return 1
    first, second, result = (one.scales[0] for one in known if one is not None)
    return 3 if first * second / result >= 1.0 else 2


def _resize(inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], fields: Mapping[str, Any]) -> int:
    if fields.get("halfPixelCenters"):
        return 3
    return 2 if _type(inputs, 0) == "INT8" else 1


def _resize_nearest(
    inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], fields: Mapping[str, Any]
) -> int:
    return 3 if fields.get("alignCorners") else _resize(inputs, outputs, fields)


def _dequantize(inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], fields: Mapping[str, Any]) -> int:
    if _type(inputs, 0) == "INT4":
        return 6
    if _type(inputs, 0) == "FLOAT16":
        return 3
    return 5 if _per_channel(inputs[0]) else 1


def _quantize(inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], fields: Mapping[str, Any]) -> int:
    return 2 if _type(outputs, 0) == "INT16" else 1


def _split(inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], fields: Mapping[str, Any]) -> int:
    return {"INT16": 4, "INT32": 3, "INT8": 2}.get(_type(inputs, 1), 1)


def _cast(inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], fields: Mapping[str, Any]) -> int:
    types = {_type(inputs, 0), _type(outputs, 0)}
    return 5 if "FLOAT16" in types else 3 if "INT8" in types else 1


def _gather(inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], fields: Mapping[str, Any]) -> int:
    return 5 if fields.get("batchDims") else 1


def _floor_div(inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], fields: Mapping[str, Any]) -> int:
    return 2 if _type(inputs, 0) == "FLOAT32" else 1


def _at_least_two(
    inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], fields: Mapping[str, Any]
) -> int:
    return 2


_RULES = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "TRANSPOSE_CONV": _transpose_conv,
    "MUL": _mul,
    "RESIZE_BILINEAR": _resize,
    "RESIZE_NEAREST_NEIGHBOR": _resize_nearest,
    "DEQUANTIZE": _dequantize,
    "QUANTIZE": _quantize,
    "SPLIT": _split,
    "CAST": _cast,
    "GATHER": _gather,
    "FLOOR_DIV": _floor_div,
    "BROADCAST_TO": _at_least_two,
}

RUNTIMES = {
    ("CONV_2D", 6): "2.9.0",
    ("CONV_2D", 7): "2.11.0",
    ("DEPTHWISE_CONV_2D", 7): "2.11.0",
    ("TRANSPOSE_CONV", 3): "2.3.0",
    ("TRANSPOSE_CONV", 4): "2.13.0",
    ("MIRROR_PAD", 2): "2.3.0",
    ("RESIZE_BILINEAR", 3): "2.2.0",
    ("RESIZE_NEAREST_NEIGHBOR", 3): "2.3.0",
    ("DEQUANTIZE", 3): "1.15.0",
    ("DEQUANTIZE", 5): "2.15.0",
    ("DEQUANTIZE", 6): "2.16.0",
    ("BATCH_MATMUL", 1): "2.3.0",
    ("BATCH_MATMUL", 2): "2.3.0",
    ("GELU", 1): "2.14.0",
    ("GELU", 2): "2.14.0",
    ("HARD_SWISH", 1): "1.15.0",
}
"""(operator, version) -> the first TensorFlow Lite that runs it, where that is later than USUAL."""
USUAL = {1: "1.5.0", 2: "1.14.0", 3: "1.14.0", 4: "1.14.0", 5: "2.2.0"}
"""By an operator's version: of most operators."""


def least_runtime(operators: Sequence[Operator]) -> str:
    """The first TensorFlow Lite that runs all of them; empty where that is not known."""
    found = [RUNTIMES.get((one.code, one.version)) or USUAL.get(one.version, "") for one in operators]
    return "" if "" in found else max(found, key=lambda text: tuple(map(int, text.split("."))), default="")
