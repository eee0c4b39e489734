"""Workers that compute something together, and what they send each other while the graph runs: every member has to
call the same, in the same order.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Members:
    """A single worker, which has nobody to talk to."""

    rank: int = 0
    """Number of this one among `size`."""
    size: int = 1

    def add(self, tensor: Tensor) -> None:
        """Replaces each element by its sum over the members."""

    def swap(self, pieces: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """`pieces[i]`, flat, goes to member i; returned are those from each member, `sizes[i]` elements of their type."""
        return list(pieces)


class Processes(Members):
    """Processes that torch.distributed connects; None are all of them."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def add(self, tensor: Tensor) -> None:
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)

    def swap(self, pieces: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """As bytes, because not every backend knows every type."""
        own, width = pieces[0], pieces[0].element_size()
        sent = torch.cat(list(pieces)).view(torch.uint8)
        got = sent.new_empty(sum(sizes) * width)
        dist.all_to_all_single(
            got,
            sent,
            [size * width for size in sizes],
            [len(piece) * width for piece in pieces],
            group=self.group,
        )
        return list(got.view(own.dtype).split(list(sizes)))


def everyone() -> Members:
    """All processes that train together."""
    return Processes() if dist.is_available() and dist.is_initialized() else Members()
