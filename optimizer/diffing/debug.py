"""Which layer of a model is to blame for an error, as the smallest part that shows it: the `debug` command."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import ModelError, UsageError
from onnx_lathe.optimizer.diffing.bundle import Written, check_folder, new_folder, write_part
from onnx_lathe.optimizer.diffing.diff import (
    PART_DB,
    Look,
    Model,
    check,
    check_count,
    inner_errors,
    output_errors,
)
from onnx_lathe.optimizer.diffing.failing import failing_part
from onnx_lathe.optimizer.diffing.forms import without_other_forms
from onnx_lathe.optimizer.diffing.local import LocalError, Parts, local_errors, typical
from onnx_lathe.optimizer.diffing.sides import Calls, Feeds, Side, open_calls, open_side
from onnx_lathe.optimizer.diffing.stored import stored_errors
from onnx_lathe.optimizer.diffing.structure import structure, with_bodies
from onnx_lathe.optimizer.recipe import Recipe
from onnx_lathe.optimizer.ui import Ui
from onnx_lathe.passes.extraction.submodel import Flow, Part, submodel
from onnx_lathe.runtime.running import ort

SAMPLES = 8
BELOW_TYPICAL_DB = 18.0
"""A layer whose own error is so far below the median layer's is to blame, where --at does not say it."""
BOUNDS_DB = (15.0, 60.0)
"""Between these the limit stays: below the first a layer is to blame however bad the others are, above the second
the error is one of rounding."""

_FORMS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "Identity")
"""Operators that say nothing of what a layer computes."""


@dataclass(frozen=True)
class Layer:
    """A part of the candidate, by the tensor that it ends at. `own`: closeness in dB when it is fed with the base's
    values, infinite if nothing differs (`verdict` equal); `accumulated`: of the same tensor in the whole candidate.
    """

    tensor: str
    base: str
    node: str
    operator: str
    verdict: str
    own: float
    accumulated: float


@dataclass(frozen=True)
class Culprit:
    """A layer to blame, or the node at which the candidate fails. `nodes`: operators and names of the part;
    `stored`: its stored tensors that are not the base's, each with how far; `reason`: what is wrong in words;
    `folder` holds the part; `reproduced`: closeness in dB of the written file's own run, `figure` the same in
    words, or `refusal`.
    """

    node: str
    operator: str
    tensor: str
    base: str
    reason: str
    own: float | None
    accumulated: float | None
    nodes: Sequence[str]
    stored: Sequence[str]
    folder: str = ""
    reproduced: float | None = None
    refusal: str = ""
    figure: str = ""


@dataclass(frozen=True)
class Debugged:
    """What `optimize debug` found. A layer whose `own` is below `limit` dB is to blame; `typical` is the median.
    `failing` is how many there are, of which `culprits` are the worst.
    """

    base: str
    candidate: str
    data: str
    limit: float
    typical: float
    failing: int
    culprits: list[Culprit]
    layers: list[Layer]
    worst_output: float | None
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def debug_models(
    base: Model,
    candidate: Model,
    recipe: Recipe,
    ui: Ui,
    out: Path,
    *,
    top: int = 1,
    at: float | None = None,
    samples: int = SAMPLES,
) -> Debugged:
    """Feeds each layer of the candidate with what the base computed before it, and writes the worst layers to
    `out`, which is not there yet or empty; several go to folders 1, 2, ... in it. Nothing is written where no layer
    is to blame.

    Raises UsageError for a file that holds no ONNX graph, and as `diff_models` does.
    """
    check(PART_DB if at is None else at, samples)
    check_count("--top", top)
    check_folder(out)
    sides = open_side(base, "base"), open_side(candidate, "candidate", refusable=True)
    for side in sides:
        if side.model is None:
            raise UsageError(
                f"{side.title}: holds no ONNX graph to look for a layer in; give the ONNX file it was made of"
            )
    calls = open_calls(recipe, *sides, samples)
    for note in (*(note for side in sides for note in side.notes), *calls.notes):
        ui.note(note)
    if refused := _refused(sides[1], calls):
        return _find_failure(*sides, calls, ui, out, *refused)
    return _Debugging(sides[0], sides[1], calls, ui, out, top, at).found()


def _refused(candidate: Side, calls: Calls) -> tuple[str, Feeds] | None:
    """Why ONNX Runtime does not load or run the candidate, and the call on which it does not."""
    if candidate.session is None:
        return candidate.refusal, calls.first()
    names = {spec.name for spec in candidate.inputs}
    for feeds in calls:
        try:
            ort.run(candidate.session, {name: value for name, value in feeds.items() if name in names})
        except ModelError as error:
            return str(error), feeds
    return None


