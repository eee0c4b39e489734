"""The run record as tables on a terminal (or as plain text, when the output is not one)."""

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from onnx_lathe.optimizer.judging.metrics import METRICS
from onnx_lathe.optimizer.report.outputs import show_outputs
from onnx_lathe.optimizer.report.record import RunRecord, StepRecord
from onnx_lathe.optimizer.report.sensitivity import show_sensitivity, without_sensitivity
from onnx_lathe.optimizer.report.target_table import show_targets
from onnx_lathe.optimizer.report.units import shown, size
from onnx_lathe.optimizer.report.ways import show_ways

SKIPS_SHOWN = 8
UNCOUNTED = ("MACs of ", "weights of ")
"""How a warning begins that says what the table leaves out."""
FILE_WIDTH = 140
"""Of the output when it is not a terminal."""

COLUMNS = (
    ("top1", "top-1"),
    ("f1", "F1"),
    ("f1_binary", "F1 of 1"),
    ("map", "mAP"),
    ("map50", "AP50"),
    ("miou", "mIoU"),
    ("wer", "WER"),
    ("cer", "CER"),
    ("agreement", "agrees"),
    ("sqnr", "SQNR"),
    ("sparsity", "zeros"),
    ("size", "file"),
    ("weights", "weights"),
    ("macs", "MACs"),
    ("latency", "latency"),
)


DROPPED_FIRST = ("weights", "macs", "sqnr", "agreement")
"""Columns that go when the terminal is narrow, in this order; report.json has everything."""


def show(record: RunRecord, console: Console) -> None:
    """Prints what was done and measured, worst news included."""
    if not console.is_terminal:
        console.width = FILE_WIDTH
    table = _steps_table(record, ())
    unbounded = console.options.update(max_width=1000)
    for count_dropped in range(1, len(DROPPED_FIRST) + 1):
        if Measurement.get(console, unbounded, table).maximum <= console.width:
            break
        table = _steps_table(record, DROPPED_FIRST[:count_dropped])
    console.print(table)
    for line in record.warnings:
        if line.startswith(UNCOUNTED):
            console.print(f"warning: {line}", markup=False)
    before = record.baseline
    for step in record.steps:
        start = f"step {step.number}, {step.name}: "
        warnings = [text.removeprefix(start) for text in record.warnings if text.startswith(start)]
        _show_step(step, before, warnings, console)
        before = step.quality
    for target in record.targets:
        if target.error:
            console.print(f"target {target.name}: FAILED: {target.error}", markup=False)
            continue
        timed = target.quality.get("base_latency")
        quality = ", ".join(
            f"{title} {shown(key, target.quality[key], timed)}"
            for key, title in COLUMNS
            if key in target.quality
        )
        files = ", ".join(short_names(target.files))
        written = f"{files} ({size(target.size_bytes)})" if files else "not written, since a gate failed"
        console.print(
            f"target {target.name}: {written}" + (f"; {target.measured}: {quality}" if quality else ""),
            markup=False,
        )
        for fact in target.facts:
            console.print(f"    {fact}", markup=False)
        show_ways(target.details.get("ways", {}), console, indent="    ")
        _show_skips(target.skips, console)
    show_outputs(record, console)
    show_targets(record.comparison, console)
    for verdict in record.gates:
        style = "green" if verdict.passed else "bold red"
        console.print(
            f"[{style}]gate {'passed' if verdict.passed else 'FAILED'}[/] ({verdict.subject})  ", end=""
        )
        console.print(verdict.message, markup=False)
    for note in record.model.get("changes", ()):
        console.print(f"model  {note}", markup=False)
    for note in record.data:
        console.print(f"data  {note}", markup=False)
    console.print(f"{record.outcome} in {record.seconds:.0f} s", markup=False)


def short_names(files: Sequence[str]) -> list[str]:
    """Names as the terminal lists them: of a folder its name, and how many files it holds."""
    folders = Counter(name.partition("/")[0] for name in files if "/" in name)
    listed = [f"{folder}/ ({count} files)" for folder, count in folders.items()]
    return [*(name for name in files if "/" not in name), *listed]


def _steps_table(record: RunRecord, dropped: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("after", no_wrap=True)
    rows = [record.baseline, *(step.quality for step in record.steps)]
    used = [(key, title) for key, title in COLUMNS if key not in dropped and any(key in row for row in rows)]
    own = [key for key in record.baseline if key not in METRICS and "[" not in key and key != "base_latency"]
    used = [*((key, key) for key in own), *used]
    for _, title in used:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_row(
        "(original)", *(shown(key, record.baseline.get(key), record.baseline.get(key)) for key, _ in used), ""
    )
    for step in record.steps:
        name = f"{step.number} {step.name}" + ("" if step.changed else " (nothing to do)")
        cells = [shown(key, step.quality.get(key), _base(record, step, key)) for key, _ in used]
        table.add_row(name, *cells, f"{step.seconds:.1f} s")
    return table


def _base(record: RunRecord, step: StepRecord, key: str) -> float | None:
    return step.quality.get("base_latency") if key == "latency" else record.baseline.get(key)


def _show_step(
    step: StepRecord, before: Mapping[str, float], warnings: Sequence[str], console: Console
) -> None:
    console.print(f"[bold]{step.number} {step.name}[/]  ", end="")
    found = ", ".join(_metric(key, value) for key, value in without_sensitivity(step.metrics).items())
    console.print(found or ("" if step.changed else "nothing to do"), markup=False)
    show_sensitivity(step.metrics, SKIPS_SHOWN, console)
    for edit in step.edits[:SKIPS_SHOWN]:
        console.print(f"    {edit['node']}: {edit['what']}", markup=False)
    if len(step.edits) > SKIPS_SHOWN:
        console.print(f"    and {len(step.edits) - SKIPS_SHOWN} more; report.json has them all", markup=False)
    _show_skips(step.skips, console)
    for warning in warnings:
        console.print(f"    warning: {warning}", markup=False)
    if step.worse:
        figures = (
            f"{name} {shown(_kind(name), before.get(name))} -> {shown(_kind(name), step.quality.get(name))}"
            for name in sorted(step.worse)
        )
        console.print(f"    made worse: {', '.join(figures)}", markup=False)


def _kind(metric: str) -> str:
    """sqnr of sqnr[boxes]."""
    return metric.split("[")[0]


def _metric(name: str, value: float) -> str:
    words = name.replace("_", " ")
    if name.endswith("_bytes"):
        return f"{words.removesuffix(' bytes')} {size(value)}"
    return f"{words} {value:,.0f}" if value >= 1000 and value == round(value) else f"{words} {value:.4g}"


def _show_skips(skips: list[dict[str, str]], console: Console) -> None:
    for skip in skips[:SKIPS_SHOWN]:
        console.print(f"    skipped {skip['node']}: {skip['reason']}", markup=False)
    if len(skips) > SKIPS_SHOWN:
        console.print(
            f"    and {len(skips) - SKIPS_SHOWN} more skipped; report.json has them all", markup=False
        )
