"""Runs a recipe: load, check, then per step pass -> contract -> checkpoint -> measure; at the end gates,
targets, report.
"""

import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe import metadata
from onnx_lathe.errors import ContractError, DataError, LatheError, ModelError, UsageError
from onnx_lathe.optimizer import artifacts, build, services
from onnx_lathe.optimizer.checkpoint import Checkpoints, file_hash
from onnx_lathe.optimizer.gate import Gate, parse_gates
from onnx_lathe.optimizer.inspect import measure
from onnx_lathe.optimizer.recipe import Recipe
from onnx_lathe.optimizer.report.record import GateRecord, RunRecord, StepRecord
from onnx_lathe.optimizer.ui import Ui
from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model, node_metadata
from onnx_lathe.placement import Placement
from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.pack.files import onnx_bytes, packed_bytes
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.evaluate import Reference, evaluate, reference
from onnx_lathe.runtime.training import TorchTrainer
from onnx_lathe.runtime.training.hooks import hook_place
from onnx_lathe.version import VERSION

SAMPLE_BATCH = 8
LATENCY_BUDGET_S = 1.0
LARGE_BYTES = 256 << 20
"""Above this size only the final model's latency is measured: every measurement loads two models."""
GROWTH_NOTED = 1.001
"""A step that makes a file larger by less only added metadata."""
LOWER_IS_BETTER = ("size", "weights", "macs", "parameters")


@dataclass(frozen=True)
class Request:
    model: Path
    recipe: Recipe
    out: Path
    resume: bool = False
    measure_latency: bool = True


@dataclass
class Run:
    """Everything that lives as long as one run."""

    request: Request
    ui: Ui
    record: RunRecord
    passes: list[Pass]
    gates: Sequence[Gate]
    roles: services.Roles
    checkpoints: Checkpoints
    placement: Placement
    """What the targets run in INT8."""
    model: onnx.ModelProto
    """The model after the last step done. Held here alone: a large one must not be kept alive by a caller's
    variable.
    """
    context: Context = field(default_factory=Context)
    feeds: Mapping[str, np.ndarray] = field(default_factory=dict)
    original: Reference | None = None

    @property
    def large(self) -> bool:
        return bool(self.record.model["size_bytes"] > LARGE_BYTES)

    @property
    def file(self) -> Path:
        """Where `model` is on disk."""
        return self.request.out / self.record.steps[-1].file if self.record.steps else self.request.model

    @property
    def titles(self) -> list[str]:
        return [
            f"{number}/{len(self.passes)} {step}" for number, step in enumerate(self.request.recipe.steps, 1)
        ]


def run(request: Request, ui: Ui) -> RunRecord:
    """Compiles the model and returns the record, its exit code set: 0, 3 when a gate failed, 4 when a
    target failed.

    Raises LatheError for a request that cannot run: what an earlier run left in the folder is untouched
    then. A step that fails leaves the checkpoints of those before it.
    """
    started = time.perf_counter()
    passes = request.recipe.passes()
    gates = parse_gates(request.recipe.gates)
    targets = build.open_targets(request.recipe.targets)
    state = _open(request, ui, passes, gates, build.placement(targets))
    record = state.record
    artifacts.check(request.out, request.model)
    done = state.checkpoints.resume() if request.resume else []
    ui.start(len(passes))
    try:
        _baseline(state)
        _begin(state, done)
        _steps(state, done)
        if request.measure_latency:
            _latencies(state)
        _judge(state, timed_later=any(target.timed for target, _ in targets))
        if record.exit_code == 0:
            build.build_all(state, targets)
    finally:
        ui.stop()
    record.seconds = time.perf_counter() - started
    return record


def _open(request: Request, ui: Ui, passes: list[Pass], gates: Sequence[Gate], placement: Placement) -> Run:
    """Reads model and data, and checks that every pass has what it needs."""
    model = model_file.load(request.model)
    roles = services.open_roles(request.recipe, model)
    services.check_needs(passes, roles, request.recipe)
    record = RunRecord(
        version=VERSION, command=sys.argv[1:], model=_describe(request.model, model), data=roles.notes
    )
    record.warnings = model_file.warnings(model) + services.warnings(passes, roles)
    for warning in record.warnings:
        ui.note(f"warning: {warning}")
    identity = _identity(request, passes, roles) | {"placement of INT8 by the targets": str(placement)}
    return Run(
        request, ui, record, passes, gates, roles, Checkpoints(request.out, identity), placement, model
    )


