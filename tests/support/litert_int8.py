"""One operator between Q/DQ pairs, as the lowering for phones writes it."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.litert.running import XNNPACK, Opened
from onnx_lathe.runtime.targets.litert.sizing import Fitted
from onnx_lathe.runtime.targets.litert.stepwise import Steps, steps_by_operator
from tests.support.builders import build, random
from tests.support.litert import content, written

SCALE, ZERO = 0.0512347, -7
"""No round number: with those, values fall in the middle between two levels, which ONNX rounds to even."""


def parameters(
    prefix: str, scale: float = SCALE, zero: int = ZERO, kind: type = np.int8
) -> dict[str, np.ndarray]:
    return {f"{prefix}_scale": np.array(scale, np.float32), f"{prefix}_zero": np.array(zero, kind)}


def weight(*shape: int, axis: int = 0, bits: int = 8) -> dict[str, np.ndarray]:
    """`w`, with a scale for each channel, which `w_q` is multiplied by."""
    values = random(*shape)
    others = tuple(one for one in range(values.ndim) if one != axis)
    most = 2 ** (bits - 1) - 1
    scales = (np.abs(values).max(axis=others) / most).astype(np.float32)
    wide = scales.reshape([-1 if one == axis else 1 for one in range(values.ndim)])
    return {"w_q": np.rint(values / wide).astype(np.int8), "w_scale": scales}


def stored_bias(weights: Mapping[str, np.ndarray], scale: float = SCALE) -> dict[str, np.ndarray]:
    scales = (np.float32(scale) * weights["w_scale"]).astype(np.float32)
    return {"b_q": np.rint(random(scales.size) / scales).astype(np.int32), "b_scale": scales}


def pair(source: str, target: str, prefix: str) -> str:
    """Nodes: `source` stored as `target_q`, and decoded as `target`."""
    named = f"{prefix}_scale, {prefix}_zero"
    return f"{target}_q = QuantizeLinear({source}, {named}) {target} = DequantizeLinear({target}_q, {named})"


def convolution(
    attributes: str = "", shape: Sequence[int] = (5, 3, 3, 3), result: float = 0.0931, **changed: np.ndarray
) -> onnx.ModelProto:
    """Stored image -> Conv with stored weight and bias -> stored result. `changed`: initializers in place of others."""
    weights = weight(*shape)
    given = {**parameters("x"), **weights, **stored_bias(weights), **parameters("y", result, 3), **changed}
    channels = shape[1] * (int(attributes.split("group = ")[1].split(",")[0]) if "group" in attributes else 1)
    listed = f"<{attributes}>" if attributes else ""
    return build(
        f"(float[1, {channels}, 9, 8] image) => (float[N, C, H, W] out) {{ {pair('image', 'x', 'x')}"
        " w = DequantizeLinear <axis = 0> (w_q, w_scale) b = DequantizeLinear <axis = 0> (b_q, b_scale)"
        f" [layer] c = Conv {listed} (x, w, b) {pair('c', 'y', 'y')} out = Identity(y) }}",
        **given,
    )


def operator(
    text: str, shapes: Mapping[str, str], results: Mapping[str, np.ndarray], **given: np.ndarray
) -> onnx.ModelProto:
    """`text`: nodes from the decoded inputs `x`, `z`, ... to `c`. `shapes`: of the inputs."""
    inputs = ", ".join(f"float[{shape}] {name}_float" for name, shape in shapes.items())
    pairs = " ".join(pair(f"{name}_float", name, name) for name in shapes)
    known: dict[str, np.ndarray] = {}
    for index, name in enumerate(shapes):
        known |= parameters(name, SCALE * (1 + 0.37 * index), ZERO + 3 * index)
    return build(
        f"({inputs}) => (float out) {{ {pairs} {text} {pair('c', 'y', 'y')} out = Identity(y) }}",
        **{**known, **results, **given},
    )


def tables(model: onnx.ModelProto, kernels: str = XNNPACK) -> tuple[dict[str, Steps], Fitted]:
    """(steps by operator, each fed LiteRT's own inputs; the network)."""
    model = without_identities(model)
    found = written(model)
    opened = Opened(content(model, found), "model.tflite", kernels=kernels, keep=True)
    feeds = {
        value.name: 2 * random(*(dim.dim_value for dim in value.type.tensor_type.shape.dim))
        for value in model.graph.input
    }
    opened.run(feeds)
    return steps_by_operator(model, found, opened, feeds), found


def worst(table: Mapping[str, Steps]) -> dict[str, int]:
    """Operator -> the largest difference in steps."""
    return {code: max(one.counts) for code, one in table.items()}


def without_identities(model: onnx.ModelProto) -> onnx.ModelProto:
    """The output is what the last DequantizeLinear writes, which the text cannot say of a shape that is not known."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    last = found.graph.node.pop()
    assert last.op_type == "Identity"
    found.graph.node[-1].output[0] = last.output[0]
    ort.session(found, optimized=False)
    return found
