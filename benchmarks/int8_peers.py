"""One peer quantizes one model; runs in the peers' own environment (int8_peers.txt), started by int8.py.

    python int8_peers.py SETTING MODEL DATA.npz INPUT OUT.onnx

DATA.npz holds `calibration/INPUT`. Prints as JSON what quantization took: seconds, and peak memory in MB
beyond what imports take.
"""

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SCALES_PER_CHANNEL = 13
"""Opset since which Q/DQ has them."""


def onnxruntime_setting(method: str, symmetric: bool) -> Callable[[Path, np.ndarray, str, Path], None]:
    def quantize(model: Path, images: np.ndarray, source: str, out: Path) -> None:
        import onnx
        from onnxruntime.quantization import (
            CalibrationDataReader,
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.rest = iter(images)

            def get_next(self) -> dict[str, np.ndarray] | None:
                image = next(self.rest, None)
                return None if image is None else {source: image[None]}

        with tempfile.TemporaryDirectory() as folder:
            raised, prepared = Path(folder) / "raised.onnx", Path(folder) / "prepared.onnx"
            proto = onnx.load(model)
            if next(entry.version for entry in proto.opset_import if not entry.domain) < SCALES_PER_CHANNEL:
                # else the file is refused
                proto = onnx.version_converter.convert_version(proto, SCALES_PER_CHANNEL)
            onnx.save(proto, raised)
            quant_pre_process(str(raised), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared), str(out), Reader(), quant_format=QuantFormat.QDQ, per_channel=True, weight_type=QuantType.QInt8,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8, calibrate_method=CalibrationMethod[method],
                extra_options={"ActivationSymmetric": symmetric},
            )  # fmt: skip

    return quantize


def nncf_setting(mixed: bool) -> Callable[[Path, np.ndarray, str, Path], None]:
    def quantize(model: Path, images: np.ndarray, source: str, out: Path) -> None:
        import nncf
        import onnx

        data = nncf.Dataset([image[None] for image in images], lambda image: {source: image})
        preset = nncf.QuantizationPreset.MIXED if mixed else nncf.QuantizationPreset.PERFORMANCE
        quantized = nncf.quantize(
            onnx.load(model), data, preset=preset, subset_size=len(images), fast_bias_correction=True
        )
        onnx.save(quantized, out)

    return quantize


def modelopt_setting(method: str) -> Callable[[Path, np.ndarray, str, Path], None]:
    def quantize(model: Path, images: np.ndarray, source: str, out: Path) -> None:
        from modelopt.onnx.quantization import quantize as modelopt_quantize

        modelopt_quantize(
            str(model), quantize_mode="int8", calibration_data={source: images}, calibration_method=method,
            calibration_eps=["cpu"], output_path=str(out), high_precision_dtype="fp32",
        )  # fmt: skip

    return quantize


SETTINGS: dict[str, Any] = {
    "onnxruntime minmax, UINT8": onnxruntime_setting("MinMax", False),
    "onnxruntime percentile, UINT8": onnxruntime_setting("Percentile", False),
    "onnxruntime entropy, UINT8": onnxruntime_setting("Entropy", False),
    "onnxruntime minmax, symmetric INT8": onnxruntime_setting("MinMax", True),
    "nncf performance": nncf_setting(False),
    "nncf mixed": nncf_setting(True),
    "modelopt max": modelopt_setting("max"),
    "modelopt entropy": modelopt_setting("entropy"),
}


def main() -> None:
    setting, model, data, source, out = sys.argv[1:]
    with np.load(data) as arrays:
        images = arrays[f"calibration/{source}"]
    before, started = peak_mb(), time.perf_counter()
    SETTINGS[setting](Path(model), images, source, Path(out))
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb() - before}))


def peak_mb() -> float:
    """Of this process on Linux; resource.getrusage would report what the parent had at the start."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


if __name__ == "__main__":
    main()
