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


class Judged:
    """Scores and task metrics of one model, over pieces of the data."""

    def __init__(self, scores: Scores, tasks: Tasks) -> None:
        self.scores, self.postprocess = scores, tasks.postprocess
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
        answer = Answer(outputs, count, alone, processed)
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
