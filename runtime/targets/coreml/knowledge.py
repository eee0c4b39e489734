"""What is known of the model's tensors before it runs: sizes at two sizes of the input, and values of constants."""

from collections.abc import Iterable, Mapping, Set

import numpy as np
import onnx

from onnx_lathe.runtime.targets.core.facts import Facts
from onnx_lathe.runtime.targets.core.node import Unsupported

Pair = tuple[int, int]
"""A size at the sizes that the program is built for, and at others; equal where it does not depend on them."""
INTEGERS = frozenset(
    getattr(onnx.TensorProto, name)
    for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
)


class Knowledge:
    """`nodes`: the model's node that writes each tensor; `varying`: free tensors that are equal at both sizes by
    chance.
    """

    def __init__(self, facts: Facts, nodes: Mapping[str, onnx.NodeProto], varying: Set[str]) -> None:
        self.facts = facts
        self.nodes = nodes
        self.varying = varying

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape at the sizes that the program is built for."""
        known = self.facts.shapes[0].get(tensor)
        if known is None:
            raise Unsupported(f"the shape of '{tensor}' is not known")
        return tuple(known)

    def rank(self, tensor: str) -> int:
        return len(self.shape(tensor))

    def pairs(self, tensor: str) -> tuple[Pair, ...]:
        """Sizes along all axes. Raises Unsupported where even their number depends on the input's."""
        shape, other = self.shape(tensor), self.facts.shapes[1].get(tensor, ())
        if len(shape) != len(other):
            raise Unsupported(f"the number of dimensions of '{tensor}' depends on the size of the input")
        return tuple(zip(shape, other, strict=True))

    def sizes(self, tensor: str) -> tuple[int | None, ...]:
        """None where the size depends on the inputs'."""
        return tuple(first if first == second else None for first, second in self.pairs(tensor))

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
        return found[0] if found is not None and _same(*found) else None

    def constant(self, tensor: str, what: str) -> np.ndarray:
        """The values of a constant; `what` it is, for the refusal of another."""
        found = self.value(tensor)
        if found is None:
            depends = (
                "depends on the size of the input" if self.is_free(tensor) else "is computed at run time"
            )
            raise Unsupported(f"its {what} {depends}")
        return found

    def refuse_varying(self, tensors: Iterable[str]) -> None:
        if found := next((tensor for tensor in tensors if tensor in self.varying), None):
            raise Unsupported(
                f"'{found}' depends on the size of the input, in a way that shows only far from the sizes looked at"
            )

    def element(self, tensor: str) -> int:
        """ONNX's element type; 0 where it is not known."""
        return self.facts.types.get(tensor, 0)

    def is_integer(self, tensor: str) -> bool:
        return self.element(tensor) in INTEGERS


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    if first is second:
        return True
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return bool(first.tobytes() == second.tobytes())
