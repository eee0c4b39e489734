"""What is gathered of one model while it runs: its scores, and the metrics that gates ask for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_lathe.runtime.running.scores import Outputs, Scores
from onnx_lathe.runtime.running.tasks.base import Answer, Task
from onnx_lathe.runtime.running.tasks.custom import Postprocess
from onnx_lathe.runtime.running.tasks.samples import Measured


@dataclass(frozen=True)
class Tasks:
    """Metrics against labels, and a user's function that makes answers of outputs."""

    tasks: Sequence[Task] = ()
    postprocess: Postprocess | None = None


def sample_axes(session: Any) -> dict[str, int]:
    """Output -> the axis of samples, where it is not the first: that which is called as the inputs' first is, as in
    [places, batch, symbols].
    """
    batch = {
        value.shape[0] for value in session.get_inputs() if value.shape and isinstance(value.shape[0], str)
    }
    found = {}
    for output in session.get_outputs():
        places = [at for at, size in enumerate(output.shape or ()) if isinstance(size, str) and size in batch]
        if places and places[0] > 0:
            found[output.name] = places[0]
    return found


class Judged:
    """Scores and task metrics of one model, over pieces of the data."""

    def __init__(self, scores: Scores, tasks: Tasks, session: Any) -> None:
        self.scores, self.postprocess = scores, tasks.postprocess
        self.axes = scores.axes = sample_axes(session)
        self.collectors = [task.start() for task in tasks.tasks]

    def add(
        self,
        outputs: Outputs,
        originals: Outputs,
        inputs: Mapping[str, np.ndarray],
        labels: np.ndarray | None,
        truth: Sequence[Any] | None,
        count: int,
        alone: bool,
    ) -> None:
        """Of `count` samples. `truth`: labels of any form, if not class numbers."""
        self.scores.add(outputs, labels, originals, alone, count)
        if not self.collectors:
            return
        processed = None if self.postprocess is None else self.postprocess(outputs, inputs, count)
        axes = {} if alone else self.axes
        first = {
            name: np.moveaxis(output, axes.get(name, 0), 0) for name, output in outputs.items() if output.ndim
        }
        answer = Answer({**outputs, **first}, count, alone, processed)
        wanted = truth if truth is not None or labels is None else list(labels)
        for collector in self.collectors:
            collector.add(answer, wanted)

    def results(self) -> tuple[dict[str, float], dict[str, Measured]]:
        """(metrics, what is known of them sample by sample)."""
        found: dict[str, Measured] = {}
        for collector in self.collectors:
            found |= collector.measured()
        metrics = self.scores.metrics() | {name: one.whole() for name, one in found.items()}
        return metrics, self.scores.sampled() | found
