"""What is minimized: distillation from the original model, and cross entropy where there are labels.

    loss = (1 - distill) * CE(student, labels) + distill * sum over outputs of D(student, teacher)

D of a classifier's output is T^2 * KL(softmax(teacher / T), softmax(student / T)): Hinton, Vinyals, Dean,
"Distilling the Knowledge in a Neural Network", 2015, section 2. D of any other output is the mean squared
error, relative to the teacher's mean square. Without labels, or without an output that they could belong
to, D alone is minimized; without a teacher, CE alone.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from onnx_lathe.errors import PassError
from onnx_lathe.runtime.training.loop.settings import Settings

SMALLEST = 1e-30
"""Probabilities below it have no logarithm in float32."""

_NOT_LOGITS = ("Clip", "HardSigmoid", "LpNormalization", "Sigmoid", "Tanh")
"""Operators whose results are not scores that a softmax would compare."""


def _unchanged(output: Tensor) -> Tensor:
    return output


def _log(output: Tensor) -> Tensor:
    return output.clamp_min(SMALLEST).log()


class Objective:
    """The loss of a batch. `sample` are the module's outputs for so many `samples`, to see their shapes;
    `operators` what computes each of them.

    Raises PassError if no output has a gradient, or if neither labels nor a teacher give anything to learn
    from.
    """

    def __init__(
        self,
        operators: Sequence[str],
        sample: Sequence[Tensor],
        samples: int,
        labelled: bool,
        taught: bool,
        settings: Settings,
    ) -> None:
        self.temperature, self.smoothing = settings.temperature, settings.label_smoothing
        self.floats = [index for index, output in enumerate(sample) if output.is_floating_point()]
        if not self.floats:
            raise PassError(
                "there is nothing to learn from: no output is floating point; cut off the ArgMax (or what else makes integers of scores)"
            )
        self.scores: dict[int, Callable[[Tensor], Tensor]] = {
            index: _log if operators[index] == "Softmax" else _unchanged
            for index in self.floats
            if sample[index].dim() == 2 and sample[index].shape[1] > 1 and operators[index] not in _NOT_LOGITS
        }
        """Output index -> what makes logits of it, for the outputs [batch, classes]. A log-softmax is
        logits already.
        """
        rows = [index for index in self.scores if len(sample[index]) == samples]
        self.labelled = next(iter(rows), None) if labelled else None
        """The output that labels belong to: the first that can have them."""
        self.classes = 0 if self.labelled is None else sample[self.labelled].shape[1]
        if self.labelled is None and not taught:
            reason = "no output is [batch, classes] as labels need" if labelled else "the data has no labels"
            raise PassError(
                f"there is nothing to learn from: {reason}, and there is no original model to imitate"
            )
        self.distill = 1.0 if self.labelled is None else settings.distill if taught else 0.0
        """Weight of distillation; the rest is that of the labels."""

    def __call__(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor] | None,
        labels: Tensor | None,
        mean: Callable[[Tensor], Tensor] = _unchanged,
    ) -> Tensor:
        """The mean over the samples. `mean`: of a mean over these samples, over those of all workers."""
        return self.loss(student, teacher, labels, {} if teacher is None else self.sizes(teacher, mean))

    def sizes(self, teacher: Sequence[Tensor], mean: Callable[[Tensor], Tensor]) -> dict[int, Tensor]:
        """Mean square of each output that is compared by its squared error."""
        return {
            index: mean(teacher[index].square().mean()).clamp_min(SMALLEST)
            for index in self.floats
            if index not in self.scores and self.distill > 0
        }

    def loss(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor] | None,
        labels: Tensor | None,
        sizes: Mapping[int, Tensor],
    ) -> Tensor:
        """The mean over samples that are a part of those of which `sizes` gave the mean squares."""
        terms: list[Tensor] = []
        if teacher is not None and self.distill > 0:
            terms.extend(
                self.distill * self._difference(index, student[index], teacher[index], sizes)
                for index in self.floats
            )
        if self.labelled is not None and labels is not None and self.distill < 1:
            scores = self.scores[self.labelled](student[self.labelled])
            terms.append((1 - self.distill) * F.cross_entropy(scores, labels, label_smoothing=self.smoothing))
        return torch.stack(terms).sum()

    def correct(self, student: Sequence[Tensor], labels: Tensor) -> int:
        """How many samples have their label as the highest score; needs `labelled`."""
        return int((student[self.labelled or 0].argmax(1) == labels).sum())

    def _difference(
        self, index: int, student: Tensor, teacher: Tensor, sizes: Mapping[int, Tensor]
    ) -> Tensor:
        if index not in self.scores:
            return F.mse_loss(student, teacher) / sizes[index]
        wanted = F.log_softmax(self.scores[index](teacher) / self.temperature, 1)
        given = F.log_softmax(self.scores[index](student) / self.temperature, 1)
        return self.temperature**2 * F.kl_div(given, wanted, reduction="batchmean", log_target=True)
