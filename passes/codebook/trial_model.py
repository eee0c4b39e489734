"""A model as it would be with other values in some of its initializers, to be run and compared."""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx_graphsurgeon.ir.tensor import SparseValues

from onnx_lathe.passes.core.services import Runner
from onnx_lathe.passes.graph.bodies import graph_protos

LOUD = 1e30
"""Noise of outputs that are not finite."""


class TrialModel:
    """Holds the model, which stays as it is, and one copy of it whose initializers change for one
    comparison at a time.
    """

    def __init__(self, model: onnx.ModelProto, runner: Runner) -> None:
        self.model, self.runner = _dense(model), runner
        self.copy = onnx.ModelProto()
        self.copy.CopyFrom(self.model)
        self.kept, self.changed = _initializers(self.model), _initializers(self.copy)
        self.runs = 0

    def noise(self, values: Mapping[str, np.ndarray]) -> float:
        """Error power in the outputs, relative to theirs, with these float32 values in the initializers; 0
        where all are equal.
        """
        try:
            for name, array in values.items():
                self.changed[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
            self.runs += 1
            sqnr = float(self.runner.compare(self.model, self.copy)["sqnr"])
        finally:
            for name in values:
                self.changed[name].CopyFrom(self.kept[name])
        return LOUD if np.isnan(sqnr) else min(LOUD, 10 ** (-sqnr / 10))


def _initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for graph in graph_protos(model.graph) for tensor in graph.initializer}


def _dense(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, or one with its sparse initializers stored as others are."""
    if not model.graph.sparse_initializer:
        return model
    dense = onnx.ModelProto()
    dense.CopyFrom(model)
    del dense.graph.sparse_initializer[:]
    for tensor in model.graph.sparse_initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.values.data_type)
        dense.graph.initializer.append(
            onnx.numpy_helper.from_array(SparseValues(tensor).load().astype(dtype), tensor.values.name)
        )
    return dense
