"""QuantizeLinear and DequantizeLinear, trained straight through.

QuantizeLinear gives whole numbers in a float tensor, so that a gradient can pass: that of x / scale where
the result is within the type's range, 0 where it was cut off (straight-through estimator; Jacob et al.,
CVPR 2018, section 3). Zero-points are not trained.

A scale is trained if the module gives the node a `Pace` (`learn_scales`): Esser et al., "Learned Step Size
Quantization", ICLR 2020. The two nodes of a pair have these gradients of their results q and y, whose sum
for y is the paper's equation 3, and 5 for x:

    dq/dscale = -x / scale^2 inside the range, else 0       dy/dscale = q - zero-point       dq/dx = 1 / scale inside, else 0

both times 1 / sqrt(N Q), N being the values of one sample that share the scale, and Q the largest whole
number (section 2.2).
"""

import math
from typing import Any, NamedTuple

import onnx
import torch
from torch import Tensor

from onnx_lathe.runtime.torch_bridge.arrays import torch_type
from onnx_lathe.runtime.torch_bridge.registry import Function, Node, RefusedError, operator

_T = onnx.TensorProto
Bounds = tuple[int, int]
_RANGES: dict[int, Bounds] = {
    _T.INT4: (-8, 7),
    _T.UINT4: (0, 15),
    _T.INT8: (-128, 127),
    _T.UINT8: (0, 255),
    _T.INT16: (-32768, 32767),
    _T.UINT16: (0, 65535),
}


class Pace(NamedTuple):
    """How a scale learns: the largest whole number, whether the first axis of what is quantized counts
    samples, and how many times more values there are than this worker has.
    """

    largest: int
    batched: bool
    times: float = 1.0

    def __call__(self, spread: Tensor, x: Tensor, scales: int) -> Tensor:
        """The `scales` that are spread over x, with their gradient times 1 / sqrt(N Q)."""
        samples = x.shape[0] if self.batched and x.dim() else 1
        values = self.times * x.numel() / max(samples * scales, 1)
        paced: Tensor = _Paced.apply(spread, 1 / math.sqrt(max(values, 1) * self.largest))
        return paced


def largest(element: int) -> int:
    """The largest whole number of an ONNX element type to quantize to; of UINT8, the default, for a type
    that is not known.
    """
    return _RANGES.get(element, _RANGES[_T.UINT8])[1]


class _Paced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return scale.view_as(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.factor, None


def _whole(x: Tensor, scale: Tensor, zero: Tensor | None, bounds: Bounds) -> Tensor:
    whole = (x / scale).round_()
    if zero is not None:
        whole.add_(zero)
    return whole.clamp_(*bounds)


class _Quantize(torch.autograd.Function):
    """clamp(round(x / scale) + zero). `cut` is the range of x outside which the gradient is 0, if it is one
    range for all of x.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        bounds: Bounds,
        cut: tuple[float, float] | None,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero)
        ctx.bounds, ctx.cut = bounds, cut
        return _whole(x, scale, zero, bounds)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, scale, zero = ctx.saved_tensors
        if ctx.cut is not None:
            inside = torch.ops.aten.hardtanh_backward(gradients[0], x, *ctx.cut)
        else:
            low, high = ctx.bounds
            whole = (x / scale).round_() + (0 if zero is None else zero)
            inside = gradients[0] * ((whole >= low) & (whole <= high))
        return inside / scale, None, None, None, None


class _Learned(torch.autograd.Function):
    """The same with a gradient for the scale. Inside the range is what lies between its ends before it is
    rounded, as in the paper.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor | None, bounds: Bounds) -> Tensor:
        ctx.save_for_backward(x, scale, zero)
        ctx.bounds = bounds
        return _whole(x, scale, zero, bounds)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, scale, zero = ctx.saved_tensors
        low, high = ctx.bounds
        ratio = x / scale
        place = ratio if zero is None else ratio + zero
        inside = torch.where((place > low) & (place < high), gradients[0], 0) / scale
        return inside, -(inside * ratio).sum_to_size(scale.shape), None, None


def _spread(parameter: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero-point, shaped to broadcast with x: one value, one per index of `axis`, or one per
    block along it.
    """
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if parameter.numel() == 1:
        return parameter.reshape(())
    return parameter.reshape([-1 if index == axis % x.dim() else 1 for index in range(x.dim())])


def _none_if_zero(node: Node) -> bool:
    """Whether the zero-point is omitted or known to be 0, so that nothing need be added."""
    if not node.given(2):
        return True
    zero = node.constants[2]
    return zero is not None and not zero.any()


@operator("QuantizeLinear", since=10)
def quantize_linear(node: Node) -> Function:
    element = node.integer("output_dtype") or (node.elements[2] if node.given(2) else _T.UINT8)
    if element not in _RANGES:
        raise RefusedError(
            f"to {_T.DataType.Name(element)}" if element else "with a zero-point computed at run time"
        )
    low, high = _RANGES[element]
    axis, block, centred = node.integer("axis", 1), node.integer("block_size"), _none_if_zero(node)
    scale_constant = node.constants[1]
    cut: tuple[float, float] | None = None
    if scale_constant is not None and scale_constant.numel() == 1 and centred:
        cut = (low - 0.5) * scale_constant.item(), (high + 0.5) * scale_constant.item()

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None, pace: Pace | None = None) -> Tensor:
        wide = x.dtype if x.dtype == torch.float64 else torch.float32
        shift = None if centred or zero is None else _spread(zero, x, axis, block).to(wide)
        step = _spread(scale, x, axis, block).to(wide)
        whole: Tensor
        if pace is None:
            whole = _Quantize.apply(x.to(wide), step, shift, (low, high), cut)
        else:
            whole = _Learned.apply(x.to(wide), pace(step, x, scale.numel()), shift, (low, high))
        return whole

    return run


@operator("DequantizeLinear", since=10)
def dequantize_linear(node: Node) -> Function:
    axis, block, centred = node.integer("axis", 1), node.integer("block_size"), _none_if_zero(node)
    dtype = torch_type(node.integer("output_dtype")) if node.integer("output_dtype") else None

    def run(x: Tensor, scale: Tensor, zero: Tensor | None = None, pace: Pace | None = None) -> Tensor:
        wide = scale.dtype if scale.dtype == torch.float64 else torch.float32
        whole = x.to(wide)
        if not centred and zero is not None:
            whole = whole - _spread(zero, x, axis, block).to(wide)
        step = _spread(scale, x, axis, block)
        if pace is not None:
            step = pace(step.to(wide), x, scale.numel())
        return (whole * step).to(dtype or scale.dtype)

    return run
