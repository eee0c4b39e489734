"""The peer of own_cost.py, which imports nothing of Lathe: `own_cost_peer.py MODEL DATA OUT`."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """One sample after the other."""

    def __init__(self, path: str) -> None:
        with np.load(path) as arrays:
            self.samples = _samples({name: arrays[name] for name in arrays.files})

    def get_next(self) -> Any:
        return next(self.samples, None)


def _samples(arrays: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for index in range(len(next(iter(arrays.values())))):
        yield {name: values[index : index + 1] for name, values in arrays.items()}


def main() -> None:
    """The documented way for CNNs: Q/DQ, weights per channel."""
    model, data, out = sys.argv[1:]
    quantize_static(
        model,
        out,
        Reader(data),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )


if __name__ == "__main__":
    main()
