"""One step of a run: the pass is applied and its result checked, saved and measured; recording comes last."""

import gc
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe import metadata
from onnx_lathe.errors import ContractError, CrashError, LatheError, ModelError, PassError
from onnx_lathe.optimizer import lossless, opening
from onnx_lathe.optimizer.inspect import measure
from onnx_lathe.optimizer.judging.metrics import METRICS
from onnx_lathe.optimizer.measuring import SAMPLE_BATCH, sample_feeds
from onnx_lathe.optimizer.report.record import StepRecord
from onnx_lathe.optimizer.rounding import rounding_error
from onnx_lathe.optimizer.run import Run
from onnx_lathe.optimizer.unchanged import copied, note_uncompared
from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.float16.lifting import lift
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.layers import layers_inside
from onnx_lathe.passes.graph.model import export_model, import_model, node_metadata
from onnx_lathe.passes.graph.quantization.ranges import keep_ranges, said_ranges
from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.tensors import tensor_size
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.evaluate import evaluate

GROWTH_NOTED = 1.001
"""A step that makes a file larger by less only added metadata."""
ROUNDING_DB = 100.0
"""Above it, outputs differ by what float32 rounds."""
DECIBELS_NOTED, SPARSITY_NOTED = 0.1, 0.001
"""What a layer that goes takes with it, zeros too, is no step's choice of theirs."""
LOWER_IS_BETTER = ("size", "weights", "macs", "parameters")
ERRORS = ("wer", "cer")


def run_step(run: Run, index: int) -> None:
    """Takes one step of the recipe; the record, the checkpoints and the run's model are one further then.

    Raises LatheError with the step's number and name; a checkpoint that breaks the contract is not left.
    """
    instance, started = run.passes[index], time.perf_counter()
    where = f"step {index + 1}, {instance.name}"
    before = run.source  # the pass makes another model the run's
    try:
        report = _apply(run, instance, run.title(index))
    except LatheError as error:
        raise type(error)(f"{where}: {error}") from error
    path = run.checkpoints.path(index + 1, instance.name)
    if not report.edits and (known := copied(run, path, where, report)):
        _record(run, index, report, path, known, time.perf_counter() - started)
        return
    model_file.save(run.model, path)
    model_file.hold_saved(run.model, path)
    run.let_go(path)
    lean = run.large and run.roles.evaluation is None
    expected = ort.run(ort.session(before, lean=lean), run.feeds) if instance.lossless else {}
    sample = Sample(run.feeds, expected, before, lean)
    try:
        try:
            session = _check(instance, path, sample, report)
        except contract.OutputMovedError as error:
            report = _retreat(run, index, report, sample, error)
            model_file.save(run.model, path)
            run.let_go(path)
            session = _check(instance, path, sample, report)
    except ContractError as error:
        for file in (path, path.with_name(f"{path.name}.data")):
            file.unlink(missing_ok=True)
        raise ContractError(f"{where}: {error}") from error
    found = _evaluated(run, session, where)
    del session
    quality = _weighed(run, path, report) | found
    _record(run, index, report, path, quality, time.perf_counter() - started)


COLLECTED_BYTES = 16 << 20
"""Weights from which on their memory is given back at once: looking for it takes 0.1 s in a large process, and a search
applies hundreds of passes to small models.
"""


@dataclass(frozen=True)
class Sample:
    """What a step is tried on: inputs, and what the model computed of them before a lossless pass."""

    feeds: Mapping[str, np.ndarray]
    expected: Mapping[str, np.ndarray]
    before: onnx.ModelProto | Path
    lean: bool = False

    @cached_property
    def rounding(self) -> Mapping[str, float]:
        """How far rounding alone moves the outputs of `before`."""
        return rounding_error(self.before, self.feeds, self.expected)


