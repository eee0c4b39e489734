"""The tables of `inspect --parallel`: bytes by layer and strategy, and what each strategy adds up to."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from onnx_lathe.optimizer.inspecting.sharing import STRATEGIES, SharedLayer, Sharing
from onnx_lathe.optimizer.report.tables import plain_table
from onnx_lathe.optimizer.report.terminal import FILE_WIDTH
from onnx_lathe.optimizer.report.units import size

GRID = "grid M x N x K"
DROPPED_FIRST = ("why", GRID, "it holds", "width")
"""Columns that go when the terminal is narrow, in this order; --json has everything."""


def show_sharing(found: Sharing, console: Console) -> None:
    """The layers, a row for each strategy, and what was left out."""
    if not console.is_terminal:
        console.width = FILE_WIDTH
    for line in lines_above(found):
        console.print(line, markup=False)
    columns, rows = layer_rows(found)
    _print(columns, rows, console)
    console.print()
    _print(*strategy_rows(found), console)
    for line in found.notes:
        console.print(f"not counted: {line}", markup=False)


def lines_above(found: Sharing) -> list[str]:
    request = found.request
    how = ""
    if request.split and request.split != "data" and request.parts < request.workers:
        how = f" in {request.workers // request.parts} groups of {request.parts}"
    workers = "1 worker" if request.workers == 1 else f"{request.workers} workers{how}"
    samples = "1 sample" if found.batch == 1 else f"{found.batch} samples"
    return [f"{workers}, a step of {samples}: bytes that the busiest worker sends, forward and backward"]


def layer_rows(found: Sharing) -> tuple[list[str], list[list[str]]]:
    """(titles, cells) of the table of layers."""
    names = [name for name in STRATEGIES if any(name in row.sent for row in found.layers)]
    columns = ["layer", "M x K x N", *names, GRID, "wins", "it holds", "why"]
    return columns, [_cells(row, names) for row in found.layers]


def _cells(row: SharedLayer, names: Sequence[str]) -> list[str]:
    sent = [size(row.sent[name]) if name in row.sent else "-" for name in names]
    grid = "-" if row.grid is None else f"{row.grid}: {size(row.grid.sent)}"
    return [row.layer.name, row.product, *sent, grid, row.wins, size(row.memory[row.wins]), row.why]


def strategy_rows(found: Sharing) -> tuple[list[str], list[list[str]]]:
    """(titles, cells) of the table of strategies."""
    columns = [
        "strategy", "convolutions", "fully connected", "all sent", "of weights", "of activations",
        "weights, gradients, momentum", "activations kept", "arithmetic", "run whole",
    ]  # fmt: skip
    rows = [
        [
            one.name,
            size(one.sent.get("conv", 0.0)),
            size(one.sent.get("fully connected", 0.0)),
            size(one.total),
            size(one.exchanged),
            size(one.moved),
            size(one.weights),
            size(one.kept),
            f"{one.arithmetic:.2f}",
            str(one.whole or ""),
        ]
        for one in found.strategies
    ]
    return columns, rows


def _print(columns: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    table = _table(columns, rows, ())
    unbounded = console.options.update(max_width=1000)
    if not console.is_terminal:
        console.width = max(FILE_WIDTH, Measurement.get(console, unbounded, table).maximum)
    for count in range(1, len(DROPPED_FIRST) + 1):
        if Measurement.get(console, unbounded, table).maximum <= console.width:
            break
        table = _table(columns, rows, DROPPED_FIRST[:count])
    console.print(table)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], dropped: Sequence[str]) -> Table:
    places = [place for place, title in enumerate(columns) if title not in dropped]
    table = plain_table(*(columns[place] for place in places))
    for place, column in zip(places, table.columns, strict=True):
        column.no_wrap = place > 0
        if columns[place] not in ("layer", "strategy", "wins", "why", GRID):
            column.justify = "right"
    for row in rows:
        table.add_row(*(escape(row[place]) for place in places))
    return table
