"""What the built-in hook learns by, for those who take its steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from onnx_lathe.runtime.training.loop.objective import Objective
from onnx_lathe.runtime.training.loop.precision import Precision

Feeds = Mapping[str, Tensor]
Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class Lesson:
    """`taught` gives the original model's outputs, None: it does not count. `sample(n)` are inputs and labels
    of up to n samples, to measure by.
    """

    objective: Objective
    precision: Precision
    taught: Callable[[Feeds], Outputs] | None
    sample: Callable[[int], tuple[Feeds, Tensor | None]]
    progress: Callable[[str], None]
