"""Everything that report.html shows, as plain data, from an output folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnx_lathe.optimizer.calibrated import calibrated
from onnx_lathe.optimizer.layer_errors import LayerError, Measured, rescaled
from onnx_lathe.optimizer.pairing import Network, Pair, paired
from onnx_lathe.optimizer.report.html import distributions, summary
from onnx_lathe.optimizer.report.html.picture import picture
from onnx_lathe.optimizer.report.html.spectra import chosen_ranks, spectra
from onnx_lathe.optimizer.report.outputs import outputs
from onnx_lathe.optimizer.report.record import RunRecord, plain
from onnx_lathe.optimizer.report.sensitivity import PREFIX, without_sensitivity
from onnx_lathe.optimizer.report.target_table import as_page
from onnx_lathe.optimizer.report.terminal import COLUMNS
from onnx_lathe.optimizer.report.units import shown
from onnx_lathe.version import VERSION

DETAILED = 400
"""So many layers, those of the most bytes and MACs, have histograms and spectra: each takes about 2 kB."""
NODES_NAMED = 200
"""Of one reason, so many skipped nodes are named; and so many edits of a step."""
EQUAL_ABOVE_DB = 15.0
"""So far above the best finite SQNR, "equal" is drawn."""
AXES = (("top1", "Top-1 (%)"), ("agreement", "Agreement with the original (%)"), ("sqnr", "SQNR (dB)"))


def document(
    record: RunRecord,
    before: Network | None,
    after: Network | None,
    measured: Measured | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    """`before` and `after` are None where the models cannot be read; `notes` say why."""
    notes = [*notes, *(measured.notes if measured else ["layers were not measured in this run"])]
    found: dict[str, Any] = {
        "title": _title(str(record.model["path"])),
        "path": record.model["path"],
        "version": VERSION,
        "ended": record.ended,
        "seconds": record.seconds,
        "verdict": summary.verdict(record),
        "sentence": summary.sentence(record),
        "tiles": summary.tiles(record),
        "outputs": _outputs(record),
        "gates": [asdict(one) for one in record.gates],
        "targets": _targets(record),
        "comparison": as_page(record.comparison),
        "warnings": list(dict.fromkeys(record.warnings)),
        "tradeoff": _tradeoff(record),
        "steps": _steps(record),
        "skipped": _skipped(record),
        "reproduce": _reproduce(record),
        "layers": [],
        "sensitive": [],
        "detail": {},
        "graphs": None,
        "measured": _how(measured),
        "notes": notes,
    }
    if before is not None and after is not None:
        found |= _of_layers(record, before, after, measured)
        left = len(found["layers"]) - len(found["detail"])
        if len(found["layers"]) > DETAILED:
            notes.append(f"the {left:,} smallest layers have no histograms, to keep this file small")
    result: dict[str, Any] = plain(found)
    return result


def _title(path: str) -> str:
    """The file's name; of one that is called model, with its folder's."""
    given = Path(path)
    return f"{given.parent.name}/{given.stem}" if given.stem == "model" and given.parent.name else given.stem


def _how(measured: Measured | None) -> str:
    if measured is None or not measured.samples:
        return ""
    count = str(measured.samples)
    return (
        f"{count} {measured.source}"
        if measured.samples > 1
        else f"{count} {measured.source.removesuffix('s')}"
    )


def _targets(record: RunRecord) -> list[dict[str, Any]]:
    return [
        {
            "name": one.name,
            "error": one.error,
            "files": one.files,
            "size": shown("size", float(one.size_bytes), record.baseline.get("size")),
            "measured": one.measured,
            "quality": [
                [title, shown(key, one.quality[key], one.quality.get("base_latency"))]
                for key, title in COLUMNS
                if key in one.quality and key not in ("weights", "macs", "sparsity")
            ],
            "facts": one.facts,
        }
        for one in record.targets
    ]


def _outputs(record: RunRecord) -> dict[str, Any]:
    columns, rows = outputs(record)
    cells = [
        {"name": name, "cells": [[value, shown(key, value)] for key, value in found]} for name, found in rows
    ]
    return {"columns": columns, "rows": cells}


def _tradeoff(record: RunRecord) -> dict[str, Any]:
    """Points of accuracy against bytes: the original, each step and each target. What equals the original is drawn at
    `equal`, since infinity cannot be.
    """
    axis = next(((key, title) for key, title in AXES if key in record.final()), None)
    if axis is None:
        return {"title": "", "points": [], "equal": None}
    key, title = axis
    factor, of_itself = (1.0, math.inf) if key == "sqnr" else (100.0, None)
    rows: list[tuple[str, str, float | None, float | None]] = [
        ("original", "step", record.baseline.get("size"), record.baseline.get(key, of_itself))
    ]
    rows += [
        (f"{one.number} {one.name}", "step", one.quality.get("size"), one.quality.get(key))
        for one in record.steps
    ]
    rows += [
        (one.name, "target", float(one.size_bytes), one.quality.get(key))
        for one in record.targets
        if not one.error
    ]
    known = [
        factor * value for _, _, size, value in rows if size and value is not None and math.isfinite(value)
    ]
    equal = EQUAL_ABOVE_DB + max(known, default=0.0)
    points = [
        {
            "label": label,
            "kind": kind,
            "size": size,
            "value": factor * value if math.isfinite(value) else equal,
            "text": shown(key, value),
        }
        for label, kind, size, value in rows
        if size and value is not None
    ]
    return {"title": title, "points": points, "equal": equal if len(known) < len(points) else None}


def _steps(record: RunRecord) -> dict[str, Any]:
    rows = [record.baseline, *(step.quality for step in record.steps)]
    used = [(key, title) for key, title in COLUMNS if any(key in row for row in rows)]
    names = ["original", *(f"{step.number} {step.name}" for step in record.steps)]
    cells = []
    for index, row in enumerate(rows):
        base = record.baseline if index else {}
        timed = record.steps[index - 1].quality.get("base_latency") if index else None
        ratio = {key: timed if key == "latency" else base.get(key) for key, _ in used}
        cells.append([[row.get(key), shown(key, row.get(key), ratio[key])] for key, _ in used])
    return {
        "columns": [title for _, title in used],
        "rows": [
            {"name": name, "cells": line, "seconds": None if index == 0 else record.steps[index - 1].seconds}
            for index, (name, line) in enumerate(zip(names, cells, strict=True))
        ],
        "details": [
            {
                "name": f"{step.number} {step.name}",
                "changed": step.changed,
                "options": [[name, _said(value)] for name, value in step.options.items()],
                "metrics": [
                    [name.replace("_", " "), value]
                    for name, value in without_sensitivity(step.metrics).items()
                ],
                "worse": step.worse,
                "edits": [[edit["node"], edit["what"]] for edit in step.edits[:NODES_NAMED]],
                "more": max(len(step.edits) - NODES_NAMED, 0),
                "skips": len(step.skips),
            }
            for step in record.steps
        ],
    }


def _said(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _skipped(record: RunRecord) -> list[dict[str, Any]]:
    skips = [(f"{step.number} {step.name}", skip) for step in record.steps for skip in step.skips]
    skips += [(f"target {one.name}", skip) for one in record.targets for skip in one.skips]
    rows = summary.skipped(skips)
    return [row | {"nodes": row["nodes"][:NODES_NAMED], "count": len(row["nodes"])} for row in rows]


def _reproduce(record: RunRecord) -> dict[str, Any]:
    said = summary.command(record)
    processor = record.processor
    machine = ", ".join(str(processor[key]) for key in ("name", "machine", "system") if processor.get(key))
    return {
        "command": said or summary.called(record),
        "python": not said,
        "facts": [
            ["Model", str(record.model["path"])],
            ["SHA-256", str(record.model["sha256"])],
            ["Opset", str(record.model.get("opset", ""))],
            *(["Read", text] for text in record.model.get("changes", ())),
            *(["Data", text] for text in record.data),
            ["Lathe", record.version],
            ["Libraries", ", ".join(f"{name} {version}" for name, version in record.libraries.items())],
            ["Processor", machine],
            ["Started", record.started],
            ["Took", f"{record.seconds:.1f} s"],
        ],
    }


def _of_layers(
    record: RunRecord, before: Network, after: Network, measured: Measured | None
) -> dict[str, Any]:
    pairs = paired(before, after)
    weights = distributions.Weights(before), distributions.Weights(after)
    sensitivity = _sensitivity(record)
    listed = [pair for pair in pairs if _counts(pair)]
    layers = [_row(pair, weights, sensitivity, measured, record) for pair in listed]
    ranks, ranges = chosen_ranks(record.steps), calibrated(after)
    detail = {}
    for pair in sorted(listed, key=_weight)[:DETAILED]:
        entry: dict[str, Any] = {"weights": distributions.weight_series(pair, *weights)}
        entry["activation"] = distributions.activation(pair, before, ranges, measured)
        if pair.name in ranks:
            entry["spectra"] = spectra(pair.name, ranks[pair.name], weights[0])
        detail[pair.name] = entry
    owner = {row.node: pair.name for pair in pairs for row in pair.after}
    own = {pair.name: pair.name for pair in pairs}
    return {
        "layers": layers,
        "sensitive": [name for name in sensitivity if any(name in row["sensitivity"] for row in layers)],
        "detail": detail,
        "graphs": {"before": picture(before, own), "after": picture(after, owner)},
    }


def _counts(pair: Pair) -> bool:
    """Whether the layer has bytes of its own or products, or may have some that cannot be counted."""
    rows = [row for row in (pair.before, *pair.after) if row is not None]
    return any(row.weight_bytes or row.macs or row.uncounted for row in rows)


def _sensitivity(record: RunRecord) -> dict[str, dict[str, float]]:
    """Step -> weight -> dB, of the steps that measured it: what one does to a layer is no measure of another's."""
    found = {}
    for step in record.steps:
        ranked = {name: value for name, value in step.metrics.items() if name.startswith(PREFIX)}
        if ranked:
            found[f"{step.number} {step.name}"] = {
                name.removeprefix(PREFIX): value for name, value in ranked.items()
            }
    return found


