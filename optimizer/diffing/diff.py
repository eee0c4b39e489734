"""Two models side by side: the `diff` command."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx

from onnx_lathe.errors import ModelError, UsageError
from onnx_lathe.optimizer.diffing.groups import UNKNOWN_BYTES, grouped, one_by_one, tensor_bytes
from onnx_lathe.optimizer.diffing.pairing import TO_INTEGERS, Pair, pairs
from onnx_lathe.optimizer.diffing.parting import parting
from onnx_lathe.optimizer.diffing.sides import Calls, Feeds, Side, open_calls, open_side
from onnx_lathe.optimizer.diffing.stored import StoredError, stored_errors
from onnx_lathe.optimizer.diffing.structure import Structure, structure
from onnx_lathe.optimizer.recipe import Recipe
from onnx_lathe.optimizer.ui import Ui
from onnx_lathe.passes.extraction.submodel import Flow, flow
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.differences import Difference
from onnx_lathe.runtime.running.taps import tapped

SAMPLES = 32
PART_DB = 20.0
"""Models part at the first tensor below: the noise is over a tenth of the signal then."""
FUSED_DB = 3.0
"""By which an output of a plain session may be worse than the same output of one that shows its tensors, unsaid."""
ONLY_OUTPUTS = "holds no ONNX graph, so outputs alone are compared"
_NO_GRAPH = Flow((), (), {}, frozenset(), frozenset())
Model = onnx.ModelProto | str | Path


@dataclass(frozen=True)
class TensorError:
    """One tensor of the candidate against the base's. `verdict`: equal, differs, "not finite" or "shape". `sqnr` in
    dB, None where there is none (integers, another shape); `closeness` orders all kinds, minus infinity for NaN or
    another shape. Both are infinite for equal values. Of integers `differing` says it. `histogram`: values by error,
    in the bins of runtime/running/differences.py.
    `output`: of the graph, as a plain session gives it; the others are as their nodes compute them.
    """

    name: str
    base: str
    how: str
    node: str
    operator: str
    output: bool
    shape: Sequence[int]
    base_shape: Sequence[int]
    values: int
    differing: int
    not_finite: int
    verdict: str
    sqnr: float | None
    closeness: float
    max_abs: float
    max_relative: float
    histogram: Sequence[int]


@dataclass(frozen=True)
class Diff:
    """What `optimize diff` found. `tensors` are in the candidate's order of execution; `parts_at` is the name of the
    first below `at` dB whose error reaches an output that is below it, None if there is none. `structure` is None where a file holds no graph.
    """

    base: str
    candidate: str
    data: str
    calls: int
    at: float
    parts_at: str | None
    recovered: list[str]
    """Tensors below `at` whose error reaches no output that is."""
    tensors: list[TensorError]
    structure: Structure | None
    stored: list[StoredError]
    unpaired: int
    """Tensors of the candidate that depend on the input and have no counterpart, quantized ones left out."""
    notes: list[str] = field(default_factory=list)

    def worst_first(self) -> list[TensorError]:
        return sorted(self.tensors, key=lambda one: one.closeness)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def diff_models(
    base: Model, candidate: Model, recipe: Recipe, ui: Ui, *, at: float = PART_DB, samples: int = SAMPLES
) -> Diff:
    """Runs both models on the same samples of the data, or on random values without, and compares every output and
    every tensor that has a counterpart, group by group.

    Raises ModelError, DataError, TargetError and UsageError as opening and running do.
    """
    check(at, samples)
    sides = open_side(base, "base"), open_side(candidate, "candidate")
    calls = open_calls(recipe, *sides, samples)
    notes = [*(note for side in sides for note in side.notes), *calls.notes]
    outputs, count = output_errors(*sides, calls, ui)
    notes += _lacking(*sides)
    graph, stored, unpaired, compared = _NO_GRAPH, list[StoredError](), 0, None
    if sides[0].model is None or sides[1].model is None:
        notes += [f"{side.title}: {ONLY_OUTPUTS}" for side in sides if side.model is None]
        found = [_row(_alone(name, base), difference) for name, base, difference in outputs]
    else:
        look = Look(sides[0].model, sides[1].model)
        graph = look.other
        compared = structure(sides[0].model, sides[1].model)
        if compared.bodies:
            named = _listed(compared.bodies)
            notes.append(f"not looked into: the bodies of {named}; their outputs are compared")
        stored = stored_errors(sides[0].model, sides[1].model, look.other, compared)
        notes += _renumbered(stored)
        inner = inner_errors(look, calls, ui, notes)
        notes += _fused(inner, outputs)
        unpaired = look.unpaired(pair.name for pair, _ in inner)
        found = _in_order(look, inner, outputs)
    for note in notes:
        ui.note(note)
    near = {one.name: one.closeness for one in found}
    parted, recovered = parting(near, [one.name for one in found if one.output], graph, at)
    titles = sides[0].title, sides[1].title
    return Diff(
        *titles, calls.description, count, at, parted, recovered, found, compared, stored, unpaired, notes
    )


def _renumbered(stored: Sequence[StoredError]) -> list[str]:
    """What is no error of a weight: another order of its channels."""
    names = [one.name for one in stored if one.reordered is not None]
    if not names:
        return []
    return [
        f"channels are in another order in {_listed(names)}, and near A's in that order: tensors inside that have these channels "
        "are compared as they stand, and differ by that alone; outputs tell"
    ]


def _in_order(
    look: "Look", inner: Sequence[tuple[Pair, Difference]], outputs: Sequence[tuple[str, str, Difference]]
) -> list[TensorError]:
    """Rows of all tensors; outputs as a plain session gives them."""
    rows = [_row(pair, difference) for pair, difference in inner if not pair.output]
    rows += [_row(look.output(name, base), difference) for name, base, difference in outputs]
    return sorted(rows, key=lambda one: look.place(one.name))


def _alone(name: str, base: str) -> Pair:
    """Of an output that no node of a graph is known to compute."""
    return Pair(name, base, "name" if name == base else "position", "", "", -1, True)


def check(at: float, samples: int) -> None:
    """Raises UsageError for figures that make no sense."""
    if not _is_number(at, (int, float)) or not math.isfinite(at):
        raise UsageError(f"--at takes a number of dB such as 30dB, not {at!r}")
    check_count("--samples", samples)


def check_count(option: str, value: Any) -> None:
    """Raises UsageError for what is no whole number from 1 on."""
    if not _is_number(value, int) or value < 1:
        raise UsageError(f"{option} takes a number from 1 on, not {value!r}")


def _is_number(value: Any, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


class Look:
    """Both graphs and what belongs together in them."""

    def __init__(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> None:
        self.base, self.candidate = base, candidate
        self.flow: Flow = flow(base)
        self.other: Flow = flow(candidate)
        self.pairs: list[Pair] = pairs(base, candidate, self.flow, self.other)

    def inner(self) -> list[Pair]:
        """Pairs of tensors that nodes compute, and that can be asked of a session."""
        known = self.flow.inputs | self.flow.makers.keys()
        return [pair for pair in self.pairs if pair.place >= 0 and pair.base in known]

    def unpaired(self, compared: Iterable[str]) -> int:
        known = {*compared, *(value.name for value in self.candidate.graph.output)}
        return sum(
            name in self.other.varying
            and name not in known
            and self.other.nodes[place].op_type not in TO_INTEGERS
            for name, place in self.other.makers.items()
        )

    def place(self, name: str) -> int:
        return self.other.makers.get(name, -1)

    def output(self, name: str, base: str) -> Pair:
        """Of an output that both have."""
        found = next((pair for pair in self.pairs if (pair.name, pair.base) == (name, base)), None)
        return found or _alone(name, base)


def inner_errors(look: Look, calls: Calls, ui: Ui, notes: list[str]) -> list[tuple[Pair, Difference]]:
    """Of every pair, over all calls; pairs that ONNX Runtime does not show are named in the notes."""
    feeds = calls.first()
    sizes = tensor_bytes(look.base, feeds)
    found: dict[str, Difference] = {}
    hidden: list[str] = []
    wanted = look.inner()

    def observe(group: list[Pair]) -> None:
        differences = {pair.name: Difference() for pair in group}
        made = [pair.base for pair in group if pair.base in look.flow.makers]
        sessions = tapped(look.base, made), tapped(look.candidate, [pair.name for pair in group])
        for number, (feeds, one, other) in enumerate(_runs(sessions, calls), 1):
            one = {**feeds, **one}
            for pair in group:
                if pair.base in one and pair.name in other:
                    differences[pair.name].add(one[pair.base], other[pair.name])
            ui.status(
                f"comparing tensors: call {number} on {len(found) + len(group)} of {len(wanted)} tensors"
            )
        found.update((name, one) for name, one in differences.items() if one.calls)
        hidden.extend(f"'{name}'" for name, one in differences.items() if not one.calls)

    def failed(pair: Pair, error: ModelError) -> None:
        hidden.append(f"'{pair.name}'")

    for group in grouped(wanted, lambda pair: sizes.get(pair.base, UNKNOWN_BYTES)):
        one_by_one(group, observe, failed)
    wrong = [
        p.name for p in wanted if p.name in found and found[p.name].shapes and p.by_structure and not p.output
    ]
    for name in wrong:  # a guess that the shape disproves
        del found[name]
    if hidden:
        notes.append(f"not compared, since ONNX Runtime does not give them out: {_listed(hidden)}")
    return [(pair, found[pair.name]) for pair in wanted if pair.name in found]


def _runs(sessions: tuple[Any, Any], calls: Calls) -> Iterator[tuple[Feeds, Feeds, Feeds]]:
    takes = [{value.name for value in session.get_inputs()} for session in sessions]
    for feeds in calls:
        one, other = (
            ort.run(session, {name: value for name, value in feeds.items() if name in names})
            for session, names in zip(sessions, takes, strict=True)
        )
        yield feeds, one, other


def output_errors(
    base: Side, candidate: Side, calls: Calls, ui: Ui
) -> tuple[list[tuple[str, str, Difference]], int]:
    """((candidate's output, base's, difference) of all that both have, as a user's session gives them; calls)."""
    twins = _twins(base, candidate)
    found: dict[tuple[str, str], Difference] = {}
    count = 0
    for feeds in calls:
        count += 1
        one, other = (
            _outputs(base, feeds),
            _outputs(candidate, feeds, "; optimize debug A B --out DIR finds the node"),
        )
        for name, values in other.items():
            stem, bracket, rest = name.partition("[") if name not in twins else (name, "", "")
            if stem in twins and (twin := f"{twins[stem]}{bracket}{rest}") in one:
                found.setdefault((name, twin), Difference()).add(one[twin], values)
        ui.status(f"comparing outputs: call {count}")
    return [(*names, difference) for names, difference in found.items()], count


def _outputs(side: Side, feeds: Feeds, hint: str = "") -> Feeds:
    names = {spec.name for spec in side.inputs}
    try:
        return ort.run(side.session, {name: value for name, value in feeds.items() if name in names})
    except ModelError as error:
        raise ModelError(f"{side.title}: {error}{hint}") from error


def _twins(base: Side, candidate: Side) -> dict[str, str]:
    """Output of the candidate -> the base's of the same name, or, if both have as many, of the same place."""
    wanted, names = base.outputs, candidate.outputs
    by_place = len(wanted) == len(names)
    return {
        name: name if name in wanted else wanted[place]
        for place, name in enumerate(names)
        if name in wanted or (by_place and wanted[place] not in names)
    }


def _lacking(base: Side, candidate: Side) -> Iterator[str]:
    """Outputs that only one of them has."""
    twins = _twins(base, candidate)
    if missing := [f"'{name}'" for name in base.outputs if name not in twins.values()]:
        yield f"{candidate.title} has no output {_listed(missing)}, which {base.title} has"
    if more := [f"'{name}'" for name in candidate.outputs if name not in twins]:
        yield f"{base.title} has no output {_listed(more)}, which {candidate.title} has"


def _fused(
    inner: Sequence[tuple[Pair, Difference]], outputs: Sequence[tuple[str, str, Difference]]
) -> Iterator[str]:
    """Outputs that a plain session computes worse than one that keeps all tensors apart."""
    alone = {pair.name: difference for pair, difference in inner if pair.output}
    for name, _, difference in outputs:
        plain, apart = difference.sqnr, alone[name].sqnr if name in alone else None
        if plain is not None and apart is not None and apart < 60 and plain < apart - FUSED_DB:
            yield (
                f"output '{name}': {plain:.1f} dB as a session gives it, {apart:.1f} dB with its layers computed one by "
                "one as the graph says: the runtime's fused integer kernels lose the rest here"
            )


def _row(pair: Pair, found: Difference) -> TensorError:
    return TensorError(
        pair.name,
        pair.base,
        pair.how,
        pair.node,
        pair.operator,
        pair.output,
        tuple(found.shape),
        tuple(found.shapes[0]) if found.shapes else tuple(found.shape),
        found.values,
        found.differing,
        found.not_finite,
        found.verdict,
        found.sqnr,
        found.closeness,
        found.max_abs,
        found.max_relative,
        found.histogram.tolist() if found.numeric else [],
    )


def _listed(names: Sequence[str], shown: int = 5) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
