"""How far outputs are from those of ONNX Runtime, and how far rounding alone moves them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from onnx_lathe.layout import LAYOUT
from onnx_lathe.runtime.running import ort

PROBABILITIES = ("Sigmoid", "Softmax", "HardSigmoid")
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
MOVING = (*LAYOUT, "Slice")
SMALLEST_PROBABILITY = 1e-2
"""A detector that sees nothing in noise writes 1e-6 everywhere: a difference relative to that tells nothing of it."""
CHANGES = 3
CHANGE, CHANGE_QUANTIZED = 2.0**-18, 2.0**-9
"""Of the input's largest value: the change whose effect is measured. 4e-6 is what F(4 x 4) and F(6 x 6) err in float32;
for INT8 it is a quarter of a step.
"""
Distance = Callable[[str, np.ndarray], float]
"""(output, values) -> how far they are from those that are wanted."""


def floors(model: onnx.ModelProto) -> dict[str, float]:
    """By output that holds probabilities: the size below which they say "no", however they differ."""
    made = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for value in model.graph.output:
        node = made.get(value.name)
        while node is not None and node.op_type in (*MOVING, *QUANTIZERS):
            node = made.get(node.input[0])
        if node is not None and node.op_type in PROBABILITIES:
            found[value.name] = SMALLEST_PROBABILITY
    return found


def with_half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose float32 constants hold what float16 can: what that moves is the format's, and no defect. Scales of
    INT8 are stored in float32 always.
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    scales = {name for node in found.graph.node if node.op_type in QUANTIZERS for name in node.input[1:]}
    for tensor in found.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.dims and tensor.name not in scales:
            values = onnx.numpy_helper.to_array(tensor)
            with np.errstate(over="ignore"):
                half = values.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    return found


def largest(got: np.ndarray, wanted: np.ndarray, floor: float = 0.0) -> float:
    """Largest difference relative to the largest value, or to `floor` if that is more; infinite for another shape, or where one is no number. Of
    integers and bools, how many of them differ.
    """
    if got.shape != wanted.shape:
        return float("inf")
    if not np.issubdtype(wanted.dtype, np.floating):
        return float(np.mean(got != wanted)) if wanted.size else 0.0
    one, other = got.astype(np.float64), wanted.astype(np.float64)
    scale = max(float(np.abs(other[np.isfinite(other)]).max(initial=0.0)), floor) or 1.0
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    worst = float(np.where(same, 0.0, np.abs(one - other)).max(initial=0.0)) / scale
    return worst if np.isfinite(worst) else float("inf")


def relative(got: np.ndarray, wanted: np.ndarray, floor: float = 0.0) -> float:
    """Distance relative to the length, or to that of values of `floor` if it is more; of integers and bools, how many of them differ."""
    if got.shape != wanted.shape or not np.issubdtype(wanted.dtype, np.floating):
        return largest(got, wanted, floor)
    one, other = got.astype(np.float64), wanted.astype(np.float64)
    length = max(float(np.linalg.norm(other)), floor * other.size**0.5) or 1.0
    found = float(np.linalg.norm(one - other)) / length
    return found if np.isfinite(found) else float("inf")


def moved_by(
    session: Any,
    feeds: Mapping[str, np.ndarray],
    wanted: Mapping[str, np.ndarray],
    change: float,
    distance: Distance,
) -> dict[str, float]:
    """By output, the largest distance that a small change of the input makes."""
    found = dict.fromkeys(wanted, 0.0)
    for seed in range(CHANGES):
        generator = np.random.default_rng(seed)
        moved = {name: changed(value, change, generator) for name, value in feeds.items()}
        for name, value in ort.run(session, moved).items():
            found[name] = max(found[name], distance(name, value))
    return found


def changed(value: np.ndarray, change: float, generator: np.random.Generator) -> np.ndarray:
    """Floats moved by up to `change` of the largest; others as they are."""
    if not np.issubdtype(value.dtype, np.floating):
        return value
    step = change * np.abs(value).max(initial=0.0) * generator.uniform(-1, 1, value.shape)
    return (value + step).astype(value.dtype)


def with_changed_weights(model: onnx.ModelProto, change: float, seed: int) -> onnx.ModelProto:
    """A copy whose float32 weights, of two axes or more, are moved by up to `change` of themselves: what a network that
    takes integers can be moved by, whatever floats there are beside them, such as a mask. Not of their largest, which in a mask stands for no end: what is beside it
    would be lost.
    """
    found = onnx.ModelProto()
    found.CopyFrom(model)
    generator = np.random.default_rng(seed)
    for tensor in found.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            values = onnx.numpy_helper.to_array(tensor)
            with np.errstate(over="ignore"):
                moved = (values * (1 + change * generator.uniform(-1, 1, values.shape))).astype(np.float32)
            kept = np.where(np.isfinite(moved), moved, values)
            tensor.CopyFrom(onnx.numpy_helper.from_array(kept, tensor.name))
    return found
