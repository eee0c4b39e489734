"""Runs a request: load, check, then pass by pass; at the end gates, targets, report."""

import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from onnx_lathe import held
from onnx_lathe.errors import CrashError, ExitCode, ModelError, UsageError
from onnx_lathe.optimizer import (
    advice,
    artifacts,
    build,
    diagnosis,
    layer_errors,
    opening,
    services,
    surroundings,
)
from onnx_lathe.optimizer.checkpoint import Checkpoints, file_hash
from onnx_lathe.optimizer.claim import Claim
from onnx_lathe.optimizer.inspect import measure
from onnx_lathe.optimizer.judging.asking import gates_of, tasks_of
from onnx_lathe.optimizer.judging.metrics import of_data
from onnx_lathe.optimizer.measuring import (
    SAMPLE_BATCH,
    is_quantized,
    judge,
    measured_exactly,
    medians,
    sample_feeds,
    time_apart,
    time_pair,
)
from onnx_lathe.optimizer.report.record import RunRecord
from onnx_lathe.optimizer.run import Request, Run
from onnx_lathe.optimizer.step import run_step
from onnx_lathe.optimizer.ui import Ui
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option_files
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.external_data import externalized
from onnx_lathe.runtime.pack.files import onnx_bytes, packed_bytes
from onnx_lathe.runtime.running import guard, memory, ort
from onnx_lathe.runtime.running.evaluate import evaluate, reference
from onnx_lathe.runtime.running.fed import fed
from onnx_lathe.runtime.training.hooks import hook_place
from onnx_lathe.version import VERSION

LOG = "retrain.log"
"""Gets the traceback of a hook."""


def run(request: Request, ui: Ui, claim: Claim) -> RunRecord:
    """Compiles the model and returns the record, its exit code set: done, gate failed, or target failed.
    `claim`: of the output folder, which is taken here and is the caller's until the record is written, too.

    Raises LatheError for a request that cannot run: what an earlier run left in the folder is untouched
    then. A step that fails leaves the checkpoints of those before it.
    """
    with ExitStack() as scratch:
        return _run(request, ui, claim, scratch)


def _run(request: Request, ui: Ui, claim: Claim, scratch: ExitStack) -> RunRecord:
    started, began = time.perf_counter(), surroundings.now()
    guard.prepare()
    if request.out.is_dir():
        with suppress(OSError):  # which `_begin` tells, after what is wrong with the request
            claim.take()
    state = _open(request, ui, scratch)
    state.record.started, state.record.processor = began, surroundings.processor()
    ui.start(len(state.passes))
    try:
        _write_large(state, scratch)
        _baseline(state)
        _begin(state, claim)
        _steps(state)
        if request.measure_latency:
            _latencies(state)
            advice.note_slower_steps(state)
            advice.note_slow_integers(state)
        _judge(state)
        if state.record.exit_code == ExitCode.DONE:
            build.build_all(state)
        layer_errors.write(state)
    finally:
        scratch.close()
        ui.stop()
    state.record.seconds, state.record.ended = time.perf_counter() - started, surroundings.now()
    state.record.libraries = surroundings.libraries(_libraries(state))
    return state.record


def _libraries(state: Run) -> tuple[str, ...]:
    """Packages that the targets built with, perhaps in a process of their own."""
    return tuple(package for target, _ in state.targets for package in target.packages)


def _open(request: Request, ui: Ui, scratch: ExitStack) -> Run:
    """Reads model and data, and checks that every pass has what it needs and every target is available."""
    passes = request.recipe.passes() if request.steps is None else list(request.steps)
    gates, tasks = gates_of(request.recipe), tasks_of(request.recipe)
    targets = build.open_targets(request.recipe.targets)
    placement = build.placement(targets)
    services.check_hook(passes, request.recipe, request.out / LOG)
    if _streams(request, passes, targets):
        scratch.enter_context(held.area(request.out))
    opened = opening.open_file(request.model, request.reading)
    model = opened.model
    for target, options in targets:
        target.accepts(model, options)
    roles = services.open_roles(request.recipe, model)
    services.check_needs(passes, roles, request.recipe)
    services.check_training(passes, roles, request.recipe, model)
    described = _describe(request, opened)
    record = RunRecord(version=VERSION, command=list(request.command), model=described, data=roles.notes)
    record.warnings = model_file.warnings(model) + services.warnings(passes, roles)
    for warning in record.warnings:
        ui.note(f"warning: {warning}")
    for note in opened.notes:
        ui.note(note)
    identity = _identity(request, passes, roles) | {"placement of INT8 by the targets": str(placement)}
    checkpoints = Checkpoints(request.out, identity)
    artifacts.check(request.out, request.model)
    if not request.resume and not request.force:
        asked = {target.name for target, _ in targets}
        artifacts.check_same(request.out, checkpoints.earlier(), identity, asked)
    done = checkpoints.resume() if request.resume else []
    trains = any("trainer" in instance.needs for instance in passes[len(done) :])
    log, teacher = request.out / LOG, model if trains else None
    looks = any("original" in instance.needs for instance in passes[len(done) :])
    given = services.Services(request.recipe, roles, teacher, log, ui.status, model if looks else None)
    return Run(
        request,
        ui,
        record,
        passes,
        gates,
        targets,
        placement,
        roles,
        given,
        checkpoints,
        done,
        model,
        opened,
        kept=trains or looks,
        as_given=opened.as_given,
        fixed=opened.fixed,
        tasks=tasks,
    )


