"""The table of operators: (domain, operator, since-opset) -> function that builds the PyTorch counterpart
of one node.

To add an operator, add to a file in `operators/`:

    @operator("Tile", since=6, numbers=(1,))
    def tile(node: Node) -> Function:
        return lambda x, repeats: torch.tile(x, repeats)

The builder runs once per node and reads the attributes; what it returns runs at every step, on tensors
(None for an omitted input), and returns a tensor, or a tuple if the node has several outputs. It may keep
numbers, not tensors: those would stay behind when the module changes device. Inputs listed in `numbers` (a
shape, bounds) arrive as Python numbers or lists of them. What cannot be done raises RefusedError with a few
words that complete the operator's name: "with indices".
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import onnx
import torch

from onnx_lathe.runtime.attributes import Attributed
from onnx_lathe.runtime.torch_bridge.scope import REASONS

NEWEST_OPSET = 28
"""A change of an operator after this opset has not been read; such a node is unsupported rather than wrong."""


class RefusedError(Exception):
    """A node that the bridge cannot run; the message completes the operator's name."""


class Unsupported(NamedTuple):
    """A node without PyTorch counterpart. `op` may carry a restriction: "MaxPool with indices"."""

    node: str
    op: str
    opset: int
    domain: str

    def __str__(self) -> str:
        reason = "" if self.domain else REASONS.get(self.op, "")
        return f"{self.node} ({self.domain + '.' if self.domain else ''}{self.op}, opset {self.opset}{reason and ': ' + reason})"


@dataclass(frozen=True)
class Node(Attributed):
    """What a builder may know of its node. `constants` holds the inputs that are known before any step,
    else None.
    """

    op: str
    opset: int
    attributes: Mapping[str, Any]
    constants: Sequence[torch.Tensor | None]
    names: Sequence[str]
    elements: Sequence[int]
    """ONNX element type of each input, 0 if the model does not say: tells UINT4 from UINT8, which are
    carried alike.
    """
    ranks: Sequence[int]
    """Number of dimensions of each input, 0 if it has none or the model does not say."""
    outputs: int
    """How many outputs it declares."""
    used: int
    """How many of them count: up to the last one that something reads."""

    def given(self, position: int) -> bool:
        """Whether an optional input is there."""
        return position < len(self.names) and bool(self.names[position])


Function = Callable[..., Any]
Builder = Callable[[Node], Function]


@dataclass(frozen=True)
class Operator:
    build: Builder
    numbers: tuple[int, ...]


_TABLE: dict[tuple[str, str], dict[int, Operator]] = {}


def scalar(value: Any) -> Any:
    """The number in an input that should be of rank 0 but that exporters also write with one element."""
    return value[0] if isinstance(value, list) else value


def operator(
    name: str, since: int, numbers: tuple[int, ...] = (), domain: str = ""
) -> Callable[[Builder], Builder]:
    """Decorator: this builder serves the operator from opset `since` until the next one that is registered."""

    def register(builder: Builder) -> Builder:
        _TABLE.setdefault((domain, name), {})[since] = Operator(builder, numbers)
        return builder

    return register


def operators() -> Mapping[tuple[str, str], Mapping[int, Operator]]:
    """All of them: (domain, name) -> by the opset from which each builder serves."""
    _load()
    return _TABLE


def find(domain: str, name: str, opset: int) -> Operator | None:
    """The operator as the opset defines it, or None."""
    _load()
    versions = [since for since in _TABLE.get((domain, name), ()) if since <= opset]
    if not versions or (opset > NEWEST_OPSET and _last_change(domain, name, opset) > NEWEST_OPSET):
        return None
    return _TABLE[domain, name][max(versions)]


def _last_change(domain: str, name: str, opset: int) -> int:
    if not onnx.defs.has(name, domain):
        return 0
    return int(onnx.defs.get_schema(name, opset, domain).since_version)


@cache
def _load() -> None:
    from onnx_lathe.runtime.torch_bridge import operators

    for module in pkgutil.iter_modules(operators.__path__):
        importlib.import_module(f"{operators.__name__}.{module.name}")
