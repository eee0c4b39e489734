"""The codebook pass on small models: what the tests of its several options share."""

import numpy as np
import onnx

from onnx_lathe.passes.codebook.codebook import Codebook
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from tests.support.builders import build, random, run
from tests.support.int8 import Rows

HESSIAN = {"rounding": "hessian", "min_size": 16}
TWO_LAYERS = "(float[N, 40] x) => (float[N, 20] y) { h = MatMul (x, a) r = Relu (h) y = Gemm <transB = 1> (r, b, bias) }"


def share(
    model: onnx.ModelProto,
    *passes: tuple[type, dict[str, object]],
    context: Context | None = None,
    **options: object,
) -> tuple[onnx.ModelProto, PassReport]:
    """The model after `passes` and codebook, and codebook's report."""
    graph = import_model(model)
    for pass_class, settings in [*passes, (Codebook, options)]:
        report = configure(pass_class, settings).apply(graph, context or Context())
    shared = export_model(graph)
    onnx.checker.check_model(shared, full_check=True)
    return shared, report


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def decoded(model: onnx.ModelProto, weight: str) -> np.ndarray:
    """The weight as ONNX Runtime decodes it."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.append(onnx.helper.make_empty_tensor_value_info(weight))
    session = ort.session(probe, threads=1)
    return run(probe, ort.random_feeds(session, batch=1))[weight]


def two_layers(opset: int = 21) -> onnx.ModelProto:
    return build(TWO_LAYERS, opset, a=random(40, 50), b=random(20, 50), bias=random(20))


def mixed(*shape: int) -> np.ndarray:
    """Samples whose inputs depend on each other and are not around 0, as those behind a ReLU."""
    size = int(np.prod(shape[1:]))
    mixing = np.random.default_rng(0).standard_normal((6, size)).astype(np.float32)
    values = random(shape[0], len(mixing)) @ mixing / 3 + 0.3 * random(shape[0], size) + 0.5
    return np.maximum(values, 0).reshape(shape)


def context(**inputs: np.ndarray) -> Context:
    return Context(calibrator=StreamingCalibrator(Rows(**inputs)))
