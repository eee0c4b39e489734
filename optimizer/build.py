"""From the finished model to what devices run: per target, lower a copy, measure and judge it, build."""

import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import Any

import onnx

from onnx_lathe.errors import ContractError, ExitCode, LatheError, ModelError, TargetError, UsageError
from onnx_lathe.optimizer import artifacts, contest
from onnx_lathe.optimizer.judging.metrics import of_data
from onnx_lathe.optimizer.judging.unjudged import unjudged
from onnx_lathe.optimizer.lowering import lowered
from onnx_lathe.optimizer.measuring import (
    fed_one_by_one,
    judge,
    measured_exactly,
    medians,
    sample_feeds,
    time_pair,
)
from onnx_lathe.optimizer.opened import judge_opened
from onnx_lathe.optimizer.opening import open_file
from onnx_lathe.optimizer.recipe import Call
from onnx_lathe.optimizer.report.record import TargetRecord
from onnx_lathe.optimizer.run import Run
from onnx_lathe.optimizer.step import ROUNDING_DB, apply_pass, crashes_named
from onnx_lathe.optimizer.unchanged import note_uncompared
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import make_config
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.placement import CANONICAL, Placement
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.tensors import all_nodes
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.evaluate import evaluate
from onnx_lathe.runtime.running.tasks.samples import Measured
from onnx_lathe.runtime.targets.core.base import Artifact, Target
from onnx_lathe.runtime.targets.core.registry import find

NOTED_LOSS_DB = 1.0
"""By which what a user computes may be further from the original than the model itself, unsaid."""

OpenTarget = tuple[Target, Any]


def open_targets(calls: Sequence[Call]) -> list[OpenTarget]:
    """The targets with their options. Raises UsageError for a wrong name or option, TargetError if one is
    not available here, or not with its options.
    """
    if not calls:
        raise UsageError("no target is named; leave --target out for onnx, or see: optimize targets")
    names = [call.name for call in calls]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(
            f"target '{twice}' is named twice; its files would overwrite each other: run once for each, with another --out"
        )
    opened = configured_targets(calls)
    for target, config in opened:
        if reason := target.available() or target.unserved(config):
            raise TargetError(f"target '{target.name}': {reason}")
    return opened


def configured_targets(calls: Sequence[Call]) -> list[OpenTarget]:
    """The targets with their options, available here or not. Raises UsageError for a wrong name or option."""
    opened = []
    for call in calls:
        kind = find(call.name)
        see = "optimize targets"
        opened.append((kind(), make_config(kind.Config, call.options, "target", call.name, see, kind.moved)))
    return opened


def placement(targets: Sequence[OpenTarget]) -> Placement:
    """What any of the targets runs in INT8; the canonical form's without one that runs a model. A file that
    is opened as it is may meet a processor that adds products in pairs, and holds its activations in the
    canonical form: biases are to make up for the rounding of that one.
    """
    found = [place for target, config in targets if (place := target.placed(config)) is not None]
    place = reduce(or_, found) if found else CANONICAL
    if any(target.opened for target, _ in targets):
        return replace(place, pairs=True, unsigned=False)
    return place


def lower(
    target: Target, config: Any, model: onnx.ModelProto, context: Context
) -> tuple[onnx.ModelProto, PassReport]:
    """The model as the target wants it. `config`: the target's options."""
    placed = replace(context, placement=target.placed(config) or CANONICAL)

    def apply(instance: Pass, before: onnx.ModelProto) -> tuple[onnx.ModelProto, PassReport]:
        return apply_pass(instance, before, placed, culprit=target.name)

    with _naming(target):
        return lowered(target, config, model, apply)


@contextmanager
def _naming(target: Target) -> Iterator[None]:
    try:
        yield
    except ContractError as error:
        raise ContractError(f"target {target.name}: {error}") from error


def _put(source: Path, target: Path, scratch: Path) -> None:
    """In the output folder. A folder takes no other's place: one that another run has just put there goes first."""
    if source.is_dir() and target.is_dir():
        target.replace(scratch / f"former-{target.name}")
    source.replace(target)


def build_all(run: Run) -> None:
    """Lowers and judges for every target, then builds. Sets the record's exit code and outcome.

    Nothing is built when a gate fails for the only target; of several, the others are built for the table that
    compares them (`contest`), and nothing is kept. A failed build is recorded, and the others are built all the same.
    Files appear in the output folder together, at the end.
    """
    record, out = run.record, run.request.out
    with tempfile.TemporaryDirectory(prefix=artifacts.BUILDING, dir=out) as scratch:
        ready = [(target, *_lower(run, target, config, Path(scratch))) for target, config in run.targets]
        failing = {verdict.subject for verdict in record.gates if not verdict.passed}
        if failing and len(ready) == 1:
            record.end(ExitCode.GATE_FAILED)
            return
        results = Path(scratch) / "results"
        results.mkdir()
        entries, wrong_use = [], False
        for target, config, model, found in ready:
            record.targets.append(found)
            built: Artifact | LatheError | None = None
            if not found.error and target.name not in failing:
                built = _built(run, target, config, model, results, found)
                wrong_use |= isinstance(built, UsageError)
            artifact = built if isinstance(built, Artifact) else None
            entries.append(contest.Entry(target, config, found, artifact, model))
        if len(entries) > 1:
            run.ui.status("comparing the targets")
            record.comparison = contest.compare(run, entries)
        if any(not verdict.passed for verdict in record.gates):
            for found in record.targets:
                found.files, found.size_bytes = [], 0
            record.end(ExitCode.GATE_FAILED)
            return
        artifacts.announce(out, _names(results.rglob("*"), results))
        for path in sorted(results.iterdir(), reverse=True):  # a file's data before the file
            _put(path, out / path.name, Path(scratch))
    _tell_unjudged(run)
    if any(found.error for found in record.targets):
        record.end(ExitCode.WRONG_USE if wrong_use else ExitCode.TARGET_FAILED)


