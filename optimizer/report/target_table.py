"""The table of a run's targets side by side: what its columns and cells say, and how a terminal and the page show it."""

from rich.console import Console
from rich.markup import escape

from onnx_lathe.errors import printable
from onnx_lathe.optimizer.report.comparison import (
    FAILED,
    LOWERED,
    NO_GATE,
    ORIGINAL,
    PASSED,
    SIMULATED,
    Comparison,
    TargetRow,
)
from onnx_lathe.optimizer.report.tables import plain_table
from onnx_lathe.optimizer.report.units import shown

TITLES = {
    "top1": "top-1", "top5": "top-5", "f1": "F1", "f1_binary": "F1 of 1", "map": "mAP", "map50": "AP50", "miou": "mIoU",
    "wer": "WER", "cer": "CER", "agreement": "agrees", "sqnr": "SQNR",
}  # fmt: skip
MARK = "*"
"""Behind a figure that is not of the target's own file."""
ALIKE = 0.05
"""Share by which latencies differ that the report calls unchanged."""


def columns(found: Comparison) -> list[str]:
    """Titles of the table, the first of the names."""
    metrics = [TITLES.get(name, printable(name)) for name in found.metrics]
    latency = ["latency"] if any(row.latency_ms is not None for row in found.rows) else []
    return ["target", "size", *metrics, *latency, "INT8 layers", "gates"]


def cells(row: TargetRow, found: Comparison) -> list[str]:
    """What a row says below `columns`, in plain text."""
    original = found.rows[0]
    mark = MARK if row.measured == LOWERED else ""
    size = shown("size", row.size_bytes, original.size_bytes) if row.size_bytes else "-"
    metrics = [_metric(name, row, mark) for name in found.metrics]
    latency = [_latency(row, original)] if any(one.latency_ms is not None for one in found.rows) else []
    layers = "-" if row.layers is None else f"{row.int8_layers} of {row.layers}"
    return [_named(row, found), size, *metrics, *latency, layers, _verdict(row)]


def _named(row: TargetRow, found: Comparison) -> str:
    chosen = [title for title in ("smallest", "fastest") if getattr(found, title) == row.name]
    return f"{row.name} ({', '.join(chosen)})" if chosen else row.name


def _metric(name: str, row: TargetRow, mark: str) -> str:
    if row.name == ORIGINAL and name not in row.quality:
        return ""  # such as its agreement with itself
    value = row.quality.get(name)
    return "-" if value is None else shown(_kind(name), value) + mark


def _kind(name: str) -> str:
    """sqnr of sqnr[boxes]."""
    return name.split("[")[0]


def _latency(row: TargetRow, original: TargetRow) -> str:
    if row.latency_ms is None:
        return "-" if row.runs_here else "not run here"
    return shown("latency", row.latency_ms, original.latency_ms)


def _verdict(row: TargetRow) -> str:
    if row.name == ORIGINAL or row.verdict == NO_GATE:
        return ""
    return row.verdict.upper() if row.verdict == FAILED else row.verdict


def footnotes(found: Comparison) -> list[str]:
    """What the table's figures are, and why a row did not pass; one line each."""
    lines = []
    if any(row.measured == LOWERED and row.quality for row in found.rows):
        lines.append(
            f"{MARK} of the model as it is lowered for the target, in ONNX Runtime: the file itself was not run here"
        )
    if simulated := [row.name for row in found.rows if row.measured == SIMULATED and row.quality]:
        lines.append(
            f"metrics of {', '.join(simulated)}: of the file in the chip's simulator on this processor"
        )
    if any(row.latency_ms is not None for row in found.rows):
        threads = f"{found.threads} thread{'' if found.threads == 1 else 's'}"
        lines.append(f"latency: median on this processor, {threads}, all in turn; it says nothing of a phone")
    lines += [f"{row.name}: {row.reason}" for row in found.rows if row.reason and row.verdict != PASSED]
    lines += found.notes
    return [printable(line) for line in lines]


def choice(found: Comparison) -> str:
    """One sentence: which target is smallest and which is fastest, and of which that is said."""
    if found.smallest is None:
        return f"no target to choose: none {found.rule.removeprefix('of the targets ')}"
    if found.fastest is None:
        return f"smallest (none was timed): {found.smallest}, {found.rule}"
    if found.fastest == found.smallest:
        return f"smallest and fastest{_near(found)}: {found.smallest}, {found.rule}"
    return f"smallest: {found.smallest}; fastest: {found.fastest}{_near(found)}; {found.rule}"


def _near(found: Comparison) -> str:
    """Which others took as long, within what two runs differ by."""
    best = next(row.latency_ms or 0.0 for row in found.rows if row.name == found.fastest)
    near = [
        row.name
        for row in found.rows[1:]
        if row.name != found.fastest
        and row.verdict in (PASSED, NO_GATE)
        and row.latency_ms is not None
        and row.latency_ms <= best * (1 + ALIKE)
    ]
    return f" ({', '.join(near)} within {100 * ALIKE:.0f} %)" if near else ""


def show_targets(found: Comparison | None, console: Console) -> None:
    """Prints the table; nothing for a run of one target."""
    if found is None:
        return
    table = plain_table(*columns(found))
    for column in table.columns[1:-1]:
        column.justify = "right"
    for row in found.rows:
        table.add_row(*(escape(printable(cell)) for cell in cells(row, found)))
    console.print(table)
    for line in footnotes(found):
        console.print(f"    {line}", markup=False)
    console.print(choice(found), markup=False)


def as_page(found: Comparison | None) -> dict[str, object] | None:
    """For report.html; None for a run of one target."""
    if found is None:
        return None
    return {
        "columns": columns(found)[1:],
        "rows": [{"name": cells(row, found)[0], "cells": _valued(row, found)} for row in found.rows],
        "notes": [choice(found), *footnotes(found)],
    }


def _valued(row: TargetRow, found: Comparison) -> list[tuple[float | None, str]]:
    """[number to sort by, text] per column behind the name."""
    texts = cells(row, found)[1:]
    numbers: list[float | None] = [float(row.size_bytes) or None]
    numbers += [row.quality.get(name) for name in found.metrics]
    numbers += [row.latency_ms] if "latency" in columns(found) else []
    numbers += [None if row.int8_layers is None else float(row.int8_layers), None]
    return list(zip(numbers, texts, strict=True))
