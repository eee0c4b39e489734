"""From the finished model to what devices run: per target, lower a copy, measure and judge it, build."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from lathe import LatheError, TargetError
from optimizer.recipe import Call
from optimizer.report.record import TargetRecord
from passes.base import make_config
from passes.lowering import find_lowering
from runtime import model_file, ort
from runtime.evaluate import evaluate
from runtime.targets.base import Target, find

if TYPE_CHECKING:
    from optimizer.pipeline import Run

QUALITY = ("top1", "top5", "agreement", "sqnr")
"""What is measured, and judged, on the lowered model of a target too."""

OpenTarget = tuple[Target, Any]


def open_targets(calls: Sequence[Call]) -> list[OpenTarget]:
    """The targets with their options. Raises UsageError for a wrong name or option, TargetError if one is not available here."""
    opened = []
    for call in calls:
        target = find(call.name)()
        config = make_config(target.Config, call.options, "target", call.name, "optimize targets")
        if reason := target.available():
            raise TargetError(f"target '{call.name}': {reason}")
        opened.append((target, config))
    return opened


def clear(out: Path) -> None:
    """Removes what an earlier run built, so that nothing of it can pass for the result of this one."""
    for pattern in ("model.onnx", "model.onnx.data", "*.engine", "*.engine.json", "*.engine.log", "report.json"):
        for path in out.glob(pattern):
            path.unlink()


def build_all(run: "Run", targets: Sequence[OpenTarget]) -> None:
    """Builds every target. A failure is recorded, and the others are built all the same; sets the record's exit code and outcome."""
    record = run.record
    for target, config in targets:
        found = TargetRecord(target.name)
        record.targets.append(found)
        run.ui.status(f"building {target.name}")
        try:
            _build(run, target, config, found)
        except LatheError as error:
            found.error = str(error)
    if any(not verdict.passed for verdict in record.gates):
        record.exit_code, record.outcome = 3, "gate failed"
    elif any(found.error for found in record.targets):
        record.exit_code, record.outcome = TargetError.exit_code, "target failed"


def _build(run: "Run", target: Target, config: Any, found: TargetRecord) -> None:
    from optimizer.pipeline import apply_pass, judge

    out, model = run.request.out, run.model
    with tempfile.TemporaryDirectory(prefix="lathe-") as scratch:
        lowered = Path(scratch) / "model.onnx"
        if target.lowering is not None:
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            model, report = apply_pass(find_lowering(target.lowering)(), copy, run.context)
            found.skips = [asdict(skip) for skip in report.skips]
        model_file.save(model, lowered)
        if target.lowering is not None and run.original is not None and run.roles.evaluation is not None:
            quality = evaluate(ort.session(lowered), run.roles.evaluation, run.original, run.ui.status)
            found.quality = {key: quality[key] for key in QUALITY if key in quality}
            verdicts = judge(run.gates, run.record.baseline, found.quality, target.name, only=lambda metric: metric in QUALITY)
            run.record.gates.extend(verdicts)
            if any(not verdict.passed for verdict in verdicts):
                raise TargetError("not built: its lowered model fails a gate")
        found.skips += [{"node": node, "reason": reason} for node, reason in target.check(model)]
        _check_space(lowered, out)
        artifact = target.build(lowered, out, config, run.ui.status)
    found.files = [path.name for path in artifact.paths]
    found.size_bytes = artifact.size_bytes
    found.details = dict(artifact.details)


def _check_space(model: Path, out: Path) -> None:
    needed = model_file.inspect_file(model).size_bytes
    if shutil.disk_usage(out).free < needed:
        raise TargetError(f"{out}: the disk has less than {needed / 1e6:.0f} MB free")
