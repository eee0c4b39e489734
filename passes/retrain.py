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

from passes.base import Context, Pass, PassReport
from passes.graph import Constant, Graph
from passes.graph.layers import stored_in, weights
from passes.graph.model import FOUR_BIT, export_model
from passes.registry import register
from passes.training import TrainingOptions, take_over


@register
class Retrain(Pass):
    """Trains the weights, by labels and by imitating the original model."""

    name = "retrain"
    needs = ("trainer",)

    @dataclass(frozen=True)
    class Config(TrainingOptions):
        pass

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        for weight in weights(graph, refuse=lambda node, reason: None):
            stored = stored_in(weight.tensor)[0]
            if _is_integer(stored):
                for node in weight.nodes:
                    report.skip(node.name, f"its weight is stored as {stored.dtype}, which does not train; retrain before int8")
        result = context.need_trainer().train(export_model(graph), asdict(self.config))
        tensors = graph.tensors()
        for name, change in take_over(graph, result).items():
            report.edit(tensors[name].outputs[0].name, f"{name} changed by {100 * change:.3g} %")
        report.metrics.update(result.metrics)
        return report


def _is_integer(tensor: Constant) -> bool:
    """onnx-graphsurgeon gives the number of an element type that NumPy has no name for, such as bfloat16."""
    return not isinstance(tensor.dtype, int) and (np.issubdtype(tensor.dtype, np.integer) or tensor.dtype in FOUR_BIT)
