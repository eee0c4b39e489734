"""`optimize auto`: which passes suit a target, and what of them is searched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.recipe import Recipe, parse_calls


@dataclass(frozen=True)
class Plan:
    """A search that needs nothing more to be said."""

    recipe: Recipe
    minimize: str
    search: Sequence[str]
    note: str


@dataclass(frozen=True)
class _Suited:
    passes: str
    minimize: str
    search: Sequence[str]
    why: str


_INTEGERS = _Suited(
    "fold, equalize, int8",
    "size",
    ("int8.layers=false|true", "int8.method=percentile|entropy", "int8.weights=max|mse"),
    "INT8 wherever the gates allow it",
)
_SUITED: Mapping[str, _Suited] = {
    "pack": _Suited(
        "fold, codebook(rounding=hessian, mantissa=7, biases=8)",
        "packed",
        (),
        "shared values, where weights make up for what others changed",
    ),
    "onnx": _Suited(
        "fold, codebook", "size", (), "shared values, which a plain ONNX file stores in 4 or 8 bits"
    ),
}
_THINNER = "convolutions split in three between fewer channels, as few as the gates allow"
WORK = ("macs", "latency")
"""What thinner layers make small."""


def plan(recipe: Recipe, minimize: str | None = None) -> Plan:
    """Of the recipe's first target: a file to be downloaded is to be small, on a device layers are to be in INT8. The
    target onnx counts only where it is alone. `minimize`: "macs" or "latency", in place of what suits the target; layers
    are split then, and what suits the target is done to the parts.
    """
    if minimize is not None and minimize not in WORK:
        raise UsageError(
            f"auto makes {' or '.join(WORK)} small, or what suits its target, not {minimize}; "
            f"'optimize search --minimize {minimize}' takes passes of your choice"
        )
    if recipe.steps:
        raise UsageError("auto chooses the passes; optimize search takes --passes")
    names = [target.name for target in recipe.targets if target.name != "onnx"] or ["onnx"]
    packs = "pack" in names
    devices = [name for name in names if name not in _SUITED]
    if packs and devices:
        suited = replace(
            _INTEGERS, passes="fold, prune, codebook, int8", minimize="packed", search=(),
            why="zeros and shared values for the packed file, INT8 for the device",
        )  # fmt: skip
    else:
        suited = _SUITED.get(names[0], _INTEGERS)
    if minimize is not None:
        behind = ", int8" if devices else ""
        suited = _Suited(f"fold, tucker{behind}", minimize, (), _THINNER)
    steps = parse_calls(suited.passes, "auto")
    note = f"for {', '.join(names)}: {suited.passes}, the smallest {suited.minimize} ({suited.why})"
    return Plan(replace(recipe, steps=steps), suited.minimize, suited.search, note)
