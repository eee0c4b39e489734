"""What a reader wants to know first: how much smaller, how accurate, how fast, and whether the gates passed."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from onnx_lathe.errors import ExitCode
from onnx_lathe.optimizer.recipe import Call
from onnx_lathe.optimizer.report.outputs import worst
from onnx_lathe.optimizer.report.record import RunRecord, StepRecord
from onnx_lathe.optimizer.report.terminal import short_names
from onnx_lathe.optimizer.report.units import shown
from onnx_lathe.passes.core.registry import all_passes

ACCURACY = (("top1", "Top-1"), ("agreement", "Agreement"), ("sqnr", "SQNR"))
SAME, SAME_TIME = 0.005, 0.05
"""Ratios that differ from 1 by less are called equal; of two latencies, which noise alone moves by as much."""
TIMES, MINUS = "\u00d7", "\u2212"
"""As printers set them."""
LOW_DB = 10.0
"""An output below it, whose error has more than a tenth of its energy, is shown as a loss."""


@dataclass(frozen=True)
class Artifact:
    """What the figures at the top are of: one thing for all of them, so that they go together."""

    subject: str
    """As gates call it: "model", or a target's name."""
    title: str
    size: float | None
    quality: Mapping[str, float]


def artifact(record: RunRecord) -> Artifact:
    """The first target that was measured and timed; else the last step's model."""
    for one in record.targets:
        if not one.error and "base_latency" in one.quality:
            names = short_names(one.files)
            files = names[0] if len(names) == 1 else f"{len(one.files)} files"
            return Artifact(one.name, f"{files} for {one.name}", float(one.size_bytes), one.quality)
    final = record.final()
    title = record.steps[-1].file if record.steps else "the model as it is"
    return Artifact("model", title, final.get("size"), final)


def verdict(record: RunRecord) -> dict[str, str]:
    """`kind` (good, bad, plain) and `text`."""
    failed = [one for one in record.gates if not one.passed]
    if failed:
        some = "The gate" if len(record.gates) == 1 else f"{len(failed)} of {len(record.gates)} gates"
        return {"kind": "bad", "text": f"{some} failed"}
    if record.exit_code != ExitCode.DONE:
        return {"kind": "bad", "text": record.outcome[:1].upper() + record.outcome[1:]}
    if record.gates:
        count = len(record.gates)
        passed = {1: "The gate passed", 2: "Both gates passed"}.get(count, f"All {count} gates passed")
        return {"kind": "good", "text": passed}
    return {"kind": "plain", "text": "Done; no gate was asked for"}


def tiles(record: RunRecord) -> list[dict[str, str]]:
    """`title`, `value`, `detail`, `of` (the artifact) and `kind` (good, bad, plain) of each figure that was measured."""
    base, shipped = record.baseline, artifact(record)
    final, found = shipped.quality, []
    if shipped.size and base.get("size"):
        found.append(_ratio("File size", "size", base["size"], shipped.size, ("smaller", "larger")))
    for key, title in ACCURACY:
        if key in final and key in base | {"sqnr": 0.0}:
            found.append(_allowed(_accuracy(title, key, base.get(key), final[key]), key, record, shipped))
            break
    if least := worst(final):
        name, value, count = least
        kind = "bad" if value < LOW_DB else "plain"
        tile = {"title": "Worst output", "value": shown("sqnr", value), "kind": kind}
        tile["detail"] = f"{name}, of {count} outputs; SQNR"
        found = [one for one in found if one["title"] != "SQNR"]
        found.append(_allowed(tile, "sqnr", record, shipped))
    if "base_latency" in final:
        words = ("faster", "slower")
        found.append(_ratio("Latency", "latency", final["base_latency"], final["latency"], words, SAME_TIME))
    found = [tile | {"of": shipped.title} for tile in found]
    counted, whose = (final, shipped.title) if "macs" in final else (record.final(), "before lowering")
    if base.get("macs") and counted.get("macs"):
        tile = _ratio("Multiply-accumulates", "macs", base["macs"], counted["macs"], ("fewer", "more"))
        found.append(tile | {"of": whose})
    return found


def _allowed(tile: dict[str, str], key: str, record: RunRecord, shipped: Artifact) -> dict[str, str]:
    """The tile, as no loss where gates allow as much."""
    judged = [
        one.passed for one in record.gates if one.gate.startswith(key) and one.subject == shipped.subject
    ]
    return tile | {"kind": "plain"} if judged and all(judged) and tile["kind"] == "bad" else tile


def _ratio(
    title: str, key: str, before: float, after: float, words: tuple[str, str], same: float = SAME
) -> dict[str, str]:
    ratio = before / after if after else 0.0
    detail = f"{shown(key, before)} → {shown(key, after)}"
    if abs(ratio - 1) < same or not after:
        return {"title": title, "value": "Unchanged", "detail": detail, "kind": "plain"}
    if ratio > 1:
        return {"title": title, "value": f"{_times(ratio)} {words[0]}", "detail": detail, "kind": "good"}
    return {"title": title, "value": f"{_times(1 / ratio)} {words[1]}", "detail": detail, "kind": "bad"}


