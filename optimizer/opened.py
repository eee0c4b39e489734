"""Targets whose results run on this machine: metrics, gates and times are those of what was built."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from onnx_lathe.optimizer.finished import untimed
from onnx_lathe.optimizer.judging.metrics import of_data
from onnx_lathe.optimizer.measuring import LATENCY_BUDGET_S, is_fixed, judge, medians, sample_feeds, ways_of
from onnx_lathe.optimizer.report.comparison import BUILT, SIMULATED
from onnx_lathe.optimizer.report.record import TargetRecord
from onnx_lathe.optimizer.run import Run
from onnx_lathe.optimizer.unchanged import note_uncompared
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.evaluate import evaluate
from onnx_lathe.runtime.running.tasks.samples import Measured
from onnx_lathe.runtime.targets.core.base import Artifact, Target
from onnx_lathe.runtime.threads import limit

SAME_DB = 60.0
"""Beyond it only rounding differs: of float16's weights, say."""
NOTED_LOSS_DB, NOTED_LOSS_POINTS = 1.0, 0.01
"""By which what was built may be worse than the model, unsaid."""


def judge_opened(run: Run, target: Target, config: Any, artifact: Artifact, found: TargetRecord) -> None:
    """Measures what was built, if it runs here, and judges it by the gates on accuracy and latency.

    Raises ModelError or TargetError where it cannot be run.
    """
    session = target.open(artifact, config) if target.runs_here(config) else None
    if session is None:
        return
    with _closing(session):
        _judge(run, target, config, artifact, found, session)


@contextmanager
def _closing(session: Any) -> Iterator[None]:
    """Gives back what a session holds outside this process, such as a GPU's memory."""
    try:
        yield
    finally:
        if hasattr(session, "close"):
            session.close()


def _judge(
    run: Run, target: Target, config: Any, artifact: Artifact, found: TargetRecord, session: Any
) -> None:
    found.measured = SIMULATED if untimed(session) else BUILT
    base, judged = dict(run.record.baseline), set[str]()
    sampled: Mapping[str, Measured] = {}
    rounds = None
    if run.original is not None and run.roles.evaluation is not None:
        quality = evaluate(session, run.roles.evaluation, run.original, run.ui.status)
        found.quality, sampled = dict(quality), quality.sampled
        judged.update(gate.metric for gate in run.gates if of_data(gate.metric))
        note_uncompared(run, f"target {target.name}", quality)
        _warn_of_loss(run, target, found.quality)
    if run.request.measure_latency and not untimed(session):
        run.ui.status(f"timing {target.name}")
        original, session = _timed(run, target, config, artifact, session)
        # without data the sizes are made up, and those of what was built may be fixed
        takes = session if run.roles.sample is None and is_fixed(session) else original
        feeds = sample_feeds(run.roles.sample, takes, 1)
        rounds = ort.times((original, session), feeds, budget_s=LATENCY_BUDGET_S)
        base["latency"], found.quality["latency"] = medians(rounds)
        found.quality["base_latency"] = base["latency"]
        judged.add("latency")
        if ways := _ways(session, feeds):
            found.details["ways"] = ways
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


def _timed(run: Run, target: Target, config: Any, artifact: Artifact, session: Any) -> tuple[Any, Any]:
    """(the original, what was built), to be timed in turn: on the threads of `--threads` or on one, on which threads of
    other work do not keep each other waiting at every layer.
    """
    if hasattr(session, "call_ms"):  # threads of this processor are nothing to it
        return run.original_session(), session
    threads = limit() or 1
    opened = session if threads == 1 else target.open(artifact, config, threads)
    return run.original_session(threads), opened


def _ways(session: Any, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Times of all ways in which the session can be run, or why it cannot, for the report."""
    found = ways_of(session, feeds)
    return {way: one if isinstance(one, str) else asdict(one) for way, one in found.items()}


def _warn_of_loss(run: Run, target: Target, quality: Mapping[str, float]) -> None:
    """Says so where what was built is further from the original than the model is, beyond what rounding does."""
    model = run.record.final()
    before, now = (min(found.get("sqnr", math.inf), SAME_DB) for found in (model, quality))
    agreed, agrees = (found.get("agreement", 1.0) for found in (model, quality))
    lost = []
    if before - now > NOTED_LOSS_DB:
        lost.append(f"{now:.1f} dB signal to noise, the model {before:.1f} dB or more")
    if agreed - agrees > NOTED_LOSS_POINTS:
        lost.append(f"{100 * agrees:.1f} % of the original's answers, the model {100 * agreed:.1f} %")
    if lost:
        run.record.warnings.append(f"target {target.name}: what was built gives {' and '.join(lost)}")
        run.ui.note(f"warning: {run.record.warnings[-1]}")
