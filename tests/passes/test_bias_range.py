"""Biases of channels with next to no weights: ONNX Runtime stores them as INT32, where they must fit."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.graph.quantization.bias_range import fit_biases
from onnx_lathe.placement import CANONICAL, Placement
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.ort.ort import PLACEMENT
from tests.support.builders import build, random
from tests.support.placement import lowered, output, quantized, relative

TEXT = """(float[N, 3, 8, 8] x) => (float[N, 8, 4, 4] y) {
    a = Conv (x, u, ub)  r = Relu (a)  c = Conv (r, w, b)  s = Relu (c)  y = Conv <strides = [2, 2]> (s, v) }"""
OFF = [1, 4]


def network(weight: float) -> onnx.ModelProto:
    """Two channels of the middle layer are their bias alone, but for weights of this size."""
    w, b = random(8, 8, 1, 1), random(8) * np.float32(0.1)
    w[OFF], b[OFF] = w[OFF] * np.float32(weight), (0.8, 1.1)
    return build(TEXT, u=random(8, 3, 1, 1), ub=random(8), w=w, b=b, v=random(8, 8, 1, 1))


def images() -> np.ndarray:
    return random(16, 3, 8, 8)


def plain(model: onnx.ModelProto, data: np.ndarray, folder: Path) -> np.ndarray:
    onnx.save(model, folder / "model.onnx")
    return next(iter(ort.run(ort.plain_session(folder / "model.onnx", threads=1), {"x": data}).values()))


@pytest.mark.parametrize("weight", [0.0, 1e-12, 1e-7, 1e-4])
@pytest.mark.parametrize("placement", [PLACEMENT, CANONICAL], ids=["ort", "canonical"])
def test_the_bias_survives_loading(weight: float, placement: Placement, tmp_path: Path) -> None:
    model, data = network(weight), images()
    result = quantized(model, placement, data)[0]
    if placement is PLACEMENT:
        result = lowered(result)[0]
    assert relative(plain(model, data, tmp_path), plain(result, data, tmp_path)) < 0.03


@pytest.mark.parametrize("weight", [0.0, 1e-7])
def test_only_the_scales_that_must_become_wider(weight: float) -> None:
    canonical, report = quantized(network(weight), data=images())
    assert any("until the bias fits" in edit.what for edit in report.edits)
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in canonical.graph.initializer}
    wide = next(values for name, values in scales.items() if name.startswith("w_scale"))
    ordinary = np.delete(wide, OFF)
    assert (wide[OFF] < 0.01 * ordinary.min()).all()
    assert wide[OFF].max() > 1.1e-8  # the least of scales


def test_an_ordinary_network_is_left_alone() -> None:
    canonical, report = quantized(network(1.0), data=images())
    assert not any("until the bias fits" in edit.what for edit in report.edits)
    graph, later = import_model(canonical), PassReport()
    fit_biases(graph, later)
    assert not later.edits
    assert export_model(graph).graph.node == canonical.graph.node


def foreign(zero: int, kind: type, per_channel: bool) -> onnx.ModelProto:
    """A layer that another tool quantized, with a bias far above what its scales hold."""
    size = (4,) if per_channel else ()
    return build(
        f"""(float[N, 4, 5, 5] x) => (float[N, 4, 5, 5] y) {{
        q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)
        w = DequantizeLinear {"<axis = 0>" if per_channel else ""} (codes, ws, wz)
        c = Conv (d, w, b)  p = QuantizeLinear (c, t, z)  y = DequantizeLinear (p, t, z) }}""",
        s=np.float32(0.01), z=np.uint8(128), codes=np.full((4, 4, 1, 1), zero + 3, kind),
        ws=np.full(size, 1e-9, np.float32), wz=np.full(size, zero, kind), b=np.float32([90, -50, 20, 0]), t=np.float32(1),
    )  # fmt: skip


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("zero", "kind"), [(0, np.int8), (128, np.uint8)])
def test_a_foreign_bias_survives_loading(zero: int, kind: type, per_channel: bool, tmp_path: Path) -> None:
    model = foreign(zero, kind, per_channel)
    data = random(2, 4, 5, 5)
    result = lowered(model)[0]
    wanted = np.broadcast_to(np.float32([90, -50, 20, 0]).reshape(4, 1, 1), (2, 4, 5, 5))
    np.testing.assert_allclose(plain(result, data, tmp_path), wanted, atol=1)


def test_a_bias_beyond_32_bits_makes_the_scale_of_its_channel_wider() -> None:
    model = build(
        "(float[N, 4] x) => (float[N, 7] y) { y = Gemm (x, m, b) }",
        m=random(4, 7) * np.float32(1e-6),
        b=random(7) * np.float32(1e4),
    )
    rows = random(6, 4) * np.float32(1e-3)
    result, _ = lowered(quantized(model, data=rows)[0])
    stored = [t for t in result.graph.initializer if t.data_type == onnx.TensorProto.INT32]
    units = onnx.numpy_helper.to_array(stored[0]).astype(np.int64)
    assert 1 << 29 < np.abs(units).max() <= 1 << 30
    assert relative(output(model, rows), output(result, rows)) < 1e-6
