"""A worker of a server: gets weights, computes gradients, sends them."""

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
        self.pushed: tuple[float, float, Tensor] | None = None

    def fetch(self) -> bool:
        """Sends the gradients that were pushed and gives the module the newest weights; False: the training is over.
        Raises RuntimeError if the server is gone.
        """
        if self.pushed is None:
            self.line.send([self.version, 0.0, 0.0, self.generation])
        else:
            samples, loss, content = self.pushed
            self.line.send([self.version, samples, loss, self.generation], content)
        (closed, version, generation, _), (weights, stand_ins) = self.line.receive()
        if closed:
            return False
        self.version = int(version)
        self.vector.put_weights(self.vector.read(weights))
        if generation != self.generation:
            self.generation = int(generation)
            self.module.impose(unpacked(stand_ins))
        return True

    def push(self, loss: Tensor, samples: int) -> None:
        """The gradients that the module has are the mean over so many samples; they are sent with the next `fetch`."""
        self.pushed = float(samples), float(loss), self.coding.encode(self.vector.gradients())