def _times(ratio: float) -> str:
    return (
        f"{ratio:.0f}{TIMES}"
        if ratio >= 10
        else f"{ratio:.1f}{TIMES}"
        if ratio >= 1.05
        else f"{ratio:.2f}{TIMES}"
    )


def _accuracy(title: str, key: str, before: float | None, after: float) -> dict[str, str]:
    if key == "top1" and before is not None:
        points = 100 * (after - before)
        value = (
            "Unchanged" if abs(points) < 0.005 else f"{'+' if points > 0 else MINUS}{abs(points):.2f} points"
        )
        kind = "plain" if value == "Unchanged" else "good" if points > 0 else "bad"
        return {
            "title": title,
            "value": value,
            "detail": f"{shown(key, before)} → {shown(key, after)}",
            "kind": kind,
        }
    if key == "sqnr":
        kind = "plain" if after >= LOW_DB else "bad"
        return {"title": title, "value": shown(key, after), "detail": "of the output", "kind": kind}
    return {
        "title": title,
        "value": shown(key, after),
        "detail": "with the original's answers",
        "kind": "plain",
    }


def sentence(record: RunRecord) -> str:
    """The run in a few short sentences, all of one artifact."""
    found = {tile["title"]: tile for tile in tiles(record)}
    shipped, said = artifact(record), []
    if size := found.get("File size"):
        ends = size["detail"].split(" → ")
        word = "keeps its size of" if size["value"] == "Unchanged" else f"is {size['value']}:"
        whose = "The model" if shipped.subject == "model" else f"The model built for {shipped.subject}"
        said.append(f"{whose} {word} {ends[1] if word.startswith('keeps') else size['detail']}.")
    for _, title in ACCURACY:
        if tile := found.get(title):
            said.append(_accurate(title, tile))
    if least := worst(shipped.quality):
        name, value, count = least
        near = "equal the original's" if math.isinf(value) else ""
        said.append(
            f"All of its {count} outputs {near}."
            if near
            else f"Of its {count} outputs, {name} is the worst: {shown('sqnr', value)} SQNR."
        )
    if speed := found.get("Latency"):
        fast = "It runs as fast as before" if speed["value"] == "Unchanged" else f"It is {speed['value']}"
        said.append(f"{fast} in ONNX Runtime on this processor ({speed['detail']}).")
    return " ".join(said)


def _accurate(title: str, tile: Mapping[str, str]) -> str:
    if title == "Top-1":
        moved = "is unchanged" if tile["value"] == "Unchanged" else f"moves by {tile['value']}"
        return f"Top-1 accuracy {moved} ({tile['detail']})."
    if title == "Agreement":
        return f"It gives the original's answer for {tile['value']} of the samples."
    if tile["value"] == "equal":
        return "Its outputs equal the original's."
    return f"Its outputs are as near to the original's as {tile['value']} SQNR."


def command(record: RunRecord) -> str:
    """The line to type again; empty for a run that was asked for from Python."""
    return shlex.join(["optimize", *record.command]) if record.command else ""


def called(record: RunRecord) -> str:
    """The call that stands for a run from Python, its options as far as the record knows them; those that are as a
    pass has them by itself are left out.
    """
    passes = ", ".join(str(Call(step.name, _given(step))) for step in record.steps)
    gates = [one.gate for one in record.gates if one.subject == "model"]
    more = f", gates={gates!r}" if gates else ""
    return f"onnx_lathe.optimize({str(record.model['path'])!r}, {passes!r}{more}, ...)"


def _given(step: StepRecord) -> dict[str, Any]:
    known = all_passes().get(step.name)
    options = () if known is None else fields(known.Config)
    by_itself = {one.name: one.default for one in options if one.default is not MISSING}
    by_itself |= {one.name: one.default_factory() for one in options if one.default_factory is not MISSING}
    return {name: _sparse(value) for name, value in step.options.items() if value != by_itself.get(name)}


def _sparse(value: Any) -> Any:
    """A table of options without those that are none."""
    if not isinstance(value, Mapping):
        return value
    return {name: _sparse(one) for name, one in value.items() if one is not None}


def skipped(skips: Sequence[tuple[str, Mapping[str, str]]]) -> list[dict[str, Any]]:
    """Skips of steps and targets by reason: `step`, `reason` and the `nodes`, the most frequent reason first."""
    found: dict[tuple[str, str], list[str]] = {}
    for step, skip in skips:
        found.setdefault((step, skip["reason"]), []).append(skip["node"])
    rows = [{"step": step, "reason": reason, "nodes": nodes} for (step, reason), nodes in found.items()]
    return sorted(rows, key=lambda row: -len(row["nodes"]))
