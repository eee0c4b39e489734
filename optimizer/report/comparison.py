"""What several targets of one run came to, side by side, as plain data: `comparison` in report.json."""

from dataclasses import dataclass, field

ORIGINAL = "(original)"
"""Name of the row of the model as it was given."""
BUILT, SIMULATED, LOWERED, NOT_MEASURED = "as built", "in the simulator", "as lowered", ""
"""What a row's metrics are of: the target's own file, run here; the same in a simulator of its chip; the model as it is
lowered for it, in ONNX Runtime; nothing."""
PASSED, FAILED, NOT_JUDGED, NO_GATE, ERROR = "passed", "failed", "not judged", "no gate", "error"
NOT_CHOSEN = "not chosen"
"""A row's verdict. "not chosen": its own figures miss a gate that judges the model alone, so the run does not fail."""


@dataclass
class TargetRow:
    """One target, or the original. `quality`: the metrics of `Comparison.metrics` that were measured, of what `measured`
    says. `latency_ms`: median of calls in turn with all other rows; None where it was not timed here. `layers`: those
    with weights, of which the target's form has `int8_layers` in INT8; None of a target that only writes a file.
    `reason`: why the verdict is not "passed".
    """

    name: str
    size_bytes: int = 0
    measured: str = NOT_MEASURED
    quality: dict[str, float] = field(default_factory=dict)
    runs_here: bool = True
    latency_ms: float | None = None
    int8_layers: int | None = None
    layers: int | None = None
    verdict: str = NO_GATE
    reason: str = ""


@dataclass
class Comparison:
    """`rows`: the original, then the targets, the best first. `threads`: of the processor, on which rows were timed.
    `smallest`, `fastest`: names of targets, by `rule`; None where none qualifies. `notes`: what was left out, and why.
    """

    metrics: list[str]
    rows: list[TargetRow]
    rule: str
    threads: int = 1
    smallest: str | None = None
    fastest: str | None = None
    notes: list[str] = field(default_factory=list)
