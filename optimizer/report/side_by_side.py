"""What `inspect A B` prints."""

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from onnx_lathe.optimizer.inspecting.comparison import Comparison
from onnx_lathe.optimizer.inspecting.rows import Row
from onnx_lathe.optimizer.report.columns import COLUMNS, joules, times
from onnx_lathe.optimizer.report.inspection import said_beside
from onnx_lathe.optimizer.report.tables import plain_table
from onnx_lathe.optimizer.report.terminal import FILE_WIDTH
from onnx_lathe.optimizer.report.units import count, size

BOTH = ("weights", "bytes", "macs", "zeros", "bits", "ms")
"""Columns that are shown of both models."""
GONE = "-"


def show_comparison(found: Comparison, console: Console) -> None:
    """Layers, operators and totals; what is the same in both is written once."""
    tables = [_layers(found), _operators(found), _totals(found)]
    if not console.is_terminal:
        unbounded = console.options.update(max_width=1000)
        widths = [Measurement.get(console, unbounded, table).maximum for table in tables]
        console.width = max(FILE_WIDTH, *widths)
    for table in tables:
        console.print(table)
        console.print()
    for name, one in (("before", found.before), ("after", found.after)):
        for line in said_beside(one.whole):
            console.print(f"{name}: {line}", markup=False)


def _layers(found: Comparison) -> Table:
    shown = [COLUMNS[name] for name in BOTH if name != "ms" or found.before.whole.ms is not None]
    table = plain_table("layer", "op", "output", *(column.title for column in shown))
    for column in table.columns[3:]:
        column.justify = "right"
    for before, after in found.layers:
        row = before or after
        if row is None:
            continue
        table.add_row(
            escape(row.node),
            _both(before, after, "op"),
            _both(before, after, "output"),
            *(_both(before, after, column.name) for column in shown),
        )
    return table


def _both(before: Row | None, after: Row | None, name: str) -> str:
    one, other = (GONE if row is None else COLUMNS[name].text(row) for row in (before, after))
    return escape(one if one == other else f"{one or GONE} > {other or GONE}")


def _operators(found: Comparison) -> Table:
    table = plain_table("operator", "before", "after")
    for column in table.columns[1:]:
        column.justify = "right"
    for op, (before, after) in found.operators.items():
        table.add_row(op, str(before), str(after) if before == after else f"{after} ({after - before:+})")
    return table


def _totals(found: Comparison) -> Table:
    table = plain_table("total", "before", "after", "before / after")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, change in found.totals.items():
        if change.before is None and change.after is None:
            continue
        ratio = "" if name == "sparsity" else times(change.ratio)
        table.add_row(name.replace("_", " "), _text(name, change.before), _text(name, change.after), ratio)
    return table


def _text(name: str, value: float | None) -> str:
    if value is None:
        return "?"
    if name.endswith("bytes"):
        return size(value)
    if name == "sparsity":
        return f"{100 * value:.1f} %"
    if name == "energy":
        return joules(value)
    return f"{value:.3f}" if name == "ms" else count(value)
