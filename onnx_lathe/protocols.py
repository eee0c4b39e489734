"""What passes and runtime both speak of: the trainer's result, what a pass does while training runs,
a block that is fitted, what tensors hold, and where a model's time goes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import onnx


@dataclass(frozen=True)
class TrainResult:
    """New values of initializers by name (same dtype and shape as before), and what the training measured."""

    values: Mapping[str, "np.ndarray"]
    metrics: Mapping[str, float]
    kept: Sequence[tuple[str, str]] = ()
    """(node, reason) of what the network computes with, but no training changes."""
    warnings: Sequence[str] = ()
    """What the user should know of how the training went."""


class Observed(dict[str, "np.ndarray"]):
    """Values of tensors by name, as a call of the model computes them for so many `samples` of the data; `rows`: these
    and the repeats behind them that fill a fixed batch up.
    """

    def __init__(self, values: Mapping[str, "np.ndarray"], samples: int, rows: int | None = None) -> None:
        super().__init__(values)
        self.samples = samples
        self.rows = samples if rows is None else rows


@dataclass(frozen=True)
class Levels:
    """A weight in integers: `start`, its levels, whole numbers from -largest to largest; `step`, what they are multiplied
    with, in a shape that spreads over them; `free`, which may change.
    """

    start: "np.ndarray"
    step: "np.ndarray"
    largest: int
    free: "np.ndarray"


@dataclass(frozen=True)
class BlockTask:
    """A block of a quantized network, and what it should answer. `model` has the inputs `source`, those of `levels` and
    `values`, float32, and `masks`, bool: where one is false, the tensor that it is for is not quantized.
    """

    model: "onnx.ModelProto"
    source: str
    levels: Mapping[str, Levels]
    values: Mapping[str, "np.ndarray"]
    """Biases and float weights to begin with."""
    masks: Mapping[str, str]
    x: "np.ndarray"
    target: "np.ndarray"
    held: "np.ndarray"
    """Bool: samples to judge by alone; some are, and some are not."""
    batch: int | None
    """How many samples the model insists on; None: any number."""


@dataclass(frozen=True)
class FittedBlock:
    """What was found: levels INT8 and steps by name, and values; nothing if samples kept apart do not gain by it. `before`
    and `after`: error of the answers on these, as a share of their variance.
    """

    before: float
    after: float
    levels: Mapping[str, tuple["np.ndarray", "np.ndarray"]]
    values: Mapping[str, "np.ndarray"]


@dataclass(frozen=True)
class Region:
    """Nodes of a model, by name, that a runtime computes on integers without a float between them; `ms` with
    the quantizing and dequantizing at its borders.
    """

    nodes: frozenset[str]
    ms: float


@dataclass(frozen=True)
class Profile:
    """Where the time of one run goes: milliseconds by the name of the model's node that they serve, of the
    regions on integers, and in total.
    """

    nodes: Mapping[str, float]
    regions: Sequence[Region]
    total: float


class Shaping(Protocol):
    """What a pass does while training runs: it says what the network computes with in place of the weights
    that are trained.

    The trained weights stay as they are underneath and get the gradient of what stands in for them
    (straight-through), so a weight that reads as zero now may come back later. What stands in at the end is
    what training returns.
    """

    every: int
    """Optimizer steps between two calls; there is one before the first step and one after the last, too."""

    def __call__(self, done: float, weights: Mapping[str, "np.ndarray"]) -> Mapping[str, "np.ndarray"]:
        """`done`: share of the training that is over, 0 to 1. `weights`: trained values by initializer
        name; not to be written to.

        Returns, by name, for the weights to be shaped: bool (weight where true, zero elsewhere, while the
        weight goes on changing), or float (these values until the next call); both shaped like the weight.
        A name left out goes unshaped.
        """

    def state(self) -> Mapping[str, "np.ndarray"]:
        """All that it has chosen so far: `restore` of it makes another instance go on alike."""

    def restore(self, state: Mapping[str, "np.ndarray"]) -> None: ...
