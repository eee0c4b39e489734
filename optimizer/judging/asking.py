"""What a recipe's gates ask for: the metrics against labels, and how labels are then read."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.gate import Gate, find_metric, parse_gates
from onnx_lathe.optimizer.judging.evidence import EVERY, RATIO_UNIT, tolerance_text
from onnx_lathe.optimizer.judging.metrics import METRICS, known_metric
from onnx_lathe.optimizer.judging.numbers import shown
from onnx_lathe.optimizer.recipe import Recipe
from onnx_lathe.runtime.data import Truth
from onnx_lathe.runtime.running.judged import Tasks
from onnx_lathe.runtime.running.tasks.base import Task
from onnx_lathe.runtime.running.tasks.classes import F1
from onnx_lathe.runtime.running.tasks.custom import Custom, Postprocess
from onnx_lathe.runtime.running.tasks.detection import MeanAveragePrecision, require_pycocotools
from onnx_lathe.runtime.running.tasks.segmentation import MeanIoU
from onnx_lathe.runtime.running.tasks.texts import ErrorRate, read_symbols, require_jiwer

TEXTS, BOXES, CLASSES = ("wer", "cer"), ("map", "map50"), ("f1", "f1_binary")


def gates_of(recipe: Recipe) -> tuple[Gate, ...]:
    """Raises UsageError for a wrong gate, a metric of the user's that cannot be called so, or a tolerance of none."""
    for name in recipe.metrics:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            raise UsageError(f"--metric {name}: a name is of small letters, digits, '_' and '-'")
        if name in METRICS:
            raise UsageError(f"--metric {name}: there is a metric of that name; choose another")
    gates = parse_gates(recipe.gates, recipe.metrics)
    check_tolerances(recipe, gates)
    return gates


def check_tolerances(recipe: Recipe, gates: Sequence[Gate]) -> None:
    """Raises UsageError for the tolerance of a metric that is not known, or of another kind than all gates on it."""
    for (metric, kind), amount in recipe.tolerances.items():
        if metric == EVERY:
            continue
        what = f"--tolerance {tolerance_text(metric, kind, amount)}"
        find_metric(what, metric, recipe.metrics)
        asked = [gate for gate in gates if gate.metric == metric]
        if asked and all(gate.relative or gate.kind != kind for gate in asked):
            raise UsageError(f"{what}: gate '{asked[0]}' is judged {_written_for(asked[0])}")


def _written_for(gate: Gate) -> str:
    """How a gate is judged, and the tolerance that fits it."""
    if gate.relative:
        return "as a share of what the original has; write a tolerance for all shares, such as 0.1%"
    if gate.kind == "ratio":
        return f"as a ratio; write {gate.metric}=0.1{RATIO_UNIT}"
    return f"by {gate.metric} itself; write {gate.metric}={shown(1, gate.kind).replace(' ', '')}"


def reads_truth(recipe: Recipe) -> Truth:
    """What labels may be: of any form where a metric of the gates reads them."""
    if recipe.metrics:
        return Truth.OWN
    asked = any(known_metric(gate.metric).of_labels for gate in gates_of(recipe))
    return Truth.ANY if asked else Truth.CLASSES


def tasks_of(recipe: Recipe) -> Tasks:
    """The metrics that are to be measured against labels. Raises UsageError for a package that is missing, or an
    option that no metric reads.
    """
    asked = dict.fromkeys(gate.metric for gate in gates_of(recipe))
    ours = [name for name in asked if name not in recipe.metrics and known_metric(name).of_labels]
    made = [_task(name, recipe) for name in ours]
    made += [Custom(name, function) for name, function in recipe.metrics.items()]
    _check_read(recipe, made)
    return Tasks(made, None if recipe.postprocess is None else Postprocess(recipe.postprocess))


def _task(name: str, recipe: Recipe) -> Task:
    if name in TEXTS:
        require_jiwer()
        return ErrorRate(name, None if recipe.symbols is None else read_symbols(recipe.symbols))
    if name in BOXES:
        require_pycocotools()
        return MeanAveragePrecision(name)
    return F1(name) if name in CLASSES else MeanIoU()


def _check_read(recipe: Recipe, made: Sequence[Task]) -> None:
    if recipe.postprocess is not None and not made:
        raise UsageError(
            f"--postprocess {recipe.postprocess}: no gate asks for a metric of answers, such as map, miou, f1, wer or one of "
            "your own; leave it out"
        )
    if recipe.symbols is not None and not any(task.name in TEXTS for task in made):
        raise UsageError(f"--symbols {recipe.symbols}: no gate asks for wer or cer; leave it out")


def parse_metrics(texts: Sequence[str] | None) -> Mapping[str, Any] | None:
    """Of "name=FILE.py:FUNCTION". Raises UsageError for another form, or a name given twice."""
    if texts is None:
        return None
    found: dict[str, str] = {}
    for text in texts:
        name, equals, function = (part.strip() for part in text.partition("="))
        if not equals or not name or not function:
            raise UsageError(
                f'--metric {text}: write NAME=FILE.py:FUNCTION, and gate NAME by --gate "NAME >= 0.8"'
            )
        if name in found:
            raise UsageError(f"--metric {text}: '{name}' is there twice")
        found[name] = function
    return found
