"""Tables read from JSON against the types that they claim to be of: a file may be damaged, or changed by hand."""

import dataclasses
import json
import math
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict


def loaded(text: str) -> Any:
    """What `json.loads` gives, without its NaN and Infinity. Raises ValueError."""
    return json.loads(text, parse_constant=_refused)


def _refused(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def check(value: Any, hint: Any, where: str) -> None:
    """Raises ValueError, which names the place, where `value` is not of the type `hint`: scalars, unions, lists and
    dicts of them, a TypedDict, or a dataclass given as a dict of its fields. A whole number passes for a float.
    """
    kind = get_origin(hint)
    if hint is Any:
        return
    if kind in (Union, UnionType):
        kinds = get_args(hint)
        if value is None and NoneType in kinds:
            return
        check(value, next(one for one in kinds if one is not NoneType), where)
    elif kind is list:
        _of(value, list, where)
        for place, item in enumerate(value):
            check(item, get_args(hint)[0], f"{where}[{place}]")
    elif kind is dict or hint is dict:
        _of(value, dict, where)
        for key, item in value.items():
            check(item, get_args(hint)[1] if kind else Any, f"{where}.{key}")
    elif is_typeddict(hint) or dataclasses.is_dataclass(hint):
        _fields(value, hint, where)
    elif hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{where} is {_shown(value)}, not a number")
    else:
        _of(value, hint, where)


def _fields(value: Any, hint: Any, where: str) -> None:
    _of(value, dict, where)
    hints = get_type_hints(hint)
    if is_typeddict(hint):
        needed = hint.__required_keys__
    else:
        given = [one for one in dataclasses.fields(hint) if one.default is dataclasses.MISSING]
        needed = {one.name for one in given if one.default_factory is dataclasses.MISSING}
        if unknown := sorted(value.keys() - hints.keys()):
            raise ValueError(f"{where}.{unknown[0]} is not known")
    for name in hints:
        if name in value:
            check(value[name], hints[name], f"{where}.{name}" if where else name)
        elif name in needed:
            raise ValueError(f"{where}.{name} is missing" if where else f"{name} is missing")


def _of(value: Any, kind: type, where: str) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where or 'it'} is {_shown(value)}, not {_TITLES.get(kind, kind.__name__)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


_TITLES: dict[type, str] = {
    dict: "an object", list: "a list", str: "a text", int: "a whole number", bool: "true or false",
}  # fmt: skip
