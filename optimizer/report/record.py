"""What a run did and measured, as plain data. docs/report.md and docs/report.schema.json describe the JSON
form.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from onnx_lathe.errors import ExitCode, LatheError, UsageError
from onnx_lathe.optimizer.judging.intervals import Interval
from onnx_lathe.optimizer.report.checked import check, loaded
from onnx_lathe.optimizer.report.comparison import Comparison, TargetRow
from onnx_lathe.runtime.files.writing import replacing

SCHEMA_VERSION = 1


class _ModelKnown(TypedDict):
    path: str
    sha256: str
    size_bytes: int


class ModelFacts(_ModelKnown, total=False):
    """Of the original. `path` as it was given, `file` absolute (absent in records of earlier versions)."""

    file: str
    opset: int
    nodes: int
    changes: list[str]
    fixed_inputs: dict[str, Any]
    """Inputs that it has as constants, with their values (absent where there are none)."""


class _Edit(TypedDict):
    node: str
    what: str


class _Skip(TypedDict):
    node: str
    reason: str


@dataclass
class StepRecord:
    """One pass. `quality` holds the metrics after it; those before it are the previous step's, or the
    baseline's.
    """

    number: int
    name: str
    options: dict[str, Any]
    file: str
    changed: bool
    seconds: float
    size_bytes: int
    quality: dict[str, float]
    edits: list[dict[str, str]]
    skips: list[dict[str, str]]
    metrics: dict[str, float]
    worse: list[str] = field(default_factory=list)


@dataclass
class TargetRecord:
    """One target's build; `quality` is measured on the model lowered for it, in ONNX Runtime, unless `measured` says
    on what else.
    """

    name: str
    files: list[str] = field(default_factory=list)
    size_bytes: int = 0
    quality: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    facts: list[str] = field(default_factory=list)
    skips: list[dict[str, str]] = field(default_factory=list)
    error: str | None = None
    measured: str = "as lowered"


@dataclass
class GateRecord:
    """A verdict. `measured`, `needed` and `margin` (negative: missed by so much) are in the metric's stored
    unit: fraction 0..1, dB, bytes, ms, count, or times for a ratio. None where there is no number. `interval`: of
    `measured`, where it is known sample by sample. `tolerance`: by which it was missed and passed all the same.
    """

    gate: str
    subject: str
    passed: bool
    message: str
    measured: float | None = None
    needed: float | None = None
    margin: float | None = None
    interval: Interval | None = None
    tolerance: float = 0.0


@dataclass
class RunRecord:
    version: str
    command: list[str]
    model: dict[str, Any]
    data: list[str] = field(default_factory=list)
    baseline: dict[str, float] = field(default_factory=dict)
    steps: list[StepRecord] = field(default_factory=list)
    gates: list[GateRecord] = field(default_factory=list)
    targets: list[TargetRecord] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    outcome: str = "unfinished"
    exit_code: int = ExitCode.DEFECT
    seconds: float = 0.0
    started: str = ""
    ended: str = ""
    """ISO 8601, UTC."""
    libraries: dict[str, str] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    comparison: Comparison | None = None
    """Of a run with several targets."""
    schema: int = SCHEMA_VERSION

    def end(self, code: ExitCode) -> None:
        """Says how the run ended."""
        self.exit_code, self.outcome = int(code), code.outcome

    def final(self) -> dict[str, float]:
        """Metrics of the last step's model; the baseline's without steps."""
        return self.steps[-1].quality if self.steps else self.baseline

    def as_json(self) -> dict[str, Any]:
        return plain(dataclasses.asdict(self))

    def write(self, path: Path) -> None:
        """Raises UsageError if the file cannot be written."""
        write_json(path, self.as_json())


def write_json(path: Path, table: dict[str, Any]) -> None:
    """Writes the file whole or not at all. Raises UsageError with the reason if it cannot be written."""
    text = json.dumps(table, indent=1, allow_nan=False) + "\n"
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except LatheError as error:
        raise UsageError(str(error)) from error


def read_record(path: Path) -> RunRecord:
    """The record that a run wrote. Raises UsageError if there is none, or it is of another form."""
    try:
        table = loaded(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: cannot be read ({type(error).__name__}); give the --out of a finished run"
        ) from error
    try:
        if table["schema"] != SCHEMA_VERSION:
            raise UsageError(f"{path}: is of schema {table['schema']}, this version reads {SCHEMA_VERSION}")
        _check(table)
        parts = {
            "baseline": _metrics(table["baseline"]),
            "steps": [step_from_json(step) for step in table["steps"]],
            "gates": [GateRecord(**gate) for gate in table["gates"]],
            "targets": [
                TargetRecord(**one | {"quality": _metrics(one["quality"])}) for one in table["targets"]
            ],
            "comparison": _comparison(table.get("comparison")),
        }
        return RunRecord(**{**table, **parts})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(
            f"{path}: is no record of a run ({error}); run it again with this version"
        ) from error


def _check(table: dict[str, Any]) -> None:
    """Raises ValueError where something is not as a run writes it."""
    metrics = dict[str, float | None]
    whole = {"baseline", "steps", "gates", "targets", "comparison"}
    check({key: value for key, value in table.items() if key not in whole}, RunRecord, "")
    check(table["model"], ModelFacts, "model")
    check(table["baseline"], metrics, "baseline")
    check(table["gates"], list[dict[str, Any]], "gates")
    check([_bounded(gate) for gate in table["gates"]], list[GateRecord], "gates")
    for part, kind in (("steps", StepRecord), ("targets", TargetRecord)):
        check(table[part], list[dict[str, Any]], part)
        for place, one in enumerate(table[part]):
            where = f"{part}[{place}]"
            check(
                one | {"quality": {}, "metrics": {}} if kind is StepRecord else one | {"quality": {}},
                kind,
                where,
            )
            for key in ("quality", "metrics") if kind is StepRecord else ("quality",):
                check(one[key], metrics, f"{where}.{key}")
            check(one["skips"], list[_Skip], f"{where}.skips")
            check(one.get("edits", []), list[_Edit], f"{where}.edits")


def _bounded(gate: dict[str, Any]) -> dict[str, Any]:
    """With numbers for the ends of an interval that is of an `sqnr` without noise, which are null."""
    interval = gate.get("interval")
    if not isinstance(interval, dict):
        return gate
    ends = {end: 0.0 for end in ("low", "high") if end in interval and interval[end] is None}
    return gate | {"interval": interval | ends}


def _comparison(table: dict[str, Any] | None) -> Comparison | None:
    """Raises ValueError for one that is not as a run writes it."""
    if table is None:
        return None
    rows = [{**row, "quality": _metrics(row["quality"])} for row in table["rows"]]
    check({**table, "rows": [{**row, "quality": {}} for row in table["rows"]]}, Comparison, "comparison")
    for row in table["rows"]:
        check(row["quality"], dict[str, float | None], "comparison.rows.quality")
    return Comparison(**{**table, "rows": [TargetRow(**row) for row in rows]})


def _metrics(table: dict[str, float | None]) -> dict[str, float]:
    """Null stands for the infinity of an `sqnr` without noise."""
    return {key: math.inf if value is None else value for key, value in table.items()}


def step_from_json(table: dict[str, Any]) -> StepRecord:
    """The inverse of `as_json` for one step, for resuming."""
    return StepRecord(
        **{
            **table,
            "quality": _metrics(table["quality"]),
        }
    )


def plain(value: Any) -> Any:
    """JSON has no infinity: it becomes null, which the schema documents (an `sqnr` without any noise)."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