def apply_pass(
    instance: Pass, model: onnx.ModelProto, context: Context, culprit: str = ""
) -> tuple[onnx.ModelProto, PassReport]:
    """Runs one pass on a graph of the model and stamps the nodes that it made.

    Without edits the very same model comes back. `culprit`: what a user would leave out, if not the pass.
    """
    graph = import_model(model)
    known = {node.name for node in graph.nodes}
    said = said_ranges(graph)
    computed = (
        {(node.name, *(tensor.name for tensor in node.outputs)) for node in graph.nodes} if said else set()
    )
    inside = layers_inside(graph)
    lifted = None if instance.takes_half else lift(graph)
    with crashes_named("one that this pass tries", culprit or instance.name):
        report = _applied(instance, graph, context)
    _warn_of_bodies(inside, report)
    if not report.edits:
        return model, report
    if lifted is not None:
        lifted.lower(graph)
    _sign(graph, known, instance.name)
    keep_ranges(graph, said, computed)
    after = export_model(graph)
    del graph
    if sum(map(tensor_size, after.graph.initializer)) > COLLECTED_BYTES:
        gc.collect()  # onnx-graphsurgeon's graphs are reference cycles, and hold the weights until someone looks
    return after, report


def _sign(graph: Graph, known: Collection[str], name: str) -> None:
    """Names the pass on each node that it made. A function of its own: a node that a variable of the caller's still
    held would keep the whole graph in memory.
    """
    for node in graph.nodes:
        if node.name not in known:
            node_metadata(node)[metadata.PASS] = name


def _warn_of_bodies(inside: Mapping[str, Collection[str]], report: PassReport) -> None:
    """Says it of every body of If, Loop or Scan of whose layers none was changed, and all were refused."""
    reasons, edited = {skip.node: skip.reason for skip in report.skips}, {edit.node for edit in report.edits}
    for place, layers in inside.items():
        if edited.isdisjoint(layers) and reasons.keys() >= set(layers):
            first = next(iter(layers))
            report.warnings.append(f"no layer in the {place} was changed; {first}: {reasons[first]}")


def _applied(instance: Pass, graph: Graph, context: Context) -> PassReport:
    """Raises PassError for whatever a pass of somebody else's raises or returns in place of a report."""
    place = type(instance).__module__
    try:
        report: object = instance.apply(graph, context)
    except LatheError:
        raise
    except Exception as error:
        if place.startswith("onnx_lathe."):
            raise
        message = " ".join(str(error).split()) or "no message"
        raise PassError(f"the pass of {place} failed: {type(error).__name__}: {message}") from error
    if not isinstance(report, PassReport):
        raise PassError(f"the pass of {place} returned {type(report).__name__}, not a PassReport")
    return report


def apply_checked(
    instance: Pass, model: onnx.ModelProto, context: Context, sample: DataSource | None
) -> tuple[onnx.ModelProto, PassReport]:
    """As a step of a run does it, in memory: applied, and checked on a sample of the data or random input.

    Raises LatheError that begins with the pass's name.
    """
    try:
        session = ort.session(model)
        feeds = sample_feeds(sample, session, SAMPLE_BATCH)
        tried = Sample(feeds, ort.run(session, feeds), model)
        after, report = apply_pass(instance, model, context)
        if after is not model:
            contract.check_structure(model, after, instance.name)
            try:
                _check(instance, after, tried, report)
            except contract.OutputMovedError as error:
                return _spared(instance, model, context, report, tried, error)
    except LatheError as error:
        raise type(error)(f"{instance.name}: {error}") from error
    return after, report


def _apply(run: Run, instance: Pass, title: str) -> PassReport:
    context = run.services.context(title, run.checkpoints.training, run.placement)
    after, report = apply_pass(instance, run.model, context)
    if after is not run.model:
        contract.check_structure(run.model, after, instance.name)
    run.model = after
    return report


def _retreat(
    run: Run, index: int, report: PassReport, sample: Sample, found: contract.OutputMovedError
) -> PassReport:
    """The step with less: run.model is what is left of it."""
    context = run.services.context(run.title(index), run.checkpoints.training, run.placement)
    if run.record.steps:
        model = model_file.load(run.file)
    else:
        model = opening.open_file(run.request.model, run.request.reading).model
    run.model, report = _spared(run.passes[index], model, context, report, sample, found)
    return report


