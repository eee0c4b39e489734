"""A worker of a server: gets weights, computes gradients, sends them."""

import json
from typing import Any

import torch
from torch import Tensor

from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training.parallel.messages import Coding, Line, Vector
from onnx_lathe.runtime.training.parallel.server import unpacked


class Client:
    """`number` tells one worker from another, also from one that was lost in its place."""

    def __init__(self, line: Line, number: int, module: GraphModule, vector: Vector, coding: Coding) -> None:
        self.line, self.number, self.module = line, number, module
        self.vector, self.coding = vector, coding
        self.version, self.generation = 0, 0
        self.epoch = 0
        """The one that the training began, or went on with."""
        self.figures: dict[str, float] = {}
        """For the report."""
        self.pushed: tuple[float, float, Tensor, Tensor] | None = None
        self.told: dict[str, Any] = {}

    def fetch(self) -> bool:
        """Sends the gradients that were pushed and gives the module the newest weights; False: the training is over.
        Raises RuntimeError if the server is gone.
        """
        if self.pushed is None:
            self.line.send([self.version, 0.0, 0.0, self.generation])
        else:
            samples, loss, *parts = self.pushed
            self.line.send([self.version, samples, loss, self.generation], *parts)
        (closed, version, generation, dropped, epoch), (weights, stand_ins) = self.line.receive()
        if closed:
            return False
        if dropped:
            self.coding.undo()
        self.version, self.epoch = int(version), int(epoch)
        self.vector.put_weights(self.vector.read(weights))
        if generation != self.generation:
            self.generation = int(generation)
            self.module.impose(unpacked(stand_ins))
        return True

    def push(self, loss: Tensor, samples: int) -> None:
        """The gradients that the module has are the mean over so many samples; they are sent with the next `fetch`."""
        told = {"unreached": self.vector.unreached(), "figures": self.figures}
        news = b"" if told == self.told else json.dumps(told).encode()
        self.told = told
        note = torch.tensor(list(news), dtype=torch.uint8)
        self.pushed = float(samples), float(loss), self.coding.encode(self.vector.gradients()), note
