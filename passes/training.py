"""What passes that train have in common (`retrain`, and those that shape weights meanwhile): options, and taking the result over."""

from dataclasses import dataclass

import numpy as np

from lathe import PassError
from passes.base import TrainResult, option
from passes.graph import Constant, Graph
from passes.graph.layers import read
from passes.graph.storage import write


@dataclass(frozen=True)
class TrainingOptions:
    """A Config derives from it, and hands `asdict(config)` to the trainer; a pass for which training is a choice defaults `epochs` to 0."""

    epochs: int = option(2, "passes over the training data", low=1)
    rate: float | None = option(None, "peak learning rate; none: 0.002 for adamw, 0.05 for sgd", low=0.0)
    optimizer: str = option("adamw", "how weights follow the gradient", choices=("adamw", "sgd"))
    batch: int = option(64, "samples per step", low=1)
    weight_decay: float = option(0.0, "share of a weight taken off per step, times the rate; not from biases and centroids", low=0.0)
    momentum: float = option(0.9, "momentum of sgd, or the first beta of adamw", low=0.0, high=0.999)
    distill: float = option(0.9, "weight of imitating the original model; the labels have the rest", low=0.0, high=1.0)
    temperature: float = option(4.0, "what distillation divides the logits by", low=0.1)
    label_smoothing: float = option(0.0, "share of the label's weight given to all classes", low=0.0, high=0.9)
    warmup: float = option(0.05, "share of the training during which the rate rises to its peak", low=0.0, high=0.5)
    clip: float = option(1.0, "longest gradient; a longer one is shortened to it; 0: any", low=0.0)
    shift: int = option(0, "largest random translation of an image in training, zeros outside", unit="pixels", low=0)
    flip: bool = option(False, "mirror half of the images in training")
    precision: str = option("float32", "of forward and backward pass; weights stay float32", choices=("float32", "bfloat16"))
    seed: int = option(0, "seed of the order of the data", low=0)


def take_over(graph: Graph, result: TrainResult) -> dict[str, float]:
    """Puts trained values into the graph. Returns the relative change of each that changed, by name, in the trainer's order.

    Raises PassError for a value that fits no initializer.
    """
    tensors, changes = graph.tensors(), {}
    for name, value in result.values.items():
        tensor = tensors.get(name)
        if not isinstance(tensor, Constant) or value.dtype != read(tensor).dtype or value.shape != tuple(tensor.shape):
            raise PassError(f"retraining returned '{name}' as {value.dtype} {list(value.shape)}, which is no initializer of the model")
        change = relative_change(read(tensor), value)
        if change > 0:
            write(tensor, value)
            changes[name] = change
    return changes


def relative_change(before: np.ndarray, after: np.ndarray) -> float:
    """Length of the difference relative to the length of `before`; the difference's own length if `before` is all zeros."""
    old, new = before.astype(np.float64), after.astype(np.float64)
    return float(np.linalg.norm(new - old) / (np.linalg.norm(old) or 1.0))
