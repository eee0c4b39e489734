"""Small models, one of each kind that Lathe treats in a way of its own, before anything is done to them.

Weights are sixteenths, at most 65 different ones in a model, so that `codebook(bits=8)` loses nothing.
"""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

OUTSIDE = "weights.bin"
"""The file with external data of the victim `external`."""


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng([seed, *shape]).integers(-32, 33, shape) / 16).astype(np.float32)


def parsed(
    text: str, opset: int = 17, head: str = "", functions: str = "", **weights: np.ndarray
) -> ModelProto:
    """A checked model of onnx.parser's syntax, its nodes named."""
    domains = f'"": {opset}' + (', "own": 1' if functions else "")
    model = onnx.parser.parse_model(
        f"<ir_version: 10, opset_import: [{domains}] {head}> net {text} {functions}"
    )
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    model.graph.initializer.extend(stored)
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    onnx.checker.check_model(model)
    return model


def convolutional(opset: int = 17) -> ModelProto:
    ones = np.ones(8, np.float32)
    return parsed(
        """(float[N, 3, 12, 12] x) => (float[N, 10] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
        n = BatchNormalization (a, scale, bias, mean, var)
        r = Relu (n)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
        d = Conv <group = 8, kernel_shape = [3, 3]> (p, w2)
        s = Sigmoid (d)
        m = Mul (d, s)
        g = GlobalAveragePool (m)
        f = Flatten (g)
        y = Gemm <transB = 1> (f, w3, b3)
        }""",
        opset,
        w1=weight(8, 3, 3, 3),
        b1=weight(8),
        scale=ones,
        bias=weight(8, seed=1),
        mean=0 * ones,
        var=ones,
        w2=weight(8, 1, 3, 3),
        w3=weight(10, 8),
        b3=weight(10),
    )


def perceptron() -> ModelProto:
    return parsed(
        """(float[N, 24] x, float[N, 24] z) => (float[N, 6] y, float[N, 32] h) {
        s = Add (x, z)
        a = MatMul (s, w1)
        h = Relu (a)
        b = MatMul (h, w2)
        c = Add (b, b2)
        y = Softmax (c)
        }""",
        w1=weight(24, 32),
        w2=weight(32, 6),
        b2=weight(6),
    )


def branching() -> ModelProto:
    """An If whose bodies have weights of their own, read by a shared layer."""
    return parsed(
        """(bool flag, float[2, 16] x) => (float[2, 8] y) {
        c = If (flag) <
            then_branch = taken () => (float[2, 16] t) { w = Constant <value = float {0.5}> () t = Mul (x, w) },
            else_branch = other () => (float[2, 16] e) { q = MatMul (x, inner) e = Relu (q) }
        >
        y = MatMul (c, w1)
        }""",
        inner=weight(16, 16),
        w1=weight(16, 8),
    )


def functional() -> ModelProto:
    return parsed(
        """(float[N, 16] x) => (float[N, 8] y) {
        h = own.block (x, w1)
        y = own.block (h, w2)
        }""",
        functions="""<domain: "own", opset_import: ["": 17]> block (a, b) => (c) {
        m = MatMul (a, b)
        c = LeakyRelu <alpha = 0.1> (m)
        }""",
        w1=weight(16, 16),
        w2=weight(16, 8),
    )


def recurrent() -> ModelProto:
    return parsed(
        """(float[4, 2, 6] x) => (float[4, 1, 2, 8] y, float[2, 5] z) {
        y, last = GRU <hidden_size = 8> (x, w, r, b)
        axes = Constant <value_ints = [0]> ()
        h = Squeeze (last, axes)
        z = MatMul (h, out)
        }""",
        w=weight(1, 24, 6),
        r=weight(1, 24, 8),
        b=weight(1, 48),
        out=weight(8, 5),
    )


