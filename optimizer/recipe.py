"""What the user asks for, from the command line or a TOML file -> a frozen, validated Recipe.

fold, prune(sparsity=0.9, layers={"conv*": 0.5}), retrain(epochs=2), codebook(bits=4), retrain, int8

[[pass]]                      gate = ["top1 drop <= 0.5%"]
name = "prune"                target = ["onnx", "tensorrt-rtx(compute=sm86)"]
sparsity = 0.9                [data]
                              train = "digits.npz:train"
                              [metric]
                              mine = "metrics.py:mine"
"""

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.optimizer.fixed_inputs import checked_fixed
from onnx_lathe.optimizer.judging.evidence import Tolerances, parse_confidence, parse_tolerances
from onnx_lathe.optimizer.recipe_library import located
from onnx_lathe.optimizer.sizes import parse_bytes
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import configure, file_options, written
from onnx_lathe.passes.core.registry import all_passes, find
from onnx_lathe.runtime.data.memory import DataSpec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DATA_ROLES = ("data", "train", "calibration", "eval")
JUDGING, READING = ("metric", "confidence", "tolerance"), ("postprocess", "symbols")
FIXED = "fix-input"
TUNED = "winograd"
"""The pass that takes --tuning."""


@dataclass(frozen=True)
class Call:
    """A name with options, as written: `prune(sparsity=0.9)`."""

    name: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        inside = ", ".join(f"{key}={written(value)}" for key, value in self.options.items())
        return f"{self.name}({inside})" if inside else self.name