def _describe(path: Path, model: onnx.ModelProto) -> dict[str, Any]:
    facts = model_file.inspect_file(path)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    return {
        "path": str(path),
        "sha256": facts.sha256,
        "size_bytes": facts.size_bytes,
        "opset": opset,
        "nodes": len(model.graph.node),
    }


def _identity(request: Request, passes: list[Pass], roles: services.Roles) -> dict[str, str]:
    """Ingredients that a resumed run must share with the first one."""
    recipe = [(instance.name, sorted(asdict(instance.config).items(), key=str)) for instance in passes]
    identity = {
        "recipe": repr(recipe),
        "model": model_file.inspect_file(request.model).sha256,
        "version": VERSION,
    }
    if request.recipe.retrain is not None:
        path, function = hook_place(request.recipe.retrain)
        identity["retraining hook"] = f"{file_hash(path)} {function}"
    return identity | roles.fingerprints()


def _begin(state: Run, done: list[StepRecord]) -> None:
    """From here on the earlier run's results are gone: the request has passed every check."""
    folder = state.request.out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        artifacts.clear(folder)
        state.checkpoints.start()
    except OSError as error:
        raise UsageError(f"{folder}: cannot write there ({error.strerror}); give another --out") from error
    if state.request.resume:
        state.ui.note(f"resuming: {len(done)} of {len(state.passes)} steps are done")


def _baseline(state: Run) -> None:
    record = state.record
    state.ui.status("measuring the original")
    session = ort.session(state.request.model, lean=state.large and state.roles.evaluation is None)
    state.feeds = sample_feeds(state.roles.evaluation or state.roles.calibration, session, SAMPLE_BATCH)
    ort.run(session, state.feeds)  # refuses here, by name, what cannot run at all
    record.baseline = measure(state.model).as_metrics() | {"size": float(record.model["size_bytes"])}
    if state.roles.evaluation is not None:
        state.original = reference(session, state.roles.evaluation, state.ui.status)
        record.baseline |= state.original.metrics
    missing = [reason for gate in state.gates if (reason := gate.missing(_available(state)))]
    if missing:
        raise UsageError(missing[0])


def _available(state: Run) -> set[str]:
    latency = {"latency"} if state.request.measure_latency else set()
    return set(state.record.baseline) | latency | {"packed"}


def sample_feeds(source: DataSource | None, session: Any, batch: int) -> Mapping[str, np.ndarray]:
    """The first samples of the data, or random values without data; as many as the model's fixed batch, if
    it has one.
    """
    if source is None:
        return ort.random_feeds(session, batch)
    first = next(iter(source.batches(batch)), None)
    if first is None:
        raise DataError("the data has no samples")
    fixed = {
        value.shape[0] for value in session.get_inputs() if value.shape and isinstance(value.shape[0], int)
    }
    count = fixed.pop() if len(fixed) == 1 else batch
    return {name: np.resize(array, (count, *array.shape[1:])) for name, array in first.inputs.items()}


def _steps(state: Run, done: list[StepRecord]) -> None:
    trains = any("trainer" in instance.needs for instance in state.passes[len(done) :])
    state.context = services.make_context(
        state.request.recipe,
        state.roles,
        state.model if trains else None,
        state.request.out / "retrain.log",
        state.ui.status,
    )
    state.context = replace(state.context, placement=state.placement)
    if done:
        state.record.steps.extend(done)
        state.model = model_file.load(state.request.out / done[-1].file)
    for index in range(len(done), len(state.passes)):
        state.ui.step(state.titles[index], index)
        _step(state, index)


