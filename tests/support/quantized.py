"""A small convolutional network in Lathe's canonical forms, for tests of lowerings and targets, and when
two models are the same.
"""

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.lowering import find_lowering
from onnx_lathe.placement import CANONICAL, Placement
from onnx_lathe.runtime.running import ort

FLOAT_TOLERANCE = 5e-6
"""ONNX Runtime fuses and folds the two graphs differently; without its optimizations they are equal to the
bit.
"""
IMAGES = {"image": np.random.default_rng(0).random((4, 1, 28, 28), np.float32)}


def model(nodes, inputs, outputs, constants, opset: int = 21) -> onnx.ModelProto:
    """`inputs` and `outputs` map a name to a shape, or to (shape, element type); `constants` map a name to
    an array.
    """

    def values(table):
        pairs = [
            (name, spec if isinstance(spec, tuple) else (spec, TensorProto.FLOAT))
            for name, spec in table.items()
        ]
        return [helper.make_tensor_value_info(name, kind, shape) for name, (shape, kind) in pairs]

    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "net", values(inputs), values(outputs), stored)
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10 if opset >= 21 else 8
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def lenet(opset: int = 21, codebook: bool = True, int8: bool = True) -> onnx.ModelProto:
    """image [batch, 1, 28, 28] -> conv1 -> conv2 -> fc -> logits [batch, 10]; weights w1 [8,1,3,3], w2
    [8,8,3,3], w3 [10,392].
    """
    net = _Net(opset, codebook, int8)
    shapes = {"w1": (8, 1, 3, 3), "w2": (8, 8, 3, 3), "w3": (10, 392)}
    weights = {name: net.weight(name, shape) for name, shape in shapes.items()}
    net.constants |= {
        "b1": np.linspace(-0.1, 0.1, 8, dtype=np.float32),
        "flat_shape": np.array([0, -1], np.int64),
    }
    net.add("Conv", [net.activation("image", 1.0), weights["w1"], "b1"], "c1", "conv1", pads=[1, 1, 1, 1])
    net.add("Relu", ["c1"], "r1", "relu1")
    net.add("MaxPool", ["r1"], "p1", "pool1", kernel_shape=[2, 2], strides=[2, 2])
    net.add("Conv", [net.activation("p1", 3.0), weights["w2"]], "c2", "conv2", pads=[1, 1, 1, 1])
    net.add("Relu", ["c2"], "r2", "relu2")
    net.add("MaxPool", ["r2"], "p2", "pool2", kernel_shape=[2, 2], strides=[2, 2])
    net.add("Reshape", ["p2", "flat_shape"], "flat", "flatten")
    net.add("Gemm", [net.activation("flat", 6.0), weights["w3"]], "logits", "fc", transB=1)
    return model(net.nodes, {"image": ["batch", 1, 28, 28]}, {"logits": ["batch", 10]}, net.constants, opset)


class _Net:
    def __init__(self, opset: int, codebook: bool, int8: bool) -> None:
        self.opset, self.codebook, self.int8 = opset, codebook, int8
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(7)

    def add(self, op: str, inputs: list[str], output: str, name: str, **attributes) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name, **attributes))
        return output

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        table = np.sort(self.random.normal(0, 0.3, 16)).astype(np.float32)
        indices = self.random.integers(0, 16, shape)
        values = table[indices]
        if self.codebook:
            kind = ml_dtypes.uint4 if self.opset >= 21 else np.uint8
            self.constants |= {f"{name}_codebook": table, f"{name}_indices": indices.astype(kind)}
            self.add("Cast", [f"{name}_indices"], f"{name}_index", f"{name}_cast", to=TensorProto.INT32)
            self.add("Gather", [f"{name}_codebook", f"{name}_index"], name, f"{name}_gather", axis=0)
        if not self.int8:
            self.constants |= {} if self.codebook else {name: values}
            return name
        rest = tuple(range(1, values.ndim))
        scale = (np.abs(values).max(axis=rest) / 127).astype(np.float32)
        self.constants |= {f"{name}_scale": scale, f"{name}_zero": np.zeros(scale.shape, np.int8)}
        if self.codebook:
            self.add(
                "QuantizeLinear", [name, f"{name}_scale", f"{name}_zero"], f"{name}_q", f"{name}_Q", axis=0
            )
        else:
            self.constants[f"{name}_q"] = np.round(values / np.expand_dims(scale, rest)).astype(np.int8)
        decoded = f"{name}_dequantized" if self.codebook else name
        return self.add(
            "DequantizeLinear", [f"{name}_q", f"{name}_scale", f"{name}_zero"], decoded, f"{name}_DQ", axis=0
        )

    def activation(self, name: str, largest: float) -> str:
        if not self.int8:
            return name
        self.constants |= {
            f"{name}_scale": np.array(largest / 127, np.float32),
            f"{name}_zero": np.array(0, np.int8),
        }
        self.add("QuantizeLinear", [name, f"{name}_scale", f"{name}_zero"], f"{name}_q", f"{name}_Q")
        return self.add(
            "DequantizeLinear", [f"{name}_q", f"{name}_scale", f"{name}_zero"], f"{name}_dq", f"{name}_DQ"
        )


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], optimized: bool = False) -> list[np.ndarray]:
    """Outputs in order. The session adds products of INT8 exactly, on processors without VNNI too."""
    return ort.session(model, threads=1, optimized=optimized).run(None, feeds)


def assert_equal(before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    for expected, found in zip(run(before, feeds), run(after, feeds), strict=True):
        np.testing.assert_array_equal(found, expected)


def assert_same(before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    assert_equal(before, after, feeds)
    for expected, found in zip(run(before, feeds, True), run(after, feeds, True), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT_TOLERANCE * np.abs(expected).max())


def lower(
    model: onnx.ModelProto, lowering: str = "tensorrt", placement: Placement = CANONICAL, **options
) -> tuple[onnx.ModelProto, PassReport]:
    graph = import_model(model)
    report = configure(find_lowering(lowering), options).apply(graph, Context(placement=placement))
    lowered = export_model(graph)
    onnx.checker.check_model(lowered, full_check=True)
    return lowered, report


def stored(model: onnx.ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)