def _built(
    run: Run, target: Target, config: Any, model: Path, results: Path, found: TargetRecord
) -> Artifact | LatheError:
    """What was built, measured and judged, or the error that the record names."""
    run.ui.status(f"building {target.name}")
    built: Artifact | LatheError
    try:
        built = _build(run, target, config, model, results, found)
        judge_opened(run, target, config, built, found)
    except LatheError as error:
        built = error
        found.error = str(error)
        found.files, found.size_bytes = [], 0
        _remove(target, results)
    listed = {name for one in run.record.targets for name in one.files}
    # such as a failed build's log
    found.files += sorted(set(_names(results.rglob("*"), results)) - listed)
    return built


def _tell_unjudged(run: Run) -> None:
    """Warns of gates on sizes and times that did not see what was built."""
    own = [target for target, _ in run.targets if target.lowering is not None or not target.opened]
    failed = {found.name for found in run.record.targets if found.error}
    built = [target.name for target in own if target.name not in failed]
    if told := unjudged(run.gates, built, run.record.gates):
        run.record.warnings.append(told)
        run.ui.note(f"warning: {told}")


def _lower(run: Run, target: Target, config: Any, scratch: Path) -> tuple[Any, Path, TargetRecord]:
    """The options and the model as this target wants them, in a file, measured and judged by the accuracy
    gates.
    """
    found, path = TargetRecord(target.name), scratch / target.name / "model.onnx"
    path.parent.mkdir()
    context = run.services.context(f"target {target.name}")
    profiler = None
    if target.guards(config) and run.request.measure_latency:
        profiler = target.profiler(config, partial(sample_feeds, run.roles.sample), run.ui.status)
        context = run.services.profiling(context) if profiler is None else context
    if target.lowering is not None:
        request = run.request
        context = run.services.judging(
            context, request.model, lambda: open_file(request.model, request.reading).model, run.fixed
        )
    with profiler or nullcontext(context.profiler) as timed:
        config, model, report, notes = _fitted(run, target, config, replace(context, profiler=timed))
    found.skips = [asdict(skip) for skip in report.skips]
    model_file.save(model, path)
    judged: set[str] = set()
    sampled: Mapping[str, Measured] = {}
    if target.lowering is not None:
        with _naming(target), crashes_named("as this target wants it", target.name):
            ort.survive(path)
    wanted = target.lowering is not None and not target.runs_here(config)
    if wanted and run.original is not None and run.roles.evaluation is not None:
        try:
            opened = ort.plain_session(path) if target.timed else ort.session(path)
        except ModelError as error:
            found.error = f"ONNX Runtime refuses what was made for it: {error}"
            return config, path, found
        quality = evaluate(opened, run.roles.evaluation, run.original, run.ui.status)
        found.quality, sampled = dict(quality), quality.sampled
        judged.update(gate.metric for gate in run.gates if of_data(gate.metric))
        note_uncompared(run, f"target {target.name}", quality)
        _compare_with_model(run, target, path, quality, plain=target.timed)
    elif target.opened and measured_exactly(model):
        _measure_plainly(run, target, path, found)
    base, rounds = dict(run.record.baseline), None
    if target.timed and run.request.measure_latency:
        run.ui.status(f"timing {target.name}")
        rounds = time_pair(run.roles.sample, run.original_session(), path)
        base["latency"], found.quality["latency"] = medians(rounds)
        found.quality["base_latency"] = base["latency"]
        judged.add("latency")
    run.record.gates.extend(
        judge(
            run.gates,
            base,
            found.quality,
            target.name,
            lambda metric: metric in judged,
            run.evidence(sampled, rounds),
        )
    )
    found.skips += [{"node": node, "reason": reason} for node, reason in target.check(model, config)]
    _warn(run, target, [*report.warnings, *notes])
    return config, path, found


def _fitted(
    run: Run, target: Target, options: Any, context: Context
) -> tuple[Any, onnx.ModelProto, PassReport, list[str]]:
    """The target's options, fitted to the model and the data, and the model lowered with them; what the lowering
    reports, and what to say of the options.
    """
    options = target.fed(options, run.request.recipe.preprocess)
    options = target.named(options, _class_names(run))
    fitted, notes = target.fitted(run.model, options, _data_shapes(run), fed_one_by_one(run.roles.sample))
    model, report = lower(target, fitted, run.model, context)
    config, more = target.settled(model, options, fitted)
    if config != fitted and _sees_more(target, model, fitted, config):
        model, report = lower(target, config, run.model, context)
    return config, model, report, [*notes, *more]


