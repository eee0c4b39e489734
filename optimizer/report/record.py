"""What a run did and measured, as plain data. docs/report.md and docs/report.schema.json describe the JSON
form.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx_lathe.errors import UsageError

SCHEMA_VERSION = 1


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
    """One target's build; `quality` is measured on the model lowered for it, in ONNX Runtime."""

    name: str
    files: list[str] = field(default_factory=list)
    size_bytes: int = 0
    quality: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    skips: list[dict[str, str]] = field(default_factory=list)
    error: str | None = None


@dataclass
class GateRecord:
    gate: str
    subject: str
    passed: bool
    message: str


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
    exit_code: int = 1
    seconds: float = 0.0
    schema: int = SCHEMA_VERSION

    def final(self) -> dict[str, float]:
        """Metrics of the last step's model; the baseline's without steps."""
        return self.steps[-1].quality if self.steps else self.baseline

    def as_json(self) -> dict[str, Any]:
        return _plain(dataclasses.asdict(self))

    def write(self, path: Path) -> None:
        """Raises UsageError if the file cannot be written."""
        partial = path.with_suffix(".json.part")
        try:
            partial.write_text(json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise UsageError(f"{path}: cannot write the report ({error.strerror})") from error


def step_from_json(table: dict[str, Any]) -> StepRecord:
    """The inverse of `as_json` for one step, for resuming."""
    return StepRecord(
        **{
            **table,
            "quality": {key: math.inf if value is None else value for key, value in table["quality"].items()},
        }
    )


def _plain(value: Any) -> Any:
    """JSON has no infinity: it becomes null, which the schema documents (an `sqnr` without any noise)."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
