"""How much each layer alone costs: metrics against the strength of a pass in one layer, the others untouched."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.recipe import Call
from onnx_lathe.optimizer.search.judging import Judge
from onnx_lathe.optimizer.search.layerwise import Composer
from onnx_lathe.optimizer.search.space import Dimension, Space, Value
from onnx_lathe.optimizer.search.strengths import STRENGTHS
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.version import VERSION


@dataclass(frozen=True)
class Point:
    """Metrics with one layer at one strength."""

    layer: str
    node: str
    strength: Value
    metrics: Mapping[str, float]


@dataclass
class Profile:
    """What was measured so far; `complete` is false after an interruption. `base`: without any change."""

    model: str
    step: str
    base: Mapping[str, float]
    data: str
    points: list[Point] = field(default_factory=list)
    complete: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """What the curves show: accuracy with labels, else agreement, else signal to noise."""
        return next((name for name in ("top1", "agreement", "sqnr") if name in self.base), "sqnr")

    def curves(self) -> dict[str, list[Point]]:
        """Layer -> its points, in graph order."""
        found: dict[str, list[Point]] = {}
        for point in self.points:
            found.setdefault(point.layer, []).append(point)
        return found

    def as_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "pass": self.step,
            "data": self.data,
            "metric": self.metric,
            "base": dict(self.base),
            "complete": self.complete,
            "notes": self.notes,
            "points": [asdict(point) for point in self.points],
        }


class Cache:
    """Metrics by what they depend on, one line of JSON each, so that an interrupted profile goes on."""

    def __init__(self, path: Path | None, *identity: str) -> None:
        self.path, self.identity = (
            path,
            hashlib.sha256("\n".join((VERSION, *identity)).encode()).hexdigest()[:16],
        )
        self._known: dict[str, dict[str, float]] = {}
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot read the cache ({error}); name another --cache") from error
        for line in lines:
            try:
                entry = json.loads(line)
                if entry["of"] == self.identity:
                    self._known[entry["key"]] = {
                        k: float("inf") if v is None else v for k, v in entry["metrics"].items()
                    }
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a line that an interruption cut off

    def get(self, key: str, compute: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
        if key not in self._known:
            self._known[key] = dict(compute())
            if self.path is not None:
                self._append(key)
        return self._known[key]

    def _append(self, key: str) -> None:
        assert self.path is not None
        metrics = {name: None if value == float("inf") else value for name, value in self._known[key].items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"of": self.identity, "key": key, "metrics": metrics}) + "\n")
        except OSError as error:
            raise UsageError(
                f"{self.path}: cannot write the cache ({error.strerror}); name another --cache"
            ) from error


def alone(
    model: onnx.ModelProto, step: Call, dimension: Dimension, value: Value, context: Context
) -> onnx.ModelProto:
    """The model with the pass at this strength in one layer, and in no other."""
    nothing, last = STRENGTHS[step.name].nothing, dimension.option[-1]
    options = {**step.options, **nothing}
    options["layers"] = dict(nothing["layers"])
    options[last] = {**options.get(last, {}), dimension.layer: value}
    after, _ = apply_pass(configure(find(step.name), options), model, context)
    return after


class Single:
    """Candidates with one layer of one step changed."""

    def __init__(
        self,
        model: onnx.ModelProto,
        step: Call,
        dimensions: Sequence[Dimension],
        context: Callable[[], Context],
    ) -> None:
        self.model, self.step, self.context = model, step, context
        own = tuple(
            Dimension(one.name, 0, one.option, one.layer, one.levels, one.choices) for one in dimensions
        )
        self.space = Space((step,), own)
        self.composer = Composer.of(model, self.space, alone=True, context=context)

    def candidate(self, dimension: Dimension, value: Value) -> onnx.ModelProto:
        if self.composer is None:
            return alone(self.model, self.step, dimension, value, self.context())
        rest = {one.name: one.levels[0] for one in self.space.dimensions}
        return self.composer.candidate({**rest, dimension.name: value})


def measure_alone(
    single: Single,
    judge: Judge,
    cache: Cache,
    profile: Profile,
    nodes: Mapping[str, str],
    progress: Callable[[str, int, int], None],
) -> None:
    """Fills the profile, the strongest of each layer's strengths last. An interruption leaves what is measured."""
    work = [
        (one, value)
        for one in single.space.dimensions
        for value in one.levels
        if value != one.levels[0] or value
    ]
    for number, (one, value) in enumerate(work):
        progress(
            f"{one.layer} at {value:g}" if isinstance(value, float) else f"{one.layer} at {value}",
            number,
            len(work),
        )
        key = f"{single.step}|{one.option[-1]}|{one.layer}|{value!r}"
        metrics = cache.get(key, partial(_metrics, single, judge, one, value))
        profile.points.append(Point(one.layer, nodes.get(one.layer, one.layer), value, metrics))


def _metrics(single: Single, judge: Judge, dimension: Dimension, value: Value) -> Mapping[str, float]:
    return judge.measure(single.candidate(dimension, value)).metrics