def _sees_more(target: Target, model: onnx.ModelProto, fitted: Any, config: Any) -> bool:
    """Whether the options `config` let the target see more of the model than those that it was lowered with."""
    before, now = (target.lowering_options(one, model, {}) for one in (fitted, config))
    return before != now


def _warn(run: Run, target: Target, notes: Sequence[str]) -> None:
    for note in notes:
        run.record.warnings.append(f"target {target.name}: {note}")
        run.ui.note(f"warning: {run.record.warnings[-1]}")


def _class_names(run: Run) -> Sequence[str]:
    """By index, where the data has names for them, as folders of pictures do."""
    roles = run.roles.evaluation, run.roles.calibration, run.roles.train
    return next((one.class_names for one in roles if one is not None and one.class_names), ())


def _data_shapes(run: Run) -> dict[str, tuple[int, ...]]:
    """Shapes of the first samples of the data, by input; none without data, where inputs are made up."""
    return {} if run.roles.sample is None else {name: array.shape for name, array in run.feeds.items()}


def _measure_plainly(run: Run, target: Target, path: Path, found: TargetRecord) -> None:
    """What a plain session of the file gives, where the steps were measured in another one. It is not judged:
    the file is for other processors and targets, too.
    """
    if run.original is None or run.roles.evaluation is None:
        return
    try:
        opened = ort.plain_session(path)
    except ModelError as error:
        run.record.warnings.append(f"target {target.name}: a plain session does not open its file: {error}")
        run.ui.note(f"warning: {run.record.warnings[-1]}")
        return
    quality = evaluate(opened, run.roles.evaluation, run.original, run.ui.status)
    found.quality = dict(quality)
    note_uncompared(run, f"target {target.name}", quality)
    _compare_with_model(run, target, path, quality, plain=True)


def _compare_with_model(
    run: Run, target: Target, path: Path, quality: Mapping[str, float], *, plain: bool
) -> None:
    """Says so where the model in the target's form is further from the original than the model is, by more than
    rounding. `plain`: `quality` is that of a session that lets ONNX Runtime change the file.
    """
    before = min(run.record.final().get("sqnr", -math.inf), ROUNDING_DB)
    now = quality.get("sqnr", math.inf)
    if run.original is None or run.roles.evaluation is None or not before - now > NOTED_LOSS_DB:
        return
    in_int8 = any(node.op_type == "QuantizeLinear" for node in all_nodes(run.model))
    exact, what = now, "the model as it is lowered for it"
    if plain:
        what = "its file"
        exact = evaluate(ort.session(path), run.roles.evaluation, run.original, run.ui.status).get(
            "sqnr", now
        )
    if exact - now <= NOTED_LOSS_DB:
        reason = f"the form for {target.name} costs that, in whichever session"
    elif in_int8 and ort.saturates():
        reason = f"this processor's sums of INT8 saturate; added exactly, they give {exact:.1f} dB"
    else:
        reason = f"ONNX Runtime's optimizers change it when they load it; else it gives {exact:.1f} dB"
    run.record.warnings.append(
        f"target {target.name}: {what} gives {now:.1f} dB signal to noise, the model {before:.1f} dB"
        f"{' or more' if before == ROUNDING_DB else ''}: {reason}"
        + ("; int8(min_sqnr=...) leaves layers in float" if in_int8 else "")
    )
    run.ui.note(f"warning: {run.record.warnings[-1]}")


def _remove(target: Target, results: Path) -> None:
    """Takes away what a target wrote that turned out to be wrong; a log that a failed build leaves stays."""
    for pattern in target.outputs:
        for path in results.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.suffix != ".log":
                path.unlink()


def _names(paths: Iterable[Path], results: Path) -> list[str]:
    """The files among them, as the report names them: `model.onnx`, `model.jetson/build.sh`."""
    return [path.relative_to(results).as_posix() for path in paths if path.is_file()]


def _build(
    run: Run, target: Target, config: Any, model: Path, results: Path, found: TargetRecord
) -> Artifact:
    _check_space(model, results)
    artifact = target.build(model, results, config, run.ui.status)
    found.files = _names(artifact.paths, results)
    found.size_bytes = artifact.size_bytes
    found.details = dict(artifact.details)
    found.facts = list(artifact.facts)
    tried = dict(target.verify(model, artifact, config, run.feeds, run.ui.status, run.model))
    _warn(run, target, tried.pop("notes", ()))
    found.details |= tried
    _warn(run, target, artifact.notes)
    return artifact


def _check_space(model: Path, out: Path) -> None:
    needed = model_file.inspect_file(model).size_bytes
    if shutil.disk_usage(out).free < needed:
        raise TargetError(f"{out}: the disk has less than {needed / 1e6:.0f} MB free")
