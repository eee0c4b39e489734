"""Measures models on samples of the data, and judges what was measured by gates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import DataError, ModelError, printable
from onnx_lathe.optimizer.gate import NO_EVIDENCE, Gate
from onnx_lathe.optimizer.judging.evidence import Evidence
from onnx_lathe.optimizer.report.record import GateRecord
from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.files.signature import fixed_batch
from onnx_lathe.runtime.running import ort

SAMPLE_BATCH = 8
"""On so many samples a model is tried after each step."""
LATENCY_BUDGET_S = 1.0
SIZES = (1, 64, 512)
"""Of dimensions that the model leaves open, where there is no data: the first on which it runs, of all of them or of
last ones alone, as a signal is long and a state is not.
"""


@dataclass(frozen=True)
class Timing:
    """Of one sample: the median, between which times 8 of 10 calls lie, and below which 99 of 100."""

    median_ms: float
    low_ms: float
    high_ms: float
    calls: int
    p99_ms: float


def timing(ms: np.ndarray) -> Timing:
    """Of the milliseconds of calls [calls]."""
    low, median, high, last = np.percentile(ms, [10, 50, 90, 99])
    return Timing(float(median), float(low), float(high), len(ms), float(last))


def ways_of(session: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, Timing | str]:
    """Of a session that can be run in several ways (Target.open): by the way its times, or why it cannot be run so."""
    if not hasattr(session, "ways_ms"):
        return {}
    found = session.ways_ms(feeds, LATENCY_BUDGET_S)
    return {way: ms if isinstance(ms, str) else timing(ms) for way, ms in found.items()}


def sample_feeds(source: DataSource | None, session: Any, batch: int) -> Mapping[str, np.ndarray]:
    """The first samples of the data, or random values without data; as many as the model's fixed batch, if
    it has one, or one where each sample is a call. Raises DataError if the data has no samples, ModelError if
    the model runs on no random values.
    """
    if source is None:
        return _made_up(session, batch)
    first = next(iter(source.batches(batch)), None)
    if first is None:
        raise DataError("the data has no samples")
    if first.per_call:
        return first.call(0)
    count = fixed_batch([value.shape for value in session.get_inputs()]) or batch
    return {name: np.resize(array, (count, *array.shape[1:])) for name, array in first.inputs.items()}


def is_fixed(session: Any) -> bool:
    """Whether it takes inputs of one size, but for a batch, or says itself which it is for (Target.open)."""
    return hasattr(session, "usual_shapes") or all(
        isinstance(size, int) for value in session.get_inputs() for size in value.shape[1:]
    )


def shared_feeds(source: DataSource | None, sessions: Sequence[Any], batch: int) -> Mapping[str, np.ndarray]:
    """As `sample_feeds` of the first session. Without data, of one whose sizes are fixed, if any is, and tried on
    all: raises ModelError for sizes that another does not take.
    """
    if source is not None:
        return sample_feeds(source, sessions[0], batch)
    takes = next((one for one in sessions if is_fixed(one)), sessions[0])
    feeds = sample_feeds(None, takes, batch)
    for other in sessions:
        try:
            if other is not takes:
                ort.run(other, feeds)
        except ModelError as error:
            raise ModelError(
                f"{error}; these were random values of sizes that the other model takes: give --data of sizes that both take"
            ) from error
    return feeds


@dataclass(frozen=True)
class _Sized:
    """The inputs of a session, of the sizes that it is for."""

    session: Any

    def get_inputs(self) -> list[Any]:
        shapes = self.session.usual_shapes
        return [replace(value, shape=shapes[value.name]) for value in self.session.get_inputs()]


def _made_up(session: Any, batch: int) -> Mapping[str, np.ndarray]:
    """Random values, of the sizes that the session is for, or the first on which the model runs if it leaves any open."""
    if hasattr(session, "usual_shapes"):
        return ort.random_feeds(_Sized(session))
    shapes: list[dict[str, tuple[int, ...]]] = []
    refusal = ""
    for last, size in product((False, True), SIZES):
        feeds = ort.random_feeds(session, batch, size=size, last=last)
        made = {name: array.shape for name, array in feeds.items()}
        if made in shapes:
            continue
        shapes.append(made)
        try:
            ort.run(session, feeds)
            return feeds
        except ModelError as error:
            refusal = refusal or str(error)
    tried = ", ".join(f"'{name}' {list(shape)}" for name, shape in shapes[0].items())
    raise ModelError(
        f"{refusal}; these were random values ({tried}): give --data of sizes that the model takes"
    )


def fed_one_by_one(source: DataSource | None) -> bool:
    """Whether each sample of the data is a call of the model."""
    first = None if source is None else next(iter(source.batches(1)), None)
    return first is not None and first.per_call


def is_quantized(model: onnx.ModelProto) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def measured_exactly(model: onnx.ModelProto) -> bool:
    """Whether this model's sums of INT8 were computed in another way than a plain session's: SATURATES says how."""
    return is_quantized(model) and ort.saturates()


def time_pair(source: DataSource | None, base: Any, candidate: Path) -> np.ndarray:
    """Milliseconds [rounds, 2] of the session `base` and of a model file in the session that a user opens on it, in turn
    on the same sample of the data. What a plain session refuses is timed as `ort.session` opens it.
    """
    feeds = sample_feeds(source, base, 1)
    return ort.times((base, ort.as_opened(candidate)), feeds, budget_s=LATENCY_BUDGET_S)


def time_apart(source: DataSource | None, base: Callable[[], Any], candidate: Path) -> np.ndarray:
    """As `time_pair` of models too large to be open together: `base` opens the first, and each is closed before the
    next is opened. The candidate runs between two halves of the original's calls, so that a machine that becomes
    slower or faster meanwhile does so for both alike.
    """
    half = LATENCY_BUDGET_S / 2
    session = base()
    feeds = sample_feeds(source, session, 1)
    before = ort.times((session,), feeds, budget_s=half)[:, 0]
    del session
    session = ort.as_opened(candidate)
    between = ort.times((session,), feeds, budget_s=LATENCY_BUDGET_S)[:, 0]
    del session
    session = base()
    after = ort.times((session,), feeds, budget_s=half)[:, 0]
    rounds = min(len(before), len(after), len(between) // 2)
    return np.stack([np.concatenate([before[:rounds], after[:rounds]]), between[: 2 * rounds]], axis=1)


def medians(rounds: np.ndarray) -> tuple[float, float]:
    """Of [rounds, 2]."""
    base, candidate = np.median(rounds, axis=0)
    return float(base), float(candidate)


def judge(
    gates: Sequence[Gate],
    base: Mapping[str, float],
    candidate: Mapping[str, float],
    subject: str,
    only: Callable[[str], bool] = lambda metric: True,
    evidence: Evidence = NO_EVIDENCE,
) -> list[GateRecord]:
    """A verdict per gate whose metric `only` admits.

    `subject` is what is judged: the model, or a target's lowered model. `evidence`: what intervals are found of.
    """
    verdicts = []
    for gate in gates:
        if only(gate.metric):
            verdict = gate.judge(base, candidate, evidence)
            numbers = verdict.measured, verdict.needed, verdict.margin, verdict.interval, verdict.tolerance
            verdicts.append(
                GateRecord(str(gate), subject, verdict.passed, printable(verdict.message), *numbers)
            )
    return verdicts
