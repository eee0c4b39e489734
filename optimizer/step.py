"""One step of a run: the pass is applied and its result checked, saved and measured; recording comes last."""

import gc
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe import metadata
from onnx_lathe.errors import ContractError, LatheError, ModelError, PassError
from onnx_lathe.optimizer.inspect import measure
from onnx_lathe.optimizer.measuring import SAMPLE_BATCH, sample_feeds
from onnx_lathe.optimizer.report.record import StepRecord
from onnx_lathe.optimizer.run import Run
from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.layers import layers_inside
from onnx_lathe.passes.graph.model import export_model, import_model, node_metadata
from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.evaluate import Quality, evaluate

GROWTH_NOTED = 1.001
"""A step that makes a file larger by less only added metadata."""
ROUNDING_DB = 100.0
"""Above it, outputs differ by what float32 rounds."""
DECIBELS_NOTED = 0.1
LOWER_IS_BETTER = ("size", "weights", "macs", "parameters")


def run_step(run: Run, index: int) -> None:
    """Takes one step of the recipe; the record, the checkpoints and the run's model are one further then.

    Raises LatheError with the step's number and name; a checkpoint that breaks the contract is not left.
    """
    instance, started = run.passes[index], time.perf_counter()
    where = f"step {index + 1}, {instance.name}"
    expected = ort.run(ort.session(run.file), run.feeds) if instance.lossless else {}
    try:
        report = _apply(run, instance, run.title(index))
    except LatheError as error:
        raise type(error)(f"{where}: {error}") from error
    path = run.checkpoints.path(index + 1, instance.name)
    model_file.save(run.model, path)
    try:
        lean = run.large and run.roles.evaluation is None
        session = _check(instance, path, run.feeds, expected, report, lean)
    except ContractError as error:
        path.unlink()
        raise ContractError(f"{where}: {error}") from error
    quality = _measure(run, path, session, where, report)
    _record(run, index, report, path, quality, time.perf_counter() - started)


def apply_pass(
    instance: Pass, model: onnx.ModelProto, context: Context
) -> tuple[onnx.ModelProto, PassReport]:
    """Runs one pass on a graph of the model and stamps the nodes that it made.

    Without edits the very same model comes back.
    """
    graph = import_model(model)
    known = {node.name for node in graph.nodes}
    inside = layers_inside(graph)
    report = _applied(instance, graph, context)
    _warn_of_bodies(inside, report)
    if not report.edits:
        return model, report
    for node in graph.nodes:
        if node.name not in known:
            node_metadata(node)[metadata.PASS] = instance.name
    after = export_model(graph)
    del graph
    gc.collect()  # onnx-graphsurgeon's graphs are reference cycles, and hold the weights until someone looks
    return after, report


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
        expected = ort.run(session, feeds)
        after, report = apply_pass(instance, model, context)
        if after is not model:
            contract.check_structure(model, after, instance.name)
            _check(instance, after, feeds, expected, report)
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


def _check(
    instance: Pass,
    made: onnx.ModelProto | Path,
    feeds: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    report: PassReport,
    lean: bool = False,
) -> Any:
    """A session of what the pass made, which runs and, after a lossless pass, computes what was `expected`.

    Raises ContractError: whatever is wrong with it now, the pass has done.
    """
    try:
        session = ort.session(made, lean=lean)
        if ort.is_helped(session, made):
            report.warnings.append(ort.HELPED)
        outputs = ort.run(session, feeds)
    except ModelError as error:
        raise ContractError(str(error)) from error
    if instance.lossless:
        contract.check_outputs(expected, outputs, type(instance))
    return session


def _measure(run: Run, path: Path, session: Any, where: str, report: PassReport) -> dict[str, float]:
    weighed = measure(run.model)
    said = "\n".join(run.record.warnings)
    report.warnings += [line for line in dict.fromkeys(weighed.uncounted.values()) if line not in said]
    quality = weighed.as_metrics() | {"size": float(model_file.inspect_file(path).size_bytes)}
    if run.roles.evaluation is not None and run.original is not None:
        found = evaluate(session, run.roles.evaluation, run.original, run.ui.status)
        note_uncompared(run, where, found)
        quality |= found
    return quality


def note_uncompared(run: Run, where: str, quality: Quality) -> None:
    """Warns of each output whose distance to the original's has no number."""
    for output, reason in quality.reasons.items():
        run.record.warnings.append(f"{where}: output '{output}' could not be compared: {reason}")
        run.ui.note(f"warning: {run.record.warnings[-1]}")


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
        return after[name] < before[name]

    worse = [name for name in before.keys() & after.keys() if falls(name)]
    return [name for name in worse if "[" not in name or name.split("[")[0] not in worse]
