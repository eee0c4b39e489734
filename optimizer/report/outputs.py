"""The table of single outputs, for models of several and for outputs that join values of several ranges."""

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape

from onnx_lathe.optimizer.report.record import RunRecord
from onnx_lathe.optimizer.report.tables import plain_table
from onnx_lathe.optimizer.report.units import shown

PER_OUTPUT = {"sqnr": "SQNR", "agreement": "agrees"}


def show_outputs(record: RunRecord, console: Console) -> None:
    """Prints how near each output of the final model, and of each target's, is to the original's.

    Nothing for a model of one output of one kind: the steps' table has said it.
    """
    columns, rows = outputs(record)
    if not rows:
        return
    table = plain_table("output", *columns)
    for name, cells in rows:
        table.add_row(escape(name), *(shown(key, value) for key, value in cells))
    console.print(table)


Cell = tuple[str, float | None]
"""A metric's name and what it is."""


def outputs(record: RunRecord) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """Titles of the columns, and each output's name and cells; nothing for a model of one output of one kind."""
    models = {"model": record.final()} | {f"target {one.name}": one.quality for one in record.targets}
    rows = list(
        dict.fromkeys(key for key in record.baseline if key.split("[")[0] in PER_OUTPUT and "[" in key)
    )
    names = list(dict.fromkeys(key[key.index("[") :] for key in rows))
    judged = {title: quality for title, quality in models.items() if quality.keys() & set(rows)}
    if len(names) < 2 or not judged:
        return [], []
    columns = [f"{title}: {known}" for title, known in _columns(judged)]
    return columns, [(_title(name), _cells(name, judged)) for name in names]


def worst(quality: Mapping[str, float]) -> tuple[str, float, int] | None:
    """Of a model of several outputs, the one that is least near to the original's, its SQNR, and of how many."""
    known = {key.removeprefix("sqnr"): value for key, value in quality.items() if key.startswith("sqnr[")}
    if len(known) < 2:
        return None
    name = min(known, key=lambda one: known[one])
    return _title(name), known[name], len(known)


def _columns(judged: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str]]:
    return [(title, PER_OUTPUT[metric]) for title, quality in judged.items() for metric in _measured(quality)]


def _cells(name: str, judged: Mapping[str, Mapping[str, float]]) -> list[Cell]:
    return [
        (metric, quality.get(f"{metric}{name}"))
        for quality in judged.values()
        for metric in _measured(quality)
    ]


def _measured(quality: Mapping[str, float]) -> list[str]:
    return [metric for metric in PER_OUTPUT if any(key.startswith(f"{metric}[") for key in quality)]


def _title(name: str) -> str:
    """[boxes][0-3] as: boxes, channels 0-3."""
    output, found, channels = name[1:-1].partition("][")
    return f"{output}, channels {channels}" if found else output
