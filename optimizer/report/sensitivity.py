"""The table of a step that measured its layers one by one: what each alone does to the outputs."""

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape

from onnx_lathe.optimizer.report.tables import plain_table

PREFIX = "sensitivity/"
"""Of the metrics `sensitivity/<weight>`: dB, the most sensitive weight first."""


def without_sensitivity(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(PREFIX)}


def show_sensitivity(metrics: Mapping[str, float], most: int, console: Console) -> None:
    """Prints up to `most` rows, the most sensitive first; nothing for a step that measured none."""
    rows = [(name.removeprefix(PREFIX), value) for name, value in metrics.items() if name.startswith(PREFIX)]
    if not rows:
        return
    table = plain_table("    rank", "changed alone", "outputs' SQNR (dB)")
    for column in (table.columns[0], table.columns[2]):
        column.justify = "right"
    for rank, (name, value) in enumerate(rows[:most], 1):
        table.add_row(str(rank), escape(name), f"{value:.1f}")
    console.print(table)
    if len(rows) > most:
        console.print(f"    and {len(rows) - most} less sensitive; report.json has them all", markup=False)
