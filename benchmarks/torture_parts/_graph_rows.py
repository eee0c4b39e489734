"""The parts of random networks that take [batch, size], as _graph_blocks.py has those of pictures; and the next part of any."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from torture_parts._graph_blocks import (
    PICTURES,
    Parts,
    activation,
    concatenation,
    normalization,
    residual,
    scaled,
    shared,
    split,
    through_double,
    turned,
)
from torture_parts._graphs import Builder, Value


def grow(build: Builder, value: Value) -> Value:
    """One more part, of those that take a value of this rank."""
    known = PICTURES if len(value.shape) == 4 else ROWS
    names = list(known)
    shares = np.array([known[name][0] for name in names])
    name = names[int(build.random.choice(len(names), p=shares / shares.sum()))]
    made = known[name][1](build, value)
    if made is not value:
        build.parts.add(name)
    return made


def dense(build: Builder, value: Value) -> Value:
    out = int(build.random.integers(1, 33))
    shape, size = (value.shape[0], out), value.shape[1]
    if build.chance(0.5):
        turn = build.pick(0, 1)
        inputs = [value.name, shared(build, (out, size) if turn else (size, out))]
        if build.opset < 11 or build.chance(0.8):
            inputs.append(build.weight(out, scale=0.3))
        return build.one(
            "Gemm", inputs, shape, transB=turn, alpha=build.pick(1.0, 1.0, 0.5), beta=build.pick(1.0, 2.0)
        )
    product = build.one("MatMul", [value.name, build.weight(size, out, scale=1 / np.sqrt(size))], shape)
    return (
        build.one("Add", [product.name, build.weight(out, scale=0.3)], shape)
        if build.chance(0.7)
        else product
    )


def layer_normalization(build: Builder, value: Value) -> Value:
    size = value.shape[1]
    if size < 3:
        return activation(build, value)
    affine = build.positive(size), build.weight(size, scale=0.2)
    if build.opset >= 17 and build.chance(0.5):
        return build.one("LayerNormalization", [value.name, *affine], value.shape)

    def mean(of: str) -> str:
        if build.opset < 18:
            return build.node("ReduceMean", [of], axes=[1], keepdims=1)[0]
        return build.node("ReduceMean", [of, build.whole(1)], keepdims=1)[0]

    centred = build.node("Sub", [value.name, mean(value.name)])[0]
    variance = mean(build.node("Mul", [centred, centred])[0])
    root = build.node("Sqrt", [build.node("Add", [variance, build.stored(np.float32(1e-3))])[0]])[0]
    normal = build.node("Div", [centred, root])[0]
    return build.one("Add", [build.node("Mul", [normal, affine[0]])[0], affine[1]], value.shape)


def recurrent(build: Builder, value: Value) -> Value:
    """Rows are cut into steps."""
    batch, size = value.shape
    steps = next((steps for steps in (4, 3, 2) if size % steps == 0), 1)
    inside = size // steps
    rows = build.node("Reshape", [value.name, build.whole(-1, steps, inside)])[0]
    turned_rows = build.node("Transpose", [rows], perm=[1, 0, 2])[0]
    op, hidden = build.pick("LSTM", "GRU", "RNN"), int(build.random.integers(2, 8))
    gates, way = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], build.pick("forward", "reverse", "bidirectional")
    ways = 2 if way == "bidirectional" else 1
    inputs = [
        turned_rows,
        build.weight(ways, gates * hidden, inside),
        build.weight(ways, gates * hidden, hidden, scale=0.3),
    ]
    if build.chance(0.6):
        inputs.append(build.weight(ways, 2 * gates * hidden, scale=0.2))
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": way}
    if op == "GRU" and build.chance(0.5):
        attributes["linear_before_reset"] = 1
    all_steps, last = build.node(op, inputs, 2, **attributes)
    shape = (batch, ways * hidden)
    if build.chance(0.5):
        front = build.node("Transpose", [last], perm=[1, 0, 2])[0]
        return build.one("Reshape", [front, build.whole(-1, shape[1])], shape)
    front = build.node("Transpose", [all_steps], perm=[2, 0, 1, 3])[0]
    return build.one("Reshape", [front, build.whole(-1, steps * shape[1])], (batch, steps * shape[1]))


def _body_outputs(name: str, shape: tuple[int, ...]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * len(shape))]


def branch(build: Builder, value: Value) -> Value:
    """An If that the values decide, or an input of its own; its bodies read what is outside."""
    size = value.shape[1]
    if len(value.shape) != 2 or size > 40:
        return activation(build, value)
    if "flag" not in build.feeds and build.chance(0.4):
        build.inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
        build.feeds["flag"] = np.array(build.chance(0.5))
        condition = "flag"
    elif "flag" in build.feeds:
        condition = "flag"
    else:
        total = build.node("ReduceMax", [value.name], keepdims=0)[0]
        condition = build.node("Greater", [total, build.stored(np.float32(0.5))])[0]
    one, two = build.name("then"), build.name("else")
    inner = build.name("inner")
    weight = (build.random.integers(-32, 33, (size, size)) / 16 / np.sqrt(size)).astype(np.float32)
    product = build.name("product")
    own = numpy_helper.from_array(weight, inner)
    stored = [own] if build.opset >= 9 and build.chance(0.7) else []
    first = helper.make_graph(
        [
            *([] if stored else [helper.make_node("Constant", [], [inner], build.name("Constant"), value=own)]),
            helper.make_node("MatMul", [value.name, inner], [product], build.name("MatMul")),
            helper.make_node("Relu", [product], [one], build.name("Relu")),
        ],
        "then", [], _body_outputs(one, value.shape), stored,
    )  # fmt: skip
    outer = build.weight(size, scale=0.4)
    second = helper.make_graph(
        [helper.make_node("Mul", [value.name, outer], [two], build.name("Mul"))],
        "else", [], _body_outputs(two, value.shape),
    )  # fmt: skip
    return build.one("If", [condition], value.shape, then_branch=first, else_branch=second)


def loop(build: Builder, value: Value) -> Value:
    size = value.shape[1]
    if len(value.shape) != 2 or size > 40:
        return activation(build, value)
    names = {part: build.name(part) for part in ("step", "going", "carried", "still", "product", "next")}
    weight = build.weight(size, size, scale=1 / np.sqrt(size))
    body = helper.make_graph(
        [
            helper.make_node("Identity", [names["going"]], [names["still"]], build.name("Identity")),
            helper.make_node("MatMul", [names["carried"], weight], [names["product"]], build.name("MatMul")),
            helper.make_node("Tanh", [names["product"]], [names["next"]], build.name("Tanh")),
        ],
        "body",
        [
            helper.make_tensor_value_info(names["step"], TensorProto.INT64, []),
            helper.make_tensor_value_info(names["going"], TensorProto.BOOL, []),
            helper.make_tensor_value_info(names["carried"], TensorProto.FLOAT, [None, size]),
        ],
        [
            helper.make_tensor_value_info(names["still"], TensorProto.BOOL, []),
            helper.make_tensor_value_info(names["next"], TensorProto.FLOAT, [None, size]),
        ],
    )
    times = build.stored(np.int64(build.pick(1, 2, 3)), "i")
    return build.one("Loop", [times, build.stored(np.array(True), "b"), value.name], value.shape, body=body)


def function(build: Builder, value: Value) -> Value:
    """A function of the model's own, called once or twice."""
    size = value.shape[1]
    if build.opset < 13 or len(value.shape) != 2:
        return activation(build, value)
    if not build.functions:
        nodes = [
            helper.make_node("MatMul", ["a", "b"], ["m"]),
            helper.make_node("LeakyRelu", ["m"], ["c"], alpha=0.1),
        ]
        build.functions.append(
            helper.make_function(
                "own", "block", ["a", "b"], ["c"], nodes, [helper.make_opsetid("", build.opset)]
            )
        )
    out = int(build.random.integers(2, 17))
    weight = build.weight(size, out, scale=1 / np.sqrt(size))
    return build.one("block", [value.name, weight], (value.shape[0], out), domain="own")


def softmax(build: Builder, value: Value) -> Value:
    return build.one(build.pick("Softmax", "LogSoftmax"), [value.name], value.shape, axis=1)


def choice(build: Builder, value: Value) -> Value:
    """The place of the largest value, an output of integers."""
    keep = build.pick(0, 1)
    place = build.node("ArgMax", [value.name], axis=1, keepdims=keep)[0]
    build.integers.append(Value(place, (value.shape[0], 1)[: 1 + keep]))
    return activation(build, value)


ROWS: Parts = {
    "dense": (6, dense),
    "normalization": (1, normalization),
    "activation": (3, activation),
    "residual": (2, residual),
    "concatenation": (1, concatenation),
    "split": (0.8, split),
    "scaled": (1, scaled),
    "layer normalization": (1, layer_normalization),
    "recurrent": (1.2, recurrent),
    "if": (1.2, branch),
    "loop": (0.8, loop),
    "function": (1.2, function),
    "softmax": (0.7, softmax),
    "integer output": (0.7, choice),
    "turned": (0.5, turned),
    "through double": (0.2, through_double),
}
"""Share, and what makes it."""
