"""What a reader wants to know first: how much smaller, how accurate, how fast, and whether the gates passed."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from onnx_lathe.errors import ExitCode
from onnx_lathe.optimizer.report.record import RunRecord
from onnx_lathe.optimizer.report.units import shown

ACCURACY = (("top1", "Top-1"), ("agreement", "Agreement"), ("sqnr", "SQNR"))
SAME = 0.005
"""Ratios that differ from 1 by less are called equal."""
TIMES, MINUS = "\u00d7", "\u2212"
"""As printers set them."""
GOOD_DB = 30.0
"""Outputs that are less near to the original's are shown as a loss."""


def verdict(record: RunRecord) -> dict[str, str]:
    """`kind` (good, bad, plain) and `text`."""
    failed = [one for one in record.gates if not one.passed]
    if failed:
        some = "Gate" if len(record.gates) == 1 else f"{len(failed)} of {len(record.gates)} gates"
        return {"kind": "bad", "text": f"{some} failed"}
    if record.exit_code != ExitCode.DONE:
        return {"kind": "bad", "text": record.outcome[:1].upper() + record.outcome[1:]}
    if record.gates:
        passed = "Gate passed" if len(record.gates) == 1 else f"All {len(record.gates)} gates passed"
        return {"kind": "good", "text": passed}
    return {"kind": "plain", "text": "Done; no gate was asked for"}


def tiles(record: RunRecord) -> list[dict[str, str]]:
    """`title`, `value`, `detail` and `kind` (good, bad, plain) of each figure that was measured."""
    base, final = record.baseline, record.final()
    found = []
    if (size := final.get("size")) and base.get("size"):
        found.append(_ratio("File size", "size", base["size"], size, ("smaller", "larger")))
    for key, title in ACCURACY:
        if key in final and key in base | {"sqnr": 0.0}:
            tile = _accuracy(title, key, base.get(key), final[key])
            judged = [one.passed for one in record.gates if one.gate.startswith(key)]
            if judged and all(judged) and tile["kind"] == "bad":
                tile["kind"] = "plain"  # as much was allowed
            found.append(tile)
            break
    timed = next((one for one in record.targets if not one.error and "base_latency" in one.quality), None)
    ran = final if timed is None else timed.quality
    if "base_latency" in ran:
        tile = _ratio("Latency", "latency", ran["base_latency"], ran["latency"], ("faster", "slower"))
        built = f", built for {timed.name}" if timed is not None else ""
        found.append(tile | {"detail": tile["detail"] + built})
    if base.get("macs") and final.get("macs"):
        found.append(_ratio("Multiply-accumulates", "macs", base["macs"], final["macs"], ("fewer", "more")))
    return found


def _ratio(title: str, key: str, before: float, after: float, words: tuple[str, str]) -> dict[str, str]:
    ratio = before / after if after else 0.0
    detail = f"{shown(key, before)} → {shown(key, after)}"
    if abs(ratio - 1) < SAME or not after:
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
        kind = "plain" if after >= GOOD_DB else "bad"
        return {"title": title, "value": shown(key, after), "detail": "of the worst output", "kind": kind}
    return {
        "title": title,
        "value": shown(key, after),
        "detail": "with the original's answers",
        "kind": "plain",
    }


def sentence(record: RunRecord) -> str:
    """The run in two or three short sentences."""
    found = {tile["title"]: tile for tile in tiles(record)}
    said = []
    if size := found.get("File size"):
        ends = size["detail"].split(" → ")
        word = "keeps its size of" if size["value"] == "Unchanged" else f"is {size['value']}:"
        said.append(f"The model {word} {ends[1] if word.startswith('keeps') else size['detail']}.")
    for _, title in ACCURACY:
        if tile := found.get(title):
            said.append(_accurate(title, tile))
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
    """The call that stands for a run from Python, its options as far as the record knows them."""
    passes = ", ".join(f"{step.name}({_options(step.options)})" for step in record.steps)
    gates = [one.gate for one in record.gates if one.subject == "model"]
    more = f", gates={gates!r}" if gates else ""
    return f"onnx_lathe.optimize({str(record.model['path'])!r}, {passes!r}{more}, ...)"


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_option(value)}" for name, value in options.items() if value is not None)


def _option(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{name}={_option(one)}" for name, one in value.items() if one is not None) + "}"
        )
    return str(value)


def skipped(skips: Sequence[tuple[str, Mapping[str, str]]]) -> list[dict[str, Any]]:
    """Skips of steps and targets by reason: `step`, `reason` and the `nodes`, the most frequent reason first."""
    found: dict[tuple[str, str], list[str]] = {}
    for step, skip in skips:
        found.setdefault((step, skip["reason"]), []).append(skip["node"])
    rows = [{"step": step, "reason": reason, "nodes": nodes} for (step, reason), nodes in found.items()]
    return sorted(rows, key=lambda row: -len(row["nodes"]))
