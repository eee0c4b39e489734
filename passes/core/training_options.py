"""What passes that train have in common (`retrain`, and those that shape weights meanwhile): options, and
taking the result over.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.passes.core.base import Moved
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Constant, Graph
from onnx_lathe.passes.graph.bodies import all_tensors
from onnx_lathe.passes.graph.initializers import read, write
from onnx_lathe.protocols import TrainResult


@dataclass(frozen=True)
class TrainingOptions:
    """How a training goes. For `retrain` these are its own options; a pass for which training is a choice
    has them as one, `training: TrainingOptions | None`.
    """

    epochs: int = option(2, "passes over the training data", low=1)
    rate: float | None = option(None, "peak learning rate; none: 0.002 for adamw, 0.05 for sgd", low=0.0)
    optimizer: str = option("adamw", "how weights follow the gradient", choices=("adamw", "sgd"))
    batch: int = option(64, "samples per step", low=1)
    weight_decay: float = option(
        0.0, "share of a weight taken off per step, times the rate; not from biases and centroids", low=0.0
    )
    momentum: float | None = option(
        None,
        "momentum of sgd, or the first beta of adamw; none: 0.9, or 0 with a server whose gradients may be late",
        low=0.0,
        high=0.999,
    )
    distill: float = option(
        0.9, "weight of imitating the original model; the labels have the rest", low=0.0, high=1.0
    )
    temperature: float = option(4.0, "what distillation divides the logits by", low=0.1)
    label_smoothing: float = option(
        0.0, "share of the label's weight given to all classes", low=0.0, high=0.9
    )
    decay: str = option(
        "cosine",
        "how the rate falls; onecycle: momentum goes the other way",
        choices=("cosine", "onecycle", "constant"),
    )
    warmup: float | None = option(
        None,
        "share of the training during which the rate rises to its peak; none: 0.05, for onecycle 0.3",
        low=0.0,
        high=0.5,
    )
    clip: float = option(1.0, "longest gradient; a longer one is shortened to it; 0: any", low=0.0)
    shift: int = option(
        0, "largest random translation of an image in training, zeros outside", unit="pixels", low=0
    )
    flip: bool = option(False, "mirror half of the images in training")
    precision: str = option(
        "float32",
        "of forward and backward pass; weights stay float32, float16 scales the loss",
        choices=("float32", "bfloat16", "float16"),
    )
    holdout: float = option(
        0.0,
        "share of the training data not trained on, that chooses the epoch whose weights are kept",
        low=0.0,
        high=0.5,
    )
    patience: int = option(0, "stop after so many epochs without a better one, by holdout; 0: never", low=0)
    learn_scales: bool = option(False, "train the scales of Q/DQ pairs, too")
    normalization: str = option(
        "frozen", "batch normalization by stored statistics, or by each batch's", choices=("frozen", "train")
    )
    gradients: str = option(
        "full", "what workers send of their gradients", choices=("full", "half", "powersgd", "threshold")
    )
    gradient_rank: int = option(2, "rank of powersgd", low=1)
    gradient_threshold: float = option(
        1e-3, "with threshold and sgd: gradients beyond it are sent as signs, the rest later", low=1e-12
    )
    seed: int = option(0, "seed of the order of the data", low=0)

    def __post_init__(self) -> None:
        """Raises UsageError for options that contradict each other."""
        if self.patience and not self.holdout:
            raise UsageError(
                "patience stops by data that is not trained on; give holdout too, such as retrain(patience=2, holdout=0.1)"
            )
        if self.gradients == "threshold" and self.optimizer != "sgd":
            raise UsageError(
                "gradients=threshold sends signs, of each of which "
                "adamw would make a whole step; give optimizer=sgd too"
            )


def _epochs(value: Any) -> str:
    return (
        f"write training={{epochs: {value}}}"
        if value
        else "leave it out: without training={...} nothing trains"
    )


IN_TRAINING: Mapping[str, Moved] = {
    **{field.name: f"write training={{{field.name}: {{value}}}}" for field in fields(TrainingOptions)},
    "epochs": _epochs,
}
"""`Pass.moved` for a pass whose training options once were its own."""


def check_training(config: Any, name: str, meanwhile: Collection[str]) -> None:
    """Raises UsageError for an option in `meanwhile`, which acts while training runs, without
    `config.training`; and for choosing an epoch: an earlier one would be of another sparsity.
    """
    if not isinstance(config.training, TrainingOptions | None):
        kind = type(config.training).__name__
        raise UsageError(f"{name}: training takes TrainingOptions(...), or a table in a recipe, not {kind}")
    if config.training is None:
        for given in fields(config):
            if given.name in meanwhile and getattr(config, given.name) != given.default:
                raise UsageError(
                    f"{name}: {given.name} is about training, and there is none; "
                    "give training={epochs: ...} as well, or leave it out"
                )
    elif config.training.holdout:
        raise UsageError(
            f"{name}: with training, only the last epoch's weights are what was asked for; "
            "leave holdout to a retrain step"
        )


def trainer_settings(config: Any) -> dict[str, Any]:
    """What the trainer is told of a pass with `config.training`: these options, and beside them the pass's
    own.
    """
    own = asdict(config)
    training: dict[str, Any] = own.pop("training")
    return own | training


def take_over(graph: Graph, result: TrainResult, report: PassReport) -> dict[str, float]:
    """Puts trained values into the graph. Returns the relative change of each that changed, by name, in the
    trainer's order. The report gets a skip for what was run, but not trained.

    Raises PassError for a value that fits no initializer.
    """
    for node, reason in result.kept:
        report.skip(node, reason)
    report.warnings += result.warnings
    tensors, changes = all_tensors(graph), {}
    for name, value in result.values.items():
        tensor = tensors.get(name)
        if (
            not isinstance(tensor, Constant)
            or value.dtype != read(tensor).dtype
            or value.shape != tuple(tensor.shape)
        ):
            raise PassError(
                f"retraining returned '{name}' as {value.dtype} {list(value.shape)}, "
                "which is no initializer of the model"
            )
        if read(tensor).tobytes() != value.tobytes():
            changes[name] = relative_change(read(tensor), value)
            write(tensor, value)
    return changes


def relative_change(before: np.ndarray, after: np.ndarray) -> float:
    """Length of the difference relative to the length of `before`; the difference's own length if `before`
    is all zeros.

    What is NaN or infinite before or after does not count.
    """
    finite = np.isfinite(before) & np.isfinite(after)
    old, new = before[finite].astype(np.float64), after[finite].astype(np.float64)
    return float(np.linalg.norm(new - old) / (np.linalg.norm(old) or 1.0))
