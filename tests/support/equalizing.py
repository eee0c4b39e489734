"""What the tests of equalize share."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.equalize.equalize import Equalize
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.runtime.running import ort
from tests.support.builders import run


class Observed:
    """Runs a model on given batches, as the calibrator does."""

    def __init__(self, *batches: np.ndarray) -> None:
        self.batches = batches

    def observe(self, model: onnx.ModelProto, tensors: Sequence[str]) -> Iterator[Mapping[str, np.ndarray]]:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        present = {value.name for value in copy.graph.output}
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in present)
        for batch in self.batches:
            yield run(copy, {model.graph.input[0].name: batch})


def equalize(
    model: onnx.ModelProto, calibrator: object = None, **options: object
) -> tuple[onnx.ModelProto, PassReport]:
    graph = import_model(model)
    report = configure(Equalize, {"min_scale": 1.0} | options).apply(graph, Context(calibrator=calibrator))
    result = export_model(graph)
    contract.check_model(result)
    return result, report


def difference(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
    """Largest difference of an output on random input, relative to the output's largest magnitude."""
    feeds = ort.random_feeds(ort.session(before, threads=1), batch=2)
    wanted, found = run(before, feeds), run(after, feeds)
    return max(
        float(np.abs(wanted[name] - found[name]).max() / np.abs(wanted[name]).max()) for name in wanted
    )


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def spread(ranges: np.ndarray) -> float:
    """Largest range over the smallest."""
    return float(ranges.max() / ranges.min())


def uneven(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """The values with channels of very different sizes."""
    factors = np.exp2(np.random.default_rng(1).uniform(-6, 6, values.shape[axis])).astype(np.float32)
    return values * factors.reshape([-1 if index == axis else 1 for index in range(values.ndim)])
