"""Which layers ONNX Runtime computes in INT8: read from the graph that it makes of the model, by node name."""

import re
import tempfile
from pathlib import Path

import onnx

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.settings import PORTABLE
from onnx_lathe.runtime.targets.core.base import NOT_QUANTIZED, LayerVerdict, layers_of

INTEGER = (
    "QLinearConv",
    "QGemm",
    "QLinearMatMul",
    "MatMulIntegerToFloat",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeMatMul",
)
"""ONNX Runtime's kernels of layers that compute on integers."""

_MARK = re.compile(r"^@(\d+)@")


def verdicts(model: onnx.ModelProto) -> list[LayerVerdict]:
    """One per layer of the main graph, in graph order.

    The model is loaded, but not run, with a mark in the name of each layer: fusions keep the beginning of
    the name. Raises ModelError if ONNX Runtime cannot load the model.
    """
    layers = layers_of(model)
    if not layers:
        return []
    names = {index: node.name for index, node in layers.items()}
    try:
        for index, node in layers.items():
            node.name = f"@{index}@"
        kernels = _kernels(model)
    finally:
        for index, node in layers.items():
            node.name = names[index]
    reader = _Reader(model.graph)
    found = []
    for index, node in layers.items():
        name = node.name or f"{node.op_type}_{index}"
        int8 = bool(kernels.get(index)) and all(op in INTEGER for op in kernels[index])
        found.append(LayerVerdict(name, node.op_type, int8, "" if int8 else reader.reason(node)))
    return found


def _kernels(model: onnx.ModelProto) -> dict[int, set[str]]:
    """Index of a layer -> operators that ONNX Runtime computes it with."""
    with tempfile.TemporaryDirectory(prefix="lathe-") as scratch:
        source, written = Path(scratch) / "model.onnx", Path(scratch) / "optimized.onnx"
        model_file.save(model, source)
        try:
            ort.write_optimized(source, written, PORTABLE)
        except ModelError as error:
            raise type(error)(str(error).replace(str(source), "the model")) from error
        optimized = onnx.load(written)
    kernels: dict[int, set[str]] = {}
    for node in optimized.graph.node:
        if mark := _MARK.match(node.name):
            kernels.setdefault(int(mark[1]), set()).add(node.op_type)
    return kernels


class _Reader:
    """Why a layer is not computed in INT8, from the Q/DQ nodes around it."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.producers = {name: node for node in graph.node for name in node.output}
        self.outputs = {value.name for value in graph.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def reason(self, node: onnx.NodeProto) -> str:
        source, weight = (self._is_dequantized(name) for name in node.input[:2])
        if not (source or weight):
            return NOT_QUANTIZED
        if not source or not weight:
            return f"only its {'weight' if weight else 'input'} is quantized"
        result = node.output[0]
        if result in self.outputs:
            return "its result is an output of the model, and not quantized"
        others = sorted(
            {reader.op_type for reader in self.readers.get(result, []) if reader.op_type != "QuantizeLinear"}
        )
        if others:
            return f"its result is read by {', '.join(others)} before it is quantized"
        return "ONNX Runtime has no INT8 kernel for this form of it"

    def _is_dequantized(self, name: str) -> bool:
        return name in self.producers and self.producers[name].op_type == "DequantizeLinear"


def is_quantized(verdict: LayerVerdict) -> bool:
    return verdict.int8 or verdict.reason != NOT_QUANTIZED
