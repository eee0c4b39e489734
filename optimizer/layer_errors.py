"""What a run measures layer by layer for its report: how near each layer's output is to the original's, how its
values are distributed, and how long it takes. Kept in `steps/layers.json`, so that the report can be made again.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from onnx_lathe.optimizer import opening
from onnx_lathe.optimizer.calibrated import calibrated
from onnx_lathe.optimizer.checkpoint import LAYERS
from onnx_lathe.optimizer.measuring import sample_feeds
from onnx_lathe.optimizer.pairing import Match, Network, matches, network, paired
from onnx_lathe.optimizer.report.checked import check, loaded
from onnx_lathe.optimizer.report.record import StepRecord, plain, write_json
from onnx_lathe.optimizer.run import LARGE_BYTES, Run
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.calibration import open_with
from onnx_lathe.runtime.running.layer_times import node_times
from onnx_lathe.runtime.running.profiling import ModelProfiler

FILE = f"steps/{LAYERS}"
SAMPLES = 8
MACS = 4e9
"""About as many are computed in all: a large network is tried on fewer samples."""
HELD_BYTES = 1 << 29
"""Of the tensors of one model that are looked at; what is beyond is left out, by name."""
BINS = 48
PROFILED_BYTES = 64 << 20
PROFILED_MS = 200.0
"""Larger and slower models are not profiled: it loads them twice more, and runs them ten times."""
PROFILE_S = 0.15
DECIBELS_CAP = 140.0
"""Beyond it, two float32 tensors differ by less than rounding."""


class LayerError(TypedDict, total=False):
    """{"sqnr": dB, None if equal, "worst": largest difference, "tensor", "behind"} or {"reason"}."""

    sqnr: float | None
    worst: float | None
    tensor: str
    behind: str
    reason: str


class Histograms(TypedDict):
    """Shares of one tensor's values in equal bins from `low` to `high`, in both models."""

    low: float
    high: float
    before: list[float]
    after: list[float]


@dataclass
class Measured:
    """`source`: samples of what. By the names of the original's layers, but for the milliseconds, which are by those of each model's layers, their activations included.

    `values` are by tensor.
    """

    source: str
    samples: int
    errors: dict[str, LayerError] = field(default_factory=dict)
    values: dict[str, Histograms] = field(default_factory=dict)
    ms_before: dict[str, float] = field(default_factory=dict)
    ms_after: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def write(run: Run) -> None:
    """Measures the run's last model beside the original, and writes what it found into the output folder. What fails
    is a warning: the run is done.
    """
    if not run.request.html or not run.record.steps:
        return
    run.ui.status("measuring layers for the report")
    try:
        write_json(run.request.out / FILE, plain(asdict(measure(run))))
    except Exception as error:  # noqa: BLE001 - hours of training must not end in a picture that fails
        text = " ".join(str(error).split())
        run.ui.note(f"warning: layers were not measured for the report: {type(error).__name__}: {text}")


def read(out: Path) -> Measured | None:
    """What an earlier run measured; None if it did not, or the file is not whole."""
    with suppress(OSError, ValueError, TypeError):
        table = loaded((out / FILE).read_text(encoding="utf-8"))
        check(table, Measured, "")
        return Measured(**table)
    return None


