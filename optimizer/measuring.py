"""Measures models on samples of the data, and judges what was measured by gates."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import DataError
from onnx_lathe.optimizer.gate import Gate
from onnx_lathe.optimizer.report.record import GateRecord
from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.running import ort

SAMPLE_BATCH = 8
"""On so many samples a model is tried after each step."""
LATENCY_BUDGET_S = 1.0


def sample_feeds(source: DataSource | None, session: Any, batch: int) -> Mapping[str, np.ndarray]:
    """The first samples of the data, or random values without data; as many as the model's fixed batch, if
    it has one. Raises DataError if the data has no samples.
    """
    if source is None:
        return ort.random_feeds(session, batch)
    first = next(iter(source.batches(batch)), None)
    if first is None:
        raise DataError("the data has no samples")
    fixed = {
        value.shape[0] for value in session.get_inputs() if value.shape and isinstance(value.shape[0], int)
    }
    count = fixed.pop() if len(fixed) == 1 else batch
    return {name: np.resize(array, (count, *array.shape[1:])) for name, array in first.inputs.items()}


def measured_exactly(model: onnx.ModelProto) -> bool:
    """Whether this model's sums of INT8 were computed in another way than a plain session's: SATURATES says how."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node) and ort.saturates()


def time_pair(source: DataSource | None, base: Any, candidate: Path) -> tuple[float, float]:
    """Milliseconds of the session `base` and of a model file in the session that a user opens on it, in turn
    on the same sample of the data. What a plain session refuses is timed as `ort.session` opens it.
    """
    feeds = sample_feeds(source, base, 1)
    return ort.latency_pair(base, ort.as_opened(candidate), feeds, budget_s=LATENCY_BUDGET_S)


def judge(
    gates: Sequence[Gate],
    base: Mapping[str, float],
    candidate: Mapping[str, float],
    subject: str,
    only: Callable[[str], bool] = lambda metric: True,
) -> list[GateRecord]:
    """A verdict per gate whose metric `only` admits.

    `subject` is what is judged: the model, or a target's lowered model.
    """
    verdicts = []
    for gate in gates:
        if only(gate.metric):
            verdict = gate.judge(base, candidate)
            numbers = verdict.measured, verdict.needed, verdict.margin
            verdicts.append(GateRecord(str(gate), subject, verdict.passed, verdict.message, *numbers))
    return verdicts
