"""Time per step against the number of machines, for each strategy: strong scaling, of one batch however many share it,
and weak scaling, of as many samples for each machine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.simulating.pipelines import pipeline_step
from onnx_lathe.optimizer.simulating.step import Step, step_of
from onnx_lathe.runtime.training.parallel.choice import choose, uniform
from onnx_lathe.runtime.training.parallel.costs import Group, Machine
from onnx_lathe.runtime.training.parallel.geometry import Layer
from onnx_lathe.runtime.training.parallel.grid import SPLITS, Grid, Parallel, Pipeline, parse_parallel

USUAL = ("data", "height", "filter", "channel")
"""Strategies that are compared unasked."""
LARGEST_GROUP = 64
"""Of workers that share a layer, where the best group is looked for."""
WORTH = 0.5
"""Efficiency below which more machines lose more than they give."""


@dataclass(frozen=True)
class Point:
    """A strategy on so many machines. `how`: the grid that was taken; `fits`: in a machine's memory."""

    machines: int
    how: str
    batch: int
    step: Step
    fits: bool

    @property
    def samples_per_second(self) -> float:
        return self.batch / self.step.seconds

    def as_json(self) -> dict[str, Any]:
        found = {key: value for key, value in vars(self).items() if key != "step"}
        return {**found, **vars(self.step), "samples_per_second": self.samples_per_second}


@dataclass(frozen=True)
class Curve:
    """`alone`: seconds of one machine for the batch that a machine begins with. `refused`: why there is no point, by
    number of machines.
    """

    strategy: str
    points: Sequence[Point]
    alone: float
    weak: bool
    refused: dict[int, str]

    def efficiency(self, point: Point) -> float:
        """Against as many machines that need not wait for each other."""
        return self.alone / (point.step.seconds * (1 if self.weak else point.machines))

    @property
    def fastest(self) -> Point | None:
        """Where a step is shortest: more machines make it no shorter."""
        fitting = [point for point in self.points if point.fits]
        return min(fitting, key=lambda point: point.step.seconds, default=None)

    @property
    def worth(self) -> Point | None:
        """The most machines of which at least WORTH is left."""
        good = [point for point in self.points if point.fits and self.efficiency(point) >= WORTH]
        return max(good, key=lambda point: point.machines, default=None)

    def as_json(self) -> dict[str, Any]:
        points = [{**point.as_json(), "efficiency": self.efficiency(point)} for point in self.points]
        ends = {"fastest": self.fastest, "worth": self.worth}
        stops = {name: None if point is None else point.machines for name, point in ends.items()}
        return {
            "strategy": self.strategy,
            "weak": self.weak,
            "points": points,
            "refused": self.refused,
            **stops,
        }


def parse_strategies(texts: Sequence[str]) -> list[str]:
    """Each is a strategy by its name, of the best group, or a grid as `--parallel` of a training takes it. Raises UsageError."""
    found = [text.strip() for text in texts] or list(USUAL)
    for text in found:
        if text in ("data", *SPLITS):
            continue
        asked = parse_parallel(text)
        if asked.serves:
            raise UsageError(
                f"--parallel '{text}': a server has no step that all take; --stragglers shows updates of such machines too"
            )
        if "data" in dict(asked.words) and len(asked.words) > 1:
            raise UsageError(f"--parallel '{text}': leave data= out: it is the rest of the machines")
    return list(dict.fromkeys(found))


def curve(
    layers: Sequence[Layer],
    strategy: str,
    machine: Machine,
    counts: Sequence[int],
    batch: int,
    weak: bool,
) -> Curve:
    """`batch`: samples of a step, of each machine if `weak`."""
    points, refused = [], {}
    for machines in counts:
        total = batch * machines if weak else batch
        tried = list(_tried(layers, strategy, machine, machines, total))
        found = [one for one in tried if isinstance(one, Point)]
        if found:
            points.append(min(found, key=lambda point: (not point.fits, point.step.seconds)))
        elif tried:
            refused[machines] = str(tried[0])
    alone = step_of(uniform(layers, "whole", Group(1, batch)), machine).seconds
    return Curve(strategy, points, alone, weak, refused)


def _tried(
    layers: Sequence[Layer], strategy: str, machine: Machine, machines: int, batch: int
) -> Iterator[Point | str]:
    """A point for each grid that the strategy may be on so many machines, or why it cannot be."""
    for how, layout in _layouts(strategy, machines):
        if isinstance(layout, str):
            yield layout
            continue
        try:
            step = _step(layers, layout, machine, batch)
        except UsageError as error:
            yield str(error)
            continue
        yield Point(machines, how, batch, step, step.memory <= machine.memory)


def _layouts(strategy: str, machines: int) -> Iterator[tuple[str, Grid | Pipeline | str]]:
    if strategy not in SPLITS:
        yield (
            strategy,
            _over(parse_parallel(f"data={machines}" if strategy == "data" else strategy), machines),
        )
        return
    if machines == 1:
        yield strategy, Grid(1)
    for power in range(1, LARGEST_GROUP.bit_length()):
        if machines % (1 << power) == 0:
            yield f"{strategy}={1 << power}", Grid(machines >> power, strategy, 1 << power)


def _over(asked: Parallel, machines: int) -> Grid | Pipeline | str:
    if "data" in dict(asked.words) and dict(asked.words)["data"] != str(machines):
        return f"it is {asked.text}"
    try:
        layout = asked.over(machines)
    except UsageError:
        return f"{machines} is no multiple of {asked.text}"
    assert isinstance(layout, Grid | Pipeline)
    return layout


def _step(layers: Sequence[Layer], layout: Grid | Pipeline, machine: Machine, batch: int) -> Step:
    if isinstance(layout, Pipeline):
        return pipeline_step(layers, layout, batch, machine)
    if not layout.split:
        return step_of(uniform(layers, "data", Group(layout.data, batch)), machine)
    group = Group(layout.parts, batch, layout.data)
    if layout.split == "auto":
        return step_of(choose(layers, group, machine), machine)
    placed = uniform(layers, layout.split, group)
    if all(one.way == "whole" for one in placed):
        raise UsageError(f"no layer can be cut by {layout.split} in {layout.parts}")
    return step_of(placed, machine)
