"""Tables that explain: the passes and their options, and the targets."""

import dataclasses
from typing import Any, get_type_hints

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnx_lathe.optimizer.report.tables import plain_table
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import table_class, type_name
from onnx_lathe.passes.core.registry import all_passes, find
from onnx_lathe.runtime.targets.core.registry import targets


def show_passes(name: str | None, console: Console) -> None:
    """All passes in one table, or one pass with every option. Raises UsageError for an unknown name."""
    if name is not None:
        _show_pass(find(name), console)
        return
    table = plain_table("pass", "what it does", "options")
    for pass_class in all_passes().values():
        options = ", ".join(field.name for field in dataclasses.fields(pass_class.Config))
        table.add_row(pass_class.name, escape(_summary(pass_class)), escape(options))
    console.print(table)


def passes_as_data(name: str | None) -> Any:
    """What `show_passes` shows, as plain data: a list, or one pass."""
    if name is not None:
        return _pass_as_data(find(name))
    return [_pass_as_data(pass_class) for pass_class in all_passes().values()]


def _pass_as_data(pass_class: type[Pass]) -> dict[str, Any]:
    return {
        "name": pass_class.name,
        "summary": _summary(pass_class),
        "lossless": pass_class.lossless,
        "options": _options_as_data(pass_class.Config),
        "after": dict(pass_class.after),
        "before": dict(pass_class.before),
    }


def _options_as_data(config_class: type[Any]) -> list[dict[str, Any]]:
    hints = get_type_hints(config_class)
    found = []
    for field in dataclasses.fields(config_class):
        inner = table_class(hints[field.name])
        found.append(
            {
                "name": field.name,
                "type": type_name(hints[field.name]),
                "default": _default(field),
                "unit": field.metadata.get("unit", ""),
                "meaning": _meaning(field),
            }
            | ({} if inner is None else {"options": _options_as_data(inner)})
        )
    return found


def targets_as_data() -> list[dict[str, Any]]:
    """What `show_targets` shows, as plain data."""
    found = []
    for name, target_class in targets().items():
        missing = target_class().available()
        found.append(
            {"name": name, "available": missing is None, "makes": target_class.help, "missing": missing}
        )
    return found


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
    table = plain_table("option", "type", "default", "unit", "meaning")
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
    table = plain_table("target", "here", "what it makes")
    for name, target_class in targets().items():
        missing = target_class().available()
        table.add_row(name, "available" if missing is None else "no", escape(target_class.help))
        if missing:
            table.add_row("", "", escape(missing))
    console.print(table)
