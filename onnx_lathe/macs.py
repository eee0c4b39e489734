"""Multiply-accumulates (MACs) of one node, from shapes: convolutions, matrix products, recurrent layers, attention.

Elementwise operators, sums, normalizations, pooling and resizing count as none, as is the custom.
"""

import math
from collections.abc import Callable, Mapping

import onnx

OpenShape = tuple[int | str, ...]
"""A size that is not known before the model runs is its name, or "?"."""
Shapes = Mapping[str, OpenShape]

UNKNOWN_SHAPE = "a size that it depends on is not known before the model runs"
UNFIT = "its inputs or attributes are not those of its operator"
OTHER_DOMAIN = "it is no operator of the ONNX standard"
TRANSFORM = "how a Fourier transform is computed is up to the runtime"

_NO_PRODUCTS_ML = """
    ArrayFeatureExtractor Binarizer CastMap CategoryMapper DictVectorizer FeatureVectorizer Imputer LabelEncoder Normalizer
    OneHotEncoder Scaler ZipMap
"""
_NO_PRODUCTS_MICROSOFT = """
    BiasAdd BiasGelu BiasSoftmax DequantizeLinear EmbedLayerNormalization FastGelu Gelu GroupNorm NhwcMaxPool QLinearAdd
    QLinearAveragePool QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearSigmoid QLinearSoftmax
    QuantizeLinear QuickGelu RotaryEmbedding SimplifiedLayerNormalization SkipGroupNorm SkipLayerNormalization
    SkipSimplifiedLayerNormalization Trilu
"""
NO_PRODUCTS = {
    "ai.onnx.ml": frozenset(_NO_PRODUCTS_ML.split()),
    "com.microsoft": frozenset(_NO_PRODUCTS_MICROSOFT.split()),
}
"""Operators outside the standard that multiply no matrices, by domain."""
FUSED = {"FusedConv": "Conv", "FusedGemm": "Gemm"}
"""Operators of com.microsoft that compute an operator of the standard, and an activation behind it."""


class _UncountableError(Exception):
    """Why the MACs of a node cannot be counted."""


def macs_of(node: onnx.NodeProto, shapes: Shapes) -> int | str | None:
    """MACs of the node; why they cannot be counted; or None for an operator that has none. Bodies are not
    looked into.
    """
    standard = node.domain in ("", "ai.onnx")
    fused = node.domain == "com.microsoft" and node.op_type in FUSED
    if not standard and not fused:
        return None if node.op_type in NO_PRODUCTS.get(node.domain, ()) else OTHER_DOMAIN
    count = _COUNTS.get(FUSED[node.op_type] if fused else node.op_type)
    if count is None:
        return None
    try:
        return count(node, shapes)
    except _UncountableError as reason:
        return str(reason)
    except (IndexError, ValueError, StopIteration, UnicodeDecodeError):  # too few inputs or axes, no equation
        return UNFIT


def _shape(name: str, shapes: Shapes) -> tuple[int, ...]:
    """Raises _UncountableError if a size is not known."""
    shape = shapes.get(name)
    sizes = tuple(size for size in shape or () if isinstance(size, int))
    if shape is None or len(sizes) < len(shape):
        raise _UncountableError(UNKNOWN_SHAPE)
    return sizes


def _given(node: onnx.NodeProto, index: int) -> bool:
    return len(node.input) > index and bool(node.input[index])


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(item.i) for item in node.attribute if item.name == name), default)


def _convolution(weight: int) -> Callable[[onnx.NodeProto, Shapes], int]:
    """Every output element sums over a kernel of its group's inputs; the weight is [O, I / group, ...]."""
    return lambda node, shapes: (
        math.prod(_shape(node.output[0], shapes)) * math.prod(_shape(node.input[weight], shapes)[1:])
    )


def _transposed(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Every input element is spread over a kernel of its group's outputs; the weight is [I, O / group, ...]."""
    return math.prod(_shape(node.input[0], shapes)) * math.prod(_shape(node.input[1], shapes)[1:])


def _product(left: int, right: int) -> Callable[[onnx.NodeProto, Shapes], int]:
    """Every output element sums over the last axis of the left operand; its shape, or the right one's, tells."""

    def count(node: onnx.NodeProto, shapes: Shapes) -> int:
        inner = (shapes.get(node.input[left]) or ("?",))[-1]
        if not isinstance(inner, int):
            other = shapes.get(node.input[right]) or ("?",)
            inner = other[-2 if len(other) > 1 else -1]
        if not isinstance(inner, int):
            raise _UncountableError(UNKNOWN_SHAPE)
        return math.prod(_shape(node.output[0], shapes)) * inner

    return count


def _gemm(node: onnx.NodeProto, shapes: Shapes) -> int:
    right = _shape(node.input[1], shapes)
    return math.prod(_shape(node.output[0], shapes)) * right[1 if _attribute(node, "transB", 0) else 0]


def _recurrent(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Per step and sample, every gate multiplies the input, W [D, gates * H, I], and the state, R [D, gates * H, H];
    padding counts.
    """
    steps, batch, _ = _shape(node.input[0], shapes)
    weights = [math.prod(_shape(name, shapes)) for name in node.input[1:3]]
    return steps * batch * sum(weights)


def _einsum(node: onnx.NodeProto, shapes: Shapes) -> int:
    """A product of two operands takes one MAC for each combination of its indices; one operand is only summed."""
    equation = next(item.s.decode() for item in node.attribute if item.name == "equation").replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if len(terms) == 1:
        return 0
    if len(terms) > 2:
        raise _UncountableError(f"in which order it multiplies {len(terms)} operands is up to the runtime")
    sizes: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=True):
        shape = _shape(name, shapes)
        before, dots, behind = term.partition("...")
        hidden = len(shape) - len(before) - len(behind)
        names = [*before, *(f"...{hidden - place}" for place in range(hidden) if dots), *behind]
        for label, size in zip(names, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


def _attention(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Queries times keys, and their weights times values, for every head; what is masked counts."""
    query, key, value = (_shape(node.input[index], shapes) for index in range(3))
    if len(query) == 3:
        heads, kept = _attribute(node, "q_num_heads", 0), _attribute(node, "kv_num_heads", 0)
        query = (query[0], heads, query[1], query[2] // heads)
        key, value = ((one[0], kept, one[1], one[2] // kept) for one in (key, value))
    total = key[2] + (_shape(node.input[4], shapes)[2] if _given(node, 4) else 0)
    return query[0] * query[1] * query[2] * total * (query[3] + value[3])


def _refused(reason: str) -> Callable[[onnx.NodeProto, Shapes], int]:
    def count(node: onnx.NodeProto, shapes: Shapes) -> int:
        raise _UncountableError(reason)

    return count


_COUNTS: Mapping[str, Callable[[onnx.NodeProto, Shapes], int]] = {
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "DeformConv": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed,
    "MatMul": _product(0, 1),
    "MatMulInteger": _product(0, 1),
    "QLinearMatMul": _product(0, 3),
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Attention": _attention,
    "DFT": _refused(TRANSFORM),
    "STFT": _refused(TRANSFORM),
    "SequenceMap": _refused("how long its sequence is is known only when it runs"),
    **dict.fromkeys(("RNN", "GRU", "LSTM"), _recurrent),
}
