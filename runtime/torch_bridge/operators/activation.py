"""Activation functions, Clip and the softmaxes."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from onnx_lathe.runtime.torch_bridge.registry import Function, Node, operator, scalar


@operator("Relu", since=1)
def relu(node: Node) -> Function:
    return torch.relu


@operator("LeakyRelu", since=1)
def leaky_relu(node: Node) -> Function:
    alpha = node.number("alpha", 0.01)
    return lambda x: F.leaky_relu(x, alpha)


@operator("PRelu", since=7)
def prelu(node: Node) -> Function:
    return lambda x, slope: torch.where(x < 0, x * slope, x)


@operator("ThresholdedRelu", since=10)
def thresholded_relu(node: Node) -> Function:
    alpha = node.number("alpha", 1.0)
    return lambda x: F.threshold(x, alpha, 0.0)


@operator("Elu", since=1)
def elu(node: Node) -> Function:
    alpha = node.number("alpha", 1.0)
    return lambda x: F.elu(x, alpha)


@operator("Selu", since=1)
def selu(node: Node) -> Function:
    alpha, gamma = (
        node.number("alpha", 1.67326319217681884765625),
        node.number("gamma", 1.05070102214813232421875),
    )
    return lambda x: gamma * F.elu(x, alpha)


@operator("Celu", since=12)
def celu(node: Node) -> Function:
    alpha = node.number("alpha", 1.0)
    return lambda x: F.celu(x, alpha)


@operator("HardSigmoid", since=1)
def hard_sigmoid(node: Node) -> Function:
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    return lambda x: (alpha * x + beta).clamp(0.0, 1.0)


@operator("HardSwish", since=14)
def hard_swish(node: Node) -> Function:
    return F.hardswish


@operator("Softplus", since=1)
def softplus(node: Node) -> Function:
    return F.softplus


@operator("Softsign", since=1)
def softsign(node: Node) -> Function:
    return F.softsign


@operator("Mish", since=18)
def mish(node: Node) -> Function:
    return F.mish


@operator("Gelu", since=20)
def gelu(node: Node) -> Function:
    approximate = node.text("approximate", "none")
    return lambda x: F.gelu(x, approximate=approximate)


@operator("Swish", since=24)
def swish(node: Node) -> Function:
    alpha = node.number("alpha", 1.0)
    return lambda x: x * torch.sigmoid(alpha * x)


@operator("PRelu", since=1)
def prelu_1(node: Node) -> Function:
    """Before opset 7 a vector of slopes is one per channel."""

    def run(x: Tensor, slope: Tensor) -> Tensor:
        return torch.where(
            x < 0, x * (slope if slope.numel() == 1 else slope.reshape([-1] + [1] * (x.dim() - 2))), x
        )

    return run


@operator("Shrink", since=9)
def shrink(node: Node) -> Function:
    bias, limit = node.number("bias", 0.0), node.number("lambd", 0.5)
    return lambda x: torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


@operator("SwiGLU", since=28)
def swiglu(node: Node) -> Function:
    alpha = node.number("alpha", 1.0)
    return lambda gate, value: gate * torch.sigmoid(alpha * gate) * value


@operator("Clip", since=1)
def clip_1(node: Node) -> Function:
    low, high = node.attributes.get("min"), node.attributes.get("max")
    return lambda x: x if low is None and high is None else torch.clamp(x, low, high)


@operator("Clip", since=11, numbers=(1, 2))
def clip(node: Node) -> Function:
    def run(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
        return x if low is None and high is None else torch.clamp(x, scalar(low), scalar(high))

    return run


def _flattened(softmax: Callable[[Tensor, int], Tensor]) -> Callable[[Node], Function]:
    """Softmax before opset 13: over all axes from `axis` on."""

    def build(node: Node) -> Function:
        axis = node.integer("axis", 1)
        return lambda x: softmax(x.flatten(axis % x.dim()) if x.dim() > 1 else x, -1).reshape(x.shape)

    return build


def _along_axis(softmax: Callable[[Tensor, int], Tensor]) -> Callable[[Node], Function]:
    def build(node: Node) -> Function:
        axis = node.integer("axis", -1)
        return lambda x: softmax(x, axis)

    return build


def _hardmax(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


_ALONG_AXIS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "Hardmax": _hardmax,
    "LogSoftmax": torch.log_softmax,
    "Softmax": torch.softmax,
}
for _name, _softmax in _ALONG_AXIS.items():
    operator(_name, since=1)(_flattened(_softmax))
    operator(_name, since=13)(_along_axis(_softmax))
