"""Trains a module of the bridge for a few steps, and names weights sparse."""

from collections.abc import Callable

import numpy as np
import onnx
import torch

from onnx_lathe.metadata import SPARSE, format_sparse
from onnx_lathe.runtime.torch_bridge import GraphModule

OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.5),
    "sgd": lambda parameters: torch.optim.SGD(
        parameters, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.5
    ),
}
Optimizer = Callable[..., torch.optim.Optimizer]


def mark_sparse(model: onnx.ModelProto, *names: str, pattern: str = "unstructured") -> onnx.ModelProto:
    model.metadata_props.add(key=SPARSE, value=format_sparse(dict.fromkeys(names, pattern)))
    return model


def train(module: GraphModule, optimizer: Optimizer, *inputs: np.ndarray, steps: int = 5) -> None:
    stepper = optimizer(module.parameters())
    for _ in range(steps):
        stepper.zero_grad()
        (module(*map(torch.from_numpy, inputs)) - 1).square().mean().backward()
        stepper.step()
