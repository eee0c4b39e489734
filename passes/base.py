"""What a pass is: a class with a frozen Config, ordering constraints as data, and `apply(graph, context) -> PassReport`.

The pipeline, not the pass, checks the contract (passes/contract.py), stamps created nodes and writes checkpoints.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, ClassVar, Protocol, Union, get_args, get_origin, get_type_hints

import numpy as np
import onnx

from lathe import CANONICAL, PassError, Placement, UsageError, nearest
from passes.graph import Graph


@dataclass(frozen=True)
class Skip:
    """A node that a pass left alone, and why. A reason is a phrase without the node's name: "its weight is computed at run time"."""

    node: str
    reason: str


@dataclass(frozen=True)
class Edit:
    """A node that a pass changed, and how, in a phrase: "61 of 64 zeros"."""

    node: str
    what: str


@dataclass
class PassReport:
    """What a pass did. An empty report means that there was nothing to do."""

    edits: list[Edit] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    """What the user should know of the result as a whole, and what to do about it."""

    def edit(self, node: str, what: str) -> None:
        self.edits.append(Edit(node, what))

    def skip(self, node: str, reason: str) -> None:
        self.skips.append(Skip(node, reason))


class TensorStatistics(Protocol):
    """Streamed statistics of one activation tensor over the calibration data."""

    minimum: float
    maximum: float

    def percentile(self, percent: float) -> tuple[float, float]:
        """Range (low, high) that holds the central `percent` of the values, from a histogram; never outside minimum..maximum."""

    def distribution(self) -> tuple[np.ndarray, np.ndarray]:
        """(edges [B + 1], ascending, counts [B]) of a histogram; the bins differ in width, and zero has one to itself."""


class Calibrator(Protocol):
    """Runs a model over the calibration data once, in bounded memory."""

    def statistics(self, model: onnx.ModelProto, tensors: Sequence[str]) -> Mapping[str, TensorStatistics]:
        """Statistics by tensor name. What was asked of the same model before is answered without another run."""

    def observe(self, model: onnx.ModelProto, tensors: Sequence[str]) -> Iterator[Mapping[str, np.ndarray]]:
        """The values of these tensors, batch by batch, the same samples in the same order at every call."""


class TrainResult(Protocol):
    """New values of initializers by name (same dtype and shape as before), and what the training measured."""

    @property
    def values(self) -> Mapping[str, np.ndarray]: ...

    @property
    def metrics(self) -> Mapping[str, float]: ...


