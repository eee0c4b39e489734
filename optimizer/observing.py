"""Runs one finished model on data: what comes out, how good that is, and how long it takes. The `run` command."""

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lathe.errors import ModelError, UsageError
from onnx_lathe.optimizer.artifacts import files_of, same_file
from onnx_lathe.optimizer.finished import Finished, open_together, untimed
from onnx_lathe.optimizer.judging.metrics import of_data
from onnx_lathe.optimizer.measuring import (
    LATENCY_BUDGET_S,
    Timing,
    sample_feeds,
    shared_feeds,
    timing,
    ways_of,
)
from onnx_lathe.optimizer.recipe import Recipe
from onnx_lathe.optimizer.services import open_fed
from onnx_lathe.optimizer.ui import Ui
from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.files.writing import replacing
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.bfloat16 import storable
from onnx_lathe.runtime.running.closeness import NO_SIGNAL
from onnx_lathe.runtime.running.evaluate import evaluate, reference
from onnx_lathe.runtime.threads import limit

OF_LABELS = ("top1", "top5")


@dataclass(frozen=True)
class OutputFacts:
    """An output over all samples; `shape` is that of all of them, of one call where each is a call. No numbers where
    there are none that are finite.
    """

    name: str
    dtype: str
    shape: Sequence[int]
    minimum: float | None
    maximum: float | None
    mean: float | None
    not_finite: int


@dataclass(frozen=True)
class Against:
    """The other model, run in turn with it."""

    model: str
    library: str
    size_bytes: int
    metrics: Mapping[str, float]
    latency: Timing | None
    latency_ratio: float | None
    """How many times as long the other takes."""


