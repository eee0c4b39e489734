"""Normalization layers, as at inference, and Dropout, which does nothing then."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnx_lathe.runtime.torch_bridge.arrays import HALVES
from onnx_lathe.runtime.torch_bridge.registry import Function, Node, RefusedError, operator


@operator("InstanceNormalization", since=1)
def instance_normalization(node: Node) -> Function:
    epsilon = node.number("epsilon", 1e-5)
    return lambda x, scale, bias: _group_norm(x, x.shape[1], scale, bias, epsilon)  # one group per channel


@operator("LayerNormalization", since=17)
def layer_normalization(node: Node) -> Function:
    axis, epsilon = node.integer("axis", -1), node.number("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
        if node.used > 1:
            return _with_statistics(x, scale, bias, tuple(range(axis % x.dim(), x.dim())), epsilon)
        shape = x.shape[axis:]
        if scale.shape == shape and (bias is None or bias.shape == shape):
            return F.layer_norm(x, shape, scale, bias, epsilon)
        normalized = F.layer_norm(x, shape, eps=epsilon) * scale
        return normalized if bias is None else normalized + bias

    return run


def _group_norm(x: Tensor, groups: int, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Not torch.nn.functional's, which refuses groups of a single value.

    The backward pass of PyTorch 2.13 crashes for channels-last input that needs no gradient itself.
    """
    if not x.requires_grad:
        # of a single channel both layouts are one, and contiguous() leaves the strides that say the other
        x = x.clone(memory_format=torch.contiguous_format)
    return torch.group_norm(x, groups, scale, bias, epsilon)


def _with_statistics(
    x: Tensor, scale: Tensor, bias: Tensor | None, axes: tuple[int, ...], epsilon: float
) -> tuple[Tensor, ...]:
    """LayerNormalization's three outputs: the result, the mean, and one over the deviation."""
    wide = x.float() if x.dtype in HALVES else x
    variance, mean = torch.var_mean(wide, axes, correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + epsilon)
    result = ((wide - mean) * inverse).to(x.dtype) * scale
    return result if bias is None else result + bias, mean, inverse


@operator("MeanVarianceNormalization", since=9)
def mean_variance_normalization(node: Node) -> Function:
    axes = tuple(node.integers("axes") or (0, 2, 3))

    def run(x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        return (x - mean) / (variance.sqrt() + 1e-9)

    return run


@operator("RMSNormalization", since=23)
def rms_normalization(node: Node) -> Function:
    axis, epsilon = node.integer("axis", -1), node.number("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor) -> Tensor:
        # squares leave the range of float16
        axes, wide = (tuple(range(axis % x.dim(), x.dim())), x.float() if x.dtype in HALVES else x)
        return (wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)).to(x.dtype) * scale

    return run


def _grouped(node: Node, per_group: bool) -> Function:
    groups, epsilon = node.integer("num_groups"), node.number("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if per_group:
            channels = x.shape[1] // groups
            scale, bias = scale.repeat_interleave(channels), bias.repeat_interleave(channels)
        return _group_norm(x, groups, scale, bias, epsilon)

    return run


@operator("GroupNormalization", since=18)
def group_normalization_18(node: Node) -> Function:
    return _grouped(node, per_group=True)


@operator("GroupNormalization", since=21)
def group_normalization(node: Node) -> Function:
    return _grouped(node, per_group=False)


@operator("LRN", since=1)
def local_response_normalization(node: Node) -> Function:
    size, alpha, beta, bias = (
        node.integer("size"),
        node.number("alpha", 1e-4),
        node.number("beta", 0.75),
        node.number("bias", 1.0),
    )

    def run(x: Tensor) -> Tensor:
        squares = F.pad(x.square().unsqueeze(1).flatten(3), (0, 0, (size - 1) // 2, size // 2))
        mean = F.avg_pool2d(squares, (size, 1), 1).reshape(x.shape)
        return x / (bias + alpha * mean) ** beta

    return run


@operator("LpNormalization", since=1)
def lp_normalization(node: Node) -> Function:
    axis, order = node.integer("axis", -1), node.integer("p", 2)
    return lambda x: F.normalize(x, p=order, dim=axis)


@operator("Dropout", since=1)
def dropout_1(node: Node) -> Function:
    if node.opset < 7 and not node.integer("is_test"):
        raise RefusedError("in training mode")
    return dropout(node)


@operator("Dropout", since=7)
def dropout(node: Node) -> Function:
    if node.given(2) and (node.constants[2] is None or node.constants[2].item()):
        raise RefusedError("in training mode")
    return lambda x, *_: (x, torch.ones_like(x, dtype=torch.bool)) if node.used > 1 else x
