"""Writes a recipe as the TOML file that `optimize --recipe` reads."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx_lathe.optimizer.judging.evidence import tolerance_text
from onnx_lathe.optimizer.recipe import DATA_ROLES, FIXED, READING, Recipe
from onnx_lathe.passes.core.options import file_options
from onnx_lathe.passes.core.registry import all_passes
from onnx_lathe.runtime.files.writing import replacing


def write_recipe(path: Path, recipe: Recipe, comments: list[str]) -> list[str]:
    """Writes the file, its paths relative to its own folder. Returns what it cannot say: data and functions that a
    caller has in memory. Raises LatheError if the disk refuses.
    """
    lines, unsaid = [f"# {line}" for line in comments], list[str]()
    if recipe.gates:
        lines.append(f"gate = {_value(list(recipe.gates))}")
    lines.append(f"target = {_value([str(target) for target in recipe.targets])}")
    for name in ("retrain", "launch", "parallel"):
        if getattr(recipe, name) is not None:
            text = getattr(recipe, name)
            lines.append(f"{name} = {_value(_beside(path, text) if name == 'retrain' else text)}")
    if recipe.memory is not None:
        lines.append(f"memory = {_value(str(recipe.memory))}")
    if recipe.seed:
        lines.append(f"seed = {recipe.seed}")
    lines += _judging(path, recipe, unsaid)
    if recipe.fix_inputs:
        lines += [
            "",
            f"[{FIXED}]",
            *(f"{_key(name)} = {_value(one)}" for name, one in recipe.fix_inputs.items()),
        ]
    lines += ["", *_data(path, recipe, unsaid)]
    for step in recipe.steps:
        known = all_passes().get(step.name)
        files = [] if known is None else [one.name for one in file_options(known)]
        lines += ["", "[[pass]]", f"name = {_value(step.name)}"]
        for key, value in step.options.items():
            if value is not None:
                written = _beside(path, value) if key in files and isinstance(value, str) else value
                lines += [f"{key} = {_value(written)}"] if not _is_long(value) else []
        lines += [
            line for key, value in step.options.items() if _is_long(value) for line in _table(key, value)
        ]
    with replacing(path) as file:
        file.write(("\n".join(lines) + "\n").encode())
    return unsaid


def _judging(path: Path, recipe: Recipe, unsaid: list[str]) -> list[str]:
    """How gates judge."""
    lines = []
    if recipe.confidence is not None:
        lines.append(f"confidence = {_value(repr(recipe.confidence))}")
    if recipe.tolerances:
        texts = [tolerance_text(metric, kind, amount) for (metric, kind), amount in recipe.tolerances.items()]
        lines.append(f"tolerance = {_value(texts)}")
    functions = {name: one for name, one in recipe.metrics.items() if isinstance(one, str)}
    unsaid += ["metric"] * (len(functions) < len(recipe.metrics))
    if functions:
        lines += ["", "[metric]"]
    return lines + [f"{_key(name)} = {_value(_beside(path, one))}" for name, one in functions.items()]


def _data(path: Path, recipe: Recipe, unsaid: list[str]) -> list[str]:
    lines = ["[data]"]
    for role in DATA_ROLES:
        spec = getattr(recipe, role)
        if isinstance(spec, str | Path):
            lines.append(f"{role} = {_value(_beside(path, str(spec)))}")
        elif spec is not None:
            unsaid.append(role)
    if recipe.preprocess is not None:
        lines.append(f"preprocess = {_value(recipe.preprocess)}")
    for name in ("classes", *READING):
        spec = getattr(recipe, name)
        if isinstance(spec, str):
            lines.append(f"{name} = {_value(_beside(path, spec))}")
        elif spec is not None:
            unsaid.append(name)
    return lines if len(lines) > 1 else []


def _beside(path: Path, spec: str) -> str:
    """The path in `spec`, as `recipe.load_recipe` reads it from the file's folder; as it is where no path leads there."""
    if Path(spec).is_absolute():
        return spec
    try:
        return os.path.relpath(spec, path.parent).replace(os.sep, "/")
    except ValueError:  # another drive
        return os.path.abspath(spec)


def _is_long(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 3


def _table(key: str, value: Mapping[str, Any]) -> list[str]:
    inside = [f"{_key(name)} = {_value(item)}" for name, item in value.items() if item is not None]
    return ["", f"[pass.{_key(key)}]", *inside]


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        inside = ", ".join(
            f"{_key(name)} = {_value(item)}" for name, item in value.items() if item is not None
        )
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
