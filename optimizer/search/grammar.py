"""What --search says of a space, in text.

    retrain.rate=1e-4..1e-1, retrain.batch=32|64, codebook.bits=3..8, prune.layers[conv*]=0.5..0.95:0.05

    entry  = step [ "#" number ] "." option { "." option } [ "[" layers "]" ] "=" values
    values = low ".." high [ ":" step ]  |  value { "|" value }

A range that spans a decade or more, above zero, is searched by its logarithm. An option that is a table of layers,
such as `layers`, is one dimension for each layer; brackets say of which.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import numpy as np

from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.optimizer.recipe import Call, parse_calls
from onnx_lathe.optimizer.search.space import Dimension, Value, put, step_title
from onnx_lathe.optimizer.search.strengths import PRICED, STRENGTHS
from onnx_lathe.passes.core.options import configure, table_class
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.graph.layers import Weight
from onnx_lathe.passes.graph.patterns import by_weight

DECADE = 10.0
MOST_VALUES = 1000
"""Of a range in steps: more is a range without them."""
TABLES = ("layers", "layer_centroids", "layer_tradeoffs")
"""Options that are a table of layers."""
LEVELS = 10
"""Of a range of fractions for each layer, where no step is given."""
_ENTRY = re.compile(
    r"(?P<step>[a-z][\w-]*)(?:#(?P<number>\d+))?\.(?P<option>\w+(?:\.\w+)*)(?:\[(?P<layers>.+)\])?\s*=\s*(?P<values>.+)"
)
_RANGE = re.compile(r"(?P<low>[-+.\deE%]+?)\s*\.\.\s*(?P<high>[-+.\deE%]+?)(?:\s*:\s*(?P<by>[-+.\deE%]+))?")
_FORM = 'write it as "prune.sparsity=0.5..0.95" or "retrain.batch=32|64"'


@dataclass(frozen=True)
class Entry:
    text: str
    step: int
    option: tuple[str, ...]
    layers: str
    low: Value = None
    high: Value = None
    by: Value = None
    choices: tuple[Value, ...] = ()


def parse_space(
    texts: Sequence[str], steps: Sequence[Call], weights_of: Callable[[int], Sequence[Weight]]
) -> tuple[Dimension, ...]:
    """The dimensions that the entries name. `weights_of`: the weights that a step changes.

    Raises UsageError that quotes the entry: no such step or option, with the nearest that there is, or a value
    that the option does not take.
    """
    found: dict[str, Dimension] = {}
    for text in [piece for whole in texts for piece in _pieces(whole)]:
        entry = _entry(text, steps)
        table = len(entry.option) == 1 and entry.option[0] in TABLES
        made = _of_layers(entry, steps, weights_of(entry.step)) if table else [_dimension(entry, steps)]
        for dimension in made:
            if dimension.name in found and not table:
                raise UsageError(f"--search: '{dimension.name}' is there twice")
            found[dimension.name] = dimension
            _check(dimension, steps[dimension.step], text)
    return tuple(found.values())


def _pieces(text: str) -> list[str]:
    pieces = [piece.strip() for piece in re.split(r",(?![^\[]*\])", text)]
    if not any(pieces):
        raise UsageError(f"--search is empty; {_FORM}")
    return [piece for piece in pieces if piece]


def _entry(text: str, steps: Sequence[Call]) -> Entry:
    match = _ENTRY.fullmatch(text)
    if match is None:
        raise UsageError(f"--search '{text}': {_FORM}")
    index = _step(text, match["step"], match["number"], steps)
    option = _option(text, steps[index].name, tuple(match["option"].split(".")))
    layers, values = match["layers"] or "", match["values"].strip()
    if ".." in values:
        span = _RANGE.fullmatch(values)
        if span is None:
            raise UsageError(f"--search '{text}': '{values}' is no range of numbers; {_FORM}")
        low, high, by = (
            None if span[name] is None else _value(text, span[name]) for name in ("low", "high", "by")
        )
        numbers = [one for one in (low, high, by) if one is not None]
        if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers):
            raise UsageError(f"--search '{text}': '{values}' is no range of numbers; {_FORM}")
        if not low < high or (by is not None and not by > 0):  # type: ignore[operator]
            raise UsageError(
                f"--search '{text}': the range is empty; write the lower end first, and a step above 0"
            )
        return Entry(text, index, option, layers, low, high, by)
    return Entry(text, index, option, layers, choices=tuple(_value(text, one) for one in values.split("|")))


def _step(text: str, name: str, number: str | None, steps: Sequence[Call]) -> int:
    places = [index for index, step in enumerate(steps) if step.name == name]
    known = dict.fromkeys(step.name for step in steps)
    if not places:
        advice = nearest(name, known) or f"; its steps are {', '.join(known)}"
        raise UsageError(f"--search '{text}': the recipe has no step '{name}'{advice}")
    if number is None and len(places) > 1:
        raise UsageError(
            f"--search '{text}': the recipe has {len(places)} steps '{name}'; write {name}#1 for the first"
        )
    if number is not None and not 1 <= int(number) <= len(places):
        raise UsageError(
            f"--search '{text}': the recipe has {len(places)} of '{name}', and there is no #{number}"
        )
    return places[int(number or 1) - 1]


def _option(text: str, name: str, option: tuple[str, ...]) -> tuple[str, ...]:
    """The option as a pass has it; `prune.training.rate` is one of a table."""
    config: Any = find(name).Config
    for place, part in enumerate(option):
        known = [field.name for field in fields(config)] if config is not None else []
        if part not in known:
            owner = name if place == 0 else ".".join((name, *option[:place]))
            inner = f"; write {name}.training.{part}" if place == 0 and _trains_with(config, part) else ""
            raise UsageError(
                f"--search '{text}': {owner} has no option '{part}'{inner or nearest(part, known)}"
            )
        config = table_class(get_type_hints(config)[part])
    return option


def _trains_with(config: Any, option: str) -> bool:
    inner = table_class(get_type_hints(config)["training"]) if "training" in get_type_hints(config) else None
    return inner is not None and option in {field.name for field in fields(inner)}


def _value(text: str, word: str) -> Value:
    if not word.strip():
        raise UsageError(f"--search '{text}': a value is missing; {_FORM}")
    calls = parse_calls(f"x(v={word.strip()})", f"--search '{text}'")
    value: Value = calls[0].options["v"]
    return value


def _dimension(entry: Entry, steps: Sequence[Call]) -> Dimension:
    name = f"{step_title(steps, entry.step)}.{'.'.join(entry.option)}"
    if entry.layers:
        raise UsageError(
            f"--search '{entry.text}': {entry.option[-1]} is no table of layers; leave [...] out"
        )
    if entry.choices:
        return Dimension(name, entry.step, entry.option, choices=entry.choices)
    if entry.by is not None:
        return Dimension(name, entry.step, entry.option, choices=tuple(_grid(entry)))
    low, high = _ends(entry)
    whole = isinstance(low, int) and isinstance(high, int) and _is_whole(steps[entry.step].name, entry.option)
    log = low > 0 and high / low >= DECADE
    return Dimension(name, entry.step, entry.option, low=low, high=high, log=log, whole=whole)


def _ends(entry: Entry) -> tuple[int | float, int | float]:
    """Of an entry with a range, which was checked to be of numbers."""
    low, high = entry.low, entry.high
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        raise TypeError(entry.text)
    return low, high


def _is_whole(name: str, option: tuple[str, ...]) -> bool:
    hint: Any = find(name).Config
    for part in option:
        hint = get_type_hints(table_class(hint) or hint)[part]
    return float not in (hint, *getattr(hint, "__args__", ()))


def _grid(entry: Entry, by: float | None = None) -> list[Value]:
    (low, high), step = _ends(entry), by or entry.by
    assert isinstance(step, int | float)
    steps = (high - low) / step
    if not steps < MOST_VALUES:
        raise UsageError(
            f"--search '{entry.text}': more than {MOST_VALUES:,} values are too many; take a larger step"
        )
    count = int(np.floor(steps + 1e-9)) + 1
    whole = all(isinstance(one, int) for one in (low, step))
    return [low + number * step if whole else round(low + number * step, 10) for number in range(count)]


def _of_layers(entry: Entry, steps: Sequence[Call], found: Sequence[Weight]) -> list[Dimension]:
    name, option = steps[entry.step].name, entry.option[0]
    if name not in STRENGTHS:
        raise UsageError(f"--search '{entry.text}': layers of {name} cannot be searched one by one")
    asked = by_weight({entry.layers or "*": True}, list(found), [], f"--search '{entry.text}'")
    levels = list(entry.choices)
    if not levels:
        whole = isinstance(entry.low, int) and isinstance(entry.high, int)
        low, high = _ends(entry)
        width = float(high - low)
        levels = _grid(entry, None if entry.by is not None else 1 if whole and width >= 1 else width / LEVELS)
        if option == PRICED.option and entry.by is None and low > 0 and high / low >= DECADE:
            levels = [float(f"{level:.3g}") for level in np.geomspace(low, high, LEVELS + 1)]
    if not (STRENGTHS[name].rising or option == PRICED.option) and not entry.choices:
        levels.reverse()
    title = step_title(steps, entry.step)
    return [
        Dimension(f"{title}.{option}[{weight.name}]", entry.step, entry.option, weight.name, tuple(levels))
        for weight in found
        if weight.name in asked
    ]


def _check(dimension: Dimension, step: Call, text: str) -> None:
    for value in dimension.ends:
        options = dict(step.options)
        put(options, step.name, dimension, value)
        try:
            configure(find(step.name), options)
        except UsageError as error:
            raise UsageError(f"--search '{text}': {error}") from error
