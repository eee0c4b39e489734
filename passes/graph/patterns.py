"""Options per layer: a table of name patterns -> values, on the names of weights and of the layers that
read them.
"""

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.passes.graph.layers import Weight

Value = TypeVar("Value")


def by_weight(
    patterns: Mapping[str, Value], weights: Sequence[Weight], refused: Collection[str], option: str
) -> dict[str, Value]:
    """Weight name -> value of the last pattern that matches the weight or one of its layers.

    Patterns are those of `fnmatch`, case-sensitive; a name also matches itself, brackets and all. `refused`
    are layers without a usable weight: naming one is no mistake. Raises UsageError, starting with `option`,
    for a pattern that matches nothing, but for `*`.
    """
    names = {weight.name: [weight.name, *(node.name for node in weight.nodes)] for weight in weights}
    chosen: dict[str, Value] = {}
    for pattern, value in patterns.items():
        matched = [name for name, aliases in names.items() if _any_matches(aliases, pattern)]
        if not matched and pattern != "*" and not _any_matches(refused, pattern):
            known = [*names, *(alias for aliases in names.values() for alias in aliases[1:])]
            raise UsageError(
                f"{option}: no weight or layer is named '{pattern}'{nearest(pattern, known) or _some(list(names))}"
            )
        chosen.update(dict.fromkeys(matched, value))
    return chosen


def _any_matches(names: Collection[str], pattern: str) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for name in names)


def _some(names: Sequence[str]) -> str:
    return (
        f"; the weights are {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        if names
        else "; the model has no weights"
    )
