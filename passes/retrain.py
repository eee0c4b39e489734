"""Retraining: the model's float weights are trained again, after a pass that changed them has cost accuracy.

The graph stays as it is; only values of float initializers change. Zeros named in `lathe.sparse` stay zero, weights of a codebook go on
sharing their centroids, Q/DQ pairs of activations and of codebooks round in the forward pass and let gradients through. A weight stored as
integers, as int8 leaves it, does not train: its layer is skipped, and what is float around it adapts. By default the retrained model
imitates the original one (distillation) and learns from labels where there are any.
Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015, section 3; "Deep Compression",
ICLR 2016, section 3; Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
"""

from dataclasses import asdict, dataclass

import numpy as np

from lathe import PassError
from passes.base import Context, Pass, PassReport, option
from passes.graph import Constant, Graph
from passes.graph.layers import read, stored_in, weights
from passes.graph.model import FOUR_BIT, export_model
from passes.graph.storage import write
from passes.registry import register


@register
class Retrain(Pass):
    """Trains the weights, by labels and by imitating the original model."""

    name = "retrain"
    needs = ("trainer",)

    @dataclass(frozen=True)
    class Config:
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
        seed: int = option(0, "seed of the order of the data", low=0)

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        for weight in weights(graph, refuse=lambda node, reason: None):
            stored = stored_in(weight.tensor)[0]
            if _is_integer(stored):
                for node in weight.nodes:
                    report.skip(node.name, f"its weight is stored as {stored.dtype}, which does not train; retrain before int8")
        result = context.need_trainer().train(export_model(graph), asdict(self.config))
        tensors = graph.tensors()
        for name, value in result.values.items():
            tensor = tensors.get(name)
            if not isinstance(tensor, Constant) or value.dtype != read(tensor).dtype or value.shape != tuple(tensor.shape):
                raise PassError(f"retraining returned '{name}' as {value.dtype} {list(value.shape)}, which is no initializer of the model")
            change = relative_change(read(tensor), value)
            if change > 0:
                write(tensor, value)
                report.edit(tensor.outputs[0].name, f"{name} changed by {100 * change:.3g} %")
        report.metrics.update(result.metrics)
        return report


def _is_integer(tensor: Constant) -> bool:
    """onnx-graphsurgeon gives the number of an element type that NumPy has no name for, such as bfloat16."""
    return not isinstance(tensor.dtype, int) and (np.issubdtype(tensor.dtype, np.integer) or tensor.dtype in FOUR_BIT)


def relative_change(before: np.ndarray, after: np.ndarray) -> float:
    """Length of the difference relative to the length of `before`; the difference's own length if `before` is all zeros."""
    old, new = before.astype(np.float64), after.astype(np.float64)
    return float(np.linalg.norm(new - old) / (np.linalg.norm(old) or 1.0))
