"""What TensorRT's verbose log says of the engine's layers. Only tests read the log: its wording may change
with every version.
"""

import math
import re
from pathlib import Path

_LAYER = re.compile(
    r"Name: .*?, LayerType: (\w+), Inputs: \[(.*?)\], (?:Constants: \[(.*?)\], )?Outputs: \[.*?Metadata: (.*)"
)
_TENSOR = re.compile(r"Dimensions: \[([-\d,]*)\].*?Datatype: (\w+)")
_KERNELS = ("correlation", "fully_connected", "gemm", "deconvolution")


def _layers(log: Path) -> list[tuple[str, str, str, str]]:
    text = log.read_text(encoding="utf-8")
    return _LAYER.findall(text[text.index("Layers:") :])


def kernels(log: Path) -> dict[str, str]:
    """ONNX node -> type of the first input ("Int8", "Float") of the convolution or matrix product that it
    became.
    """
    return {
        name: _TENSOR.findall(inputs)[0][1]
        for kind, inputs, _, metadata in _layers(log)
        if kind in _KERNELS
        for name in re.findall(r"\[ONNX Layer: (.*?)\]", metadata)
    }


def stored(log: Path, datatype: str) -> set[int]:
    """Numbers of elements of the constants of that type ("Int8", "Int4", "Float") in the engine."""
    tensors = [tensor for _, _, constants, _ in _layers(log) for tensor in _TENSOR.findall(constants)]
    return {math.prod(map(int, dims.split(","))) for dims, kind in tensors if kind == datatype}


def weight_bytes(log: Path) -> int:
    return int(re.search(r"Total Weights Memory: (\d+) bytes", log.read_text(encoding="utf-8"))[1])