class Shaping(Protocol):
    """What a pass does while training runs: it says what the network computes with in place of the weights that are trained.

    The trained weights stay as they are underneath and get the gradient of what stands in for them (straight-through), so a weight that
    reads as zero now may come back later. What stands in at the end is what training returns.
    """

    every: int
    """Optimizer steps between two calls; there is one before the first step and one after the last, too."""

    def __call__(self, done: float, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """`done`: share of the training that is over, 0 to 1. `weights`: trained values by initializer name; not to be written to.

        Returns, by name, for the weights to be shaped: bool (weight where true, zero elsewhere, while the weight goes on changing), or
        float (these values until the next call); both shaped like the weight. A name left out goes unshaped.
        """

    def state(self) -> Mapping[str, np.ndarray]:
        """All that it has chosen so far: `restore` of it makes another instance go on alike."""

    def restore(self, state: Mapping[str, np.ndarray]) -> None: ...


class Trainer(Protocol):
    """Retrains a model on the training data. `settings` are the options of passes/training.py."""

    def train(self, model: onnx.ModelProto, settings: Mapping[str, Any], shaping: Shaping | None = None) -> TrainResult: ...


class Runner(Protocol):
    """Runs models on the calibration data."""

    def compare(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> Mapping[str, float]:
        """How near the candidate's outputs are to the base's: `sqnr` in dB (inf when equal) and, for classifiers, `agreement` 0 to 1."""


class Rounded(Protocol):
    """What a rounder found for one layer. `before` and `after`: signal to noise of what the layer computes, in dB, with the nearest levels
    and with those found, on samples on which they were not chosen.
    """

    @property
    def levels(self) -> np.ndarray | None:
        """INT8 levels; None if the nearest are as good."""

    @property
    def before(self) -> float: ...

    @property
    def after(self) -> float: ...


class Rounder(Protocol):
    """Chooses, for each weight of a layer, between the two levels next to it."""

    def round(
        self,
        layer: onnx.ModelProto,
        weight: str,
        exact: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        step: np.ndarray,
        inputs: Mapping[str, np.ndarray],
        target: np.ndarray,
        steps: int,
    ) -> Rounded:
        """Levels with which `layer`, fed `inputs` and, as its input `weight`, levels * step, computes nearly `target`.

        `exact` is the weight before rounding, in steps, `low` and `high` are the INT8 levels to choose from. Takes `steps` of an optimizer.
        """


class Timer(Protocol):
    """Times models whose inputs have known sizes."""

    def latencies(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> tuple[float, float]:
        """Median milliseconds of (base, candidate), run in turn on the same random input."""


@dataclass(frozen=True)
class Context:
    """What the pipeline gives a pass. A service is None when the request has no data for it; the timer and the rounder need none."""

    calibrator: Calibrator | None = None
    trainer: Trainer | None = None
    runner: Runner | None = None
    timer: Timer | None = None
    rounder: Rounder | None = None
    placement: Placement = CANONICAL
    """What the targets of the request run in INT8; for a lowering, what its own target does."""
    progress: Callable[[str], None] = lambda message: None

    def need_calibrator(self) -> Calibrator:
        if self.calibrator is None:
            raise PassError("this pass needs calibration data; give --data or --calibration")
        return self.calibrator

    def need_trainer(self) -> Trainer:
        if self.trainer is None:
            raise PassError("this pass needs training data; give --data or --train")
        return self.trainer

    def need_runner(self) -> Runner:
        if self.runner is None:
            raise PassError("this pass needs calibration data to compare outputs on; give --data or --calibration")
        return self.runner

    def need_rounder(self) -> Rounder:
        if self.rounder is None:
            raise PassError("adaptive rounding needs PyTorch's rounder, and there is none; give rounding=nearest")
        return self.rounder

    def need_timer(self) -> Timer:
        if self.timer is None:
            raise PassError("this pass times layers, and there is nothing to time them with")
        return self.timer


class Pass:
    """Base of every pass. A fresh instance runs once, with the options of its own occurrence in the recipe."""

    name: ClassVar[str]
    lossless: bool = False
    """Whether the network computes the same afterwards; an instance may be less than its class, by its options."""
    tolerance: ClassVar[float] = 1e-5
    """For a lossless pass: largest difference of an output, relative to that output's largest magnitude."""
    needs: tuple[str, ...] = ()
    """Services without which the pass cannot run: "calibrator", "trainer", "runner", "rounder", and "gradients" of the
    built-in training, which a user's hook need not follow. What options do without, an instance may leave out."""
    after: ClassVar[Mapping[str, str]] = {}
    """Name of another pass -> reason: if the recipe has it, one occurrence of it must come before this."""
    before: ClassVar[Mapping[str, str]] = {}
    """Name of another pass -> reason: no occurrence of it may come before this."""

    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, config: Any = None) -> None:
        self.config: Any = self.Config() if config is None else config

    def apply(self, graph: Graph, context: Context) -> PassReport:
        raise NotImplementedError


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """A field of a Config: default, one line of help, unit, closed bounds for a number, allowed words for a string."""
    metadata = {"help": help, "unit": unit, "low": low, "high": high, "choices": tuple(choices)}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def configure(pass_class: type[Pass], options: Mapping[str, Any]) -> Pass:
    """An instance with validated options. Raises UsageError naming the pass, the option and what it takes."""
    return pass_class(make_config(pass_class.Config, options, "pass", pass_class.name, f"optimize passes {pass_class.name}"))


def make_config(config_class: type[Any], options: Mapping[str, Any], kind: str, name: str, see: str) -> Any:
    """A frozen Config from options as written. Raises UsageError naming the owner (`kind`, `name`), the option and what it takes."""
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    hints = get_type_hints(config_class)
    values = {}
    for key, value in options.items():
        if key not in fields:
            raise UsageError(f"{kind} '{name}' has no option '{key}'{nearest(key, fields)}; see: {see}")
        values[key] = _checked(f"{name}({key}=...)", fields[key], hints[key], value)
    return config_class(**values)


def type_name(hint: Any) -> str:
    """How the type of an option is shown: int, float, bool, str, `float or none`, `table of float`."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join("none" if part is type(None) else type_name(part) for part in get_args(hint))
    if get_origin(hint) is dict:
        return f"table of {type_name(get_args(hint)[1])}"
    return str(hint.__name__)


def _checked(where: str, spec: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    if get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            raise UsageError(f"{where} takes a table of name pattern -> value, not {value!r}")
        return {str(key): _checked(f"{where} for '{key}'", spec, get_args(hint)[1], item) for key, item in value.items()}
    allowed = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and type(None) in allowed:
        return None
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) not in allowed or (isinstance(value, float) and not math.isfinite(value)):
        raise UsageError(f"{where} takes {type_name(hint)}, not {value!r}")
    low, high, choices = spec.metadata.get("low"), spec.metadata.get("high"), spec.metadata.get("choices")
    if isinstance(value, int | float) and not isinstance(value, bool) and not _within(value, low, high):
        bounds = f"{low} to {high}" if None not in (low, high) else f"at least {low}" if high is None else f"at most {high}"
        raise UsageError(f"{where} must be {bounds}, not {value}")
    if isinstance(value, str) and choices and value not in choices:
        raise UsageError(f"{where} must be one of {', '.join(choices)}, not '{value}'")
    return value


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)
