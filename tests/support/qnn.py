"""Small networks for the target `qnn`: in float, and with every tensor stored in 8 bits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHAPE = (3, 16, 16)
IMAGES = {"x": np.random.default_rng(1).standard_normal((5, *SHAPE)).astype(np.float32)}


class _Net:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(0)

    def add(self, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def pair(self, source: str, low: float, high: float) -> str:
        scale = np.float32((high - low) / 255)
        self.constants[f"{source}_scale"] = np.array(scale)
        self.constants[f"{source}_zero"] = np.array(round(-128 - low / scale)).astype(np.int8)
        given = [f"{source}_scale", f"{source}_zero"]
        codes = self.add("QuantizeLinear", [source, *given], f"{source}_Q")
        return self.add("DequantizeLinear", [codes, *given], f"{source}_DQ")

    def conv(self, source: str, name: str, read: int, written: int, int8: bool) -> str:
        weight = self.random.standard_normal((written, read, 3, 3)).astype(np.float32) / 5
        self.constants[f"{name}_bias"] = self.random.standard_normal(written).astype(np.float32)
        if int8:
            scale = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
            self.constants[f"{name}_levels"] = np.rint(weight / scale[:, None, None, None]).astype(np.int8)
            self.constants[f"{name}_scale"] = scale
            decoded = self.add(
                "DequantizeLinear", [f"{name}_levels", f"{name}_scale"], f"{name}_weight_DQ", axis=0
            )
        else:
            decoded = f"{name}_weight"
            self.constants[decoded] = weight
        return self.add("Conv", [source, decoded, f"{name}_bias"], name, pads=[1] * 4)

    def model(self, result: str, shape: Sequence[int | str], batch: int | str) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [result], ["y"], "same"))
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "net",
            [value("x", TensorProto.FLOAT, [batch, *SHAPE])],
            [value("y", TensorProto.FLOAT, [batch, *shape])],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(made, full_check=True)
        return made


def residual(batch: int | str = "batch", int8: bool = True, sum_of_floats: bool = False) -> onnx.ModelProto:
    """x [batch, 3, 16, 16] -> conv1 -> ReLU -> conv2 -> + -> mean -> y [batch, 8, 1, 1]. `sum_of_floats`: what conv2
    writes goes into the sum as it is, without the pair that QNN wants.
    """
    net = _Net()
    keep = net.pair if int8 else lambda source, low, high: source
    first = net.conv(keep("x", -3, 3), "conv1", SHAPE[0], 8, int8)
    left = keep(net.add("Relu", [first], "relu1"), 0, 4)
    right = net.conv(left, "conv2", 8, 8, int8)
    if not sum_of_floats:
        right = keep(right, -4, 4)
    total = keep(net.add("Add", [right, left], "sum"), -4, 8)
    return net.model(keep(net.add("GlobalAveragePool", [total], "mean"), -2, 2), (8, 1, 1), batch)


def with_erf() -> onnx.ModelProto:
    """x -> conv1 -> Erf -> y, in float: HTP has no Erf."""
    net = _Net()
    return net.model(net.add("Erf", [net.conv("x", "conv1", 3, 8, False)], "erf1"), (8, 16, 16), "batch")
