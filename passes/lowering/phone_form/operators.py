"""What the runtimes of phones do with operators between quantized tensors.

Source: LiteRT 2.3 and ONNX Runtime's QNN provider 2.7, tried operator by operator: LiteRT computes operators of `HANDED_ON`
wrongly, without a word, where the scale of the result is another than that of what they read, and takes no other
parameters than `FIXED` for those results.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from onnx_lathe.passes.graph import Node, Tensor
from onnx_lathe.passes.graph.layers import constant_value, is_constant
from onnx_lathe.passes.graph.quantization.placement import floor_range, hands_on, is_floor
from onnx_lathe.passes.graph.quantization.ranges import HANDED_ON
from onnx_lathe.passes.numerics.quantization import affine
from onnx_lathe.placement import Placement


class Parameters(NamedTuple):
    """What a tensor is stored with: value = (level - zero_point) * scale; the type of `zero_point` is that of the
    levels.
    """

    scale: np.float32
    zero_point: np.integer[Any]

    @property
    def bits(self) -> int:
        return 8 * self.zero_point.dtype.itemsize

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest value that can be stored."""
        limits, middle = np.iinfo(self.zero_point.dtype), int(self.zero_point.item())
        return (limits.min - middle) * float(self.scale), (limits.max - middle) * float(self.scale)


def parameters_over(low: float, high: float, bits: int) -> Parameters:
    """What a tensor of this range is stored with: 8 bits with a zero-point, 16 around 0."""
    if bits == affine.WIDE_BITS:
        return Parameters(affine.range_scale(low, high, bits), np.int16(0))
    return Parameters(*affine.asymmetric_scale(low, high))


JOINED = "Concat"
"""Its result has the scale and the zero-point of each of its inputs."""

_SHARES = {
    8: Parameters(np.float32(1 / 256), np.int8(-128)),
    16: Parameters(np.float32(1 / 32768), np.int16(0)),
}
FIXED: Mapping[str, Mapping[int, Parameters]] = {
    "Sigmoid": _SHARES,
    "Softmax": _SHARES,
    "Tanh": {
        8: Parameters(np.float32(1 / 128), np.int8(0)),
        16: Parameters(np.float32(1 / 32768), np.int16(0)),
    },
}
"""What these are stored with, whatever they were seen to compute, by the number of bits."""

ELEMENTWISE = frozenset({"Add", "Mul", "Sub"})
"""Operators of two inputs, of which one may be constant: it is stored in INT8, too."""

FREE = frozenset(
    {
        *(
            "Elu",
            "Gelu",
            "GlobalAveragePool",
            "HardSwish",
            "LeakyRelu",
            "PRelu",
            "ReduceMean",
            "Relu",
            "Clip",
        ),
        *ELEMENTWISE,
    }
)
"""Operators whose result has a scale of its own."""

NARROW = frozenset({"DepthToSpace", "Elu", "Gelu", "HardSwish", "PRelu", "SpaceToDepth"})
"""Operators that LiteRT computes on 8 bits alone."""

OPERATORS = frozenset({*HANDED_ON, JOINED, *FIXED, *FREE})
"""All that compute on integers in LiteRT, beside the layers."""

_PASSED = Placement(passed=HANDED_ON)


def activations(node: Node) -> list[int]:
    """Positions of the inputs that are stored in INT8."""
    if node.op == JOINED or node.op in ELEMENTWISE or node.op in ("MatMul", "PRelu", "Max", "Min", "Div"):
        return list(range(len(node.inputs)))
    return [0]


def constant_ends(node: Node, opset: int) -> list[tuple[float, float]]:
    """Lowest and highest value of each constant that the node reads as an activation."""
    read = [node.inputs[index] for index in activations(node) if index < len(node.inputs)]
    values = [constant_value(tensor, opset) for tensor in read if is_constant(tensor)]
    return [(float(one.min()), float(one.max())) for one in values if one.size]


def is_same(node: Node) -> bool:
    """Whether the result has the scale of the first input."""
    return node.op in HANDED_ON and not node.domain


def refusal(node: Node) -> str | None:
    """Why the node computes in float, though others of its operator compute on integers."""
    if node.domain:
        return f"{node.domain}.{node.op} computes in float"
    if any(is_constant(node.inputs[index]) for index in activations(node)):
        if node.op not in ELEMENTWISE and node.op not in (JOINED, "PRelu"):
            return "what it reads is constant"
        if all(is_constant(node.inputs[index]) for index in activations(node)):
            return "what it reads is constant"
    if node.op in HANDED_ON:
        if (
            not hands_on(node, _PASSED)
            or node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
        ):
            return "it writes values out of the range of what it reads"
        if node.op in ("MaxPool", "Dropout") and any(_is_read(tensor) for tensor in node.outputs[1:]):
            return "its second output is read"
    if node.op == "HardSigmoid" and node.attrs.get("alpha", 0.2) <= 0:
        return "its slope is not positive"
    if node.op == "Clip" and (not is_floor(node) or None in floor_range(node)):
        return "its limits are not known, or leave out 0"
    if node.op == "PRelu" and not is_constant(node.inputs[1]):
        return "its slope is computed"
    return None


def _is_read(tensor: Tensor) -> bool:
    return bool(tensor.outputs)