def _step(state: Run, index: int) -> None:
    instance, call = state.passes[index], state.request.recipe.steps[index]
    started = time.perf_counter()
    trainer = state.context.trainer
    if isinstance(trainer, TorchTrainer):
        setup = replace(trainer.setup, step=state.titles[index], state=state.checkpoints.training)
        state.context = replace(state.context, trainer=TorchTrainer(setup))
    expected = ort.run(ort.session(state.file), state.feeds) if instance.lossless else {}
    try:
        after, report = apply_pass(instance, state.model, state.context)
    except LatheError as error:
        raise type(error)(f"step {index + 1}, {call.name}: {error}") from error
    if after is not state.model:
        contract.check_structure(state.model, after, instance.name)
    state.model = after
    del after
    path = state.checkpoints.path(index + 1, instance.name)
    model_file.save(state.model, path)
    try:
        session = ort.session(path, lean=state.large and state.roles.evaluation is None)
        if ort.is_helped(session):
            report.warnings.append(ort.HELPED)
        outputs = ort.run(session, state.feeds)
        if instance.lossless:
            contract.check_outputs(expected, outputs, type(instance))
    except (ModelError, ContractError) as error:
        path.unlink()
        raise ContractError(f"step {index + 1}, {call.name}: {error}") from error
    for warning in report.warnings:
        state.record.warnings.append(f"step {index + 1}, {call.name}: {warning}")
        state.ui.note(f"warning: {state.record.warnings[-1]}")
    size = model_file.inspect_file(path).size_bytes
    quality = measure(state.model).as_metrics() | {"size": float(size)}
    if state.roles.evaluation is not None and state.original is not None:
        quality |= evaluate(session, state.roles.evaluation, state.original, state.ui.status)
    record = StepRecord(
        number=index + 1,
        name=instance.name,
        options=asdict(instance.config),
        file=str(path.relative_to(state.request.out)),
        changed=bool(report.edits),
        seconds=time.perf_counter() - started,
        size_bytes=size,
        quality=quality,
        edits=[asdict(edit) for edit in report.edits],
        skips=[asdict(skip) for skip in report.skips],
        metrics=dict(report.metrics),
        worse=_worse(state.record.final(), quality),
    )
    state.record.steps.append(record)
    state.checkpoints.add(record, path)


def apply_pass(
    instance: Pass, model: onnx.ModelProto, context: Context
) -> tuple[onnx.ModelProto, PassReport]:
    """Runs one pass on a graph of the model and stamps the nodes that it made. Without edits the very same
    model comes back.
    """
    graph = import_model(model)
    known = {node.name for node in graph.nodes}
    report = instance.apply(graph, context)
    if not report.edits:
        return model, report
    for node in graph.nodes:
        if node.name not in known:
            node_metadata(node)[metadata.PASS] = instance.name
    after = export_model(graph)
    del graph
    gc.collect()  # onnx-graphsurgeon's graphs are reference cycles, and hold the weights until someone looks
    return after, report


def _worse(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """Metrics that a step made worse; the report says so."""

    def falls(name: str) -> bool:
        return (
            after[name] > GROWTH_NOTED * before[name]
            if name in LOWER_IS_BETTER
            else after[name] < before[name]
        )

    return [name for name in before.keys() & after.keys() if name != "sqnr" and falls(name)]


def _latencies(state: Run) -> None:
    """Latency of each step's model and of the original, in turn on the same feeds; on large models of the
    last step alone.
    """
    steps = state.record.steps[-1:] if state.large else state.record.steps
    base = ort.session(state.request.model)
    for step in steps:
        state.ui.status(f"timing {step.name}")
        base_ms, step_ms = time_pair(state, base, state.request.out / step.file)
        step.quality |= {"latency": step_ms, "base_latency": base_ms}
        state.record.baseline["latency"] = base_ms
    if not steps:
        state.record.baseline["latency"] = time_pair(state, base, state.request.model)[0]


def time_pair(state: Run, base: Any, candidate: Path) -> tuple[float, float]:
    """Milliseconds of the session `base` and of a model file, in turn on the same sample."""
    feeds = sample_feeds(state.roles.evaluation or state.roles.calibration, base, 1)
    return ort.latency_pair(base, ort.session(candidate), feeds, budget_s=LATENCY_BUDGET_S)


def _judge(state: Run, timed_later: bool) -> None:
    """The gates on the model itself; with `timed_later`, those on latency judge a target's lowered model in
    its place.
    """
    record = state.record
    if any(gate.metric == "packed" for gate in state.gates):
        state.ui.status("packing")
        record.final()["packed"] = float(packed_bytes(state.file))
    base = dict(record.baseline)
    final = record.final()
    if "packed" in final:
        base["packed"] = float(onnx_bytes(state.request.model))
    if "base_latency" in final:
        base["latency"] = final["base_latency"]  # the one measured in turn with the final model
    record.gates = judge(
        state.gates, base, final, "model", only=lambda metric: not (timed_later and metric == "latency")
    )
    failed = any(not verdict.passed for verdict in record.gates)
    record.exit_code, record.outcome = (3, "gate failed") if failed else (0, "done")


def judge(
    gates: Sequence[Gate],
    base: Mapping[str, float],
    candidate: Mapping[str, float],
    subject: str,
    only: Callable[[str], bool] = lambda metric: True,
) -> list[GateRecord]:
    """A verdict per gate whose metric `only` admits. `subject` is what is judged: the model, or a target's
    lowered model.
    """
    verdicts = []
    for gate in gates:
        if only(gate.metric):
            verdict = gate.judge(base, candidate)
            verdicts.append(GateRecord(str(gate), subject, verdict.passed, verdict.message))
    return verdicts
