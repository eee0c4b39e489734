"""The rules that scales and zero points have to keep. LiteRT's interpreter notices few of what breaks them: most wrong
ones give wrong values without a word.

Sources: LiteRT's 8-bit quantization specification, and its kernels of version 2.3, tried one by one.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from onnx_lathe.runtime.targets.litert.tensors import NO_TENSOR, Operator, Quantization, Tensor

STORED = ("INT8", "INT16")
SAME_SCALE = frozenset(
    [
        "CONCATENATION",
        "MAX_POOL_2D",
        "AVERAGE_POOL_2D",
        "RESHAPE",
        "TRANSPOSE",
        "SLICE",
        "STRIDED_SLICE",
        "DEPTH_TO_SPACE",
        "SPACE_TO_DEPTH",
        "PAD",
        "PADV2",
        "MIRROR_PAD",
        "RESIZE_BILINEAR",
        "RESIZE_NEAREST_NEIGHBOR",
        "SPLIT",
        "SPLIT_V",
        "GATHER",
        "GATHER_ND",
        "EXPAND_DIMS",
        "SQUEEZE",
        "PACK",
        "UNPACK",
        "TILE",
        "BROADCAST_TO",
        "REVERSE_V2",
        "MAXIMUM",
        "MINIMUM",
        "SELECT",
        "SELECT_V2",
        "SPACE_TO_BATCH_ND",
        "BATCH_TO_SPACE_ND",
        "REDUCE_MAX",
        "REDUCE_MIN",
    ]
)
"""Operators that hand levels on as they are: what they read has the scale and the zero point of what they write."""
FIXED = {
    ("SOFTMAX", "INT8"): (1 / 256, -128),
    ("LOGISTIC", "INT8"): (1 / 256, -128),
    ("TANH", "INT8"): (1 / 128, 0),
    ("LOG_SOFTMAX", "INT8"): (16 / 256, 127),
    ("L2_NORMALIZATION", "INT8"): (1 / 128, 0),
    ("SOFTMAX", "INT16"): (1 / 32768, 0),
    ("LOGISTIC", "INT16"): (1 / 32768, 0),
    ("TANH", "INT16"): (1 / 32768, 0),
}
"""What their kernels write, whatever the file says."""
WEIGHTED = {
    "CONV_2D": (0, 1, 2, 0),
    "DEPTHWISE_CONV_2D": (0, 1, 2, 3),
    "FULLY_CONNECTED": (0, 1, 2, 0),
    "TRANSPOSE_CONV": (2, 1, 3, 0),
}
"""Operator -> positions of its input, weight and bias, and the axis of the weight whose entries have scales of their own."""
LOWEST_WEIGHT = {"INT8": -127, "INT4": -7}
"""So that a weight and its negative have the same size: XNNPACK and NPUs count on it."""
LARGEST_SUM = (1 << 31) - 1
CLOSE = 1e-5
"""Two scales that differ by less are the same, in float32."""


def broken_rules(operators: Sequence[Operator], tensors: Sequence[Tensor]) -> list[tuple[str, str, str]]:
    """(node, operator, reason), one for each node that a kernel would compute wrongly."""
    found: dict[str, tuple[str, str, str]] = {}
    for one in operators:
        reason = next(_reasons(one, tensors), None)
        if reason:
            node = one.nodes[0] if one.nodes else one.code
            found.setdefault(node, (node, one.code, reason))
    return list(found.values())


def _reasons(one: Operator, tensors: Sequence[Tensor]) -> Iterator[str]:
    inputs = [None if place == NO_TENSOR else tensors[place] for place in one.inputs]
    outputs = [tensors[place] for place in one.outputs]
    for tensor in (*inputs, *outputs):
        if tensor is not None and tensor.quantization is not None:
            yield from _of_tensor(tensor, tensor.quantization)
    if not any(tensor.type in STORED for tensor in outputs) or one.code in ("QUANTIZE", "CAST"):
        return
    yield from _all_have_scales(inputs, outputs)
    for rule in (_same_scale, _fixed, _weighted):
        yield from rule(one.code, inputs, outputs)


def _of_tensor(tensor: Tensor, quantization: Quantization) -> Iterator[str]:
    scales = np.array(quantization.scales)
    if not np.all(np.isfinite(scales) & (scales > 0)):
        yield f"'{tensor.name}' has a scale that is no positive number"
    if len(quantization.scales) != len(quantization.zero_points):
        yield f"'{tensor.name}' has {len(quantization.scales)} scales and {len(quantization.zero_points)} zero points"
    if quantization.per_channel:
        if tensor.values is None:
            yield f"'{tensor.name}' is no constant, and has a scale for each channel"
        elif tensor.shape[quantization.axis] != len(quantization.scales):
            yield f"'{tensor.name}' has {len(quantization.scales)} scales for {tensor.shape[quantization.axis]} channels"
    if tensor.type == "INT16" and any(quantization.zero_points):
        yield f"'{tensor.name}' is INT16 and has a zero point, which LiteRT's kernels have not"
    limits = {"INT8": (-128, 127), "UINT8": (0, 255)}.get(tensor.type)
    if limits and not all(limits[0] <= point <= limits[1] for point in quantization.zero_points):
        yield f"'{tensor.name}' has a zero point that {tensor.type} does not hold"


def _all_have_scales(inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> Iterator[str]:
    for tensor in (*inputs, *outputs):
        if tensor is not None and tensor.type in (*STORED, "UINT8") and tensor.quantization is None:
            yield f"'{tensor.name}' has no scale"
    kinds = {tensor.type for tensor in outputs if tensor.type in STORED}
    kinds |= {
        one.type
        for one in inputs
        if one is not None and one.values is None and one.type in (*STORED, "UINT8")
    }
    if len(kinds) > 1:
        yield f"it reads and writes {' and '.join(sorted(kinds))}"


def _same_scale(code: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> Iterator[str]:
    if code not in SAME_SCALE:
        return
    wanted = outputs[0].quantization
    for tensor in (*inputs, *outputs):
        if tensor is not None and tensor.type in STORED and not alike(tensor.quantization, wanted):
            yield f"'{tensor.name}' has another scale or zero point than '{outputs[0].name}', and {code} hands levels on"


def _fixed(code: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> Iterator[str]:
    known = FIXED.get((code, outputs[0].type))
    found = outputs[0].quantization
    if known is not None and found is not None and not alike(found, Quantization((known[0],), (known[1],))):
        yield f"'{outputs[0].name}' has scale {found.scales[0]:.6g} and zero point {found.zero_points[0]}; {code} writes {known[0]:.6g} and {known[1]}"


def _weighted(code: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor]) -> Iterator[str]:
    if code not in WEIGHTED:
        return
    source_at, weight_at, bias_at, axis = WEIGHTED[code]
    source, weight = inputs[source_at], inputs[weight_at]
    bias = inputs[bias_at] if bias_at < len(inputs) else None
    if source is None or weight is None or source.quantization is None or weight.quantization is None:
        yield "its input or its weight has no scale"
        return
    if weight.values is None or weight.type not in LOWEST_WEIGHT:
        yield f"its weight '{weight.name}' is no INT8 or INT4 constant"
        return
    if any(weight.quantization.zero_points):
        yield f"its weight '{weight.name}' has a zero point, which LiteRT's kernels leave out"
    if weight.quantization.per_channel and weight.quantization.axis != axis:
        yield f"its weight '{weight.name}' has scales along axis {weight.quantization.axis}, {code} wants them along {axis}"
    if int(weight.values.min(initial=0)) < LOWEST_WEIGHT[weight.type]:
        yield f"its weight '{weight.name}' has levels below {LOWEST_WEIGHT[weight.type]}"
    if bias is None:
        if code in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            yield "it has no bias, which its kernel wants"
        return
    yield from _bias(source, source.quantization, weight, weight.quantization, bias, axis)


def _bias(
    source: Tensor,
    source_scale: Quantization,
    weight: Tensor,
    weight_scale: Quantization,
    bias: Tensor,
    axis: int,
) -> Iterator[str]:
    if (
        bias.values is None
        or bias.quantization is None
        or bias.type != ("INT64" if source.type == "INT16" else "INT32")
    ):
        yield f"its bias '{bias.name}' is no integer constant with scales"
        return
    wanted = np.float32(source_scale.scales[0]) * np.array(weight_scale.scales, np.float32)
    if len(bias.quantization.scales) != len(wanted) or not np.allclose(
        bias.quantization.scales, wanted, rtol=CLOSE, atol=0
    ):
        yield f"its bias '{bias.name}' has other scales than those of the products, which its kernel adds it to"
    if any(bias.quantization.zero_points):
        yield f"its bias '{bias.name}' has a zero point, which LiteRT's kernels leave out"
    if source.type == "INT8" and weight.values is not None:
        others = tuple(one for one in range(weight.values.ndim) if one != axis)
        largest = np.abs(weight.values.astype(np.int64)).sum(axis=others) * _largest_input(source_scale)
        if int((largest + np.abs(bias.values.astype(np.int64))).max(initial=0)) > LARGEST_SUM:
            yield f"its sums with bias '{bias.name}' can pass what 32 bits hold"


def _largest_input(scale: Quantization) -> int:
    """Of a level minus the zero point."""
    return max(127 - scale.zero_points[0], 128 + scale.zero_points[0])


def alike(first: Quantization | None, second: Quantization | None) -> bool:
    if first is None or second is None:
        return first is second
    return (
        first.zero_points == second.zero_points
        and len(first.scales) == len(second.scales)
        and bool(np.allclose(first.scales, second.scales, rtol=CLOSE, atol=0))
    )
