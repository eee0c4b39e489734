"""Sums of INT8 products: sessions of Lathe are exact on every processor, and a run says where a plain one is not."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.runtime.running import ort
from tests.support.builders import build, random

NETWORK = "(float[N, 8] x) => (float[N, 4] y) { y = MatMul (x, w) }"


def largest_sums() -> tuple[onnx.ModelProto, dict[str, np.ndarray], int]:
    """A product of the largest levels of UINT8 and INT8, and what it is at a scale of 1/65536."""
    model = build(
        "(uint8[1, 64] x) => (uint8[1, 1] y) { y = QLinearMatMul (x, s, z, w, s, wz, ws, z) }",
        s=np.float32(1),
        z=np.uint8(0),
        w=np.full((64, 1), 127, np.int8),
        wz=np.int8(0),
        ws=np.float32(65536),
    )
    return model, {"x": np.full((1, 64), 255, np.uint8)}, round(64 * 255 * 127 / 65536)


def test_sums_do_not_saturate() -> None:
    model, feeds, expected = largest_sums()
    assert ort.run(ort.session(model), feeds)["y"].item() == expected


def test_the_answer_is_one_and_the_same() -> None:
    assert isinstance(ort.saturates(), bool)
    assert ort.saturates() == ort.saturates()


@pytest.mark.parametrize("saturates", [True, False])
def test_a_run_says_so_for_a_quantized_model_alone(
    saturates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "saturates", lambda: saturates)
    model, data = build(NETWORK, w=random(8, 4)), {"x": random(64, 8)}
    for passes, quantized in (("fold", False), ("int8", True)):
        record = onnx_lathe.optimize(model, passes, calibration=data, out=tmp_path / passes, latency=False)
        assert (ort.SATURATES in record.warnings) == (saturates and quantized)
