"""Several targets of one run side by side: all that run here are timed in turn, and those that the gates allow compete
for smallest and fastest.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import LatheError
from onnx_lathe.optimizer.finished import untimed
from onnx_lathe.optimizer.gate import Gate
from onnx_lathe.optimizer.judging.metrics import of_data
from onnx_lathe.optimizer.judging.unjudged import OF_THE_MODEL
from onnx_lathe.optimizer.measuring import LATENCY_BUDGET_S, shared_feeds
from onnx_lathe.optimizer.report.comparison import (
    BUILT,
    ERROR,
    FAILED,
    NO_GATE,
    NOT_CHOSEN,
    NOT_JUDGED,
    NOT_MEASURED,
    ORIGINAL,
    PASSED,
    SIMULATED,
    Comparison,
    TargetRow,
)
from onnx_lathe.optimizer.report.record import GateRecord, TargetRecord
from onnx_lathe.optimizer.run import Run
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.core.base import Artifact, Target
from onnx_lathe.runtime.threads import limit

USUAL = ("top1", "agreement", "sqnr")
"""Metrics that are shown where no gate names others."""
RANKS = {PASSED: 0, NO_GATE: 0, NOT_JUDGED: 1, NOT_CHOSEN: 1, FAILED: 2, ERROR: 3}
GATED = "of the targets whose files were measured here and pass every gate"
UNGATED = "of the targets whose files were measured here; no gate says that they are good enough"
UNMEASURED = "of the targets that run here; no data and no gate say that they are good enough"


@dataclass(frozen=True)
class Entry:
    """A target of the run. `artifact`: None where nothing was built. `lowered`: its model's file."""

    target: Target
    config: Any
    record: TargetRecord
    artifact: Artifact | None
    lowered: Path

    @property
    def is_onnx(self) -> bool:
        """Whether what is built is what ONNX Runtime opens on this processor."""
        return self.target.opened or self.target.timed

    @property
    def runs_here(self) -> bool:
        return self.is_onnx or self.target.runs_here(self.config)

    def session(self, threads: int) -> Any | None:
        """What was built as a session; None where nothing was, or it does not run here."""
        if self.artifact is None or not self.runs_here:
            return None
        if self.is_onnx:
            return ort.as_opened(self.artifact.paths[0], threads)
        return self.target.open(self.artifact, self.config, threads)


def compare(run: Run, entries: Sequence[Entry]) -> Comparison:
    """The table of a run's targets. Files of the artifacts are there still."""
    metrics = _metrics(run, entries)
    threads = limit() or 1
    base = run.record.baseline
    original = TargetRow(
        ORIGINAL,
        int(base.get("size", 0)),
        BUILT if any(name in base for name in metrics) else NOT_MEASURED,
        {name: base[name] for name in metrics if name in base},
        verdict="",
    )
    rows = [_row(run, entry, metrics) for entry in entries]
    found = Comparison(metrics, [original, *rows], "", threads)
    if run.request.measure_latency:
        _time(run, entries, found)
    for row in rows:
        _refuse_by_figures(row, run.gates, run.record.gates, found.rows[0])
    _choose(found, bool(run.gates))
    found.rows = [original, *sorted(rows, key=_order)]
    return found


def _metrics(run: Run, entries: Sequence[Entry]) -> list[str]:
    """Those of data that gates name, in their order; else the usual ones. Measured of one row at least."""
    known = {name for one in (run.record.baseline, run.record.final()) for name in one}
    known |= {name for entry in entries for name in entry.record.quality}
    named = list(dict.fromkeys(f"{gate.metric}{gate.output}" for gate in run.gates if of_data(gate.metric)))
    return [name for name in named or USUAL if name in known]


def _row(run: Run, entry: Entry, metrics: Sequence[str]) -> TargetRow:
    record = entry.record
    measured, quality = _quality(run, entry)
    int8_layers, layers = _layers(entry)
    row = TargetRow(
        entry.target.name,
        record.size_bytes,
        measured,
        {name: quality[name] for name in metrics if name in quality},
        entry.runs_here,
        None,
        int8_layers,
        layers,
    )
    row.verdict, row.reason = _verdict(run, entry, measured)
    return row


def _quality(run: Run, entry: Entry) -> tuple[str, Mapping[str, float]]:
    """(what metrics are of, the metrics). Of a file that holds the model as it is, the model's."""
    record = entry.record
    data = {name: value for name, value in record.quality.items() if of_data(name)}
    if data:
        return (BUILT if entry.is_onnx else record.measured), data
    if entry.target.opened and entry.target.lowering is None:
        model = {name: value for name, value in run.record.final().items() if of_data(name)}
        return (BUILT if model else NOT_MEASURED), model
    return NOT_MEASURED, {}


