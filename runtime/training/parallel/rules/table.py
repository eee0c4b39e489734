"""The table of rules: operator -> how its work is split among workers.

    @rule("Flatten", says="channels: as they are; rows or columns: moved to channels")
    def flatten(placer: Placing, step: Step) -> Placed | None:
        ...

A rule is called for a step of which some input is split, or a layer that is to be. It says what runs in its place on each
worker and how the result is split; None if it cannot, and then the step's inputs are gathered and every worker runs it
whole, which is always right. It decides before it asks the placer for inputs in another layout.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

from onnx_lathe.runtime.torch_bridge.members import Members
from onnx_lathe.runtime.torch_bridge.plan import Step
from onnx_lathe.runtime.torch_bridge.registry import Function
from onnx_lathe.runtime.training.parallel.layout import Layout, Ranges, Split
from onnx_lathe.runtime.training.parallel.moves import Mover, Traffic

LAYERS = ("Conv", "Gemm", "MatMul")
"""Operators for which a way to split them is chosen; the others follow what they read."""
ALWAYS = (*LAYERS, "BatchNormalization")
"""Operators whose rule is asked even if nothing that they read is split."""


@dataclass(frozen=True)
class Placed:
    """What runs in place of a step: `run(*values[inputs])`; `layout` is that of all its outputs."""

    run: Function
    inputs: tuple[int, ...]
    layout: Layout


class Mesh(NamedTuple):
    """The workers that this one works with: `data` have other samples and the same part of the layers, `model` the same
    samples and other parts; `every` are all.
    """

    data: Members
    model: Members
    every: Members


class Placing(Protocol):
    """What a rule asks of the placer; see placer.Placer."""

    mesh: Mesh
    traffic: Traffic

    @property
    def choose(self) -> "Choose": ...

    @property
    def size(self) -> int: ...

    @property
    def rank(self) -> int: ...

    def layout(self, slot: int) -> Layout: ...

    def value(self, slot: int) -> Any: ...

    def shape(self, slot: int) -> tuple[int, ...]: ...

    def want(self, slot: int, layout: Layout) -> int: ...

    def fetch(self, slot: int, ranges: Ranges) -> Mover | None: ...

    def part(self, slot: int, dim: int, bounds: tuple[int, ...]) -> int: ...

    def even(self, slot: int, axis: int) -> Split: ...


Choose = Callable[[Placing, Step], str]
"""For a step of `LAYERS`: "height", "width", "filter", "channel", "whole", or "follow", which is as its input is."""
Decide = Callable[[Placing, Step], Placed | None]


@dataclass(frozen=True)
class Rule:
    decide: Decide
    says: str
    """For the documentation: what is split, and what has to be gathered."""


_TABLE: dict[str, Rule] = {}


def rule(*operators: str, says: str) -> Callable[[Decide], Decide]:
    """Decorator: this rule serves the operators."""

    def register(decide: Decide) -> Decide:
        _TABLE.update(dict.fromkeys(operators, Rule(decide, says)))
        return decide

    return register


@cache
def rules() -> Mapping[str, Rule]:
    """All of them, by operator."""
    from onnx_lathe.runtime.training.parallel import rules as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return _TABLE
