"""What a search found, as plain data; search.json is its JSON form, which docs/search.md describes."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx_lathe.errors import ExitCode
from onnx_lathe.optimizer.report.record import plain, write_json

SCHEMA_VERSION = 1


@dataclass
class Choice:
    """Settings, and what they gave on the samples that settings are chosen on. `value`: what is minimized."""

    settings: dict[str, Any]
    value: float
    ratio: float
    metrics: dict[str, float]
    passed: bool
    messages: list[str] = field(default_factory=list)


@dataclass
class SearchRecord:
    """`final`: the winner's run record, in short: its figures are of the evaluation data."""

    version: str
    command: list[str]
    model: str
    minimize: str
    gates: list[str]
    quality: str
    """The metric that the front shows."""
    chosen_on: str
    study: str
    storage: str
    original: float = 0.0
    """What is minimized, of the original."""
    base: dict[str, float] = field(default_factory=dict)
    """The original's metrics on the samples that settings are chosen on."""
    trials: list[dict[str, Any]] = field(default_factory=list)
    front: list[Choice] = field(default_factory=list)
    winner: Choice | None = None
    nearest_miss: Choice | None = None
    confirmed: dict[str, Any] | None = None
    """On samples that chose nothing, of the winner or of the one that failed there: `samples`, `metrics`, `z` (standard
    errors to spare), `tried` (candidates that came so far), `before` (those of the search that this one goes on
    with), `messages`; None if nothing came so far, or there are too few samples.
    """
    recipe: str = ""
    reproduce: str = ""
    final: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    budget_s: float = 0.0
    seconds: float = 0.0
    outcome: str = "unfinished"
    exit_code: int = ExitCode.DEFECT
    schema: int = SCHEMA_VERSION

    def end(self, code: ExitCode) -> None:
        self.exit_code, self.outcome = int(code), code.outcome

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = plain(dataclasses.asdict(self))
        return found

    def write(self, path: Path) -> None:
        write_json(path, self.as_json())

    def stopped(self) -> Sequence[dict[str, Any]]:
        """Trials that were not measured to the end."""
        return [trial for trial in self.trials if trial["stopped"]]