def _layers(entry: Entry) -> tuple[int | None, int | None]:
    """(layers in INT8, layers with weights), as the target's form has them."""
    if not entry.lowered.is_file():
        return None, None
    model: onnx.ModelProto = model_file.load(entry.lowered)
    verdicts = entry.target.layers(model, entry.config)
    return (sum(one.int8 for one in verdicts), len(verdicts)) if verdicts else (None, None)


def _verdict(run: Run, entry: Entry, measured: str) -> tuple[str, str]:
    """What the gates on data say of the target, or of the model where the file holds it as it is."""
    if entry.record.error:
        return ERROR, entry.record.error
    if not run.gates:
        return NO_GATE, ""
    own = [verdict for verdict in run.record.gates if verdict.subject == entry.target.name]
    if missed := [verdict.message for verdict in own if not verdict.passed]:
        return FAILED, "; ".join(missed)
    judged = {verdict.gate for verdict in own}
    if entry.target.opened and entry.target.lowering is None:
        judged |= {verdict.gate for verdict in run.record.gates if verdict.subject == "model"}
    left = [str(gate) for gate in run.gates if of_data(gate.metric) and str(gate) not in judged]
    if left:
        what = "it was not run here" if measured == NOT_MEASURED else "it was not measured"
        return NOT_JUDGED, f"{what}: {'; '.join(left)}"
    return PASSED, ""


def _refuse_by_figures(
    row: TargetRow, gates: Sequence[Gate], verdicts: Sequence[GateRecord], original: TargetRow
) -> None:
    """A gate on size or latency judges the model's file alone: here it judges the row's own figures, so that none is
    chosen that it would not allow.
    """
    judged = {verdict.gate for verdict in verdicts if verdict.subject == row.name}
    base, figures = _figures(original), _figures(row)
    for gate in gates:
        asked = gate.metric in OF_THE_MODEL and str(gate) not in judged
        if row.verdict != PASSED or not asked or gate.metric not in figures or gate.metric not in base:
            continue
        verdict = gate.judge(base, figures)
        if not verdict.passed:
            row.verdict = NOT_CHOSEN
            row.reason = f"{verdict.message}; the gate judged the model alone, so the run did not fail"


def _figures(row: TargetRow) -> dict[str, float]:
    found = {"size": float(row.size_bytes)} if row.size_bytes else {}
    return found if row.latency_ms is None else found | {"latency": row.latency_ms}


def _time(run: Run, entries: Sequence[Entry], found: Comparison) -> None:
    """Times the original and every target that runs here, one call of each in turn, so that all see the same machine."""
    named: list[tuple[TargetRow, Any]] = []
    with ExitStack() as opened:
        named.append((found.rows[0], run.original_session(found.threads)))
        for row, entry in zip(found.rows[1:], entries, strict=True):
            try:
                session = entry.session(found.threads)
            except LatheError as error:
                found.notes.append(f"{row.name} was not timed: {error}")
                continue
            if session is None:
                continue
            opened.callback(getattr(session, "close", lambda: None))
            if reason := untimed(session):
                found.notes.append(f"{row.name} was not timed: {reason}")
            else:
                named.append((row, session))
        sessions = [session for _, session in named]
        try:
            feeds = shared_feeds(run.roles.sample, sessions, 1)
            times = ort.times(sessions, feeds, budget_s=LATENCY_BUDGET_S * len(sessions))
        except LatheError as error:
            found.notes.append(f"the targets were not timed in turn: {error}")
            return
    for (row, _), milliseconds in zip(named, np.median(times, axis=0), strict=True):
        row.latency_ms = float(milliseconds)


def _choose(found: Comparison, gated: bool) -> None:
    able = [row for row in found.rows[1:] if row.verdict in (PASSED, NO_GATE) and _is_known(row, found)]
    found.rule = GATED if gated else UNGATED if found.metrics else UNMEASURED
    if not able:
        return
    found.smallest = min(able, key=lambda row: row.size_bytes).name
    timed = [row for row in able if row.latency_ms is not None]
    if timed:
        found.fastest = min(timed, key=lambda row: row.latency_ms or 0.0).name


def _is_known(row: TargetRow, found: Comparison) -> bool:
    """Whether the row's file was run here, and measured where anything was."""
    return row.runs_here and row.size_bytes > 0 and (row.measured in (BUILT, SIMULATED) or not found.metrics)


def _order(row: TargetRow) -> tuple[int, bool, float, int]:
    unknown = row.latency_ms is None
    return RANKS[row.verdict], unknown, row.latency_ms or 0.0, row.size_bytes
