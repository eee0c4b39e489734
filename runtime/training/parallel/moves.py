"""Takes tensors from one layout to another. All that workers send each other of activations goes through here.

The backward pass of each move is its exact adjoint: of blocks that are sent, the same blocks sent back and added; of a
sum over workers, the sum of their gradients. Then the mean over all workers of their gradients of a weight is the
gradient of the one-process step, whatever is split or computed by several workers alike, because a worker's gradient is
that of the sum of all workers' losses.
Source: Hewett and Grady, "A Linear Algebraic Approach to Model Parallelism in Deep Learning", arXiv 2006.03108, 2020.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from onnx_lathe.errors import PassError
from onnx_lathe.runtime.torch_bridge.members import Members
from onnx_lathe.runtime.training.parallel.layout import Layout, Range, Ranges, Split, meeting

Mover = Callable[[Tensor], Tensor]
HALO, GATHER, EXCHANGE, SUM = "halo", "gather", "exchange", "sum"
"""Kinds of moves: a few rows of the neighbours; the whole to everyone; from one axis to another; a sum."""


@dataclass
class Traffic:
    """Bytes that this worker has sent while training, by kind and direction ("forward", "backward").

    A sum is counted as a ring sends it: 2 (W - 1) / W of its bytes by each of W workers.
    """

    sent: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))

    def count(self, kind: str, direction: str, size_bytes: int) -> None:
        self.sent[kind, direction] += size_bytes

    def summed(self, direction: str, tensor: Tensor, workers: int) -> None:
        self.count(SUM, direction, 2 * (workers - 1) * tensor.nbytes // workers)


class Block(NamedTuple):
    """A range of one axis, in the numbers of the tensor that holds it."""

    axis: int
    first: int
    end: int

    def of(self, tensor: Tensor) -> Tensor:
        return tensor.narrow(self.axis, self.first, self.end - self.first)


Blocks = Sequence[Block | None]


@dataclass(frozen=True)
class _Route:
    """What one worker sends to each and gets from each; its own place holds what it keeps.

    `sizes` are those axes of the result that differ from the local tensor's, `local` those of that which have to be as
    planned.
    """

    members: Members
    traffic: Traffic
    kind: str
    send: Blocks
    receive: Blocks
    sizes: dict[int, int]
    local: dict[int, int]

    @property
    def keeps(self) -> tuple[Block, Block] | None:
        """(what of the local tensor is in the result, where it is there), if this is a halo."""
        rank = self.members.rank
        mine, there = self.send[rank], self.receive[rank]
        return None if self.kind != HALO or mine is None or there is None else (mine, there)


class _Move(torch.autograd.Function):
    """Of a halo, what is saved are its rows beside the local tensor, which is kept in any case; see `thrifty`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, route: _Route, counts: bool) -> Tensor:
        shape = list(x.shape)
        for axis, size in route.sizes.items():
            shape[axis] = size
        ctx.route, ctx.shape = route, x.shape
        result = _empty(x, shape)
        covered = sum(block.end - block.first for block in route.receive if block is not None)
        if covered < shape[next(iter(route.sizes))]:
            result.zero_()
        for block, piece in _swapped(
            x, route, route.send, route.receive, result, "forward" if counts else ""
        ):
            block.of(result).copy_(piece)
        if route.keeps is not None and counts and ctx.needs_input_grad[0]:
            _, there = route.keeps
            axis = there.axis
            ctx.save_for_backward(
                x,
                result.narrow(axis, 0, there.first).clone(),
                result.narrow(axis, there.end, shape[axis] - there.end).clone(),
            )
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        route, gradient = ctx.route, gradients[0]
        result = _empty(gradient, ctx.shape).zero_()
        for block, piece in _swapped(gradient, route, route.receive, route.send, result, "backward"):
            block.of(result).add_(piece)
        return result, None, None


def _swapped(
    x: Tensor, route: _Route, send: Blocks, receive: Blocks, result: Tensor, direction: str
) -> list[tuple[Block, Tensor]]:
    """(block of the result, what is there) from each worker that sends something. `direction` "": not counted."""
    rank = route.members.rank
    pieces = [
        x.new_empty(0) if block is None or member == rank else block.of(x).reshape(-1)
        for member, block in enumerate(send)
    ]
    places = [None if block is None else block.of(result) for block in receive]
    sizes = [0 if place is None or member == rank else place.numel() for member, place in enumerate(places)]
    if direction:
        route.traffic.count(route.kind, direction, sum(piece.nbytes for piece in pieces))
    found = route.members.swap(pieces, sizes)
    given = []
    for member, (block, place) in enumerate(zip(receive, places, strict=True)):
        if block is not None and place is not None:
            own = send[rank]
            given.append((block, own.of(x) if member == rank and own else found[member].reshape(place.shape)))
    return given


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    """In its memory format: a convolution on a CPU is faster in channels_last."""
    last = (
        like.dim() == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    )
    return torch.empty(
        tuple(shape),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, members: Members, traffic: Traffic, counts: bool) -> Tensor:
        ctx.members, ctx.traffic = members, traffic
        return _summed(x, members, traffic, "forward" if counts else "")

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _summed(gradients[0], ctx.members, ctx.traffic, "backward"), None, None, None


