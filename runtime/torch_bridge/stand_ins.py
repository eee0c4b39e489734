"""What is read in place of a weight, while the weight goes on being trained underneath."""

from typing import Any, NamedTuple

import numpy as np
import torch


class StandIn(NamedTuple):
    """What is read instead of a weight: `given` by the caller, and as a tensor like the weight: its values,
    or 1 and 0 if it is a mask.
    """

    given: np.ndarray
    tensor: torch.Tensor
    is_mask: bool


class StraightThrough(torch.autograd.Function):
    """Reads the stand-in instead of the value (of a mask: their product), and gives the value the whole
    gradient.

    Source: Bengio, Leonard and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons",
    2013, section 2.
    """

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, stand_in: StandIn) -> torch.Tensor:
        return value * stand_in.tensor if stand_in.is_mask else stand_in.tensor.view_as(stand_in.tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None
