"""The network and the data that several workers train on."""

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_lathe.runtime.data import model_inputs, open_source
from onnx_lathe.runtime.data.source import Subset
from tests.support.models import MODELS


def lenet() -> onnx.ModelProto:
    return onnx.load(MODELS / "lenet5-mnist" / "model.onnx")


def digits(count: int) -> Subset:
    return Subset(
        open_source(f"{MODELS / 'mnist.npz'}:train", model_inputs(lenet()), "scale=1/255"), np.arange(count)
    )


def moved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with other weights: something to learn for the student of `model`."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array * np.float32(0.7), tensor.name))
    return other
