"""What the tests of svd share: the pass on a model with data, single layers of low rank, and how far outputs are apart."""

from collections.abc import Iterator

import numpy as np
import onnx

from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.svd.svd import Svd
from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from tests.support.builders import build, random, run


class Arrays(DataSource):
    labelled, fingerprint, description = False, "", ""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = arrays
        self.count = len(next(iter(arrays.values())))

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        for start in range(0, self.count, size):
            yield Batch({name: array[start : start + size] for name, array in self.arrays.items()})


def svd(
    model: onnx.ModelProto, data: dict[str, np.ndarray] | None = None, **options: object
) -> tuple[onnx.ModelProto, PassReport]:
    before = model.SerializeToString()
    context = Context(calibrator=None if data is None else StreamingCalibrator(Arrays(**data)))
    after, report = apply_pass(configure(Svd, options), model, context)
    onnx.checker.check_model(after, full_check=True)
    assert model.SerializeToString() == before
    return after, report


def deviation(model: onnx.ModelProto, after: onnx.ModelProto, data: dict[str, np.ndarray]) -> float:
    """Largest root mean square error of an output, relative to the output's deviation from its mean."""
    one, other = run(model, data), run(after, data)
    return max(float(np.sqrt(np.square(one[name] - other[name]).mean()) / one[name].std()) for name in one)


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}


def low(outputs: int, *rest: int, rank: int) -> np.ndarray:
    """A weight [outputs, *rest] of low rank."""
    return (random(outputs, rank) @ random(rank, int(np.prod(rest)))).reshape(outputs, *rest) / np.float32(
        np.sqrt(rank * np.prod(rest))
    )


CONV = "(float[N, 6, 9, 11] x) => (float[N, 16, h, w] y) {{ y = Conv <{attributes}> (x, w, b) }}"
KINDS = {
    "Conv": (
        CONV.format(attributes="strides = [2, 1], pads = [1, 0, 2, 1], dilations = [1, 2]"),
        (16, 6, 3, 3),
        0,
    ),
    "Conv, auto_pad": (CONV.format(attributes='auto_pad = "SAME_UPPER", strides = [2, 2]'), (16, 6, 3, 5), 0),
    "ConvTranspose": (
        "(float[N, 6, 9, 11] x) => (float[N, 16, h, w] y) "
        "{ y = ConvTranspose <strides = [2, 1], pads = [1, 0, 0, 1], output_padding = [1, 0]> (x, w, b) }",
        (16, 6, 3, 4),
        1,
    ),
    "Gemm": (
        "(float[N, 20] x) => (float[N, 16] y) { y = Gemm <alpha = 0.5, beta = 2.0> (x, w, b) }",
        (16, 20),
        1,
    ),
    "Gemm, transB": ("(float[N, 20] x) => (float[N, 16] y) { y = Gemm <transB = 1> (x, w, b) }", (16, 20), 0),
    "MatMul, Add": (
        "(float[N, 5, 20] x) => (float[N, 5, 16] y) { m = MatMul (x, w)  y = Add (b, m) }",
        (16, 20),
        1,
    ),
}


def layer(kind: str, rank: int | None = None) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """One layer, with a weight of low rank if asked for, and 40 samples for it."""
    text, shape, axis = KINDS[kind]
    weight = random(*shape) if rank is None else low(*shape, rank=rank)
    model = build(text, w=np.ascontiguousarray(np.moveaxis(weight, 0, axis)), b=random(16))
    return model, {
        "x": random(40, *(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]))
    }
