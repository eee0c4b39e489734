"""What a pass is: a class with a frozen Config, ordering constraints as data, and `apply(graph, context) ->
PassReport`.

The pipeline, not the pass, checks the contract (passes/core/contract.py), stamps created nodes and writes
checkpoints.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from onnx_lathe.errors import UsageError
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph

Moved = str | Callable[[Any], str]
"""How an option is written now: a text with {value} in it, or a function of the value."""


class Pass:
    """Base of every pass. A fresh instance runs once, with the options of its own occurrence in the recipe."""

    name: ClassVar[str]
    lossless: bool = False
    """Whether the network computes the same afterwards; an instance may be less than its class, by its
    options.
    """
    tolerance: ClassVar[float] = 1e-5
    """For a lossless pass: largest difference of an output, relative to that output's largest magnitude."""
    takes_half: ClassVar[bool] = False
    """Whether the pass takes weights of 16 bits as they are; to others they are given in float32, and taken
    back in the model's type.
    """
    streams: ClassVar[bool] = False
    """Whether the pass, where it needs no services, reads and writes weights by graph/initializers.py alone, so that they
    may stay in files (held.py).
    """
    needs: tuple[str, ...] = ()
    """Services without which the pass cannot run: "calibrator", "trainer", "runner", "fitter",
    "kernel_timer" (whose kernels `config.profile` names), "original", and "gradients" of the built-in training, which a user's hook need not follow. What options do without,
    an instance may leave out.
    """
    measuring: tuple[str, ...] = ()
    """Options that make an instance need calibration data, where it would do without."""
    after: ClassVar[Mapping[str, str]] = {}
    """Name of another pass -> reason: if the recipe has it, one occurrence of it must come before this."""
    before: ClassVar[Mapping[str, str]] = {}
    """Name of another pass -> reason: no occurrence of it may come before this."""

    moved: ClassVar[Mapping[str, Moved]] = {}
    """Name of an option that the pass had once -> how it is written now; `{value}` stands for what was
    given.
    """

    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, config: Any = None) -> None:
        """Raises UsageError for the Config of another pass."""
        self.config: Any = self.Config() if config is None else config
        if type(self.config) is not self.Config:
            raise UsageError(f"pass '{self.name}' takes its own Config, not {type(self.config).__qualname__}")

    def apply(self, graph: Graph, context: Context) -> PassReport:
        raise NotImplementedError