def _sensitive(
    pair: Pair,
    weights: tuple[distributions.Weights, distributions.Weights],
    sensitivity: Mapping[str, Mapping[str, float]],
) -> dict[str, float]:
    """Step -> dB of this layer; of one that was split, of its most sensitive part."""
    names = weights[0].names(pair.name).union(*(weights[1].names(row.node) for row in pair.after))
    known = {
        step: [value for name, value in ranked.items() if name in names]
        for step, ranked in sensitivity.items()
    }
    return {step: min(values) for step, values in known.items() if values}


def _weight(pair: Pair) -> tuple[int, int]:
    rows = [row for row in (pair.before, *pair.after) if row is not None]
    return -max(row.weight_bytes for row in rows), -max(row.macs or 0 for row in rows)


def _row(
    pair: Pair,
    weights: tuple[distributions.Weights, distributions.Weights],
    sensitivity: Mapping[str, Mapping[str, float]],
    measured: Measured | None,
    record: RunRecord,
) -> dict[str, Any]:
    first = pair.before or pair.after[0]
    error: LayerError = {} if measured is None else measured.errors.get(pair.name, {})
    reason = error.get("reason") or ("" if error else _unmeasured(pair, measured, record))
    return {
        "name": pair.name,
        "op": first.op,
        "weight": list(first.weight_shape),
        "shape": None if first.output_shape is None else list(first.output_shape),
        "inside": first.place,
        "parts": [row.node for row in pair.after],
        "bytes": [
            None if pair.before is None else pair.before.weight_bytes,
            sum(row.weight_bytes for row in pair.after),
        ],
        "macs": [_macs([pair.before] if pair.before else []), _macs(pair.after)],
        "zeros": [_zeros([pair.before] if pair.before else []), _zeros(pair.after)],
        "ms": [
            _spent([pair.name], measured.ms_before if measured else None),
            _spent([row.node for row in pair.after], measured.ms_after if measured else None),
        ],
        "sensitivity": _sensitive(pair, weights, sensitivity),
        "sqnr": error.get("sqnr"),
        "equal": "sqnr" in error and error["sqnr"] is None,
        "worst": error.get("worst"),
        "behind": error.get("behind", ""),
        "reason": reason,
    }


def _unmeasured(pair: Pair, measured: Measured | None, record: RunRecord) -> str:
    if pair.before is None:
        return "the original has no such layer"
    return rescaled(record.steps).get(pair.name, "") or "it was not measured in this run"


def _macs(rows: Sequence[Any]) -> int | None:
    counts = [row.macs for row in rows]
    return None if not counts or None in counts else sum(counts)


def _zeros(rows: Sequence[Any]) -> float | None:
    total = sum(row.weights for row in rows)
    return sum(row.zeros for row in rows) / total if total else None


def _spent(nodes: Sequence[str], times: Mapping[str, float] | None) -> float | None:
    known = [times[name] for name in nodes if name in times] if times else []
    return sum(known) if known else None
