"""One command `optimize`, and whether what it said and wrote is right; for networks.py.

A command runs in a process of its own, forked from one that has imported everything. What it wrote is then
opened by a plain onnxruntime.InferenceSession in another one, so that neither can end the benchmark.
"""

import contextlib
import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from onnx_lathe.optimizer.cli import main as optimize
from onnx_lathe.runtime.pack import unpack
from onnx_lathe.runtime.pack.files import SUFFIX
from onnx_lathe.runtime.running import ort

ROOT = Path(__file__).resolve().parents[1]
PRELOADED = [
    "networks_judge",
    "torch",
    "onnx_lathe.optimizer.commands.compile",
    "onnx_lathe.runtime.torch_bridge",
]
LIMIT_S = 900.0
REFUSALS = (2, 3, 4)
DECIBELS = 0.5
"""Figures may differ by this."""
SAME = 60.0
"""dB above which rounding decides what is left."""
Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Ran:
    """`code` is negative for a signal, as in subprocess; `errors` is standard error."""

    code: int
    errors: str
    seconds: float
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def message(self) -> str:
        """One line; that of a target or a gate that failed stands in the report."""
        said = [target["error"] for target in self.report.get("targets", []) if target["error"]]
        said += [gate["message"] for gate in self.report.get("gates", []) if not gate["passed"]]
        if said:
            return said[0]
        lines = [line for line in self.errors.splitlines() if line.strip()]
        return lines[-1] if lines else ""

    @property
    def failure(self) -> str:
        """Why this is a defect; empty for a run that is done or refused in one clear line."""
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}"
        if "Traceback" in self.errors:
            return f"traceback: {self.message}"
        if self.code == 0:
            return ""
        if self.code not in REFUSALS:
            return f"exit {self.code}: {self.message}"
        return "" if self.message else f"exit {self.code} without a message"


def run(arguments: Sequence[str], out: Path) -> Ran:
    """`optimize` with these arguments and `--out out`; `out` is new."""
    ran = run_bare([*arguments, "--out", str(out), "--quiet"], out)
    report = out / "report.json"
    return replace(ran, report=json.loads(report.read_text()) if report.exists() else {})


def run_bare(arguments: Sequence[str], beside: Path) -> Ran:
    """`optimize` with just these arguments; what it says on standard error lies beside `beside`."""
    errors, started = beside.with_suffix(".err"), time.perf_counter()
    errors.parent.mkdir(parents=True, exist_ok=True)
    code, _ = forked(_command, [*arguments], errors)
    return Ran(code, errors.read_text(errors="replace"), time.perf_counter() - started)


def _command(pipe: Connection, arguments: list[str], errors: Path) -> None:
    """Standard error by its descriptor, since native code writes there too."""
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os._exit(_flushed(optimize(arguments)))


def _flushed(code: int) -> int:
    import sys

    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def forked(work: Callable[..., None], *arguments: object) -> tuple[int, Any]:
    """(exit code, what `work` sent) of a process that starts with everything imported."""
    context = multiprocessing.get_context("forkserver")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        map(str, (ROOT, Path(__file__).parent))
    )  # where it imports from
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(theirs, *arguments))
    process.start()
    theirs.close()
    sent, ends = None, time.monotonic() + LIMIT_S
    while process.is_alive() and time.monotonic() < ends and sent is None:
        if ours.poll(0.05):
            try:
                sent = ours.recv()
            except EOFError:
                break
    process.join(max(ends - time.monotonic(), 0))
    if process.is_alive():
        process.kill()
        process.join()
    return int(process.exitcode or 0), sent


def judged(model: Path, out: Path, report: Mapping[str, Any], feeds: Feeds, lossless: bool) -> dict[str, Any]:
    """`wrong`: list of what the written files do that the report does not say; `sqnr`: dB of each file's worst
    output and slice; `sizes` in bytes.
    """
    code, found = forked(_judge, model, out, report, dict(feeds), lossless)
    if found is None:
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
        return {"wrong": [f"opening what was written ends the process by {how}"], "sqnr": {}, "sizes": {}}
    return dict(found)


def _judge(pipe: Connection, *arguments: Any) -> None:
    pipe.send(findings(*arguments))