def _find_failure(
    base: Side, candidate: Side, calls: Calls, ui: Ui, out: Path, refusal: str, feeds: Feeds
) -> Debugged:
    if candidate.model is None:
        raise UsageError(refusal)
    notes = [f"{candidate.title} does not run: {refusal}"]
    failure = failing_part(candidate.model, feeds, ui)
    result = Debugged(
        base.title, candidate.title, calls.description, -math.inf, math.inf, 0, [], [], None, notes
    )
    if failure is None:
        notes.append(
            "every node loads and runs by itself: sizes that the model declares of its inputs or outputs are wrong"
        )
        return result
    node = failure.node
    name, tensor = node.name or node.output[0], next(filter(None, node.output), "")
    what = (
        f"ONNX Runtime {ort.VERSION} refuses {candidate.title} at {node.op_type} '{name}':\n\n    {failure.reason}\n\n"
        "The inputs are what the nodes before it compute."
    )
    with new_folder(out) as folder:
        written = write_part(folder, failure.part, failure.inputs, {}, what)
    nodes = [_named(one) for one in failure.part.model.graph.node]
    culprit = Culprit(
        name, node.op_type, tensor, "", failure.reason, None, None, nodes, [], str(out), None, written.refusal
    )
    return replace(result, failing=1, culprits=[culprit])


@dataclass
class _Debugging:
    base: Side
    candidate: Side
    calls: Calls
    ui: Ui
    out: Path
    top: int
    at: float | None

    def found(self) -> Debugged:
        if self.base.model is None or self.candidate.model is None:
            raise UsageError("only graphs have layers")
        notes = list[str]()
        outputs, _ = output_errors(self.base, self.candidate, self.calls, self.ui)
        worst = min((difference.closeness for _, _, difference in outputs), default=None)
        self.look = Look(self.base.model, self.candidate.model)
        parts = Parts(self.look, inner_errors(self.look, self.calls, self.ui, notes))
        errors = local_errors(parts, self.calls, self.ui)
        looked, forms = without_other_forms(parts, errors, self._limit(errors), self.calls, self.ui)
        if self._limit(looked) > self._limit(errors):  # what was cleared had drawn the median down
            looked, forms = without_other_forms(parts, errors, self._limit(looked), self.calls, self.ui)
        errors, usual, limit = looked, typical(looked), self._limit(looked)
        if forms:
            names = ", ".join(f"'{name}'" for name in forms[:3])
            notes.append(
                f"{len(forms)} tensors are in another form that the layers after them make good, such as {names}"
            )
        guilty = _one_each(
            sorted((one for one in errors if one.closeness < limit), key=lambda one: one.closeness)
        )
        if bodies := list(with_bodies(self.candidate.model)):
            notes.append(f"not looked into: the bodies of {', '.join(bodies[:5])}; each counts as one layer")
        for note in notes:
            self.ui.note(note)
        return Debugged(
            self.base.title,
            self.candidate.title,
            self.calls.description,
            limit,
            usual,
            len(guilty),
            self._written(guilty[: self.top]),
            [_layer(one) for one in errors],
            worst,
            notes,
        )

    def _limit(self, errors: Sequence[LocalError]) -> float:
        if self.at is not None:
            return self.at
        return min(max(typical(errors) - BELOW_TYPICAL_DB, BOUNDS_DB[0]), BOUNDS_DB[1])

    def _written(self, guilty: Sequence[LocalError]) -> list[Culprit]:
        if not guilty:
            return []
        changed = self._changed()
        found = []
        with new_folder(self.out) as folder:
            for number, one in enumerate(guilty, 1):
                place = Path(str(number)) if self.top > 1 else Path()
                (folder / place).mkdir(exist_ok=True)
                culprit = self._culprit(one.parts, one, changed)
                written = self._write(one.parts, one, culprit, folder / place)
                found.append(
                    replace(
                        culprit,
                        folder=str(self.out / place),
                        reproduced=written.closeness,
                        refusal=written.refusal,
                        figure=written.figure,
                    )
                )
        return found

    def _changed(self) -> dict[str, str]:
        """Stored or computed constants of the candidate that are not the base's -> how far they are from it."""
        base, candidate = self.look.base, self.look.candidate
        compared = structure(base, candidate)
        found = {
            one.name: f"{one.differing:,} of {one.values:,} values differ"
            for one in compared.initializers
            if one.differing and not one.place
        }
        for row in stored_errors(base, candidate, self.look.other, compared):
            figure = "" if row.sqnr is None else f", {row.sqnr:.1f} dB"
            found[row.name] = f"{row.differing:,} of {row.values:,} values differ{figure}"
        return found

    def _culprit(self, parts: Parts, one: LocalError, changed: dict[str, str]) -> Culprit:
        places = parts.nodes(one.pair.name)
        read = dict.fromkeys(name for place in places for name in self.look.other.reads[place])
        stored = [f"'{name}': {changed[name]}" for name in read if name in changed]
        nodes = [_named(self.look.other.nodes[place]) for place in places]
        pair = one.pair
        return Culprit(
            pair.node,
            pair.operator,
            pair.name,
            pair.base,
            "; ".join(self._reasons(parts, one, places)),
            one.closeness,
            one.accumulated.closeness,
            nodes,
            stored,
        )

    def _reasons(self, parts: Parts, one: LocalError, places: Sequence[int]) -> Iterator[str]:
        own = one.own
        if one.refusal:
            yield f"it does not run on what the base computes before it: {one.refusal}"
            return
        if own.shapes:
            before, after = (list(shape) for shape in own.shapes)
            yield f"it makes {after} where the base makes {before}"
        if own.not_finite:
            yield f"{own.not_finite:,} of {own.values:,} values are NaN or infinite, which the base's are not"
        elif own.sqnr is not None:
            yield f"{own.sqnr:.1f} dB by itself, largest error {own.max_abs:.4g}"
        elif own.values:
            yield f"{own.differing:,} of {own.values:,} values are others"
        if others := self._otherwise(parts, one, places):
            yield f"between the same tensors A has {', '.join(others[:6])}"
        channel = own.worst_channel
        if channel is not None and channel[1] > 0.5:
            yield f"{channel[1]:.0%} of the error is in channel {channel[0]}"
        for place in places:
            for name in self.look.other.nodes[place].output:
                if name in parts.found and (shapes := parts.found[name][1].shapes) and name != one.pair.name:
                    yield f"inside it '{name}' has shape {list(shapes[1])}, {list(shapes[0])} in the base"

    def _otherwise(self, parts: Parts, one: LocalError, places: Sequence[int]) -> list[str]:
        """A's nodes between the tensors that the part lies between, if their operators are others."""
        fed = {parts.cuts[name].base if name in parts.cuts else name for name in parts.needs(one.pair.name)}
        base = self.look.flow.needed([one.pair.base], fed)[0]
        found, other = _computing(self.look.flow, base), _computing(self.look.other, places)
        same = Counter(node.op_type for node in found) == Counter(node.op_type for node in other)
        return [] if same else [_named(node) for node in found]

    def _write(self, parts: Parts, one: LocalError, culprit: Culprit, folder: Path) -> Written:
        """The call on which the part is worst."""
        feeds = next(feeds for number, feeds in enumerate(self.calls) if number == one.worst)
        part = parts.part([one.pair.name])
        values = {**feeds, **ort.run(parts.base_session(part), feeds)}
        inputs = parts.fed(part, feeds, values)
        wanted = values[one.pair.base]
        kind = parts.types[one.pair.name]
        shapes = {name: value.shape for name, value in inputs.items()} | {one.pair.name: one.own.shape}
        types = {name: value.dtype for name, value in inputs.items()} | {one.pair.name: kind}
        if one.refusal:
            shapes.pop(one.pair.name)
        part = _typed(self.look, part, types, shapes)
        name = next(iter(part.outputs))
        return write_part(folder, part, inputs, {name: wanted.astype(kind)}, _what(self.candidate, culprit))


