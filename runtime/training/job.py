"""What a retraining hook is given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnx_lathe.runtime.data import DataSource

if TYPE_CHECKING:
    import torch

    from onnx_lathe.runtime.torch_bridge import GraphModule
    from onnx_lathe.runtime.training.parallel.strategy import Strategy
    from onnx_lathe.runtime.training.state import JobState


@dataclass(frozen=True)
class RetrainJob:
    """One retraining of one model; `retrain(module, job)` trains `module` in place. Module and teacher are
    on `device`.

    A batch of `data` holds arrays; `module(**{name: torch.from_numpy(array).to(job.device)})` runs it.
    Outputs of module and teacher are alike: one tensor, or a tuple of them.
    """

    data: DataSource
    validation: DataSource | None
    """Other data than `data`, to choose the best epoch by; without it the last epoch's weights are kept."""
    teacher: "GraphModule | None"
    """The original model, its weights frozen."""
    epochs: int
    device: "torch.device"
    step: str
    """Which step of the recipe this is."""
    settings: Mapping[str, Any]
    """Options of the training pass by name: rate, batch, temperature, ... (see: optimize passes retrain)."""
    seed: int
    """PyTorch's generators are seeded with it already; for the order of the data, use `seed + epoch`."""
    progress: Callable[[str], None]
    shaped: bool
    """Whether the pass acts while training runs, as gradual pruning does. If so, the weights after the last
    step are the result: those of an earlier epoch would be of another sparsity.
    """
    shape: Callable[[float], None]
    """To be called before every optimizer step, with the share of the training that is over, 0 to 1; does
    nothing unless `shaped`.

    The pass then chooses what the graph reads in place of weights that go on being trained underneath.
    After the hook it is called once more, with 1.0.
    """
    workers: "Strategy"
    """The processes that train together; a single one without `--launch`. `data` is this one's share,
    `validation` is whole.
    """
    memory: int | None = None
    """Bytes that activations may take, None: any number."""
    state: "JobState | None" = None
    """Where to save what makes the next epochs, and where to look for what an interrupted run has saved;
    None: nowhere.
    """
    metrics: dict[str, float] = field(default_factory=dict)
    """A hook may put numbers here for the report."""