def _streams(request: Request, passes: Sequence[Pass], targets: Sequence[build.OpenTarget]) -> bool:
    """Whether all that looks at the model's weights takes them from files, one after the other (held.py)."""
    asked = request.recipe
    return (
        all(given is None for given in (asked.data, asked.train, asked.calibration, asked.eval))
        and not asked.fix_inputs
        and all(instance.streams and not instance.needs for instance in passes)
        and all(target.streams for target, _ in targets)
    )


def _describe(request: Request, opened: opening.Opened) -> dict[str, Any]:
    """Of the model as it was given, and what was done to it as it was read."""
    facts = model_file.facts(request.model)
    return {
        "path": request.name or str(request.model),
        **({} if request.name else {"file": str(request.model.absolute())}),
        "sha256": facts.sha256,
        "size_bytes": facts.size_bytes,
        "opset": opened.opset,
        "nodes": opened.nodes,
        "changes": opened.notes,
        **({"fixed_inputs": dict(request.recipe.fix_inputs)} if request.recipe.fix_inputs else {}),
    }


def _identity(request: Request, passes: Sequence[Pass], roles: services.Roles) -> dict[str, str]:
    """Ingredients that a resumed run must share with the first one."""
    recipe = [(instance.name, sorted(asdict(instance.config).items(), key=str)) for instance in passes]
    sha256 = model_file.facts(request.model).sha256
    identity = {"recipe": repr(recipe), "model": sha256, "version": VERSION}
    identity["reading of the model"] = repr(request.reading)
    if request.recipe.retrain is not None:
        path, function = hook_place(request.recipe.retrain)
        identity["retraining hook"] = f"{file_hash(path)} {function}"
    for number, instance in enumerate(passes, 1):
        for option, path in option_files(instance).items():
            identity[f"file of step {number}, {option}"] = file_hash(path)
    return identity | roles.fingerprints()


def _begin(state: Run, claim: Claim) -> None:
    """From here on the earlier run's results are gone: the request has passed every check."""
    folder = state.request.out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        looked = claim.held
        claim.take()
        if not looked and (artifacts.there(folder) or state.checkpoints.earlier()):
            raise UsageError(
                f"{folder}: another run began there meanwhile; run it again, or give another --out"
            )
        artifacts.clear(folder)
        state.checkpoints.start()
    except OSError as error:
        raise UsageError(f"{folder}: cannot write there ({error.strerror}); give another --out") from error
    if state.request.resume:
        state.ui.note(f"resuming: {len(state.done)} of {len(state.passes)} steps are done")


def _write_large(state: Run, scratch: ExitStack) -> None:
    """A rewritten model that is too large to be given as bytes goes to a file once, for all sessions of it."""
    if state.opened is None or not state.opened.rewritten:
        return
    if model_file.size_bytes(state.model) > model_file.INLINE_LIMIT_BYTES:
        state.ui.status("writing the model as it was opened")
        folder = scratch.enter_context(TemporaryDirectory(prefix="lathe-", ignore_cleanup_errors=True))
        state.written = Path(folder) / "model.onnx"
        model_file.save(state.model, state.written)