def findings(
    model: Path, out: Path, report: Mapping[str, Any], feeds: Feeds, lossless: bool
) -> dict[str, Any]:
    """As `judged`, in this process."""
    found: dict[str, Any] = {"wrong": [], "sqnr": {}, "sizes": {}, "unread": []}
    base = Answers(model, feeds)
    for label, path, quality in _files(out, report, found):
        found["sizes"][label] = path.stat().st_size
        try:
            content = unpack(path.read_bytes(), 2**31 - 1) if label == "pack" else path
            answers = Answers(content, feeds, exact=label in EXACT)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises several, and each is a finding
            found["wrong"].append(f"{label}: {path.name} does not run: {' '.join(str(error).split())[:200]}")
            continue
        found["sqnr"][label] = worst(base, answers, slices(base, quality))
        found["wrong"] += [f"{label}: {what}" for what in disagreements(base, answers, quality)]
        if lossless:
            found["wrong"] += [f"{label}: {what}" for what in moved(model, base, answers, feeds)]
    return found


def _files(
    out: Path, report: Mapping[str, Any], found: dict[str, Any]
) -> list[tuple[str, Path, Mapping[str, float | None]]]:
    """(what, file, the report's figures for it): the last step's and every target's."""
    files = []
    last = report["steps"][-1]["quality"] if report["steps"] else {}
    if report["steps"] and (checkpoint := out / report["steps"][-1]["file"]).exists():
        files.append(("step", checkpoint, last))
    for target in report["targets"]:
        names = [name for name in target["files"] if name.endswith((".onnx", SUFFIX))]
        if target["files"] and not names:
            found["unread"].append(f"{target['name']}: its engine runs on its own device alone")
        if names and not target["error"]:
            files.append((target["name"], out / names[0], target["quality"] or last))
    return files


EXACT = ("step", "pack")
"""Files whose figures in the report are the steps': where a processor's sums of INT8 saturate, they are measured
in the exact session that the report names. That a plain session opens them is asked all the same.
"""


class Answers:
    """What a plain session of a model computes from `feeds`, and its signature."""

    def __init__(
        self, model: Path | bytes, feeds: Feeds, optimized: bool = True, exact: bool = False
    ) -> None:
        self.session = plain(model, optimized=optimized)
        if exact and ort.saturates() and _has_integers(model):
            self.session = ort.session(model, 1, optimized)
        self.outputs = computed(self.session, feeds)

    @property
    def signature(self) -> list[tuple[str, str, int]]:
        values = [*self.session.get_inputs(), *self.session.get_outputs()]
        return [(one.name, one.type, len(one.shape or ())) for one in values]


def plain(model: Path | bytes, threads: int = 1, optimized: bool = True) -> onnxruntime.InferenceSession:
    """As anyone opens it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _has_integers(model: Path | bytes) -> bool:
    content = model.read_bytes() if isinstance(model, Path) else model
    return any(name in content for name in (b"QuantizeLinear", b"QLinear", b"Integer"))


def computed(session: onnxruntime.InferenceSession, feeds: Feeds) -> dict[str, np.ndarray]:
    """Outputs for all samples, run one batch of the model's own size after the other; [samples, ...]."""
    first = session.get_inputs()[0].shape
    size = first[0] if first and isinstance(first[0], int) and first[0] > 0 else 1
    count = len(next(iter(feeds.values())))
    names = [one.name for one in session.get_outputs()]
    pieces = [
        session.run(names, {name: array[start : start + size] for name, array in feeds.items()})
        for start in range(0, count - size + 1, size)
    ]
    return {name: np.stack([piece[at] for piece in pieces]) for at, name in enumerate(names)}


def decibels(base: np.ndarray, other: np.ndarray) -> float:
    """Of `base` over the difference; infinite if they are equal."""
    known = np.isfinite(base)
    signal_energy = float(np.square(base, dtype=np.float64, where=known, out=np.zeros(base.shape)).sum())
    with np.errstate(invalid="ignore"):
        error = np.where(known, base.astype(np.float64) - other, 0.0)
    noise = float(np.square(error).sum())
    if not np.isfinite(noise) or noise == 0:
        return float("inf") if noise == 0 else float("-inf")
    return 10 * float(np.log10(max(signal_energy, 1e-30) / noise))


def _floats(answers: Answers) -> list[str]:
    return [name for name, array in answers.outputs.items() if np.issubdtype(array.dtype, np.floating)]


