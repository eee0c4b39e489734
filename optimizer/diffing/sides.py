"""The two models of a comparison, opened, and the calls that both are fed with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import DataError, ModelError, UsageError
from onnx_lathe.optimizer import opening
from onnx_lathe.optimizer.finished import is_written, open_finished
from onnx_lathe.optimizer.measuring import shared_feeds
from onnx_lathe.optimizer.observing import MadeUp
from onnx_lathe.optimizer.recipe import Recipe
from onnx_lathe.optimizer.services import open_fed
from onnx_lathe.passes.loading.preparing import Wishes
from onnx_lathe.runtime.data import Batch, DataSource, InputSpec, model_inputs, take
from onnx_lathe.runtime.files.signature import fixed_batch
from onnx_lathe.runtime.running import ort

CALL_BYTES = 8 << 20
"""Inputs that are run at once: activations take many times as much."""
ROWS = 8

Feeds = Mapping[str, np.ndarray]


@dataclass
class Side:
    """One model. `model` is None for a file that holds no ONNX model; `session` is as a user would open the file,
    and None where ONNX Runtime does not load it, for the reason in `refusal`.
    """

    title: str
    model: onnx.ModelProto | None
    session: Any
    inputs: Sequence[InputSpec]
    refusal: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def outputs(self) -> list[str]:
        """Names, in the model's order."""
        if self.model is not None:
            return [value.name for value in self.model.graph.output]
        return [value.name for value in self.session.get_outputs()]


def open_side(given: onnx.ModelProto | str | Path, role: str, refusable: bool = False) -> Side:
    """The model of a file that any command takes, or one in memory.

    refusable: that ONNX Runtime does not load it is kept in the side. Raises ModelError for that otherwise, and for
    a file that is no model; UsageError for what is neither; TargetError where a package is missing.
    """
    wishes = Wishes(keep_metadata=True)
    if isinstance(given, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(given)
        opened, title = opening.open_given(copy, wishes), f"{role} (in memory)"
    elif not isinstance(given, str | Path):
        raise UsageError(f"{role} is a path or a model, not {type(given).__name__}")
    else:
        path = Path(given)
        if is_written(path):
            finished = open_finished(path)
            return Side(str(path), None, finished.session, finished.inputs)
        opened, title = opening.open_file(path, wishes), str(path)
    model, notes = opened.model, [f"{title}: {note}" for note in opened.notes]
    try:
        session = ort.session(given) if isinstance(given, onnx.ModelProto) else ort.as_opened(Path(given))
    except ModelError as error:
        if not refusable and role == "candidate":
            raise ModelError(f"{error}; optimize debug A B --out DIR finds the node") from error
        if not refusable:
            raise
        return Side(title, model, None, model_inputs(model), str(error), notes)
    return Side(title, model, session, model_inputs(model), notes=notes)


@dataclass(frozen=True)
class Calls:
    """What the models are fed: the same calls each time that they are asked for."""

    source: DataSource
    description: str
    notes: Sequence[str]
    fixed: int | None
    """Samples that each call has to have, where one of the models takes no other number."""

    def __iter__(self) -> Iterator[Feeds]:
        found = False
        for batch in self.source.batches(self.fixed or ROWS):
            for feeds in _calls(batch, self.fixed):
                found = True
                yield feeds
        if not found:
            raise DataError(f"{self.description}: has no samples; give at least one")

    def first(self) -> Feeds:
        return next(iter(self))


def open_calls(recipe: Recipe, base: Side, candidate: Side, samples: int) -> Calls:
    """At most so many samples, evenly spread over the data; random values without data.

    Raises UsageError if the candidate has other inputs, or takes another number of samples at a time; DataError as
    opening data does.
    """
    names = [spec.name for spec in base.inputs]
    if missing := [spec.name for spec in candidate.inputs if spec.name not in names]:
        has = ", ".join(f"'{name}'" for name in names)
        raise UsageError(
            f"{candidate.title}: its input '{missing[0]}' is none of {base.title}, which has {has}; "
            "two models are compared on the same inputs, rename it"
        )
    fixed = _fixed(base, candidate)
    roles = open_fed(
        Recipe(eval=recipe.eval or recipe.data, preprocess=recipe.preprocess, classes=recipe.classes),
        base.inputs,
        None,
    )
    said = [*roles.notes, *(f"warning: {warning}" for warning in roles.warnings)]
    if roles.evaluation is not None:
        source = take(roles.evaluation, samples)
        return Calls(source, source.description, said, fixed)
    made_up = MadeUp(_random_feeds(base.session, candidate.session, fixed or 1))
    return Calls(made_up, made_up.description, [*said, "no data is given: these are random values"], fixed)


def _fixed(base: Side, candidate: Side) -> int | None:
    """The batch of the calls if either model has a fixed one. Raises UsageError if both do and they differ."""
    shapes, others = _shapes(base), _shapes(candidate)
    for name, other in others.items():
        sizes = shapes[name][:1], other[:1]
        one, two = (next((size for size in first if isinstance(size, int)), None) for first in sizes)
        if one and two and one != two:
            raise UsageError(
                f"{candidate.title}: its input '{name}' takes {two} at a time, that of {base.title} {one}; "
                "export one of them with the other's batch, or an open one"
            )
    return fixed_batch([*shapes.values()]) or fixed_batch([*others.values()])


def _shapes(side: Side) -> dict[str, Sequence[Any]]:
    """Input -> its sizes, a number where it is fixed."""
    if side.session is None:
        return {spec.name: spec.shape for spec in side.inputs}
    return {value.name: value.shape for value in side.session.get_inputs()}


def _random_feeds(base: Any, candidate: Any, batch: int) -> Feeds:
    """Of sizes that both take; of the base's where the candidate takes none, which has another reason then."""
    if candidate is None:
        return shared_feeds(None, [base], batch)
    try:
        return shared_feeds(None, [base, candidate], batch)
    except ModelError:
        return shared_feeds(None, [base], batch)


def _calls(batch: Batch, fixed: int | None) -> Iterator[dict[str, np.ndarray]]:
    """Calls of one sample each, of a fixed batch filled up with repeats, or of as many samples as CALL_BYTES hold."""
    if batch.per_call:
        yield from (batch.call(row) for row in range(batch.count))
    elif fixed is not None:
        rows = np.arange(fixed) % batch.count
        yield {name: values[rows] for name, values in batch.inputs.items()}
    else:
        each = sum(values.nbytes for values in batch.inputs.values()) // batch.count
        step = max(min(CALL_BYTES // max(each, 1), batch.count), 1)
        for start in range(0, batch.count, step):
            yield {name: values[start : start + step] for name, values in batch.inputs.items()}