def _spared(
    instance: Pass,
    model: onnx.ModelProto,
    context: Context,
    report: PassReport,
    sample: Sample,
    found: contract.OutputMovedError,
) -> tuple[onnx.ModelProto, PassReport]:
    """What lossless.retreat makes of the pass, which moved an output of `model`."""

    def apply(spared: frozenset[str]) -> tuple[onnx.ModelProto, PassReport]:
        fresh = type(instance)(instance.config)
        after, report = apply_pass(fresh, model, replace(context, spared=spared))
        if after is not model:
            contract.check_structure(model, after, instance.name)
        return after, report

    def holds(after: onnx.ModelProto) -> bool:
        try:
            _check(instance, after, sample, PassReport())
        except contract.OutputMovedError:
            return False
        return True

    edited = list(dict.fromkeys(edit.node for edit in report.edits))
    settled = lossless.retreat(found, edited, apply, holds)
    return settled or (model, lossless.left_out(instance.name, found))


def _check(instance: Pass, made: onnx.ModelProto | Path, sample: Sample, report: PassReport) -> Any:
    """A session of what the pass made, which runs and, after a lossless pass, computes what it did before.

    Raises ContractError: whatever is wrong with it now, the pass has done.
    """
    try:
        with crashes_named("what this pass wrote", instance.name):
            ort.survive(made)  # as a user opens it
            session = ort.session(made, lean=sample.lean)
            if ort.is_helped(session, made):
                report.warnings.append(ort.HELPED)
        outputs = ort.run(session, sample.feeds)
    except ModelError as error:
        raise ContractError(str(error)) from error
    if instance.lossless:
        contract.check_outputs(sample.expected, outputs, type(instance), lambda: sample.rounding)
    return session


@contextmanager
def crashes_named(what: str, culprit: str) -> Iterator[None]:
    """Makes a crash of ONNX Runtime that of a model which Lathe wrote: a ContractError that says what it was,
    and what to leave out.
    """
    try:
        yield
    except CrashError as error:
        raise ContractError(
            f"{error}, {what}; leave {culprit} out, or spare the nodes it changed by its options, and report this with "
            "the model of the step before"
        ) from error


def _evaluated(run: Run, session: Any, where: str) -> dict[str, float]:
    """Metrics on the evaluation data, if there is any."""
    if run.roles.evaluation is None or run.original is None:
        return {}
    found = evaluate(session, run.roles.evaluation, run.original, run.ui.status)
    note_uncompared(run, where, found)
    run.sampled = found.sampled
    return found


def _weighed(run: Run, path: Path, report: PassReport) -> dict[str, float]:
    """What graph and file say."""
    weighed = measure(run.model)
    said = "\n".join(run.record.warnings)
    report.warnings += [line for line in dict.fromkeys(weighed.uncounted.values()) if line not in said]
    return weighed.as_metrics() | {"size": float(model_file.facts(path).size_bytes)}


def _record(
    run: Run, index: int, report: PassReport, path: Path, quality: dict[str, float], seconds: float
) -> None:
    instance = run.passes[index]
    for warning in report.warnings:
        run.record.warnings.append(f"step {index + 1}, {instance.name}: {warning}")
        run.ui.note(f"warning: {run.record.warnings[-1]}")
    record = StepRecord(
        number=index + 1,
        name=instance.name,
        options=asdict(instance.config),
        file=path.relative_to(run.request.out).as_posix(),
        changed=bool(report.edits),
        seconds=seconds,
        size_bytes=int(quality["size"]),
        quality=quality,
        edits=[asdict(edit) for edit in report.edits],
        skips=[asdict(skip) for skip in report.skips],
        metrics=dict(report.metrics),
        worse=_worse(run.record.final(), quality),
    )
    run.record.steps.append(record)
    run.checkpoints.add(record, path)


def _worse(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """Metrics that a step made worse; the report says so. Those of single outputs only where that of all is not."""

    def falls(name: str) -> bool:
        if name in LOWER_IS_BETTER:
            return after[name] > GROWTH_NOTED * before[name]
        if name.startswith("sqnr"):
            return after[name] < min(before[name], ROUNDING_DB) - DECIBELS_NOTED
        if name in ERRORS:
            return after[name] > before[name]
        return after[name] < before[name] - (SPARSITY_NOTED if name == "sparsity" else 0.0)

    # `sqnr` says what cosine does, in finer steps; of a metric of the user's nobody knows which way is worse
    told = [name for name in before if name in after and (name in METRICS or "[" in name)]
    worse = [name for name in told if not name.startswith("cosine") and falls(name)]
    return [name for name in worse if "[" not in name or name.split("[")[0] not in worse]
