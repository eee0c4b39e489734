"""Tables that explain: the passes and their options, the targets, the layers of a model."""

import dataclasses
from collections.abc import Sequence
from typing import Any, get_type_hints

import onnx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnx_lathe.optimizer.check import Check
from onnx_lathe.optimizer.inspect import layer_rows, measure
from onnx_lathe.optimizer.report.terminal import count, size
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import table_class, type_name
from onnx_lathe.passes.core.registry import all_passes, find
from onnx_lathe.runtime.targets.core.registry import targets


def show_passes(name: str | None, console: Console) -> None:
    """All passes in one table, or one pass with every option. Raises UsageError for an unknown name."""
    if name is not None:
        _show_pass(find(name), console)
        return
    table = _table("pass", "what it does", "options")
    for pass_class in all_passes().values():
        options = ", ".join(field.name for field in dataclasses.fields(pass_class.Config))
        table.add_row(pass_class.name, escape(_summary(pass_class)), escape(options))
    console.print(table)


def _summary(pass_class: type[Pass]) -> str:
    """First sentence of the pass's documentation: of the class, or of its file."""
    import sys

    text = pass_class.__doc__ or sys.modules[pass_class.__module__].__doc__ or ""
    return " ".join(text.strip().split("\n\n")[0].split()).removesuffix(".")


def _show_pass(pass_class: type[Pass], console: Console) -> None:
    console.print(f"{pass_class.name}: {_summary(pass_class)}", markup=False)
    if dataclasses.fields(pass_class.Config):
        console.print(_options(pass_class.Config))
    else:
        console.print("no options")
    for name, hint in get_type_hints(pass_class.Config).items():
        if (inner := table_class(hint)) is not None:
            console.print(f"{name}={{...}}", markup=False)
            console.print(_options(inner))
    for other, reason in pass_class.after.items():
        console.print(f"comes after {other}: {reason}", markup=False)
    for other, reason in pass_class.before.items():
        console.print(f"comes before {other}: {reason}", markup=False)


def _options(config_class: type[Any]) -> Table:
    hints = get_type_hints(config_class)
    table = _table("option", "type", "default", "unit", "meaning")
    for field in dataclasses.fields(config_class):
        table.add_row(
            field.name,
            type_name(hints[field.name]),
            escape(_default(field)),
            field.metadata.get("unit", "") or "-",
            escape(_meaning(field)),
        )
    return table


def _default(field: "dataclasses.Field[Any]") -> str:
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if isinstance(value, dict) and not value:
        return "{}"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _meaning(field: "dataclasses.Field[Any]") -> str:
    limits = []
    low, high, choices = (field.metadata.get(key) for key in ("low", "high", "choices"))
    if low is not None or high is not None:
        limits.append(
            f"{low} to {high}"
            if low is not None and high is not None
            else f"at least {low}"
            if high is None
            else f"at most {high}"
        )
    if choices:
        limits.append(" | ".join(choices))
    return field.metadata.get("help", "") + (f" ({'; '.join(limits)})" if limits else "")


def show_targets(console: Console) -> None:
    table = _table("target", "here", "what it makes")
    for name, target_class in targets().items():
        missing = target_class().available()
        table.add_row(name, "available" if missing is None else "no", escape(target_class.help))
        if missing:
            table.add_row("", "", escape(missing))
    console.print(table)


def show_checks(checks: Sequence[Check], console: Console) -> None:
    """Per target, the layers with the kernel's type and the reason, and how many run in INT8."""
    for check in checks:
        table = _table("layer", "op", "runs in", "why")
        for layer in check.layers:
            table.add_row(
                escape(layer.node), layer.op, "INT8" if layer.int8 else "float", escape(layer.reason)
            )
        if table.row_count:
            console.print(table)
        console.print(f"{check.target}: {check.int8} of {len(check.layers)} layers run in INT8", markup=False)


def show_layers(model: onnx.ModelProto, console: Console) -> None:
    """Per-layer table of a model, with totals."""
    rows = layer_rows(model)
    table = _table("layer", "op", "weight", "output", "parameters", "zeros", "bytes", "MACs")
    for column in table.columns[4:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            escape(row.node),
            row.op,
            "x".join(map(str, row.weight_shape)),
            "?" if row.output_shape is None else "x".join(map(str, row.output_shape)),
            count(row.parameters),
            f"{100 * row.zeros / row.parameters:.1f} %" if row.parameters else "shared",
            size(row.weight_bytes),
            "?" if row.macs is None else count(row.macs),
        )
    whole = measure(model, rows)
    macs = "?" if whole.macs is None else count(whole.macs)
    table.add_row(
        "all",
        "",
        "",
        "",
        count(whole.parameters),
        f"{100 * whole.sparsity:.1f} %",
        size(whole.weight_bytes),
        macs,
    )
    console.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for column in columns:
        table.add_column(column)
    return table
