"""What a server and a worker say to each other, in a process group of these two alone: when one of them dies, the
other is told at once, and nobody else is disturbed.
"""

from collections.abc import Container, Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, Store

from onnx_lathe.runtime.training.parallel.gradients import decode, taken_off
from onnx_lathe.runtime.training.parallel.workers import PATIENCE

_NUMBERS, _PARTS = 5, 2


class Line:
    """One end of the connection called `name`, 0 or 1: both ends have to be made. Raises RuntimeError, in all that it
    does, once the other end is gone.
    """

    def __init__(self, store: Store, name: str, end: int, patience: timedelta = PATIENCE) -> None:
        # typed as a class without them
        self.group: Any = dist.ProcessGroupGloo(PrefixStore(name, store), end, 2, patience)
        self.other = 1 - end

    def send(self, numbers: Sequence[float], *parts: Tensor) -> None:
        """Up to 5 numbers and 2 tensors, which arrive as bytes."""
        pieces = [part.contiguous().view(-1).view(torch.uint8) for part in parts]
        lengths = [float(len(piece)) for piece in pieces]
        head = [*numbers, *[0.0] * (_NUMBERS - len(numbers)), *lengths, *[0.0] * (_PARTS - len(lengths))]
        for piece in (torch.tensor(head, dtype=torch.float64), *pieces):
            if len(piece):
                self.group.send([piece], self.other, 0).wait()

    def receive(self) -> tuple[list[float], list[Tensor]]:
        """5 numbers and 2 tensors of bytes."""
        head = torch.empty(_NUMBERS + _PARTS, dtype=torch.float64)
        self.group.recv([head], self.other, 0).wait()
        parts = [torch.empty(int(length), dtype=torch.uint8) for length in head[_NUMBERS:]]
        for part in parts:
            if len(part):
                self.group.recv([part], self.other, 0).wait()
        return head[:_NUMBERS].tolist(), parts


class Vector:
    """The trained weights of a module as one tensor on the CPU, in the widest of their types."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = [one for one in module.parameters() if one.requires_grad]
        self.sizes = [one.numel() for one in self.parameters]
        self.dtype = self.parameters[0].dtype
        for parameter in self.parameters[1:]:
            self.dtype = torch.promote_types(self.dtype, parameter.dtype)

    def __len__(self) -> int:
        return sum(self.sizes)

    def weights(self) -> Tensor:
        return torch.cat([self._flat(one.detach()) for one in self.parameters])

    def gradients(self) -> Tensor:
        """Zeros where a weight has none."""
        return torch.cat(
            [
                torch.zeros(size, dtype=self.dtype) if one.grad is None else self._flat(one.grad)
                for one, size in zip(self.parameters, self.sizes, strict=True)
            ]
        )

    def put_weights(self, vector: Tensor) -> None:
        for parameter, piece in zip(self.parameters, vector.split(self.sizes), strict=True):
            parameter.data.copy_(piece.view(parameter.shape))

    def unreached(self) -> list[int]:
        """Places of the weights that have no gradient."""
        return [place for place, one in enumerate(self.parameters) if one.grad is None]

    def put_gradients(self, vector: Tensor, unreached: Container[int] = ()) -> None:
        """Weights at the places `unreached` get none: with zeros in its place they would decay."""
        for place, piece in enumerate(vector.split(self.sizes)):
            parameter = self.parameters[place]
            parameter.grad = (
                None if place in unreached else torch.empty_like(parameter).copy_(piece.view(parameter.shape))
            )

    def read(self, content: Tensor) -> Tensor:
        """Bytes as such a vector."""
        return content.view(self.dtype)

    def _flat(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(-1).to("cpu", self.dtype)


class Coding(Protocol):
    """How a vector of gradients is sent. `encode` is the worker's, and may keep something back for the next one, and
    `undo`, for gradients that were dropped; `decode` is the server's.
    """

    def encode(self, gradients: Tensor) -> Tensor: ...

    def undo(self) -> None: ...

    def decode(self, content: Tensor) -> Tensor: ...


class Plain:
    """As they are, or in float16."""

    def __init__(self, vector: Vector, half: bool) -> None:
        self.dtype = vector.dtype
        self.sent = torch.float16 if half else vector.dtype

    def encode(self, gradients: Tensor) -> Tensor:
        return gradients.to(self.sent)

    def undo(self) -> None:
        """Nothing was kept back."""

    def decode(self, content: Tensor) -> Tensor:
        return content.view(self.sent).to(self.dtype)


class Signs:
    """As gradients.Threshold: what exceeds the threshold is sent as a sign, and the rest later."""

    def __init__(self, vector: Vector, threshold: float) -> None:
        self.vector, self.threshold = vector, threshold
        self.residual = torch.zeros(len(vector), dtype=vector.dtype)
        self.before = self.residual

    def encode(self, gradients: Tensor) -> Tensor:
        self.before = self.residual
        total = self.residual + gradients
        codes = taken_off(total, self.threshold)
        if codes is None:
            return torch.zeros(1, dtype=torch.uint8)
        self.residual = total
        return codes

    def undo(self) -> None:
        """What the dropped gradients left goes with them, and what was owed before is owed again."""
        self.residual = self.before

    def decode(self, content: Tensor) -> Tensor:
        gradients = torch.zeros(len(self.vector), dtype=self.vector.dtype)
        if len(content) == 1:  # half a code: some gradient was infinite or no number
            return gradients.fill_(torch.nan)
        places, signs = decode(content.view(torch.int16))
        gradients[places] = signs.to(gradients.dtype) * self.threshold
        return gradients


def coding(name: str, threshold: float, vector: Vector) -> Coding:
    """That of the option `gradients`: full, half or threshold."""
    return Signs(vector, threshold) if name == "threshold" else Plain(vector, name == "half")
