"""What the tests of fold share."""

import numpy as np
import onnx
from numpy.typing import DTypeLike

from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.fold.fold import Fold
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.runtime.running import ort
from tests.support.builders import random, run

BN = "y = BatchNormalization <epsilon = 0.01> (c, scale, shift, mean, variance)"
CONV = "(float[N, 4, 8, 8] x) => (float[N, 6, P, Q] y) {{ c = {layer} {bn} }}"
ONE = "(float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] y)"
FILLED = "ConstantOfShape <value = float[1] {0.1}>"


def fold(model: onnx.ModelProto, **options: object) -> tuple[onnx.ModelProto, PassReport]:
    graph = import_model(model)
    report = configure(Fold, options).apply(graph, Context())
    folded = export_model(graph)
    onnx.checker.check_model(folded, full_check=True)
    return folded, report


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def difference(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
    """Largest difference of an output on random input, relative to the output's largest magnitude."""
    feeds = ort.random_feeds(ort.session(before, threads=1), batch=2)
    expected, found = run(before, feeds), run(after, feeds)
    assert expected.keys() == found.keys()
    return max(
        float(np.abs(expected[name] - found[name]).max() / np.abs(expected[name]).max()) for name in expected
    )


def normalization(channels: int, dtype: DTypeLike = np.float32) -> dict[str, np.ndarray]:
    values = {
        "scale": random(channels),
        "shift": random(channels),
        "mean": random(channels),
        "variance": random(channels) ** 2 + 0.5,
    }
    return {name: value.astype(dtype) for name, value in values.items()}
