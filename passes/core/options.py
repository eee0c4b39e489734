"""Options of passes and targets: fields of a frozen Config with their help and bounds, and how written
options become one.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.passes.core.base import Moved, Pass


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    file: bool = False,
) -> Any:
    """A field of a Config: default, one line of help, unit, closed bounds for a number, allowed words for a
    string. `file`: the value is the path of a file, which a recipe means from its own folder.
    """
    metadata = {
        "help": help,
        "unit": unit,
        "low": low,
        "high": high,
        "choices": tuple(choices),
        "file": file,
    }
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def configure(pass_class: type[Pass], options: Mapping[str, Any]) -> Pass:
    """An instance with validated options. Raises UsageError naming the pass, the option and what it takes."""
    see = f"optimize passes {pass_class.name}"
    return pass_class(make_config(pass_class.Config, options, "pass", pass_class.name, see, pass_class.moved))


def option_files(instance: Pass) -> dict[str, Path]:
    """Option -> the file that it names."""
    given = {one.name: getattr(instance.config, one.name) for one in file_options(type(instance))}
    return {name: Path(value) for name, value in given.items() if value is not None}


def file_options(pass_class: type[Pass]) -> list[dataclasses.Field[Any]]:
    """The options whose values are paths of files."""
    return [one for one in dataclasses.fields(pass_class.Config) if one.metadata.get("file")]


def checked(instance: Pass) -> Pass:
    """A fresh instance with the same options, which are checked as written ones are: a Config made in Python is
    not. Raises UsageError as `configure` does.
    """
    kind, config = type(instance), instance.config
    return configure(kind, {one.name: getattr(config, one.name) for one in dataclasses.fields(config)})


def make_config(
    config_class: type[Any],
    options: Mapping[str, Any],
    kind: str,
    name: str,
    see: str,
    moved: Mapping[str, Moved] = MappingProxyType({}),
) -> Any:
    """A frozen Config from options as written. Raises UsageError naming the owner (`kind`, `name`), the
    option and what it takes; for one of the options `moved`, how it is written now.
    """
    for key, value in options.items():
        if key in moved:
            told = moved[key]
            instead = told(value) if callable(told) else told.replace("{value}", written(value))
            raise UsageError(f"{kind} '{name}' has no option '{key}'; {instead}")
    return _made(config_class, options, f"{kind} '{name}'", f"{name}(...)", see)


def _made(config_class: type[Any], options: Mapping[str, Any], owner: str, where: str, see: str) -> Any:
    """The dataclass of these options. The dots in `where` are the place of its options: `prune(...)`,
    `prune(training={...})`.
    """
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    hints = get_type_hints(config_class)
    sign = ": " if where.endswith("{...})") else "="
    values = {}
    for key, value in options.items():
        if key not in fields:
            raise UsageError(f"{owner} has no option '{key}'{nearest(key, fields)}; see: {see}")
        here = where.replace("...", f"{key}{sign}...")
        inner = table_class(hints[key])
        if inner is None:
            values[key] = _checked(here, fields[key], hints[key], value)
        elif value is None:
            values[key] = None
        elif isinstance(value, Mapping) or type(value) is inner:
            table = here.replace("...", "{...}")
            values[key] = _made(
                inner, value if isinstance(value, Mapping) else vars(value), table, table, see
            )
        else:
            raise UsageError(f"{here} takes a table, {{option: value, ...}}, not {written(value)}")
    try:
        return config_class(**values)
    except UsageError as error:
        if sign == "=":  # a pass's own options: the message names the pass
            raise
        raise UsageError(f"{where}: {error}") from error


def table_class(hint: Any) -> type[Any] | None:
    """The dataclass whose options an option takes as a table, such as `training`; None where it takes
    something else.
    """
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return next((part for part in parts if isinstance(part, type) and dataclasses.is_dataclass(part)), None)


def type_name(hint: Any) -> str:
    """How the type of an option is shown: int, float, bool, str, `float or none`, `table of float`."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join("none" if part is type(None) else type_name(part) for part in get_args(hint))
    if get_origin(hint) is dict:
        return f"table of {type_name(get_args(hint)[1])}"
    return "table" if dataclasses.is_dataclass(hint) else str(hint.__name__)


_BARE = re.compile(
    r"(?!(?:true|false|none|inf|infinity|nan)$)(?:[A-Za-z_]|\.{0,2}[/\\])[^\s(){}=,:\"'%]*", re.IGNORECASE
)
"""A text that needs no quotes in a recipe: it is read as no number and no word that means something."""


def written(value: Any) -> str:
    """A value as a recipe has it: true, none, {name: value}."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str) and not _BARE.fullmatch(value):
        return f"'{value}'" if '"' in value else f'"{value}"'
    return str(value)


def _key(name: str) -> str:
    if name.isidentifier():
        return name
    return f"'{name}'" if '"' in name else f'"{name}"'


def _checked(where: str, spec: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    if get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            raise UsageError(f"{where} takes a table of name pattern -> value, not {value!r}")
        return {
            str(key): _checked(f"{where} for '{key}'", spec, get_args(hint)[1], item)
            for key, item in value.items()
        }
    allowed = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and type(None) in allowed:
        return None
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) not in allowed or (isinstance(value, float) and not math.isfinite(value)):
        raise UsageError(f"{where} takes {type_name(hint)}, not {value!r}")
    low, high, choices = spec.metadata.get("low"), spec.metadata.get("high"), spec.metadata.get("choices")
    if isinstance(value, int | float) and not isinstance(value, bool) and not _within(value, low, high):
        bounds = (
            f"{low} to {high}"
            if None not in (low, high)
            else f"at least {low}"
            if high is None
            else f"at most {high}"
        )
        raise UsageError(f"{where} must be {bounds}, not {value}")
    if isinstance(value, str) and choices and value not in choices:
        raise UsageError(f"{where} must be one of {', '.join(choices)}, not '{value}'")
    return value


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)