@dataclass(frozen=True)
class Observation:
    """`metrics`: top1 and top5 with labels; agreement and sqnr with another model. No times where a simulator runs one
    of them.
    """

    model: str
    library: str
    size_bytes: int
    threads: int
    samples: int
    data: str
    outputs: Sequence[OutputFacts]
    metrics: Mapping[str, float]
    latency: Timing | None
    against: Against | None = None
    notes: Sequence[str] = ()
    device: str = ""
    """What it ran on, if not this processor."""
    ways: Mapping[str, Timing | str] = field(default_factory=dict)
    """Times of other ways to run it, such as with a CUDA graph, or why it cannot be run so."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def observe(
    path: Path, recipe: Recipe, ui: Ui, against: Path | None = None, save: Path | None = None
) -> Observation:
    """Runs the model on all of the recipe's data, or on random values without, on as many threads as the process may
    have, or on one. `save`: a .npz file for all outputs.

    Raises ModelError, DataError or TargetError as opening does; UsageError for a `save` that is no file to write.
    """
    if save is not None:
        _check_save(
            save, [path, *([] if against is None else [against]), *files_of(recipe.eval or recipe.data)]
        )
    threads = limit() or 1
    paths = [path, *([] if against is None else [against])]
    model, *others = open_together(paths, threads, recipe.fix_inputs)
    other = next(iter(others), None)
    data, notes = _data(recipe, model, other)
    for note in notes:
        ui.note(note)
    outputs = Outputs(keep=save is not None)
    metrics, of_other, warnings = _metrics(model, other, data, ui.status, outputs.add)
    for warning in warnings:
        ui.note(warning)
    its, latency, ways = _times(model, other, data, ui)
    if save is not None:
        write_arrays(save, outputs.arrays())
    return Observation(
        str(path),
        model.library,
        model.size_bytes,
        threads,
        outputs.samples,
        data.description,
        outputs.facts(),
        metrics,
        latency,
        None if other is None else _against(other, of_other, its, latency),
        [*notes, *warnings],
        model.device,
        ways,
    )


def _check_save(save: Path, read: Sequence[Path]) -> None:
    """Before anything runs: an ending that says what is written, no file that is read here, and a usable folder."""
    if save.suffix.lower() != ".npz":
        raise UsageError(f"{save}: outputs are saved as .npz; give a name that ends so")
    for path in read:
        if same_file(save, path):
            raise UsageError(f"{save}: is read here as {path}; save the outputs to another file")
    if save.is_dir():
        raise UsageError(f"{save}: is a folder; name a file in it")
    if not save.parent.is_dir() or not os.access(save.parent, os.W_OK):
        raise UsageError(f"{save}: {save.parent} is no folder that can be written to; make it first")


def _times(
    model: Finished, other: Finished | None, data: DataSource, ui: Ui
) -> tuple[Timing | None, Timing | None, dict[str, Timing | str]]:
    """(of the other one, of the model, of other ways to run the model), taken in turn; none of a simulator."""
    sessions = [model.session] if other is None else [other.session, model.session]
    if any(map(untimed, sessions)):
        return None, None, {}
    ui.status("timing")
    feeds = sample_feeds(data, model.session, 1)
    times = ort.times(sessions, feeds, budget_s=LATENCY_BUDGET_S * len(sessions))
    return timing(times[:, 0]), timing(times[:, -1]), ways_of(model.session, feeds)


def _against(
    other: Finished, metrics: Mapping[str, float], its: Timing | None, latency: Timing | None
) -> Against:
    ratio = its.median_ms / latency.median_ms if its and latency else None
    return Against(str(other.path), other.library, other.size_bytes, metrics, its, ratio)


def _data(recipe: Recipe, model: Finished, other: Finished | None) -> tuple[DataSource, list[str]]:
    """(samples, what is to be said of them)."""
    spec = recipe.eval or recipe.data
    roles = open_fed(
        Recipe(eval=spec, preprocess=recipe.preprocess, classes=recipe.classes, fix_inputs=recipe.fix_inputs),
        model.inputs,
        model.classes,
    )
    said = [*roles.notes, *(f"warning: {warning}" for warning in roles.warnings)]
    if roles.evaluation is not None:
        return roles.evaluation, said
    sessions = [model.session, *([] if other is None else [other.session])]
    return MadeUp(shared_feeds(None, sessions, 1)), [*said, "no data is given: these are random values"]


def _metrics(
    model: Finished, other: Finished | None, data: DataSource, progress: Callable[[str], None], heard: Any
) -> tuple[dict[str, float], dict[str, float], list[str]]:
    """(of the model, of the other one, what could not be judged)."""
    if other is None:
        found = reference(model.session, data, progress, model.model, heard)
        return _among(found.metrics, OF_LABELS), {}, _warned([found.note])
    original = reference(other.session, data, progress, other.model)
    quality = evaluate(model.session, data, original, progress, heard)
    has = {value.name for value in model.session.get_outputs()}
    lacks = {value.name for value in other.session.get_outputs()} - has
    reasons = dict(quality.reasons) | dict.fromkeys(sorted(lacks), f"{model.path} has no such output")
    metrics = {key: value for key, value in quality.items() if of_data(key)}
    if any(reason != NO_SIGNAL for reason in reasons.values()):
        metrics.pop("sqnr", None)  # the worst of all outputs is not known
    said = [f"output '{name}' could not be compared: {why}" for name, why in reasons.items()]
    return metrics, _among(original.metrics, OF_LABELS), _warned([original.note, *said])


def _warned(texts: Sequence[str | None]) -> list[str]:
    return [f"warning: {text}" for text in texts if text]


def _among(metrics: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if key.split("[")[0] in names}


class MadeUp(DataSource):
    """One call of a model on values that nobody gave."""

    labelled, count, fingerprint, description = False, 1, "random", "random values"

    def __init__(self, feeds: Mapping[str, np.ndarray]) -> None:
        self.feeds = feeds

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        yield Batch({name: np.asarray(value)[None] for name, value in self.feeds.items()}, per_call=True)


@dataclass
class Outputs:
    """What is known of the outputs so far, and with `keep` they themselves."""

    keep: bool
    samples: int = 0
    kept: dict[str, list[np.ndarray]] = field(default_factory=dict)
    alone: bool = False
    known: "dict[str, _Known]" = field(default_factory=dict)

    def add(self, outputs: Mapping[str, np.ndarray], count: int, alone: bool) -> None:
        self.samples, self.alone = self.samples + count, alone
        for name, value in outputs.items():
            self.known.setdefault(name, _Known(value.dtype)).add(value, alone)
            if self.keep:
                self.kept.setdefault(name, []).append(value)

    def facts(self) -> list[OutputFacts]:
        return [known.facts(name) for name, known in self.known.items()]

    def arrays(self) -> dict[str, np.ndarray]:
        """Samples along the first axis; those of calls whose shapes differ as NAME/0, NAME/1 and so on."""
        found: dict[str, np.ndarray] = {}
        for name, values in self.kept.items():
            if not self.alone and len({value.shape[1:] for value in values}) == 1 and values[0].ndim:
                found[name] = np.concatenate(values)
            elif len({value.shape for value in values}) == 1:
                found[name] = values[0] if len(values) == 1 else np.stack(values)
            else:
                found |= {f"{name}/{place}": value for place, value in enumerate(values)}
        return found


@dataclass
class _Known:
    dtype: np.dtype
    shape: tuple[int, ...] = ()
    count: int = 0
    total: float = 0.0
    low: float = np.inf
    high: float = -np.inf
    not_finite: int = 0

    def add(self, value: np.ndarray, alone: bool) -> None:
        joined = not alone and value.ndim > 0 and self.shape[1:] == value.shape[1:] and bool(self.shape)
        self.shape = (self.shape[0] + value.shape[0], *value.shape[1:]) if joined else value.shape
        if not np.issubdtype(value.dtype, np.number) and value.dtype != np.bool_:
            return
        wide = value.astype(np.float64)
        finite = wide[np.isfinite(wide)]
        self.not_finite += wide.size - finite.size
        self.count, self.total = self.count + finite.size, self.total + float(finite.sum())
        self.low = min(self.low, float(finite.min(initial=np.inf)))
        self.high = max(self.high, float(finite.max(initial=-np.inf)))

    def facts(self, name: str) -> OutputFacts:
        known = self.count > 0
        return OutputFacts(
            name,
            str(self.dtype),
            self.shape,
            self.low if known else None,
            self.high if known else None,
            self.total / self.count if known else None,
            self.not_finite,
        )


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """A .npz file, whole or not at all, bfloat16 as float32; np.savez takes no array named `file`. Raises ModelError."""
    try:
        with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, storable(np.asarray(array)), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: the outputs cannot be written: {error}") from error
