"""What a plain session of ONNX Runtime computes of a lowered model is what the graph says, on processors
too whose sums of INT8 have 16 bits.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.placement import CANONICAL
from onnx_lathe.runtime.running import ort
from tests.support.builders import build
from tests.support.placement import kernels, lowered, quantized, relative
from tests.support.seeds import generator

IMAGE = "(float[N, {channels}, 9, 9] x) => (float[N, O, P, Q] y) {{ c = {layer} (x, w)  y = Conv (c, v) }}"
ROWS = "(float[N, 33] x) => (float[N, 16] y) {{ y = {layer} (x, w) }}"
CASES = {
    "3 channels": (IMAGE, 3, "Conv <pads = [1, 1, 1, 1]>", (16, 3, 3, 3)),
    "odd channels": (IMAGE, 5, "Conv <strides = [2, 2]>", (16, 5, 3, 3)),
    "even channels": (IMAGE, 32, "Conv <pads = [1, 1, 1, 1]>", (16, 32, 3, 3)),
    "points": (IMAGE, 33, "Conv", (16, 33, 1, 1)),
    "groups": (IMAGE, 6, "Conv <group = 2>", (16, 3, 3, 3)),
    "depthwise": (IMAGE, 16, "Conv <group = 16>", (16, 1, 3, 3)),
    "depthwise twice": (IMAGE, 8, "Conv <group = 8>", (16, 1, 3, 3)),
    "dilated": (IMAGE, 7, "Conv <dilations = [2, 2]>", (16, 7, 3, 3)),
    "Gemm": (ROWS, 33, "Gemm", (33, 16)),
    "Gemm transposed": (ROWS, 33, "Gemm <transB = 1>", (16, 33)),
    "MatMul": (ROWS, 33, "MatMul", (33, 16)),
}


def one_signed(*shape: int) -> np.ndarray:
    """Weights that are alike in size and mostly in sign: the worst for sums."""
    values = generator().uniform(0.6, 1.0, shape)
    return np.where(generator().random(shape) < 0.9, values, -values).astype(np.float32)


def network(case: str) -> tuple[onnx.ModelProto, np.ndarray]:
    text, channels, layer, shape = CASES[case]
    constants = {"w": one_signed(*shape)}
    if "Conv" in layer:
        constants["v"] = one_signed(16, 16, 1, 1)
    size = (12, channels, 9, 9) if "Conv" in layer else (12, channels)
    data = np.where(generator().random(size) < 0.8, 1.0, generator().random(size)).astype(np.float32)
    return build(text.format(channels=channels, layer=layer), **constants), data


def computed(model: onnx.ModelProto, data: np.ndarray, folder: Path) -> np.ndarray:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return next(iter(ort.run(ort.plain_session(path, threads=1), {"x": data}).values()))


@pytest.mark.parametrize("known", [True, False], ids=["int8 knew the target", "int8 did not"])
@pytest.mark.parametrize("case", CASES)
def test_a_plain_session_does_not_saturate(case: str, known: bool, tmp_path: Path) -> None:
    model, data = network(case)
    options = {} if known else {"placement": CANONICAL, "layers": {"*": True}}
    result, _ = lowered(quantized(model, data=data, bias_correction=False, **options)[0])
    found = kernels(result)
    assert {"QLinearConv", "QGemm", "MatMulIntegerToFloat", "QLinearMatMul"} & set(found) or not known
    wanted = ort.run(ort.session(result, threads=1, optimized=False), {"x": data})["y"]
    assert relative(wanted, computed(result, data, tmp_path)) < 3e-3
    assert relative(ort.run(ort.session(model), {"x": data})["y"], wanted) < 0.05


def test_int8_keeps_sums_small_for_the_target_alone() -> None:
    model, data = network("even channels")
    canonical = quantized(model, CANONICAL, data, bias_correction=False)[0]
    assert any("saturate" in edit.what for edit in lowered(canonical)[1].edits)
    known = quantized(model, data=data, bias_correction=False)[0]
    assert not any("saturate" in edit.what for edit in lowered(known)[1].edits)
