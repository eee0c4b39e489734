"""What a search is asked for, and the bench and the study that it makes: the same in every process that shares it."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer import build, opening
from onnx_lathe.optimizer.gate import Gate
from onnx_lathe.optimizer.judging.asking import gates_of
from onnx_lathe.optimizer.judging.metrics import METRICS, known_metric, of_data
from onnx_lathe.optimizer.recipe import Recipe
from onnx_lathe.optimizer.search import bench as benches
from onnx_lathe.optimizer.search.bench import Bench
from onnx_lathe.optimizer.search.clock import Clock
from onnx_lathe.optimizer.search.costs import OBJECTIVES
from onnx_lathe.optimizer.search.data import MOST, Division, confirmed_apart, divide
from onnx_lathe.optimizer.search.goal import Goal
from onnx_lathe.optimizer.search.grammar import parse_space
from onnx_lathe.optimizer.search.layerwise import Composer
from onnx_lathe.optimizer.search.space import Space
from onnx_lathe.optimizer.search.strengths import STRENGTHS, default_space, layers_of
from onnx_lathe.optimizer.services import Services, check_needs, check_training, warnings
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.layers import Weight
from onnx_lathe.passes.loading.preparing import Wishes
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.running import ort
from onnx_lathe.version import VERSION

SUBSET = 1000
BUDGET_S = 600.0
OTHERS = ("size", "packed", "macs", "latency", "sparsity", "weights", "parameters")
"""Metrics of gates that are no accuracy, and that a trial can count."""


@dataclass(frozen=True)
class SearchRequest:
    """`search`: entries of --search; without any, every layer's strengths. `storage`: of the study, or the journal
    in `out`. `subset`: samples of the second look. `margin`: standard errors to spare.
    """

    model: Path
    recipe: Recipe
    out: Path
    minimize: str = "packed"
    search: Sequence[str] = ()
    budget_s: float = BUDGET_S
    storage: str = ""
    jobs: int = 1
    subset: int = SUBSET
    validation: int = MOST
    margin: float = 1.0
    resume: bool = False
    force: bool = False
    threads: int = 0
    trials: int = 0
    """At most so many, of all processes; 0 is no limit."""
    latency: bool = True
    """Whether the winner is timed."""
    name: str = ""
    command: Sequence[str] = ()
    notes: list[str] = field(default_factory=list, compare=False)

    def check(self) -> tuple[Gate, ...]:
        """The gates. Raises UsageError for what cannot be searched."""
        gates = gates_of(self.recipe)
        if not gates:
            raise UsageError(
                "a search needs a gate, such as --gate 'top1 drop <= 0.5%'; the smallest of all computes nothing"
            )
        if self.minimize not in OBJECTIVES:
            raise UsageError(f"--minimize {self.minimize}: give one of {', '.join(OBJECTIVES)}")
        if not self.recipe.steps:
            raise UsageError("nothing to search; name passes with --passes, or a --recipe")
        for name, value, least in (
            ("jobs", self.jobs, 1), ("subset", self.subset, 1), ("validation", self.validation, 1), ("trials", self.trials, 0),
        ):  # fmt: skip
            if value < least:
                raise UsageError(f"--{name} {value}: give {least} or more")
        if self.margin < 0:
            raise UsageError(f"--margin {self.margin:g}: give 0 or more standard errors")
        for gate in gates:
            if gate.metric not in OTHERS and (
                known_metric(gate.metric).of_labels or not of_data(gate.metric)
            ):
                able = ", ".join(name for name, one in METRICS.items() if of_data(name) and not one.of_labels)
                raise UsageError(
                    f"gate '{gate}': a trial does not measure {gate.metric}; search under gates on {able} or sizes, and judge "
                    f"{gate.metric} of the winner by 'optimize gate'"
                )
        if not any(of_data(gate.metric) for gate in gates):
            raise UsageError(
                "no gate is about accuracy, so that nothing keeps the model right; add one, such as 'top1 drop <= 0.5%' or 'sqnr >= 20'"
            )
        return gates


@dataclass
class Opened:
    """A search that can begin. `identity`: what its study is about."""

    request: SearchRequest
    bench: Bench
    division: Division
    original: onnx.ModelProto
    identity: str

    @property
    def study_name(self) -> str:
        return f"lathe-{self.identity}"


def open_search(request: SearchRequest, clock: Clock, status: Callable[[str], None], threads: int) -> Opened:
    """Opens model, data and space, and everything that a trial needs. Raises LatheError as `optimize` does, before
    anything long runs.
    """
    gates = request.check()
    recipe = request.recipe
    build.placement(build.open_targets(recipe.targets))  # refuses what cannot be built in the end
    recipe.passes()  # refuses what is no recipe
    opened = opening.open_file(request.model, Wishes(fix_inputs=recipe.fix_inputs))
    original = opened.model
    trains = any("trainer" in instance.needs for instance in recipe.passes())
    goal = Goal(request.minimize, gates, request.margin)
    division = divide(recipe, original, trains, request.validation)
    division = confirmed_apart(division, recipe.seed, goal.confirms)
    heard = clock.watched(status)
    passes = recipe.passes()
    check_needs(passes, division.roles, recipe)
    check_training(passes, division.roles, recipe, original)
    request.notes.extend(warnings(passes, division.roles))
    services = Services(recipe, division.roles, original if trains else None, None, heard)
    first = _first_searched(request)
    base = benches.prefix_model(original, recipe.steps[:first], services, heard)
    goal.confirmers = 0 if division.confirming is None else division.confirming.count or 0
    space = _space(request, base, first, services.context("layers"))
    ort.survive(original)
    judges = benches.make_judges(original, division, request.subset, threads, heard)
    _check_gates(gates, judges[-1].base)
    costs = benches.open_costs(request.model, original, judges[0], threads, opened.fixed)
    costs.base(request.minimize)
    bench = Bench(space, goal, base, first, judges, costs, services, clock, status)
    if benches.can_compose(goal):
        bench.composer = Composer.of(
            base, benches.local_part(space, first), context=lambda: services.context("layers")
        )
    return Opened(request, bench, division, original, _identity(request, space, division))


def _first_searched(request: SearchRequest) -> int:
    """The first step that anything is chosen in; steps before it run once."""
    steps = request.recipe.steps
    named = [
        text.split(".")[0].split("#")[0].strip()
        for whole in request.search
        for text in whole.split(",")
        if "." in text
    ]
    wanted = set(named) or set(STRENGTHS)
    places = [index for index, step in enumerate(steps) if step.name in wanted]
    if not places and not request.search:
        raise UsageError(
            f"no pass of the recipe has a strength per layer ({', '.join(STRENGTHS)}); add one, or name options with --search"
        )
    return places[0] if places else 0


def _space(request: SearchRequest, base: onnx.ModelProto, first: int, context: Context) -> Space:
    steps = request.recipe.steps
    packed = request.minimize == "packed"
    known: dict[int, Sequence[Weight]] = {}

    def weights_of(index: int) -> Sequence[Weight]:
        if index not in known:
            step = steps[index]
            known[index] = layers_of(base, step.name, step.options, context) if step.name in STRENGTHS else []
        return known[index]

    if request.search:
        dimensions = parse_space(request.search, steps, weights_of)
    else:
        dimensions = default_space(steps, base, packed, context)
    if not dimensions:
        raise UsageError(
            "there is nothing to choose: the passes change no layer of this model, or their options settle all"
        )
    return Space(tuple(steps), dimensions)


def _check_gates(gates: Sequence[Gate], base: dict[str, float]) -> None:
    for gate in gates:
        known = set(base) | set(OTHERS) | ({"agreement", "sqnr"} & set(base))
        if of_data(gate.metric) and (reason := gate.missing(known)):
            raise UsageError(
                f"{reason}; settings are chosen on training or calibration data, which must have it too"
            )


def _identity(request: SearchRequest, space: Space, division: Division) -> str:
    parts: list[Any] = [
        VERSION, model_file.inspect_file(request.model).sha256, space.text, request.recipe.gates, request.minimize,
        division.judging.fingerprint, request.subset, request.margin, request.recipe.seed, request.recipe.retrain,
        sorted(request.recipe.fix_inputs.items()),
        [source.fingerprint for source in (division.roles.train, division.roles.calibration) if source is not None],
    ]  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