def looping() -> ModelProto:
    return parsed(
        """(int64 count, float[2, 8] x) => (float[2, 8] y) {
        go = Constant <value = bool {1}> ()
        y = Loop (count, go, x) <
            body = step (int64 i, bool going, float[2, 8] a) => (bool still, float[2, 8] b) {
                still = Identity (going)
                m = MatMul (a, w)
                b = Tanh (m)
            }
        >
        }""",
        w=weight(8, 8),
    )


def quantized() -> ModelProto:
    levels = np.random.default_rng(5).integers(-127, 128, (6, 20)).astype(np.int8)
    return parsed(
        """(float[N, 20] x) => (float[N, 6] y) {
        q = QuantizeLinear (x, s, z)
        d = DequantizeLinear (q, s, z)
        w = DequantizeLinear <axis = 0> (levels, ws)
        y = Gemm <transB = 1> (d, w, b)
        }""",
        opset=21,
        s=np.float32(0.05),
        z=np.int8(0),
        levels=levels,
        ws=np.full(6, 0.01, np.float32),
        b=weight(6),
    )


def shaping() -> ModelProto:
    """Shapes computed from shapes, strings, and a sparse constant."""
    model = parsed(
        """(float[N, 4, 6] x, string[M] words) => (float[N, K] y, string[M] said, float[3, 4] s) {
        shape = Shape (x)
        first = Gather (shape, zero)
        front = Unsqueeze (first, zero1)
        whole = Concat <axis = 0> (front, minus)
        r = Reshape (x, whole)
        y = MatMul (r, w)
        said = Identity (words)
        s = Identity (dense)
        }""",
        zero=np.int64(0),
        zero1=np.array([0]),
        minus=np.array([-1]),
        w=weight(24, 5),
        dense=weight(3, 4),
    )
    values = numpy_helper.from_array(np.ones(2, np.float32), "spare")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([1, 5])), [2, 4])
    model.graph.node.append(helper.make_node("Constant", [], ["thin"], name="thin", sparse_value=sparse))
    model.graph.initializer.append(helper.make_tensor("text", TensorProto.STRING, [2], [b"a", b"b"]))
    return model


def everything_typed() -> ModelProto:
    """Initializers of many types, kept in the fields of their own."""
    model = perceptron()
    kinds = [TensorProto.INT32, TensorProto.INT64, TensorProto.DOUBLE, TensorProto.UINT8, TensorProto.FLOAT16]
    kinds += [
        TensorProto.BFLOAT16,
        TensorProto.INT4,
        TensorProto.UINT64,
        TensorProto.BOOL,
        TensorProto.FLOAT8E4M3FN,
    ]
    for kind in kinds:
        model.graph.initializer.append(helper.make_tensor(f"kind{kind}", kind, [4], [1, 0, 1, 1]))
    shape = helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 32])
    model.graph.value_info.append(shape)
    model.metadata_props.add(key="lathe.sparse", value="w1")
    return model


def external() -> ModelProto:
    """Its weights are in OUTSIDE, which `write` puts beside it."""
    model = convolutional()
    content = b""
    for tensor in model.graph.initializer:
        data = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", OUTSIDE), ("offset", len(content)), ("length", len(data))):
            tensor.external_data.add(key=key, value=str(value))
        content += data
    model.doc_string = content.hex()
    return model


@cache
def victims() -> dict[str, bytes]:
    """The files by name."""
    makers = (convolutional, perceptron, branching, functional, recurrent, looping, quantized, shaping)
    made = {make.__name__: make() for make in (*makers, everything_typed, external)}
    made["old"] = convolutional(opset=9)
    return {name: model.SerializeToString() for name, model in made.items()}


@cache
def outside() -> bytes:
    """The content of the file OUTSIDE."""
    return bytes.fromhex(ModelProto.FromString(victims()["external"]).doc_string)


def write(folder: Path, content: bytes, name: str = "model.onnx") -> Path:
    (folder / OUTSIDE).write_bytes(outside())
    path = folder / name
    path.write_bytes(content)
    return path
