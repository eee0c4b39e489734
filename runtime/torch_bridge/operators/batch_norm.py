"""BatchNormalization: by its stored statistics, or by those of the batch.

The module decides (`train_normalization`): it gives the node a place to put what it observes, and the node
is then what ONNX defines for training_mode=1, in whose terms

    running_mean = mean * momentum + batch_mean * (1 - momentum)        and the same for the population variance of the batch.

Where several processes train together, the batch is that of all of them, and each has to run the node; of the
`members` that it is given, where others have other channels, or the same samples.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from onnx_lathe.runtime.torch_bridge.members import Members, everyone
from onnx_lathe.runtime.torch_bridge.registry import Function, Node, RefusedError, operator


class Statistic(NamedTuple):
    """Of a batch, per channel: taken from `size` values; `share` of it is taken over into the running one."""

    value: Tensor
    share: float
    size: int


Observed = dict[str, Statistic]
"""By name of the running statistic."""


@operator("BatchNormalization", since=6)
def batch_normalization(node: Node) -> Function:
    if node.used > 1 or node.integer("training_mode") or (node.opset < 7 and not node.integer("is_test")):
        raise RefusedError("in training mode")
    if not node.integer("spatial", 1):
        raise RefusedError("with spatial=0")
    epsilon, share = node.number("epsilon", 1e-5), 1 - node.number("momentum", 0.9)

    def run(
        x: Tensor,
        scale: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        observed: Observed | None = None,
        members: Members | None = None,
    ) -> Tensor:
        if observed is None:
            return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)
        members = everyone() if members is None else members
        names, synchronized = node.names[3:5], members.size > 1
        if (
            synchronized and names[0] not in observed
        ):  # else it is computed again for its gradient, which not every worker need do
            observed.update(zip(names, _over_workers(x, share, members), strict=True))
        count = observed[names[0]].size if synchronized else x.numel() // max(mean.numel(), 1)
        if count < 2:  # a single value has no variance
            return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)
        if synchronized:
            result: Tensor = _Synchronized.apply(
                x, scale, bias, *(observed[name].value for name in names), count, epsilon, members
            )
            return result
        center, spread = torch.zeros_like(mean), torch.zeros_like(variance)
        result = F.batch_norm(x, center, spread, scale, bias, True, 1.0, epsilon)
        observed[names[0]] = Statistic(center, share, count)
        # PyTorch gives the variance of a sample
        observed[names[1]] = Statistic(spread * ((count - 1) / count), share, count)
        return result

    return run


class _Synchronized(torch.autograd.Function):
    """Normalizes by statistics of all workers; x depends on those, and so its gradient on the sums of all
    workers' gradients.

    Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015, section 3.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: int,
        epsilon: float,
        members: Members,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, mean, variance)
        ctx.count, ctx.epsilon, ctx.members = count, epsilon, members
        wide = F.batch_norm(
            x.to(mean.dtype), mean, variance, scale.to(mean.dtype), bias.to(mean.dtype), False, 0.0, epsilon
        )
        return wide.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, scale, mean, variance = ctx.saved_tensors
        axes, shape = _channels(x)
        inverse = torch.rsqrt(variance + ctx.epsilon)
        gradient = gradients[0].to(mean.dtype)
        normal = (x - mean.view(shape)) * inverse.view(shape)
        own = torch.stack([gradient.sum(axes), (gradient * normal).sum(axes)])
        every = own.clone()
        ctx.members.add(every)
        of_mean, of_spread = every / max(ctx.count, 1)
        passed = (scale * inverse).view(shape) * (
            gradient - of_mean.view(shape) - normal * of_spread.view(shape)
        )
        return passed.to(x.dtype), own[1].to(scale.dtype), own[0].to(scale.dtype), *[None] * 5


def _over_workers(x: Tensor, share: float, members: Members) -> tuple[Statistic, Statistic]:
    """Mean and population variance of each channel over all members' samples, in at least float32."""
    axes, shape = _channels(x)
    values = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    sums = torch.cat(
        [values.sum(axes).double(), values.new_tensor([x.numel() // max(x.shape[1], 1)]).double()]
    )
    members.add(sums)
    count = int(sums[-1])
    mean = (sums[:-1] / max(count, 1)).to(values.dtype)
    squares = (values - mean.view(shape)).square().sum(axes).double()
    members.add(squares)
    taken = share if count > 1 else 0.0
    return Statistic(mean, taken, count), Statistic((squares / max(count, 1)).to(values.dtype), taken, count)


def _channels(x: Tensor) -> tuple[list[int], list[int]]:
    """The axes of x [N, C, ...] that are not the channel's, and the shape in which a value per channel
    broadcasts with x.
    """
    return [axis for axis in range(x.dim()) if axis != 1], [1, -1, *[1] * (x.dim() - 2)]
