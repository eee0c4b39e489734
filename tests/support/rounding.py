"""What the tests of int8(rounding=adaptive) share: samples, a rounder that keeps what it got, and the pass."""

from collections.abc import Iterator
from dataclasses import dataclass, field

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
        self.x = random(*shape)
        self.count = len(self.x)
        if bad is not None:
            self.x.flat[0] = bad

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        for start in range(0, self.count, size):
            yield Batch({"x": self.x[start : start + size]})


@dataclass
class Result:
    levels: np.ndarray | None
    before: float = 20.0
    after: float = 30.0


@dataclass
class Recorder:
    """A rounder that takes the level above everywhere, and keeps what it was given."""

    finds: bool = True
    calls: list[dict] = field(default_factory=list)

    def round(self, layer, weight, exact, low, high, step, inputs, target, steps) -> Result:
        self.calls.append({name: value for name, value in locals().items() if name != "self"})
        return Result(high if self.finds else None)


def adapt(
    model: onnx.ModelProto, data: DataSource, rounder: object = None, **options: object
) -> tuple[onnx.ModelProto, PassReport]:
    graph = import_model(model)
    context = Context(calibrator=StreamingCalibrator(data), rounder=rounder)
    report = configure(Int8, OPTIONS | ({"rounding": "adaptive"} if rounder else {}) | options).apply(
        graph, context
    )
    result = export_model(graph)
    onnx.checker.check_model(result, full_check=True)
    return result, report


IMAGE, ROWS = (
    "(float[N, 4, 9, 9] x) => (float[N, O, P, Q] y) {{ {} }}",
    "(float[N, 4] x) => (float[N, 6] y) {{ {} }}",
)
