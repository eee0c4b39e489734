"""Judges one finished model against another on the same data: the `gate` command."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx_lathe.errors import UsageError, printable
from onnx_lathe.optimizer import surroundings
from onnx_lathe.optimizer.finished import Finished, open_together, untimed
from onnx_lathe.optimizer.gate import Gate
from onnx_lathe.optimizer.inspect import measure
from onnx_lathe.optimizer.judging.asking import gates_of, tasks_of
from onnx_lathe.optimizer.judging.evidence import Evidence
from onnx_lathe.optimizer.judging.judgement import Judged, Judgement, kernel_path
from onnx_lathe.optimizer.measuring import judge, medians, shared_feeds
from onnx_lathe.optimizer.recipe import Recipe
from onnx_lathe.optimizer.services import open_fed
from onnx_lathe.optimizer.ui import Ui
from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.pack.files import onnx_bytes, packed_bytes
from onnx_lathe.runtime.running import memory, ort
from onnx_lathe.runtime.running.evaluate import evaluate, reference
from onnx_lathe.runtime.running.judged import Tasks
from onnx_lathe.runtime.threads import limit

OF_A_GRAPH = ("sparsity", "weights", "parameters", "macs", "packed")
"""Metrics that only an ONNX file has."""
OF_ONNX_RUNTIME = "ONNX Runtime"


class _Pair:
    """The two models and what is known of them so far."""

    def __init__(self, models: Sequence[Finished], recipe: Recipe, ui: Ui) -> None:
        self.models, self.recipe, self.ui = models, recipe, ui
        self.found: list[dict[str, float]] = [{"size": float(one.size_bytes)} for one in models]
        self.uncounted: dict[str, str] = {}
        self.warnings: list[str] = []
        self.samples = 0
        self.evidence = Evidence(confidence=recipe.confidence, tolerances=recipe.tolerances)

    def warn(self, text: str) -> None:
        self.warnings.append(printable(text))
        self.ui.note(f"warning: {self.warnings[-1]}")

    def count(self) -> None:
        """What the graphs say."""
        for one, metrics in zip(self.models, self.found, strict=True):
            if one.model is not None and ort.is_helped(one.session, one.path):
                self.warn(f"{one.path}: {ort.HELPED}")
            counted, unknown = _counted(one)
            self.uncounted |= unknown
            metrics.update(counted)

    def evaluate(self, data: DataSource, tasks: Tasks) -> None:
        """What both compute of the data."""
        first, second = self.models
        original = reference(first.session, data, self.ui.status, first.model, self._hear, tasks)
        self.found[0] |= original.metrics
        if original.note:
            self.warn(original.note)
        quality = evaluate(second.session, data, original, self.ui.status)
        self.found[1] |= quality
        for output, why in quality.reasons.items():
            self.warn(f"output '{output}' could not be compared: {why}")
        asked = self.recipe
        self.evidence = Evidence(original.sampled, quality.sampled, asked.confidence, asked.tolerances)

    def _hear(self, outputs: object, count: int, alone: bool) -> None:
        self.samples += count

    def time(self, data: DataSource | None) -> None:
        sessions = [model.session for model in self.models]
        if reason := next(filter(None, map(untimed, sessions)), ""):
            self.uncounted["latency"] = reason
            return
        rounds = ort.times(sessions, shared_feeds(data, sessions, 1))
        for metrics, latency in zip(self.found, medians(rounds), strict=True):
            metrics["latency"] = latency
        self.evidence = self.evidence.timed(rounds)

    def pack(self) -> None:
        if "packed" not in self.uncounted:
            base, candidate = (one.path for one in self.models)
            self.found[0]["packed"], self.found[1]["packed"] = (
                float(onnx_bytes(base)),
                float(packed_bytes(candidate)),
            )

    def weigh_memory(self, data: DataSource | None) -> None:
        """Of a run of each in a process of its own."""
        others = [str(one.path) for one in self.models if not one.library.startswith(OF_ONNX_RUNTIME)]
        if reason := memory.unmeasured() or (others and f"{others[0]} does not run in ONNX Runtime"):
            self.uncounted["memory"] = str(reason)
            return
        feeds = shared_feeds(data, [model.session for model in self.models], 1)
        for one, metrics in zip(self.models, self.found, strict=True):
            self.ui.status(f"measuring the memory of {one.path.name}")
            metrics["memory"] = float(memory.peak_bytes(one.path, {**feeds, **one.fixed}))


def compare(base: Path, candidate: Path, recipe: Recipe, ui: Ui) -> Judgement:
    """A verdict per gate of the recipe. `data` is evaluation data here: nothing is trained. Either model may be what
    a target wrote, where that runs on this machine.

    Raises UsageError if a gate asks for what cannot be measured, and ModelError or DataError as loading does.
    """
    started, began = time.perf_counter(), surroundings.now()
    gates = gates_of(recipe)
    if not gates:
        raise UsageError("no gate is named, such as 'top1 drop <= 0.5%'")
    tasks = tasks_of(recipe)
    models = open_together((base, candidate), limit(), recipe.fix_inputs)
    as_evaluation = Recipe(
        eval=recipe.eval or recipe.data,
        preprocess=recipe.preprocess,
        classes=recipe.classes,
        gates=recipe.gates,
        metrics=recipe.metrics,
        fix_inputs=recipe.fix_inputs,
    )
    roles = open_fed(as_evaluation, models[0].inputs, models[0].classes)
    pair, data = _Pair(models, recipe, ui), roles.evaluation
    for note in roles.notes:
        ui.note(note)
    for warning in roles.warnings:
        pair.warn(warning)
    _measure(pair, gates, data, tasks)
    for gate in gates:
        known = pair.found[0].keys() - pair.uncounted.keys()
        if reason := gate.missing(known, pair.uncounted):  # what the candidate alone lacks fails the gate
            raise UsageError(reason)
    ui.status("finding confidence intervals")
    verdicts = judge(gates, pair.found[0], pair.found[1], "model", evidence=pair.evidence)
    processor, libraries = surroundings.processor(), surroundings.libraries()
    first, second = (
        Judged(str(one.path), one.library, one.size_bytes, metrics, one.device)
        for one, metrics in zip(models, pair.found, strict=True)
    )
    return Judgement(
        first,
        second,
        verdicts,
        pair.samples,
        roles.notes,
        pair.warnings,
        recipe.confidence,
        processor,
        libraries,
        kernel_path(processor, ort.saturates(), libraries),
        began,
        time.perf_counter() - started,
    )


def _measure(pair: _Pair, gates: Sequence[Gate], data: DataSource | None, tasks: Tasks) -> None:
    """Everything that the gates ask for."""
    asked = {gate.metric for gate in gates}
    pair.count()
    if data is not None:
        pair.evaluate(data, tasks)
    if "latency" in asked:
        pair.time(data)
    if "memory" in asked:
        pair.weigh_memory(data)
    if "packed" in asked:
        pair.pack()


def _counted(one: Finished) -> tuple[dict[str, float], Mapping[str, str]]:
    """(what the graph says of the model, metric -> why it does not)."""
    if one.model is None:
        return {}, dict.fromkeys(OF_A_GRAPH, f"{one.path} is no ONNX model, whose graph alone tells it")
    weighed = measure(one.model)
    return weighed.as_metrics(), weighed.uncounted
