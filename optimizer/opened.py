"""Targets whose results run on this machine: metrics, gates and times are those of what was built."""

import os
from typing import Any

from onnx_lathe.optimizer.measuring import LATENCY_BUDGET_S, QUALITY, judge, sample_feeds
from onnx_lathe.optimizer.report.record import TargetRecord
from onnx_lathe.optimizer.run import Run
from onnx_lathe.optimizer.step import note_uncompared
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.evaluate import evaluate
from onnx_lathe.runtime.targets.core.base import Artifact, Target
from onnx_lathe.runtime.threads import limit


def judge_opened(run: Run, target: Target, config: Any, artifact: Artifact, found: TargetRecord) -> None:
    """Measures what was built, if it runs here, and judges it by the gates on accuracy and latency.

    Raises ModelError or TargetError where it cannot be run.
    """
    session = target.open(artifact, config) if target.opens else None
    if session is None:
        return
    found.measured = "as built"
    base, judged = dict(run.record.baseline), set[str]()
    if run.original is not None and run.roles.evaluation is not None:
        quality = evaluate(session, run.roles.evaluation, run.original, run.ui.status)
        found.quality = {key: value for key, value in quality.items() if key.split("[")[0] in QUALITY}
        judged.update(QUALITY)
        note_uncompared(run, f"target {target.name}", quality)
    if run.request.measure_latency:
        run.ui.status(f"timing {target.name}")
        original = ort.as_opened(run.request.model)
        session = target.open(artifact, config, limit() or os.cpu_count() or 1)
        # without data the sizes are made up, and those of what was built may be fixed
        takes = session if run.roles.sample is None and _is_fixed(session) else original
        feeds = sample_feeds(run.roles.sample, takes, 1)
        base["latency"], found.quality["latency"] = ort.latency_pair(
            original, session, feeds, budget_s=LATENCY_BUDGET_S
        )
        found.quality["base_latency"] = base["latency"]
        judged.add("latency")
    run.record.gates.extend(
        judge(run.gates, base, found.quality, target.name, only=lambda metric: metric in judged)
    )


def _is_fixed(session: Any) -> bool:
    """Whether it takes inputs of one size, but for a batch."""
    return all(isinstance(size, int) for value in session.get_inputs() for size in value.shape[1:])
