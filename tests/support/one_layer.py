"""Models of one quantized layer, with operators between its DequantizeLinear nodes and the layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tests.support import quantized

Step = tuple[str, Mapping[str, Any], Mapping[str, Any]]
"""(operator, constants that it reads behind its first input, attributes)."""
IMAGE = (1, 16, 16, 16)


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def one_layer(
    op: str = "Conv",
    image: Sequence[int] = IMAGE,
    codes: Sequence[int] = (32, 16, 3, 3),
    axis: int | None = 0,
    activation: Sequence[Step] = (),
    weight: Sequence[Step] = (),
    scales: np.ndarray | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """x -> Q -> DQ -> activation steps -> layer <- weight steps <- DQ <- INT8 codes. `axis` of the codes has a scale
    each; None: one for all.
    """
    random = np.random.default_rng(0)
    each = np.float32(0.01) if axis is None else np.full(codes[axis], 0.01, np.float32)
    constants: dict[str, Any] = {
        "s": np.float32(0.05),
        "z": np.int8(0),
        "codes": random.integers(-127, 128, codes).astype(np.int8),
        "scales": each if scales is None else scales,
    }
    further = {} if axis is None else {"axis": axis}
    further |= {"block_size": attributes.pop("block_size")} if "block_size" in attributes else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x_q"], "x_Q"),
        helper.make_node("DequantizeLinear", ["x_q", "s", "z"], ["x_dq"], "x_DQ"),
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["w_dq"], "w_DQ", **further),
    ]
    read = _steps(nodes, constants, "x_dq", activation)
    stored = _steps(nodes, constants, "w_dq", weight)
    nodes.append(helper.make_node(op, [read, stored], ["y"], "layer", **attributes))
    rank = 2 if op == "Gemm" else len(image)
    return quantized.model(nodes, {"x": list(image)}, {"y": [None] * rank}, constants)


def _steps(nodes: list[onnx.NodeProto], constants: dict[str, Any], start: str, steps: Sequence[Step]) -> str:
    for op, extra, attributes in steps:
        name = f"{start}_{op}"
        named = {f"{name}_{key}": value for key, value in extra.items()}
        constants |= named
        nodes.append(helper.make_node(op, [start, *named], [name], name, **attributes))
        start = name
    return start


GOOD: dict[str, dict[str, Any]] = {
    "convolution": {},
    "groups": {"codes": (16, 2, 3, 3), "group": 8},
    "one dimension": {"image": (1, 16, 32), "codes": (8, 16, 3)},
    "one scale": {"axis": None},
    "MaxPool": {"activation": [("MaxPool", {}, {"kernel_shape": [2, 2]})]},
    "Pad": {"activation": [("Pad", {"p": integers(0, 0, 1, 1, 0, 0, 1, 1)}, {})]},
    "Slice": {
        "activation": [("Slice", {"a": integers(0), "b": integers(8), "c": integers(1)}, {})],
        "codes": (32, 8, 3, 3),
    },
    "DepthToSpace": {"activation": [("DepthToSpace", {}, {"blocksize": 2})], "codes": (32, 4, 3, 3)},
    "Flatten": {"op": "Gemm", "activation": [("Flatten", {}, {})], "codes": (4096, 8), "axis": 1},
    "MatMul": {"op": "MatMul", "image": (2, 8, 32), "codes": (32, 16), "axis": 1},
    "transposed weight": {
        "weight": [("Transpose", {}, {"perm": [1, 0, 2, 3]})],
        "codes": (16, 32, 3, 3),
        "axis": 1,
    },
    "reshaped weight": {"weight": [("Reshape", {"r": integers(32, -1, 3, 3)}, {})], "codes": (32, 144)},
    "squeezed weight": {
        "weight": [("Squeeze", {"a": integers(0)}, {})],
        "codes": (1, 32, 16, 3, 3),
        "axis": 1,
    },
}
"""What runs in INT8."""
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "input channels": ({"axis": 1}, "per output channel"),
    "Resize": (
        {
            "activation": [
                ("Resize", {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 2], np.float32)}, {})
            ]
        },
        "Resize stands between",
    ),
    "AveragePool": (
        {"activation": [("AveragePool", {}, {"kernel_shape": [2, 2]})]},
        "AveragePool stands between",
    ),
    "Pad with 1.5": (
        {"activation": [("Pad", {"p": integers(0, 0, 1, 1, 0, 0, 1, 1), "v": np.float32(1.5)}, {})]},
        "Pad stands between",
    ),
    "transposed input channels": (
        {"weight": [("Transpose", {}, {"perm": [1, 0, 2, 3]})], "codes": (16, 32, 3, 3), "axis": 0},
        "per output channel",
    ),
    "split output channels": (
        {"weight": [("Reshape", {"r": integers(32, 16, 3, 3)}, {})], "codes": (4, 8, 16, 9), "axis": 0},
        "per output channel",
    ),
    "product per input": (
        {"op": "MatMul", "image": (8, 32), "codes": (32, 16), "axis": 0},
        "per output channel",
    ),
}
"""What does not, and a part of the rule's words."""
