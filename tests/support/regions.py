"""A network of two regions that ort computes on integers, and which of its nodes a lowered model has there."""

import numpy as np
import onnx

LAYERS = ("one", "two", "three", "head")
X = np.random.default_rng(5).standard_normal((6, 8, 6, 6)).astype(np.float32)


def network() -> onnx.ModelProto:
    """Two convolutions with an addition between them, a softmax, and one more: two regions for ort."""
    rng = np.random.default_rng(0)
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 8, 6, 6] x) => (float[N, 4] y) {
        [one] a = Conv <pads = [1, 1, 1, 1]> (x, w1)
        [two] b = Conv <pads = [1, 1, 1, 1]> (a, w2)
        [sum] c = Add (a, b)
        [soft] s = Softmax <axis = 1> (c)
        [three] t = Conv <pads = [1, 1, 1, 1]> (s, w3)
        [pool] p = GlobalAveragePool (t)
        [flat] f = Flatten (p)
        [head] y = Gemm (f, wh)
    }"""
    model = onnx.parser.parse_model(text)
    for name in ("w1", "w2", "w3", "wh"):
        values = (0.2 * rng.standard_normal((8, 4) if name == "wh" else (8, 8, 3, 3))).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model


def on_integers(model: onnx.ModelProto) -> set[str]:
    """Nodes all of whose values, weights included, come from a DequantizeLinear."""
    decoded = {
        name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    return {
        node.name
        for node in model.graph.node
        if node.op_type != "QuantizeLinear" and node.input and decoded.issuperset(node.input[:2])
    }
