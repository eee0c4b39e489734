"""Losses that a graph computes itself."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnx_lathe.runtime.torch_bridge.registry import Function, Node, operator


@operator("NegativeLogLikelihoodLoss", since=12)
def negative_log_likelihood(node: Node) -> Function:
    reduction, ignored = node.text("reduction", "mean"), node.integer("ignore_index", -100)

    def run(scores: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.nll_loss(scores, target.long(), weight, ignore_index=ignored, reduction=reduction)

    return run


@operator("SoftmaxCrossEntropyLoss", since=12)
def softmax_cross_entropy(node: Node) -> Function:
    loss = negative_log_likelihood(node)

    def run(scores: Tensor, target: Tensor, weight: Tensor | None = None) -> Any:
        logarithms = torch.log_softmax(scores, 1)
        result = loss(logarithms, target, weight)
        return (result, logarithms) if node.used > 1 else result

    return run