@dataclass(frozen=True)
class Slice:
    """Channels of an output that the report judges by themselves; `axis` is that of Answers' arrays."""

    output: str
    key: str
    axis: int
    channels: list[int]

    def decibels(self, base: Answers, other: Answers) -> float:
        before, after = (one.outputs[self.output].take(self.channels, self.axis) for one in (base, other))
        return decibels(before, after)


def slices(base: Answers, quality: Mapping[str, float | None]) -> list[Slice]:
    """Those that the report's keys name: `sqnr[OUTPUT][0-3,5]`. Their axis is the one that they fill."""
    found: list[Slice] = []
    for name in _floats(base):
        start = f"sqnr[{name}]["
        named = {key: _channels(key[len(start) : -1]) for key in quality if key.startswith(start)}
        named = {key: channels for key, channels in named.items() if channels}
        shape, every = base.outputs[name].shape, {channel for one in named.values() for channel in one}
        axes = [axis for axis in range(2, len(shape)) if every and shape[axis] > max(every)]
        filled = [axis for axis in axes if shape[axis] == len(every)]
        for axis in (filled or axes)[:1]:
            found += [Slice(name, key, axis, channels) for key, channels in named.items()]
    return found


def _channels(text: str) -> list[int]:
    """Empty for a slice that the report abbreviates."""
    if not re.fullmatch(r"[\d,\-]+", text):
        return []
    runs = [[int(end) for end in part.split("-")] for part in text.split(",")]
    return [channel for ends in runs for channel in range(ends[0], ends[-1] + 1)]


def worst(base: Answers, other: Answers, parts: Sequence[Slice] = ()) -> float | None:
    """dB of the worst float output or slice; None without one."""
    outputs = _floats(base)
    if any(
        name not in other.outputs or base.outputs[name].shape != other.outputs[name].shape for name in outputs
    ):
        return float("-inf")
    found = [decibels(base.outputs[name], other.outputs[name]) for name in outputs]
    return min([*found, *(part.decibels(base, other) for part in parts)], default=None)


def disagreements(base: Answers, other: Answers, quality: Mapping[str, float | None]) -> list[str]:
    """Changes of the signature, and figures of the report that the file does not have."""
    if base.signature != other.signature:
        changed = [
            f"{one} became {two}"
            for one, two in zip(base.signature, other.signature, strict=False)
            if one != two
        ]
        return [f"signature: {'; '.join(map(str, changed)) or 'another number of inputs or outputs'}"]
    wrong = []
    each = {key: value for key, value in quality.items() if key.startswith("sqnr[")}
    least = min((_number(value) for value in each.values()), default=None)
    if least is not None and _number(quality["sqnr"]) != least:
        wrong.append(f"sqnr is {quality['sqnr']} dB, the least of the outputs' is {least} dB")
    parts = slices(base, quality)
    figures = {part.key: [part.decibels(base, other)] for part in parts}
    for name in _floats(base):
        whole = decibels(base.outputs[name], other.outputs[name])
        within = [figures[part.key][0] for part in parts if part.output == name]
        figures[f"sqnr[{name}]"] = [min([whole, *within])]
        figures.setdefault("sqnr", []).append(whole)
    for key, said in (each or {key: quality[key] for key in ("sqnr",) if key in quality}).items():
        said = _number(said)
        found = figures.get(key, [])
        if found and not any(abs(one - said) <= DECIBELS or min(one, said) > SAME for one in found):
            wrong.append(f"{key} is {found[0]:.1f} dB, the report says {said:.1f} dB")
    return wrong


def _number(said: float | None) -> float:
    """JSON has no infinity."""
    return float("inf") if said is None else said


def moved(model: Path, base: Answers, other: Answers, feeds: Feeds) -> list[str]:
    """Outputs that a lossless recipe changed by more than rounding, which is measured: what the original's
    differ by when ONNX Runtime computes it without its optimizations.
    """
    raw = Answers(model, feeds, optimized=False)
    wrong = []
    for name in _floats(base):
        before, after = base.outputs[name].astype(np.float64), other.outputs[name]
        largest = max(float(abs(before).max(initial=0)), 1e-30)
        rounding = float(abs(before - raw.outputs[name]).max(initial=0)) / largest
        error = float(abs(before - after).max(initial=0)) / largest
        if error > max(2e-4, 20 * rounding):
            wrong.append(
                f"lossless, but '{name}' moved by {error:.1e} of its largest (rounding: {rounding:.1e})"
            )
    return wrong
