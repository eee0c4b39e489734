"""What a search may choose: dimensions over a recipe's options, and the recipe that a choice makes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnx_lathe.optimizer.recipe import Call

if TYPE_CHECKING:
    import optuna

Value = float | int | str | bool | None
Settings = Mapping[str, Value]
"""Value by the name of its dimension."""

OFF = {("codebook", "layer_centroids"): ("layers", 0)}
"""(pass, option) -> the option, and its value, that leaves a layer as it is, where the option itself has none."""


@dataclass(frozen=True)
class Dimension:
    """One option of one step, of one layer if it is a table of layers. It has `levels` from the weakest to the
    strongest, or `choices` without an order, or a range.
    """

    name: str
    step: int
    option: tuple[str, ...]
    layer: str = ""
    levels: tuple[Value, ...] = ()
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def suggest(self, trial: "optuna.Trial") -> Value:
        if self.levels:
            return self.levels[trial.suggest_int(self.name, 0, len(self.levels) - 1)]
        if self.choices:
            value: Value = trial.suggest_categorical(self.name, list(self.choices))
            return value
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def parameter(self, value: Value) -> Value:
        """What Optuna stores for a value."""
        return self.levels.index(value) if self.levels else value

    def value(self, parameter: Any) -> Value:
        """The inverse of `parameter`."""
        return self.levels[int(parameter)] if self.levels else parameter

    @property
    def size(self) -> float:
        """How many values it has."""
        found = self.levels or self.choices
        if found:
            return len(found)
        return int(self.high) - int(self.low) + 1 if self.whole else math.inf

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values that show whether the option takes what the search may choose."""
        found = self.levels or self.choices
        if found:
            return found
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)


@dataclass(frozen=True)
class Space:
    """A recipe's steps and what may be chosen in them."""

    steps: tuple[Call, ...]
    dimensions: tuple[Dimension, ...]

    def suggest(self, trial: "optuna.Trial") -> dict[str, Value]:
        return {one.name: one.suggest(trial) for one in self.dimensions}

    def parameters(self, settings: Settings) -> dict[str, Value]:
        return {one.name: one.parameter(settings[one.name]) for one in self.dimensions}

    def settings(self, parameters: Mapping[str, Any]) -> dict[str, Value]:
        return {one.name: one.value(parameters[one.name]) for one in self.dimensions}

    def calls(self, settings: Settings) -> tuple[Call, ...]:
        """The steps with these settings; what a step's options say of other layers stays."""
        options = [dict(step.options) for step in self.steps]
        for one in self.dimensions:
            put(options[one.step], self.steps[one.step].name, one, settings[one.name])
        return tuple(Call(step.name, given) for step, given in zip(self.steps, options, strict=True))

    @property
    def size(self) -> float:
        """How many settings there are."""
        return math.prod(one.size for one in self.dimensions)

    @property
    def tuned(self) -> list[int]:
        """Steps that have something to choose."""
        return sorted({one.step for one in self.dimensions})

    @property
    def text(self) -> str:
        """What tells one space from another."""
        return repr((self.steps, self.dimensions))


def put(options: dict[str, Any], step: str, dimension: Dimension, value: Value) -> None:
    """Sets one value in the options of a step."""
    *tables, last = dimension.option
    if dimension.layer:
        if not value and (step, last) in OFF:
            last, value = OFF[step, last]
        options[last] = {**options.get(last, {}), dimension.layer: value}
        return
    for table in tables:
        options[table] = dict(options.get(table) or {})
        options = options[table]
    options[last] = value


def shown(settings: Settings, space: Space) -> dict[str, Any]:
    """Settings as a reader wants them: one table of layers for each option."""
    found: dict[str, Any] = {}
    for one in space.dimensions:
        if one.layer:
            found.setdefault(one.name.partition("[")[0], {})[one.layer] = settings[one.name]
        else:
            found[one.name] = settings[one.name]
    return found


def step_title(steps: Sequence[Call], index: int) -> str:
    """What a step is called in the name of a dimension: "prune", or "prune#2" if it is the second."""
    name = steps[index].name
    before = sum(step.name == name for step in steps[:index])
    return f"{name}#{before + 1}" if sum(step.name == name for step in steps) > 1 else name
