"""Runs a request: load, check, then pass by pass; at the end gates, targets, report."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import onnx

from onnx_lathe.errors import ExitCode, UsageError
from onnx_lathe.optimizer import artifacts, build, services
from onnx_lathe.optimizer.checkpoint import Checkpoints, file_hash
from onnx_lathe.optimizer.gate import parse_gates
from onnx_lathe.optimizer.inspect import measure
from onnx_lathe.optimizer.measuring import SAMPLE_BATCH, judge, measured_exactly, sample_feeds, time_pair
from onnx_lathe.optimizer.report.record import RunRecord
from onnx_lathe.optimizer.run import Request, Run
from onnx_lathe.optimizer.step import run_step
from onnx_lathe.optimizer.ui import Ui
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.pack.files import onnx_bytes, packed_bytes
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.evaluate import reference
from onnx_lathe.runtime.training.hooks import hook_place
from onnx_lathe.version import VERSION


def run(request: Request, ui: Ui) -> RunRecord:
    """Compiles the model and returns the record, its exit code set: done, gate failed, or target failed.

    Raises LatheError for a request that cannot run: what an earlier run left in the folder is untouched
    then. A step that fails leaves the checkpoints of those before it.
    """
    started = time.perf_counter()
    state = _open(request, ui)
    ui.start(len(state.passes))
    try:
        _baseline(state)
        _begin(state)
        _steps(state)
        if request.measure_latency:
            _latencies(state)
        _judge(state)
        if state.record.exit_code == ExitCode.DONE:
            build.build_all(state)
    finally:
        ui.stop()
    state.record.seconds = time.perf_counter() - started
    return state.record


def _open(request: Request, ui: Ui) -> Run:
    """Reads model and data, and checks that every pass has what it needs and every target is available."""
    passes = request.recipe.passes() if request.steps is None else list(request.steps)
    gates = parse_gates(request.recipe.gates)
    targets = build.open_targets(request.recipe.targets)
    placement = build.placement(targets)
    model = model_file.load(request.model)
    roles = services.open_roles(request.recipe, model)
    services.check_needs(passes, roles, request.recipe)
    described = _describe(request, model)
    record = RunRecord(version=VERSION, command=list(request.command), model=described, data=roles.notes)
    record.warnings = model_file.warnings(model) + services.warnings(passes, roles)
    for warning in record.warnings:
        ui.note(f"warning: {warning}")
    identity = _identity(request, passes, roles) | {"placement of INT8 by the targets": str(placement)}
    checkpoints = Checkpoints(request.out, identity)
    artifacts.check(request.out, request.model)
    done = checkpoints.resume() if request.resume else []
    trains = any("trainer" in instance.needs for instance in passes[len(done) :])
    log, teacher = request.out / "retrain.log", model if trains else None
    given = services.Services(request.recipe, roles, teacher, log, ui.status)
    return Run(request, ui, record, passes, gates, targets, placement, roles, given, checkpoints, done, model)


def _describe(request: Request, model: onnx.ModelProto) -> dict[str, Any]:
    facts = model_file.inspect_file(request.model)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    return {
        "path": request.name or str(request.model),
        "sha256": facts.sha256,
        "size_bytes": facts.size_bytes,
        "opset": opset,
        "nodes": len(model.graph.node),
    }


def _identity(request: Request, passes: Sequence[Pass], roles: services.Roles) -> dict[str, str]:
    """Ingredients that a resumed run must share with the first one."""
    recipe = [(instance.name, sorted(asdict(instance.config).items(), key=str)) for instance in passes]
    sha256 = model_file.inspect_file(request.model).sha256
    identity = {"recipe": repr(recipe), "model": sha256, "version": VERSION}
    if request.recipe.retrain is not None:
        path, function = hook_place(request.recipe.retrain)
        identity["retraining hook"] = f"{file_hash(path)} {function}"
    return identity | roles.fingerprints()


def _begin(state: Run) -> None:
    """From here on the earlier run's results are gone: the request has passed every check."""
    folder = state.request.out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        artifacts.clear(folder)
        state.checkpoints.start()
    except OSError as error:
        raise UsageError(f"{folder}: cannot write there ({error.strerror}); give another --out") from error
    if state.request.resume:
        state.ui.note(f"resuming: {len(state.done)} of {len(state.passes)} steps are done")


def _baseline(state: Run) -> None:
    record = state.record
    state.ui.status("measuring the original")
    session = ort.session(state.request.model, lean=state.large and state.roles.evaluation is None)
    state.feeds = sample_feeds(state.roles.sample, session, SAMPLE_BATCH)
    ort.run(session, state.feeds)  # refuses here, by name, what cannot run at all
    weighed = measure(state.model)
    record.warnings += dict.fromkeys(weighed.uncounted.values())
    record.baseline = weighed.as_metrics() | {"size": float(record.model["size_bytes"])}
    if state.roles.evaluation is not None:
        state.original = reference(session, state.roles.evaluation, state.ui.status, state.model)
        record.baseline |= state.original.metrics
    missing = [
        reason for gate in state.gates if (reason := gate.missing(_available(state), weighed.uncounted))
    ]
    if missing:
        raise UsageError(missing[0])


def _available(state: Run) -> set[str]:
    latency = {"latency"} if state.request.measure_latency else set()
    return set(state.record.baseline) | latency | {"packed"}


def _steps(state: Run) -> None:
    done = state.done
    if done:
        state.record.steps.extend(done)
        state.model = model_file.load(state.request.out / done[-1].file)
    for index in range(len(done), len(state.passes)):
        state.ui.step(state.title(index), index)
        run_step(state, index)
    if measured_exactly(state.model):
        state.record.warnings.append(ort.SATURATES)
        state.ui.note(f"warning: {ort.SATURATES}")


def _latencies(state: Run) -> None:
    """Latency of each step's model and of the original, in turn on the same feeds; on large models of the
    last step alone.
    """
    steps = state.record.steps[-1:] if state.large else state.record.steps
    base = ort.session(state.request.model)
    for step in steps:
        state.ui.status(f"timing {step.name}")
        base_ms, step_ms = time_pair(state.roles.sample, base, state.request.out / step.file)
        step.quality |= {"latency": step_ms, "base_latency": base_ms}
        state.record.baseline["latency"] = base_ms
    if not steps:
        state.record.baseline["latency"] = time_pair(state.roles.sample, base, state.request.model)[0]


def _judge(state: Run) -> None:
    """The gates on the model itself; those on latency judge a target's lowered model, where one is timed."""
    record, timed_later = state.record, any(target.timed for target, _ in state.targets)
    if any(gate.metric == "packed" for gate in state.gates):
        state.ui.status("packing")
        record.final()["packed"] = float(packed_bytes(state.file))
    base = dict(record.baseline)
    final = record.final()
    if "packed" in final:
        base["packed"] = float(onnx_bytes(state.request.model))
    if "base_latency" in final:
        base["latency"] = final["base_latency"]  # the one measured in turn with the final model
    here = judge(state.gates, base, final, "model", lambda metric: not (timed_later and metric == "latency"))
    record.gates = here
    record.end(ExitCode.DONE if all(verdict.passed for verdict in here) else ExitCode.GATE_FAILED)