def measure(run: Run) -> Measured:
    """Raises ModelError or DataError where the models do not run with more outputs."""
    data = run.roles.sample
    source = "random samples" if data is None else "calibration samples"
    source = source if run.roles.evaluation is None else "evaluation samples"
    if run.large:
        note = f"layers were not measured: the model is larger than {LARGE_BYTES >> 20} MiB"
        return Measured(source, 0, notes=[note])
    before = network(opening.open_file(run.request.model, run.request.reading).model)
    after = network(model_file.load(run.file))
    wanted = matches(paired(before, after), before, after, rescaled(run.record.steps))
    kept = _held(before, [match for match in wanted if match.tensor])
    ranged = _ranged(kept, before, after)
    tensors = list(dict.fromkeys([*(match.tensor for match in kept), *ranged]))
    found = Measured(source, 0)
    for match in wanted:
        reason = match.reason or ("" if match in kept else "it is too large to be held beside the others")
        found.errors[match.layer] = {"reason": reason}
    macs = run.record.baseline.get("macs") or 0.0
    count = int(min(SAMPLES, max(1, MACS // (2 * macs)))) if macs else 1
    session = open_with(before.model, tensors)
    feeds = run.feeds if data is None else sample_feeds(data, session, count)
    first = next(iter(feeds.values()))
    found.samples = first.shape[0] if first.ndim and data is not None and _batched(session) else 1
    values = ort.run(session, feeds)
    del session
    others = ort.run(open_with(after.model, tensors), feeds)
    for match in kept:
        found.errors[match.layer] = compare(match, values[match.tensor], others[match.tensor])
    for tensor in tensors:
        pair = values.pop(tensor), others.pop(tensor)
        if all(one.dtype == np.float32 and one.size and np.isfinite(one).all() for one in pair):
            found.values[tensor] = distributions(*pair)
    _profile(run, before, after, found)
    return found


def _ranged(found: Sequence[Match], before: Network, after: Network) -> list[str]:
    """The tensors behind the layers that have a calibrated range: what is clipped is seen on them."""
    ranges, made = calibrated(after), {one.name for node in after.graph.nodes for one in node.outputs}
    chains = [before.behind(match.layer) for match in found]
    wanted = (next((name for name in chain if name in ranges), "") for chain in chains)
    return [name for name in wanted if name in made]


def rescaled(steps: Sequence[StepRecord]) -> dict[str, str]:
    """Layers whose tensors a step changed on purpose, and why."""
    reason = "equalize gave its channels other scales, so its values are others on purpose"
    return {edit["node"]: reason for step in steps if step.name == "equalize" for edit in step.edits}


def _held(before: Network, found: Sequence[Match]) -> list[Match]:
    """The matches whose tensors fit into memory together, one sample each, in the order of the network."""
    shapes = {row.node: row.output_shape for row in before.rows}
    kept, total = [], 0
    for match in found:
        shape = shapes.get(match.layer) or ()
        total += 4 * math.prod(size for size in shape if isinstance(size, int))
        if total <= HELD_BYTES:
            kept.append(match)
    return kept


def _batched(session: Any) -> bool:
    return all(value.shape and not isinstance(value.shape[0], int) for value in session.get_inputs())


def compare(match: Match, one: np.ndarray, other: np.ndarray) -> LayerError:
    """An entry of `Measured.errors` for one tensor as it was and as it is."""
    if not np.issubdtype(one.dtype, np.floating):
        return {"reason": "it is no float tensor"}
    if one.shape != other.shape:
        return {"reason": f"its shape was {list(one.shape)} and is {list(other.shape)}"}
    if not one.size or not np.isfinite(one).all() or not np.isfinite(other).all():
        return {"reason": "it is empty, or not finite everywhere"}
    wide = one.astype(np.float64)
    error = other.astype(np.float64) - wide
    signal, noise = float(np.square(wide).sum()), float(np.square(error).sum())
    if signal == 0 and noise > 0:
        return {"reason": "the original's holds zeros alone"}
    decibels = math.inf if noise == 0 else 10 * math.log10(signal / noise)
    return {
        "sqnr": None if decibels > DECIBELS_CAP else decibels,
        "worst": float(np.abs(error).max()),
        "tensor": match.tensor,
        "behind": match.behind,
    }


def distributions(one: np.ndarray, other: np.ndarray) -> Histograms:
    """Shares of both arrays' values in the same bins over both ranges."""
    low, high = float(min(one.min(), other.min())), float(max(one.max(), other.max()))
    high = high if high > low else low + 1.0
    before, after = (shares(array, low, high, BINS) for array in (one, other))
    return {"low": low, "high": high, "before": before, "after": after}


def shares(values: np.ndarray, low: float, high: float, bins: int, total: int | None = None) -> list[float]:
    """The share of the values in each of so many equal bins from `low` to `high`, four digits each. `total`: of how
    many, if `values` are not all.
    """
    counts = np.histogram(values, bins, (low, high))[0]
    return [float(f"{share:.4g}") for share in counts / max(values.size if total is None else total, 1)]


def _profile(run: Run, before: Network, after: Network, found: Measured) -> None:
    if not run.request.measure_latency:
        return
    slow = run.record.baseline.get("latency", 0.0) > PROFILED_MS
    if slow or float(run.record.model["size_bytes"]) > PROFILED_BYTES:
        found.notes.append("milliseconds per layer were not measured: the model is large or slow")
        return
    profiler = ModelProfiler(lambda session: sample_feeds(run.roles.sample, session, 1), PROFILE_S)
    for side, ms in ((before, found.ms_before), (after, found.ms_after)):
        times = node_times(side.model, profiler)
        spent = {name: sum(times.get(node, 0.0) for node in side.nodes_behind(name)) for name in side.layers}
        ms |= {name: one for name, one in spent.items() if one > 0}
