"""What `inspect` prints: the table of layers, what they add up to, and what could not be counted."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from onnx_lathe.optimizer.inspect import UNREAD
from onnx_lathe.optimizer.inspecting.rows import Inspection, Row, Whole
from onnx_lathe.optimizer.report.columns import COLUMNS, Column, is_used, joules, sort_rows, times
from onnx_lathe.optimizer.report.tables import plain_table
from onnx_lathe.optimizer.report.terminal import FILE_WIDTH
from onnx_lathe.optimizer.report.units import count, size

KEPT = 3
"""Columns that stay, however narrow the terminal."""


def show_inspection(
    found: Inspection,
    console: Console,
    names: Sequence[str],
    sort: str | None = None,
    everything: bool = False,
    fitted: bool = True,
) -> None:
    """`names`: of columns; the last ones are left out where they do not fit, if `fitted`. `everything`: nodes without
    weights, MACs or memory of their own too.
    """
    rows = [row for row in found.layers if everything or is_shown(row, names)]
    rows = sort_rows(rows, sort)
    columns = [COLUMNS[name] for name in names]
    if any(row.place for row in rows) and "inside" not in names:
        columns.append(COLUMNS["inside"])
    columns = [one for one in columns if one.name in ("layer", "op") or is_used(one, rows)]
    table = _table(rows, columns, found.whole)
    left_out: list[Column] = []
    if not console.is_terminal:
        unbounded = console.options.update(max_width=1000)
        console.width = max(FILE_WIDTH, Measurement.get(console, unbounded, table).maximum)
    while fitted and len(columns) > KEPT and _width(table, console) > console.width:
        left_out.insert(0, columns.pop())
        table = _table(rows, columns, found.whole)
    for line in summary(found.whole):
        console.print(line, markup=False)
    if len(rows) < len(found.layers):
        hidden = len(found.layers) - len(rows)
        nodes = (
            "1 node takes no memory of its own"
            if hidden == 1
            else f"{hidden} nodes take no memory of their own"
        )
        console.print(f"{nodes}; --all shows {'it' if hidden == 1 else 'them'}", markup=False)
    if left_out:
        named = ", ".join(column.name for column in left_out)
        console.print(f"too narrow for {named}; choose with --columns", markup=False)
    console.print(table)
    for line in said_beside(found.whole):
        console.print(line, markup=False)


def said_beside(whole: Whole) -> list[str]:
    """Notes, and what could not be counted; that weights were not read is a note already."""
    return [*whole.notes, *(line for line in dict.fromkeys(whole.uncounted.values()) if UNREAD not in line)]


def is_shown(row: Row, names: Sequence[str]) -> bool:
    held = row.training is not None and row.training.total > 0
    return row.shown or ("training" in names and held) or ("ms" in names and bool(row.ms))


def _table(rows: Sequence[Row], columns: Sequence[Column], whole: Whole) -> Table:
    table = plain_table(*(column.title for column in columns))
    for column, shown in zip(columns, table.columns, strict=True):
        shown.no_wrap = column.name not in ("layer", "ms")
        shown.overflow = "fold"
        if column.is_number:
            shown.justify = "right"
    for row in rows:
        table.add_row(*(escape(column.text(row)) for column in columns))
    table.add_row(*(column.total(whole) for column in columns))
    return table


def _width(table: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(max_width=1000), table).maximum


def summary(whole: Whole) -> list[str]:
    """What the layers add up to, in sentences."""
    of = _samples(whole)
    lines = [
        f"{whole.parameters:,} parameters, {size(whole.weight_bytes)}; forward of {of}: "
        f"{_more('activations', whole)}{whole.activations:,} activations, {size(whole.activation_bytes)}; "
        f"{'?' if whole.macs is None else count(whole.macs)} MACs"
    ]
    if whole.macs and whole.winograd:
        saved = [
            f"{times(whole.macs / whole.winograd[name])} by F({m} x {m}, 3 x 3)"
            for name, m in (("winograd23", 2), ("winograd43", 4))
            if name in whole.winograd
        ]
        lines.append(f"fewer multiplications with Winograd's algorithm: {', '.join(saved)}")
    if whole.energy is not None and (whole.energy.arithmetic or "energies" not in whole.uncounted):
        lines.append(
            f"energy at 45 nm: {_more('energies', whole)}{joules(whole.energy.arithmetic)} of arithmetic, "
            f"{joules(whole.energy.dram)} if weights, inputs and results cross DRAM once, "
            f"{joules(whole.energy.sram)} if SRAM"
        )
    lines += _of_training(whole)
    if whole.ms is not None:
        lost = f", of which {whole.unattributed_ms:.3f} ms belong to no node" if whole.unattributed_ms else ""
        lines.append(f"ONNX Runtime: {whole.ms:.3f} ms of kernels{lost}")
    return lines


def _samples(whole: Whole) -> str:
    return "one sample" if whole.batch == 1 else f"{whole.batch} samples"


def _more(metric: str, whole: Whole) -> str:
    return "more than " if metric in whole.uncounted else ""


def _of_training(whole: Whole) -> list[str]:
    held = whole.training
    if held is None:
        return []
    peak = whole.gradient_peak_bytes or 0
    return [
        f"training on {_samples(whole)}: {_more('training', whole)}{size(held.total + peak)} = {size(held.weights)} weights + "
        f"{size(held.gradients)} gradients + {size(held.optimizer)} optimizer + {size(held.kept)} activations kept + "
        f"{_more('gradient_peak', whole)}{size(peak)} gradients of activations at most"
    ]
