"""Where the mean of a layer's result is moved, its bias; and how the means are measured, by the network itself."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_lathe.passes.core.services import Calibrator
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor
from onnx_lathe.passes.graph.ancestors import model_up_to
from onnx_lathe.passes.graph.biases import BIAS_INPUT
from onnx_lathe.passes.graph.initializers import read, write
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT
from onnx_lathe.passes.graph.model import sparse_tensors, unused_name
from onnx_lathe.passes.graph.rewire import is_output

SAMPLES = 128
"""Samples that are run, or a few more. Means that are compared are of the same inputs, so that their
difference has little noise.
"""
AXES_ARE_INPUT = 18
"""From this opset on, ReduceMean has its axes as an input."""


@dataclass
class BiasPlace:
    """Where a layer's correction goes: `adder` adds its input `index` to the layer's result, `factor`
    times.
    """

    layer: Node
    adder: Node
    index: int
    factor: float

    @property
    def response(self) -> str:
        return str(self.layer.outputs[0].name)

    @property
    def tensor(self) -> Tensor | None:
        return self.adder.inputs[self.index] if self.index < len(self.adder.inputs) else None

    def set(self, tensor: Tensor | None) -> None:
        if tensor is None:
            if self.index < len(self.adder.inputs):
                self.adder.inputs.pop(self.index)
        elif self.index < len(self.adder.inputs):
            self.adder.inputs[self.index] = tensor
        else:
            self.adder.inputs.append(tensor)


def observed(
    calibrator: Calibrator, model: onnx.ModelProto, names: Sequence[str]
) -> Iterator[tuple[Mapping[str, np.ndarray], int]]:
    """(values, samples) of the first batches of the data, SAMPLES samples or a few more."""
    samples, unique = 0, list(dict.fromkeys(names))
    for batch in calibrator.observe(model_up_to(model, unique), unique):
        yield batch, batch.samples
        samples += batch.samples
        if samples >= SAMPLES:
            return


def add_mean(model: onnx.ModelProto, place: BiasPlace, tensor: str, channels: int, taken: set[str]) -> str:
    """Adds the mean per channel, float32 [channels], of a tensor that is like the layer's result. Returns
    its name.
    """
    names = []
    for what in ("rows", "shape", "axes", "mean"):
        names.append(unused_name(f"{tensor}_{what}", taken))
        taken.add(names[-1])
    rows, shape, axes, mean = names
    sizes, reduced = ([0, channels, -1], [0, 2]) if place.layer.op == "Conv" else ([-1, channels], [0])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(sizes, np.int64), shape))
    model.graph.node.append(onnx.helper.make_node("Reshape", [tensor, shape], [rows], rows))
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    if opset >= AXES_ARE_INPUT:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(reduced, np.int64), axes))
        model.graph.node.append(onnx.helper.make_node("ReduceMean", [rows, axes], [mean], mean, keepdims=0))
    else:
        model.graph.node.append(
            onnx.helper.make_node("ReduceMean", [rows], [mean], mean, keepdims=0, axes=reduced)
        )
    return mean


def bias_place(graph: Graph, layer: Node) -> BiasPlace | None:
    """Where the layer's correction goes; None if there is no place for one."""
    if layer.op in ("Conv", "Gemm"):
        place = BiasPlace(layer, layer, BIAS_INPUT, layer.attrs.get("beta", 1.0))
        tensor = place.tensor
        if tensor is None or tensor.is_empty():
            return place if place.factor == 1 else None
        return place if place.factor and _is_plain(graph, tensor) else None
    readers = layer.outputs[0].outputs
    if len(readers) != 1 or readers[0].op != "Add" or readers[0].domain or is_output(graph, layer.outputs[0]):
        return None
    place = BiasPlace(
        layer,
        readers[0],
        1 - next(i for i, tensor in enumerate(readers[0].inputs) if tensor is layer.outputs[0]),
        1.0,
    )
    tensor = readers[0].inputs[place.index]
    return place if _is_plain(graph, tensor) and all(size == 1 for size in tensor.shape[:-1]) else None


def _is_plain(graph: Graph, tensor: Tensor) -> bool:
    """Whether the tensor is a float initializer that need not keep its zeros."""
    return (
        isinstance(tensor, Constant)
        and tensor.dtype == np.float32
        and tensor.name not in sparse_tensors(graph)
    )


def shift(graph: Graph, place: BiasPlace, change: np.ndarray, taken: set[str]) -> None:
    """Adds the change to the bias, where it stands if nothing else reads it."""
    tensor = own_bias(graph, place, change.size)
    if tensor is None:
        place.set(moved(place, change, taken))
        return
    values = read(tensor)
    write(tensor, (values + (change / place.factor).reshape(values.shape)).astype(np.float32))


def own_bias(graph: Graph, place: BiasPlace, channels: int) -> Constant | None:
    """The bias, if nothing else reads it and it has a number for each output channel and no more."""
    tensor = place.tensor
    if not isinstance(tensor, Constant) or len(tensor.outputs) != 1 or is_output(graph, tensor):
        return None
    # a column of a Gemm may have as many: one for each sample
    return tensor if tuple(tensor.shape[-1:]) == (channels,) == (read(tensor).size,) else None


def moved(place: BiasPlace, change: np.ndarray, taken: set[str]) -> Constant:
    """The bias plus the change, as the layer's own: other readers keep the old one."""
    old = place.tensor
    values = (
        np.float64(0) if old is None or old.is_empty() else read(old).astype(np.float64)
    ) + change / place.factor
    name = unused_name(
        f"{place.layer.inputs[WEIGHT_INPUT].name}_bias"
        if old is None or old.is_empty()
        else f"{old.name}_corrected",
        taken,
    )
    taken.add(name)
    return Constant(name, values.astype(np.float32))