def _one_each(guilty: Sequence[LocalError]) -> list[LocalError]:
    """The first of each node: a node of several results is one layer."""
    return list({one.pair.place: one for one in reversed(guilty)}.values())[::-1]


def _typed(look: Look, part: Part, types: dict[str, np.dtype], shapes: dict[str, Sequence[int]]) -> Part:
    """The same part with all types and shapes of this call, so that any checker takes it."""
    whole = list(part.outputs.values())
    given = {name: kind for name, kind in types.items() if name in part.inputs}
    made = submodel(look.candidate, look.other, whole, given, shapes)
    for value in made.model.graph.output:
        name = made.outputs[value.name]
        value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(types[name])
        if name in shapes:
            del value.type.tensor_type.shape.dim[:]
            for size in shapes[name]:
                value.type.tensor_type.shape.dim.add(dim_value=size)
    return made


def _what(candidate: Side, culprit: Culprit) -> str:
    lines = [
        f"{culprit.operator} '{culprit.node}' of {candidate.title}: {culprit.reason}.",
        f"It is fed with what the base computes before it; expected is the base's '{culprit.base}'.",
        *(f"Not the base's: {one}." for one in culprit.stored),
    ]
    return "\n".join(lines)


def _computing(flow: Flow, places: Sequence[int]) -> list[onnx.NodeProto]:
    """The nodes that compute on activations, quantizers left out."""
    nodes = [flow.nodes[place] for place in places]
    return [node for node in nodes if node.op_type not in _FORMS and not flow.varying.isdisjoint(node.output)]


def _named(node: Any) -> str:
    return f"{node.op_type} '{node.name or node.output[0]}'"


def _layer(one: LocalError) -> Layer:
    pair = one.pair
    verdict = "refused" if one.refusal else one.own.verdict
    return Layer(
        pair.name, pair.base, pair.node, pair.operator, verdict, one.closeness, one.accumulated.closeness
    )
