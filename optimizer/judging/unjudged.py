"""What gates on sizes and times did not see of what was built for targets, in one line."""

from collections.abc import Iterable, Sequence

from onnx_lathe.optimizer.gate import Gate
from onnx_lathe.optimizer.report.record import GateRecord

OF_THE_MODEL = ("size", "memory", "latency")
"""Metrics of the model's file and of its runs, which what was built has of its own."""


def unjudged(gates: Iterable[Gate], targets: Sequence[str], verdicts: Sequence[GateRecord]) -> str:
    """Which of the targets each gate did not judge; empty if there are none. `targets`: those built whose files are
    others than the model's.
    """
    judged = {(verdict.gate, verdict.subject) for verdict in verdicts}
    left: dict[str, list[str]] = {}
    for gate in gates:
        missed = [name for name in targets if (str(gate), name) not in judged]
        if gate.metric in OF_THE_MODEL and missed:
            left.setdefault(", ".join(missed), []).append(str(gate))
    listed = "; ".join(f"{', '.join(texts)} ({names})" for names, texts in left.items())
    return f"gates that did not judge what was built for a target: {listed}" if left else ""
