"""`optimize sensitivity`: opens model and data, and measures a profile."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.optimizer import opening
from onnx_lathe.optimizer.recipe import Call, Recipe
from onnx_lathe.optimizer.search.data import Division, to_look_at
from onnx_lathe.optimizer.search.judging import Judge
from onnx_lathe.optimizer.search.sensitivity import Cache, Profile, Single, measure_alone
from onnx_lathe.optimizer.search.space import Dimension, Value
from onnx_lathe.optimizer.search.strengths import STRENGTHS, layers_of, per_layer
from onnx_lathe.optimizer.services import Services, check_needs
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.optimizer.ui import Ui
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.layers import Weight
from onnx_lathe.passes.loading.preparing import Wishes
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.content import model_fingerprint

SUBSET = 500
FEWER = {
    "prune": (0.3, 0.5, 0.7, 0.8, 0.9),
    "prune_channels": (0.125, 0.25, 0.5),
    "codebook": (6, 5, 4, 3, 2),
}
"""Strengths that a profile shows where none are named."""


@dataclass(frozen=True)
class Asked:
    """What `optimize sensitivity` is asked for. `strengths`: instead of the usual ones."""

    model: Path
    step: Call
    recipe: Recipe
    strengths: Sequence[Value] = ()
    subset: int = SUBSET
    cache: Path | None = None
    name: str = ""


def run(asked: Asked, ui: Ui) -> Profile:
    """The profile; an interruption (Ctrl-C) ends it early, which `complete` and a note say.

    Raises LatheError for a pass without strengths per layer, for a strength that it does not take, and as opening
    model and data does.
    """
    step = asked.step
    if step.name not in STRENGTHS:
        advice = nearest(step.name, STRENGTHS) or f"; there are {', '.join(STRENGTHS)}"
        raise UsageError(f"--pass {step.name}: has no strength per layer{advice}")
    if asked.subset < 1:
        raise UsageError(f"--subset {asked.subset}: give at least 1 sample")
    opened = opening.open_file(asked.model, Wishes(fix_inputs=asked.recipe.fix_inputs)).model
    model = _folded(opened)
    division = to_look_at(asked.recipe, opened, asked.subset)
    check_needs([_instance(step)], division.roles, asked.recipe)
    services = Services(asked.recipe, division.roles, None, None, ui.status)
    found = layers_of(model, step.name, step.options, services.context("layers"))
    dimensions = _dimensions(asked, found)
    if not dimensions:
        raise UsageError(
            f"{asked.name or asked.model}: {step.name} changes no layer of it, so there is nothing to measure"
        )
    ui.note(division.note)
    return _measured(asked, model, dimensions, found, division, services, ui)


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """As recipes begin; the outputs are the same."""
    return apply_pass(configure(find("fold"), {}), model, Context())[0]


def _measured(
    asked: Asked,
    model: onnx.ModelProto,
    dimensions: Sequence[Dimension],
    found: Sequence[Weight],
    division: Division,
    services: Services,
    ui: Ui,
) -> Profile:
    ort.survive(model)
    judge = Judge(model, division.judging, progress=ui.status)
    profile = Profile(asked.name or str(asked.model), str(asked.step), judge.base, division.note)
    single = Single(model, asked.step, dimensions, lambda: services.context("sensitivity"))
    content = [model_fingerprint(model), division.judging.fingerprint]
    if division.roles.calibration is not None and _instance(asked.step).needs:
        content.append(division.roles.calibration.fingerprint)
    cache = Cache(asked.cache, *content)
    nodes = {weight.name: str(weight.nodes[0].name) for weight in found}
    ui.start(100)
    try:
        measure_alone(single, judge, cache, profile, nodes, ui.share)
    except KeyboardInterrupt:
        profile.complete = False
        done = len(profile.curves())
        profile.notes.append(
            f"interrupted: {done} of {len(dimensions)} layers are begun; "
            + ("the same command goes on" if asked.cache else "a --cache lets the same command go on")
        )
    finally:
        ui.stop()
    return profile


def _dimensions(asked: Asked, found: Sequence[Weight]) -> list[Dimension]:
    step = asked.step
    levels = tuple(asked.strengths) or FEWER.get(step.name, ())
    off = False if step.name in ("int8", "int4") else 0
    for value in levels:  # refused here, with the option's own bounds
        configure(find(step.name), {**step.options, "layers": {"*": value}})
    own = (off, *levels) if levels else ()
    return [
        replace(one, levels=tuple(dict.fromkeys(one.levels)))
        for one in per_layer([step], 0, found, False, own)
    ]


def _instance(step: Call) -> Pass:
    return configure(find(step.name), step.options)


def parse_strengths(text: str | None) -> tuple[Value, ...]:
    """Of "0.5,0.7": raises UsageError for what is no list of numbers."""
    if text is None:
        return ()
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--strengths '{text}': give numbers with commas between, such as 0.5,0.7,0.9"
        ) from None
    return tuple(int(value) if value.is_integer() and value >= 1 else value for value in values)
