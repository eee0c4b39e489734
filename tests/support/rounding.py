"""What the tests of int8's option rounding share: samples, and the pass."""

from collections.abc import Iterator

import numpy as np
import onnx

from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.int8.int8 import Int8
from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from tests.support.builders import random

OPTIONS = {"method": "minmax", "bias_correction": False}


class Samples(DataSource):
    labelled, fingerprint, description = False, "samples", "samples"

    def __init__(self, *shape: int, bad: float | None = None) -> None:
        self.x = alike(*shape)
        self.count = len(self.x)
        if bad is not None:
            self.x.flat[0] = bad

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        for start in range(0, self.count, size):
            yield Batch({"x": self.x[start : start + size]})


def alike(samples: int, *shape: int) -> np.ndarray:
    """Inputs whose channels are alike, so that errors of weights can cancel."""
    return random(samples, *shape) + 3 * random(samples, 1, *shape[1:])


def adapt(
    model: onnx.ModelProto, data: DataSource, rounding: str = "adaptive", **options: object
) -> tuple[onnx.ModelProto, PassReport]:
    graph = import_model(model)
    context = Context(calibrator=StreamingCalibrator(data))
    report = configure(Int8, OPTIONS | {"rounding": rounding} | options).apply(graph, context)
    result = export_model(graph)
    onnx.checker.check_model(result, full_check=True)
    return result, report


IMAGE, ROWS = (
    "(float[N, 4, 9, 9] x) => (float[N, O, P, Q] y) {{ {} }}",
    "(float[N, 4] x) => (float[N, 6] y) {{ {} }}",
)
