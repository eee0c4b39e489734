"""What the tests of int8 share: statistics without data, and a view of the quantized model."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.int8.int8 import Int8
from onnx_lathe.runtime.data import Batch, DataSource

LOW, HIGH = -1.0, 3.0
CONV = "(float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] y) {{ {nodes} }}"
RESIDUAL = "(float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {{ i = Relu (x)  {body}  y = Relu (s) }}"


@dataclass
class Fixed:
    """Statistics of a tensor that nobody measured."""

    minimum: float = LOW
    maximum: float = HIGH

    def percentile(self, percent: float) -> tuple[float, float]:
        return self.minimum * percent / 100, self.maximum * percent / 100


class FixedCalibrator:
    def __init__(self, **special: Fixed) -> None:
        self.special = special
        self.asked: list[str] = []

    def statistics(
        self, model: onnx.ModelProto, tensors: Sequence[str], optional: Collection[str] = ()
    ) -> Mapping[str, Fixed]:
        onnx.checker.check_model(model)
        self.asked += tensors
        return {name: self.special.get(name, Fixed()) for name in tensors}


class Rows(DataSource):
    """Samples in memory, without labels."""

    labelled, fingerprint, description = False, "rows", "rows"

    def __init__(self, **feeds: np.ndarray) -> None:
        self.feeds, self.count = feeds, len(next(iter(feeds.values())))

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        for start in range(0, len(next(iter(self.feeds.values()))), size):
            yield Batch({name: values[start : start + size] for name, values in self.feeds.items()})


def quantize(
    model: onnx.ModelProto, calibrator: object = None, **options: object
) -> tuple[onnx.ModelProto, PassReport]:
    graph = import_model(model)
    instance = configure(Int8, {"method": "minmax", "bias_correction": False} | options)
    report = instance.apply(graph, Context(calibrator=calibrator or FixedCalibrator()))
    result = export_model(graph)
    onnx.checker.check_model(result, full_check=True)
    return result, report


class Form:
    """Looks things up in a quantized model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.constants = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }

    def ops(self) -> list[str]:
        return sorted(node.op_type for node in self.nodes)

    def chain(self, tensor: str) -> list[str]:
        """Operators in front of a tensor, nearest first, and the name at the end."""
        node = self.producers.get(tensor)
        return [tensor] if node is None else [node.op_type, *self.chain(node.input[0])]

    def layer(self, op: str, index: int = 0) -> onnx.NodeProto:
        return [node for node in self.nodes if node.op_type == op][index]
