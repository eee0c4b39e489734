"""Normalization layers, as at inference, and Dropout, which does nothing then."""

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.torch_bridge.registry import Function, Node, RefusedError, operator


@operator("BatchNormalization", since=9)
def batch_normalization(node: Node) -> Function:
    if node.used > 1 or node.integer("training_mode"):
        raise RefusedError("in training mode")
    epsilon = node.number("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)

    return run


@operator("InstanceNormalization", since=6)
def instance_normalization(node: Node) -> Function:
    epsilon = node.number("epsilon", 1e-5)
    return lambda x, scale, bias: F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@operator("LayerNormalization", since=17)
def layer_normalization(node: Node) -> Function:
    if node.used > 1:
        raise RefusedError("with mean or deviation as outputs")
    axis, epsilon = node.integer("axis", -1), node.number("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = x.shape[axis:]
        if scale.shape == shape and (bias is None or bias.shape == shape):
            return F.layer_norm(x, shape, scale, bias, epsilon)
        normalized = F.layer_norm(x, shape, eps=epsilon) * scale
        return normalized if bias is None else normalized + bias

    return run


@operator("RMSNormalization", since=23)
def rms_normalization(node: Node) -> Function:
    axis, epsilon = node.integer("axis", -1), node.number("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor) -> Tensor:
        axes = tuple(range(axis % x.dim(), x.dim()))
        return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale

    return run


def _grouped(node: Node, per_group: bool) -> Function:
    groups, epsilon = node.integer("num_groups"), node.number("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if per_group:
            channels = x.shape[1] // groups
            scale, bias = scale.repeat_interleave(channels), bias.repeat_interleave(channels)
        return F.group_norm(x, groups, scale, bias, epsilon)

    return run


@operator("GroupNormalization", since=18)
def group_normalization_18(node: Node) -> Function:
    return _grouped(node, per_group=True)


@operator("GroupNormalization", since=21)
def group_normalization(node: Node) -> Function:
    return _grouped(node, per_group=False)


@operator("LRN", since=1)
def local_response_normalization(node: Node) -> Function:
    size, alpha, beta, bias = node.integer("size"), node.number("alpha", 1e-4), node.number("beta", 0.75), node.number("bias", 1.0)

    def run(x: Tensor) -> Tensor:
        squares = F.pad(x.square().unsqueeze(1).flatten(3), (0, 0, (size - 1) // 2, size // 2))
        mean = F.avg_pool2d(squares, (size, 1), 1).reshape(x.shape)
        return x / (bias + alpha * mean) ** beta

    return run


@operator("LpNormalization", since=1)
def lp_normalization(node: Node) -> Function:
    axis, order = node.integer("axis", -1), node.integer("p", 2)
    return lambda x: F.normalize(x, p=order, dim=axis)


@operator("Dropout", since=7)
def dropout(node: Node) -> Function:
    if node.given(2) and (node.constants[2] is None or node.constants[2].item()):
        raise RefusedError("in training mode")
    return lambda x, *_: (x, torch.ones_like(x, dtype=torch.bool)) if node.used > 1 else x
