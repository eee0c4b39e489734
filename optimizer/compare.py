"""Judges one finished model against another on the same data: the `gate` command."""

from collections.abc import Mapping
from pathlib import Path

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.finished import Finished, open_finished
from onnx_lathe.optimizer.gate import parse_gates
from onnx_lathe.optimizer.inspect import measure
from onnx_lathe.optimizer.measuring import judge, shared_feeds
from onnx_lathe.optimizer.recipe import Recipe
from onnx_lathe.optimizer.report.record import GateRecord
from onnx_lathe.optimizer.services import open_fed
from onnx_lathe.optimizer.ui import Ui
from onnx_lathe.runtime.pack.files import onnx_bytes, packed_bytes
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.evaluate import evaluate, reference
from onnx_lathe.runtime.threads import limit

OF_A_GRAPH = ("sparsity", "weights", "parameters", "macs", "packed")
"""Metrics that only an ONNX file has."""


def compare(base: Path, candidate: Path, recipe: Recipe, ui: Ui) -> list[GateRecord]:
    """A verdict per gate of the recipe. `data` is evaluation data here: nothing is trained. Either model may be what
    a target wrote, where that runs on this machine.

    Raises UsageError if a gate asks for what cannot be measured, and ModelError or DataError as loading does.
    """
    gates = parse_gates(recipe.gates)
    if not gates:
        raise UsageError("no gate is named, such as 'top1 drop <= 0.5%'")
    models = [open_finished(path, limit()) for path in (base, candidate)]
    as_evaluation = Recipe(
        eval=recipe.eval or recipe.data, preprocess=recipe.preprocess, classes=recipe.classes
    )
    roles = open_fed(as_evaluation, models[0].inputs, models[0].classes)
    for note in (*roles.notes, *(f"warning: {warning}" for warning in roles.warnings)):
        ui.note(note)
    data = roles.evaluation
    sessions = [model.session for model in models]
    found: list[dict[str, float]] = []
    uncounted: dict[str, str] = {}
    for one in models:
        if one.model is not None and ort.is_helped(one.session, one.path):
            ui.note(f"warning: {one.path}: {ort.HELPED}")
        counted, unknown = _counted(one)
        uncounted |= unknown
        found.append(counted | {"size": float(one.size_bytes)})
    if data is not None:
        original = reference(sessions[0], data, ui.status, models[0].model)
        found[0] |= original.metrics
        if original.note:
            ui.note(f"warning: {original.note}")
        quality = evaluate(sessions[1], data, original, ui.status)
        found[1] |= quality
        for output, why in quality.reasons.items():
            ui.note(f"warning: output '{output}' could not be compared: {why}")
    if any(gate.metric == "latency" for gate in gates):
        feeds = shared_feeds(data, sessions, 1)
        found[0]["latency"], found[1]["latency"] = ort.latency_pair(sessions[0], sessions[1], feeds)
    if any(gate.metric == "packed" for gate in gates) and "packed" not in uncounted:
        found[0]["packed"], found[1]["packed"] = float(onnx_bytes(base)), float(packed_bytes(candidate))
    for gate in gates:
        if reason := gate.missing(found[0].keys() & found[1].keys(), uncounted):
            raise UsageError(reason)
    return judge(gates, found[0], found[1], "model")


def _counted(one: Finished) -> tuple[dict[str, float], Mapping[str, str]]:
    """(what the graph says of the model, metric -> why it does not)."""
    if one.model is None:
        return {}, dict.fromkeys(OF_A_GRAPH, f"{one.path} is no ONNX model, whose graph alone tells it")
    weighed = measure(one.model)
    return weighed.as_metrics(), weighed.uncounted