@dataclass(frozen=True)
class Recipe:
    """A whole request but for the model and the output folder. Paths are absolute or relative to the
    working directory.
    """

    steps: tuple[Call, ...] = ()
    gates: tuple[str, ...] = ()
    targets: tuple[Call, ...] = (Call("onnx", {}),)
    data: DataSpec | None = None
    train: DataSpec | None = None
    calibration: DataSpec | None = None
    eval: DataSpec | None = None
    preprocess: str | None = None
    classes: str | None = None
    """A file that gives class folders their order."""
    retrain: str | None = None
    memory: int | None = None
    """Bytes that activations may take in training."""
    launch: str | None = None
    """torchrun's arguments, if several processes train."""
    parallel: str | None = None
    """How they share out the training; None: each has a part of every batch."""
    seed: int = 0
    metrics: Mapping[str, str | Callable[..., Any]] = field(default_factory=dict)
    """The user's own, by the names that gates call them: FILE.py:FUNCTION."""
    postprocess: str | Callable[..., Any] | None = None
    """What makes answers of a model's outputs, for metrics against labels."""
    fix_inputs: Mapping[str, Any] = field(default_factory=dict)
    """Inputs of the model that are to be constants, with their values."""
    symbols: str | None = None
    """A file that names what the scores of a model that reads are of."""
    confidence: float | None = None
    """Judge by this interval's worse end."""
    tolerances: Tolerances = field(default_factory=dict)
    """By which gates may be missed."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"seed {self.seed}: give 0 or more")

    def passes(self) -> list[Pass]:
        """A fresh, configured instance per step. Raises UsageError for an unknown pass or option, a bad
        value or a bad order.
        """
        instances = [configure(find(step.name), step.options) for step in self.steps]
        check_order(instances)
        return instances


def check_order(instances: Sequence[Pass]) -> None:
    """Raises UsageError naming two passes that stand in the wrong order, with the reason."""
    names = [instance.name for instance in instances]
    for index, instance in enumerate(instances):
        for other, reason in instance.before.items():
            if other in names[:index]:
                raise UsageError(f"pass '{instance.name}' must come before '{other}': {reason}")
        for other, reason in instance.after.items():
            if other in names and other not in names[:index]:
                raise UsageError(f"pass '{instance.name}' must come after '{other}': {reason}")


KEYS = (
    "passes", "pass", "gate", "target", "retrain", "memory", "launch", "parallel", "seed", "data",
)  # fmt: skip
"""Keys of a recipe file, beside those of inputs and of judging."""
MOST_BYTES, MOST_PARTS = 1_000_000, 200
"""Of a recipe, and of a dotted key in it: reading takes time by the square of these parts, 13 s for 32,000. A search writes
two settings for each layer, by names of any length.
"""
_PART = r"""(?:[\w-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_LONG_KEY = re.compile(rf"(?<![\w\\-]){_PART}(?:[ \t]*\.[ \t]*{_PART}){{{MOST_PARTS}}}")


def load_recipe(path: Path) -> Recipe:
    """Reads a TOML recipe, or the built-in one of this bare name; its paths are relative to its own folder.
    Raises UsageError naming the file and the key.
    """
    path = located(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{path}: has more than {MOST_BYTES / 1e6:.0f} MB, which is no recipe")
        text = path.read_text(encoding="utf-8")
        if _LONG_KEY.search(text):
            raise UsageError(f"{path}: has a key of more than {MOST_PARTS} parts, which is none of a recipe")
        table = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: cannot read the recipe ({getattr(error, 'strerror', None) or error})"
        ) from error
    except (ValueError, RecursionError) as error:
        # also for numbers of thousands of digits, and lists a thousand deep
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    _known(path, "", table, (*KEYS, FIXED, *JUDGING))
    data = _typed(path, "data", table.get("data", {}), dict)
    _known(path, "data.", data, (*DATA_ROLES, "preprocess", "classes", *READING))
    fields: dict[str, Any] = {key: _typed(path, f"data.{key}", value, str) for key, value in data.items()}
    for role in (*DATA_ROLES, "classes", *READING):
        if role in fields:
            fields[role] = _beside(path, fields[role])
    if "retrain" in table:
        fields["retrain"] = _beside(path, _typed(path, "retrain", table["retrain"], str))
    if "memory" in table:
        fields["memory"] = parse_bytes(_typed(path, "memory", table["memory"], str), f"{path}: memory")
    for name in ("launch", "parallel"):
        if name in table:
            fields[name] = _typed(path, name, table[name], str)
    if "seed" in table:
        fields["seed"] = _typed(path, "seed", table["seed"], int)
    if FIXED in table:
        fields["fix_inputs"] = checked_fixed(table[FIXED], f"{path}: {FIXED}")
    if "gate" in table:
        fields["gates"] = tuple(_strings(path, "gate", table["gate"]))
    fields |= _judging(path, table)
    if "target" in table:
        fields["targets"] = tuple(
            call for text in _strings(path, "target", table["target"]) for call in parse_calls(text, "target")
        )
    if "pass" in table and "passes" in table:
        raise UsageError(f"{path}: has both 'passes' and [[pass]]; keep one")
    if "passes" in table:
        fields["steps"] = parse_calls(_typed(path, "passes", table["passes"], str), "passes")
    else:
        fields["steps"] = tuple(
            _step(path, entry) for entry in _typed(path, "pass", table.get("pass", []), list)
        )
    fields["steps"] = _files_beside(path, fields["steps"])
    return Recipe(**fields)


def _judging(path: Path, table: Mapping[str, Any]) -> dict[str, Any]:
    """How gates judge."""
    fields: dict[str, Any] = {}
    if "metric" in table:
        functions = _typed(path, "metric", table["metric"], dict)
        fields["metrics"] = {
            name: _beside(path, _typed(path, f"metric.{name}", function, str))
            for name, function in functions.items()
        }
    if "confidence" in table:
        fields["confidence"] = parse_confidence(_typed(path, "confidence", table["confidence"], str))
    if "tolerance" in table:
        fields["tolerances"] = parse_tolerances(_strings(path, "tolerance", table["tolerance"]))
    return fields


def with_tuning(recipe: Recipe, path: str) -> Recipe:
    """The recipe whose passes winograd take a file of choices. Raises UsageError if it has none."""
    if not any(step.name == TUNED for step in recipe.steps):
        raise UsageError(f"--tuning {path}: no pass of the recipe takes it; add {TUNED} to --passes")
    steps = [
        Call(step.name, {**step.options, "tuning": path}) if step.name == TUNED else step
        for step in recipe.steps
    ]
    return dataclasses.replace(recipe, steps=tuple(steps))


def _files_beside(recipe: Path, steps: Sequence[Call]) -> tuple[Call, ...]:
    """Options that are paths of files, meant from the recipe's folder."""
    found = []
    for step in steps:
        known = all_passes().get(step.name)
        files = [] if known is None else [one.name for one in file_options(known)]
        options = {
            key: _beside(recipe, value) if key in files and isinstance(value, str) else value
            for key, value in step.options.items()
        }
        found.append(Call(step.name, options))
    return tuple(found)


def _step(path: Path, entry: Any) -> Call:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise UsageError(f'{path}: every [[pass]] needs a name, such as name = "prune"')
    return Call(entry["name"], {key: value for key, value in entry.items() if key != "name"})


def override(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with every change that is not None. Values of `fix_inputs` are added to those that it has."""
    if changes.get("fix_inputs") is not None:
        given = checked_fixed(changes["fix_inputs"], "fix_inputs")
        changes["fix_inputs"] = {**recipe.fix_inputs, **given}
    return dataclasses.replace(recipe, **{key: value for key, value in changes.items() if value is not None})


def _beside(recipe: Path, spec: str) -> str:
    """A path in a recipe is meant from the recipe's folder; `file.npz:part` and `file.py:function` keep
    what follows the colon.
    """
    return spec if Path(spec).is_absolute() else os.path.normpath(recipe.parent / spec)


def _known(path: Path, prefix: str, table: Mapping[str, Any], allowed: Sequence[str]) -> None:
    for key in table:
        if key not in allowed:
            hint = nearest(key, allowed) or f"; known are {', '.join(allowed)}"
            raise UsageError(f"{path}: unknown key '{prefix}{key}'{hint}")


def _typed(path: Path, key: str, value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise UsageError(f"{path}: '{key}' takes {kind.__name__}, not {value!r}")
    return value


def _strings(path: Path, key: str, value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [_typed(path, key, item, str) for item in values]


_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"[^"]*"|'[^']*')|(?P<mark>[(){}=,:])|(?P<word>[^\s(){}=,:"']+(?::[^\s(){}=,:"']+)*))"""
)


def parse_calls(text: str, what: str) -> tuple[Call, ...]:
    """Parses `name, name(key=value, ...)`. Values: numbers, 90%, true, false, none, words, quoted text,
    {name: value}.

    Raises UsageError that shows the place. `what` names the option in the message.
    """
    reader = _Reader(text, what)
    calls = []
    while not reader.done():
        name = reader.word("a name")
        options: dict[str, Any] = {}
        if reader.accept("("):
            while not reader.accept(")"):
                key = reader.word(f"an option of '{name}' or ')'")
                reader.expect("=", f"behind '{key}'")
                if key in options:
                    raise UsageError(f"{what}: '{name}' has '{key}' twice")
                options[key] = reader.value()
                if not reader.accept(","):
                    reader.expect(")", f"behind the options of '{name}'")
                    break
        calls.append(Call(name, options))
        if not reader.done():
            reader.expect(",", f"behind '{name}'")
    return tuple(calls)


class _Reader:
    def __init__(self, text: str, what: str) -> None:
        self.what = what
        self.text = text
        self.tokens = list(self._split(text))
        self.at = 0

    def _split(self, text: str) -> Iterator[tuple[str, str]]:
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None:
                raise UsageError(
                    f"{self.what}: cannot read '{text[position:].strip()}'; a quote is not closed"
                )
            position = match.end()
            kind = str(match.lastgroup)
            yield kind, match.group(kind)

    def done(self) -> bool:
        return self.at >= len(self.tokens)

    def _next(self) -> tuple[str, str]:
        return ("end", "the end") if self.done() else self.tokens[self.at]

    def accept(self, mark: str) -> bool:
        found = self._next() == ("mark", mark)
        self.at += found
        return found

    def expect(self, mark: str, where: str) -> None:
        if not self.accept(mark):
            raise UsageError(
                f"{self.what}: expected '{mark}' {where}, found '{self._next()[1]}' in: {self.text}"
            )

    def word(self, wanted: str) -> str:
        kind, text = self._next()
        if kind != "word":
            raise UsageError(f"{self.what}: expected {wanted}, found '{text}' in: {self.text}")
        self.at += 1
        return text

    def value(self) -> Any:
        if self.accept("{"):
            table = {}
            while not self.accept("}"):
                kind, key = self._next()
                if kind not in ("word", "quoted"):
                    raise UsageError(f"{self.what}: expected a name, found '{key}' in: {self.text}")
                self.at += 1
                name, colon, rest = key.partition(":") if kind == "word" else (key.strip("\"'"), "", "")
                if name in table:
                    raise UsageError(f"{self.what}: '{name}' is there twice in: {self.text}")
                if not colon:
                    self.expect(":", f"behind '{key}'")
                table[name] = _literal(rest) if colon else self.value()
                if not self.accept(","):
                    self.expect("}", "behind the table")
                    break
            return table
        kind, text = self._next()
        if kind == "quoted":
            self.at += 1
            return text[1:-1]
        return _literal(self.word("a value"))


def _literal(word: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if word.lower() in words:
        return words[word.lower()]
    if re.fullmatch(r"[-+]?\d+", word):
        return int(word)
    try:
        return float(word[:-1]) / 100 if word.endswith("%") else float(word)
    except ValueError:
        return word