def _baseline(state: Run) -> None:
    record = state.record
    state.ui.status("measuring the original")
    given = state.request.model
    frame = _room(state)
    try:
        ort.survive(given)
        lean = state.large and state.roles.evaluation is None
        session = fed(ort.session(given, lean=lean), state.fixed)
        state.feeds = sample_feeds(state.roles.sample, session, SAMPLE_BATCH)
        ort.run(session, state.feeds)  # refuses here, by name, what cannot run at all
        # ONNX Runtime stumbles over INT8 pairs alone; asking costs another session on some processors
        state.helped = is_quantized(frame) and ort.is_helped(session, given)
    except CrashError as error:
        raise CrashError(
            f"{state.request.name or given}: {error}, before any pass; "
            "export it in another form (another opset, float32) or use another version of ONNX Runtime"
        ) from error
    except ModelError as error:
        if found := diagnosis.problem(state.model):
            raise ModelError(f"{state.request.name or given}: {found}") from error
        raise
    if state.opened is not None:
        opening.compare(session, state.opened, state.feeds, state.written)
        state.rewritten, state.opened = state.opened.rewritten, None
    if state.roles.evaluation is not None:
        state.original = reference(session, state.roles.evaluation, state.ui.status, frame, tasks=state.tasks)
    del session, frame
    weighed = measure(state.model)
    record.warnings += dict.fromkeys(weighed.uncounted.values())
    record.baseline = weighed.as_metrics() | {"size": float(record.model["size_bytes"])}
    if state.original is not None:
        state.sampled = None if state.passes else state.original.sampled
        record.baseline |= state.original.metrics
        if note := state.original.note:
            record.warnings.append(note)
            state.ui.note(f"warning: {note}")
    missing = [
        reason for gate in state.gates if (reason := gate.missing(_available(state), weighed.uncounted))
    ]
    if missing:
        raise UsageError(missing[0])


def _room(state: Run) -> onnx.ModelProto:
    """The model, without the data of a large one: it is let go of for as long as sessions need the memory."""
    if not state.as_given or state.kept or not state.large:
        return state.model
    frame, _ = externalized(state.model, "")
    state.opened = None
    state.let_go(state.request.model)
    return frame


def _available(state: Run) -> set[str]:
    latency = {"latency"} if state.request.measure_latency else set()
    return set(state.record.baseline) | latency | {"packed"} | (set() if memory.unmeasured() else {"memory"})


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
    last step alone. A step that changed nothing has the latency of the model before it.
    """
    steps = state.record.steps[-1:] if state.large else state.record.steps
    if steps:
        state.let_go(state.file)
    base = None if state.large and steps else state.original_session()
    for step in steps:
        state.ui.status(f"timing {step.name}")
        file = state.request.out / step.file
        if base is None:
            state.rounds = time_apart(state.roles.sample, state.original_session, file)
        elif step.changed or state.rounds is None:
            state.rounds = time_pair(state.roles.sample, base, file)
        base_ms, step_ms = medians(state.rounds)
        step.quality |= {"latency": step_ms, "base_latency": base_ms}
        state.record.baseline["latency"] = base_ms
    if not steps:
        times = ort.times((base,), sample_feeds(state.roles.sample, base, 1))
        state.record.baseline["latency"] = float(np.median(times))


def _measure_again(state: Run) -> None:
    """The last model of an earlier run: its samples are not kept, nor metrics that were not asked for then."""
    if state.sampled is not None or state.original is None or state.roles.evaluation is None:
        return
    if any(of_data(gate.metric) for gate in state.gates):
        found = evaluate(ort.session(state.file), state.roles.evaluation, state.original, state.ui.status)
        state.sampled = found.sampled
        state.record.final().update(found)


def _judge(state: Run) -> None:
    """The gates on the model itself; those on latency judge a target's lowered model, where one is timed."""
    record, timed_later = state.record, any(target.timed for target, _ in state.targets)
    if any(gate.metric == "packed" for gate in state.gates):
        state.ui.status("packing")
        efforts = [options.effort for target, options in state.targets if target.name == "pack"]
        record.final()["packed"] = float(packed_bytes(state.file, *efforts[:1]))
    if any(gate.metric == "memory" for gate in state.gates):
        state.ui.status("measuring memory")
        feeds = sample_feeds(state.roles.sample, fed(ort.session(state.request.model), state.fixed), 1)
        record.baseline["memory"] = float(memory.peak_bytes(state.request.model, {**feeds, **state.fixed}))
        of_file = feeds if record.steps else {**feeds, **state.fixed}
        record.final()["memory"] = float(memory.peak_bytes(state.file, of_file))
    _measure_again(state)
    base = dict(record.baseline)
    final = record.final()
    if "packed" in final:
        base["packed"] = float(onnx_bytes(state.request.model))
    if "base_latency" in final:
        base["latency"] = final["base_latency"]  # the one measured in turn with the final model
    evidence = state.evidence(state.sampled, state.rounds)
    state.ui.status("judging")
    here = judge(
        state.gates, base, final, "model", lambda metric: not (timed_later and metric == "latency"), evidence
    )
    record.gates = here
    record.end(ExitCode.DONE if all(verdict.passed for verdict in here) else ExitCode.GATE_FAILED)
