"""The simulated errors of float32 kernels next to those of ncnn's own, on this processor."""

from pathlib import Path

import numpy as np
import pytest

from onnx_lathe.kernels import DIRECT, NAMES, PROFILES
from onnx_lathe.passes.winograd.simulation import relative_errors
from onnx_lathe.passes.winograd.ways import Way

ncnn = pytest.importorskip("ncnn")

BAND = 2.0
"""Largest errors are extremes of some ten thousand results, and ncnn's kernels for other processors than this one
have other packs: a factor that they stay within.
"""
SIZE = 26


def own_error(image: np.ndarray, weight: np.ndarray, m: int, folder: Path) -> float:
    """Largest error of ncnn's kernel over the largest result, with float64 as truth."""
    outputs = len(weight)
    lines = [
        "7767517",
        "2 2",
        "Input data 0 1 data",
        f"Convolution conv 1 1 data out 0={outputs} 1=3 5=0 6={weight.size} -23330=4,3,{SIZE - 2},{SIZE - 2},{outputs}",
    ]  # told its size, the layer takes what is left of the three tiles; else F(6 x 6) only for few channels
    (folder / "layer.param").write_text("\n".join([*lines, ""]))
    (folder / "layer.bin").write_bytes(bytes(4) + weight.tobytes())
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_winograd_convolution = m != DIRECT
    for size, name in ((2, "23"), (4, "43"), (6, "63")):
        setattr(net.opt, f"use_winograd{name}_convolution", size == m)
    for half in ("use_bf16_storage", "use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
        setattr(net.opt, half, False)
    assert net.load_param(str(folder / "layer.param")) == 0
    assert net.load_model(str(folder / "layer.bin")) == 0
    extractor = net.create_extractor()
    extractor.input("data", ncnn.Mat(image).clone())
    failed, found = extractor.extract("out")
    assert not failed
    windows = np.lib.stride_tricks.sliding_window_view(image.astype(np.float64), (3, 3), (1, 2))
    wanted = np.tensordot(windows, weight.astype(np.float64), ([0, 3, 4], [1, 2, 3])).transpose(2, 0, 1)
    return float(np.abs(np.array(found) - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("m", NAMES, ids=NAMES.get)
@pytest.mark.parametrize("inputs, seed", [(64, 0), (128, 1), (256, 2), (512, 3)])
def test_errors_of_float32(inputs: int, seed: int, m: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((inputs, SIZE, SIZE)).astype(np.float32)
    weight = (rng.standard_normal((16, inputs, 3, 3)) / np.sqrt(9 * inputs)).astype(np.float32)
    real = own_error(image, weight, m, tmp_path)
    way = Way(m, PROFILES["x86"])
    simulated = relative_errors(image, weight, [way])[way]
    print(f"{inputs} {NAMES[m]} ncnn {real:.2e} simulated {simulated:.2e} ratio {simulated / real:.2f}")
    assert real / BAND <= simulated <= real * BAND