def _summed(x: Tensor, members: Members, traffic: Traffic, direction: str) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)  # a sum in half precision would depend on its order
    total = x.to(wide).clone(memory_format=torch.contiguous_format)
    members.add(total)
    if direction:
        traffic.summed(direction, total, members.size)
    return total.to(x.dtype)


def summed(x: Tensor, members: Members, traffic: Traffic) -> Tensor:
    """The sum over the members; its gradient is the sum of theirs."""
    result: Tensor = _Sum.apply(x, members, traffic, torch.is_grad_enabled())
    return result


def mover(
    old: Layout, new: Layout | Ranges, shape: Sequence[int], members: Members, traffic: Traffic
) -> Mover | None:
    """What takes a local tensor from one layout of a whole of this shape to another; None if nothing has to be done.

    Of sizes other than those of the split axes nothing is assumed: batches may be of any size. The mover raises
    PassError for a tensor whose split axis has another size than planned.
    """
    if old == new or (
        old is not None and isinstance(new, Ranges) and old.axis == new.axis and old.ranges == new.ranges
    ):
        return None
    if old is None:
        return None if new is None else _cutter(new, shape, members)
    rank, mine = members.rank, old.ranges
    if new is None or new.axis == old.axis:
        axis = old.axis
        wants = ((0, shape[axis]),) * members.size if new is None else _ranges(new)
        send = [_block(axis, meeting(mine[rank], want), mine[rank][0]) for want in wants]
        receive = [_block(axis, meeting(one, wants[rank]), wants[rank][0]) for one in mine]
        kind = GATHER if new is None else HALO
        return _moved(
            _Route(
                members,
                traffic,
                kind,
                send,
                receive,
                {axis: _length(wants[rank])},
                {axis: _length(mine[rank])},
            )
        )
    wants = _ranges(new)
    return _moved(
        _Route(
            members,
            traffic,
            EXCHANGE,
            [Block(new.axis, *want) for want in wants],
            [Block(old.axis, *one) for one in mine],
            {old.axis: shape[old.axis], new.axis: _length(wants[rank])},
            {old.axis: _length(mine[rank]), new.axis: shape[new.axis]},
        )
    )


def _moved(route: _Route) -> Mover:
    def move(x: Tensor) -> Tensor:
        _check(x, route.local)
        result: Tensor = _Move.apply(x, route, torch.is_grad_enabled())
        return result

    return move


def _cutter(new: Split | Ranges, shape: Sequence[int], members: Members) -> Mover:
    axis, size = new.axis, shape[new.axis]
    first, end = _ranges(new)[members.rank]
    low, high = (min(max(bound, 0), size) for bound in (first, end))

    def cut(x: Tensor) -> Tensor:
        _check(x, {axis: size})
        own = x.narrow(axis, low, high - low)
        if (low, high) == (first, end):
            return own
        return F.pad(own, [0, 0] * (x.dim() - axis - 1) + [low - first, end - high])

    return cut


def _check(x: Tensor, sizes: dict[int, int]) -> None:
    for axis, size in sizes.items():
        if x.shape[axis] != size:
            raise PassError(
                f"--parallel: layers are split for the sizes of the first sample, and axis {axis} of a tensor is {x.shape[axis]} "
                f"in place of {size}; give samples of one size, or share out samples only (data=)"
            )


def _ranges(layout: Split | Ranges) -> tuple[Range, ...]:
    return layout.ranges


def _length(one: Range) -> int:
    return one[1] - one[0]


def _block(axis: int, common: Range | None, base: int) -> Block | None:
    return None if common is None else Block(axis, common[0] - base, common[1] - base)


def thrifty(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`run`, of whose first argument, if it came from a halo move, only the halo's rows are saved for the backward pass.

    The rest is the tensor before the move, which the step that made it keeps anyway. They were saved by the move, so
    that recomputation, and what offloads or counts saved tensors, see them there.
    """

    def thrifty_run(x: Tensor, *more: Tensor) -> Tensor:
        node: Any = x.grad_fn
        route = getattr(node, "route", None)
        if not torch.is_grad_enabled() or not isinstance(route, _Route) or route.keeps is None:
            return run(x, *more)
        mine, _ = route.keeps
        place, shape = x.data_ptr(), x.shape

        def pack(tensor: Tensor) -> Any:
            return node if tensor.data_ptr() == place and tensor.shape == shape else tensor

        def unpack(packed: Any) -> Tensor:
            if isinstance(packed, Tensor):
                return packed
            local, before, after = packed.saved_tensors
            return torch.cat([before, mine.of(local), after], mine.axis)

        with saved_tensors_hooks(pack, unpack):
            return run(x, *more)

    return thrifty_run
