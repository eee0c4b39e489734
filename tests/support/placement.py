"""What the tests of placement share: networks, their quantized and lowered forms, and the operators that
ONNX Runtime makes of them.
"""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx

from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.int8.int8 import Int8
from onnx_lathe.passes.lowering import find_lowering
from onnx_lathe.placement import Placement
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from onnx_lathe.runtime.targets.ort.ort import PLACEMENT
from tests.support.builders import build
from tests.support.int8 import Rows

_GENERATOR = np.random.default_rng(5)
IMAGES = _GENERATOR.standard_normal((6, 3, 12, 12)).astype(np.float32)

RESIDUAL = """(float[N, 3, 12, 12] x) => (float[N, 5] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, stem, b8)  r = Relu (a)  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    c = Conv <pads = [1, 1, 1, 1]> (p, first, b8)  cr = Relu (c)
    d = Conv <pads = [1, 1, 1, 1]> (cr, second, b8)
    s = Add (d, p)  e = Relu (s)
    g = GlobalAveragePool (e)  f = Flatten (g)  y = Gemm <transB = 1> (f, head, b5) }"""

MOBILE = """(float[N, 3, 12, 12] x) => (float[N, 5] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, stem, b8)  r = Clip (a, zero, six)
    d = Conv <pads = [1, 1, 1, 1], group = 8> (r, depthwise, b8)  dr = Clip (d, zero, six)
    c = Conv (dr, point, b8)  s = Add (c, r)
    q = Conv (s, point, b8)  z = Sigmoid (q)  w = Mul (q, z)
    n = GlobalAveragePool (w)  m = Conv (n, point, b8)  o = Sigmoid (m)  v = Mul (w, o)
    e = Conv (v, point, b8)  t = Concat <axis = 1> (e, s)
    k = Conv (t, wide, b8)  g = GlobalAveragePool (k)  f = Flatten (g)  y = Gemm <transB = 1> (f, head, b5) }"""


def _weight(*shape: int) -> np.ndarray:
    fan = np.prod(shape[1:])
    return (_GENERATOR.standard_normal(shape) * np.sqrt(2 / fan)).astype(np.float32)


CONSTANTS = {
    "stem": _weight(8, 3, 3, 3),
    "first": _weight(8, 8, 3, 3),
    "second": _weight(8, 8, 3, 3),
    "depthwise": _weight(8, 1, 3, 3),
    "point": _weight(8, 8, 1, 1),
    "wide": _weight(8, 16, 1, 1),
    "head": _weight(5, 8),
    "b8": np.linspace(-0.2, 0.2, 8, dtype=np.float32),
    "b5": np.linspace(-1, 1, 5, dtype=np.float32),
    "zero": np.float32(0),
    "six": np.float32(6),
}


def network(text: str, opset: int = 17) -> onnx.ModelProto:
    return build(text, opset, **{name: values for name, values in CONSTANTS.items() if name in text})


def quantized(
    model: onnx.ModelProto, placement: Placement = PLACEMENT, data: np.ndarray = IMAGES, **options: object
) -> tuple[onnx.ModelProto, PassReport]:
    context = Context(
        calibrator=StreamingCalibrator(Rows(**{model.graph.input[0].name: data})), placement=placement
    )
    return apply_pass(configure(Int8, {"method": "minmax"} | options), model, context)


def lowered(
    model: onnx.ModelProto, name: str = "onnxruntime", placement: Placement = PLACEMENT, **options: object
) -> tuple[onnx.ModelProto, PassReport]:
    result, report = apply_pass(configure(find_lowering(name), options), model, Context(placement=placement))
    onnx.checker.check_model(result, full_check=True)
    return result, report


def kernels(model: onnx.ModelProto) -> Counter[str]:
    """Operators of the graph that ONNX Runtime makes of the model; one that reads decoded integers also as
    `DequantizeLinear->Conv`.
    """
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "model.onnx")
        ort.write_optimized(Path(folder) / "model.onnx", Path(folder) / "optimized.onnx")
        nodes = list(onnx.load(Path(folder) / "optimized.onnx").graph.node)
    decoded = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    behind = [f"DequantizeLinear->{node.op_type}" for node in nodes if decoded.intersection(node.input)]
    return Counter([*(node.op_type for node in nodes), *behind])


def output(model: onnx.ModelProto, data: np.ndarray = IMAGES) -> np.ndarray:
    session = ort.session(model, threads=1)
    return next(iter(ort.run(session, {session.get_inputs()[0].name: data}).values()))


def relative(expected: np.ndarray, found: np.ndarray) -> float:
    """Root mean square of the difference, relative to that of the expected values."""
    return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))
