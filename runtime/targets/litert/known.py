"""What is known of the graph's tensors before the network runs."""

import numpy as np

from onnx_lathe.runtime.targets.core.facts import Facts
from onnx_lathe.runtime.targets.core.node import Unsupported
from onnx_lathe.runtime.targets.litert.constants import Constants
from onnx_lathe.runtime.targets.litert.tensors import ELEMENTS, NUMPY, Quantization, Stored


class Known(Constants):
    """`places`: tensor of the graph -> where it is in `tensors`."""

    def __init__(self, facts: Facts, stored: Stored, half: bool = False) -> None:
        super().__init__(half)
        self.facts, self.stored = facts, stored
        self.places: dict[str, int] = {}

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape at the sizes that the model is built for."""
        known = self.facts.shapes[0].get(tensor)
        if known is None:
            raise Unsupported(f"the shape of '{tensor}' is not known")
        return known

    def rank(self, tensor: str) -> int:
        return len(self.shape(tensor))

    def sizes(self, tensor: str) -> tuple[int | None, ...]:
        """None where the size depends on the inputs'."""
        shape, other = self.shape(tensor), self.facts.shapes[1].get(tensor, ())
        if len(shape) != len(other):
            raise Unsupported(f"the number of dimensions of '{tensor}' depends on the size of the input")
        return tuple(a if a == b else None for a, b in zip(shape, other, strict=True))

    def is_free(self, tensor: str) -> bool:
        """Whether no input's content goes into it."""
        return tensor in self.facts.free

    def values(self, tensor: str) -> tuple[np.ndarray, np.ndarray] | None:
        """The values of a free tensor at both sizes."""
        first, second = (values.get(tensor) for values in self.facts.values)
        return None if first is None or second is None else (first, second)

    def value(self, tensor: str) -> np.ndarray | None:
        """The values of a constant; None for a tensor that is none, or depends on the sizes of inputs."""
        found = self.values(tensor)
        if found is None:
            return None
        first, second = found
        same = first is second or (
            first.shape == second.shape
            and bool(np.array_equal(first, second, equal_nan=first.dtype.kind == "f"))
        )
        return first if same else None

    def constant(self, tensor: str, what: str) -> np.ndarray:
        """The values of a constant; `what` it is, for the refusal of another."""
        found = self.value(tensor)
        if found is None:
            known = self.is_free(tensor)
            reason = "depends on the size of the input" if known else "is computed at run time"
            raise Unsupported(f"its {what} {reason}")
        return found

    def element(self, tensor: str) -> str:
        """The type in the file."""
        if tensor in self.places:
            return self.tensors[self.places[tensor]].type
        if tensor in self.stored.activations:
            return self.stored.activations[tensor][0]
        known = self.facts.types.get(tensor, 0)
        value = self.facts.values[0].get(tensor)
        if not known and value is not None:
            name = str(value.dtype).upper()
            return name if name in NUMPY else "FLOAT32"
        if known and known not in ELEMENTS:
            raise Unsupported(f"'{tensor}' is of a type that LiteRT's kernels do not compute with")
        return ELEMENTS.get(known, "FLOAT32")

    def quantization(self, tensor: str) -> Quantization | None:
        """Of a stored activation or an integer constant; None of a float tensor."""
        if tensor in self.stored.activations:
            return self.stored.activations[tensor][1]
        return self.stored.weights[tensor][1] if tensor in self.stored.weights else None
