"""Models with bodies of If, Loop and Scan for tests."""

import numpy as np
import onnx

from onnx_lathe.passes.graph.bodies import graph_protos
from tests.support.builders import build, random

IF = """(float[N, 32] x, bool c) => (float[N, 32] y) {
    h = MatMul (x, w0)
    y = If (c) <
        then_branch = yes () => (float[N, 32] a) { s = MatMul (h, shared) a = Relu (s) },
        else_branch = no () => (float[N, 32] b) { s = MatMul (h, shared) t = MatMul (s, own) b = Sigmoid (t) }
    >
}"""
LOOP = """(float[N, 32] x) => (float[N, 32] y) {
    y = Loop (trips, yes, x) <
        body = step (int64 i, bool on, float[N, 32] h) => (bool on_out, float[N, 32] next) {
            s = MatMul (h, w)
            next = Tanh (s)
            on_out = Identity (on)
        }
    >
}"""
SCAN = """(float[5, 1, 32] x) => (float[5, 1, 32] y) {
    h, y = Scan (h0, x) <num_scan_inputs = 1,
        body = step (float[1, 32] state, float[1, 32] now) => (float[1, 32] next, float[1, 32] out) {
            s = MatMul (state, w)
            t = Add (s, now)
            next = Tanh (t)
            out = Identity (next)
        }
    >
}"""


def weight(*shape: int) -> np.ndarray:
    return np.float32(0.1) * random(*shape)


def branches(opset: int = 17) -> onnx.ModelProto:
    """Both branches of an If read `shared` of the graph around; the second stores `own` itself."""
    model = build(IF, opset, w0=weight(32, 32), shared=weight(32, 32), own=weight(32, 32))
    main = model.graph.initializer
    body = next(graph for graph in graph_protos(model.graph) if graph.name == "no")
    body.initializer.append(main.pop())
    onnx.checker.check_model(model)
    return model


def loop(opset: int = 17, trips: int = 7) -> onnx.ModelProto:
    """A Loop whose body stores its weight itself."""
    model = build(LOOP, opset, trips=np.array(trips), yes=np.array(True), w=weight(32, 32))
    graph_protos(model.graph)[1].initializer.append(model.graph.initializer.pop())
    onnx.checker.check_model(model)
    return model


def scan(opset: int = 17) -> onnx.ModelProto:
    """A Scan over five steps whose body reads the weight of the graph around."""
    return build(SCAN, opset, h0=np.zeros((1, 32), np.float32), w=weight(32, 32))


def feeds(model: onnx.ModelProto, condition: bool = True) -> dict[str, np.ndarray]:
    """Random input of four samples."""
    shape = [dim.dim_value or 4 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    given: dict[str, np.ndarray] = {"x": random(*shape)}
    return given | ({"c": np.array(condition)} if len(model.graph.input) > 1 else {})


def stored(model: onnx.ModelProto) -> list[list[str]]:
    """Names of the initializers of the main graph and of each body."""
    return [sorted(tensor.name for tensor in graph.initializer) for graph in graph_protos(model.graph)]
