"""Recurrent layers: cases of the operators, and models that hold one."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.operator_case import Case, floats

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, INPUTS, UNITS = 5, 3, 4, 6


def parameters(op: str, directions: int, inputs: int = INPUTS, units: int = UNITS) -> list[np.ndarray]:
    """W, R and B."""
    rows = GATES[op] * units
    return [
        floats(directions, rows, inputs, seed=1),
        floats(directions, rows, units, seed=2) * np.float32(0.5),
        floats(directions, 2 * rows, seed=3),
    ]


def recurrent_case(
    op: str, direction: str = "forward", lengths: list[int] | None = None, initial: bool = False,
    biased: bool = True, **attributes: Any,
) -> Case:  # fmt: skip
    directions = 1 + (direction == "bidirectional")
    w, r, b = parameters(op, directions)
    states, shape, batch_first = 1 + (op == "LSTM"), (directions, BATCH, UNITS), attributes.get("layout", 0)
    if batch_first:
        shape = (BATCH, directions, UNITS)
    start = [floats(*shape, seed=4 + index) for index in range(states)] if initial else []
    constants = [
        w,
        r,
        b if biased else None,
        None if lengths is None else np.array(lengths, np.int32),
        *start,
    ]
    while constants[-1] is None:
        constants.pop()
    x = floats(*((BATCH, STEPS) if batch_first else (STEPS, BATCH)), INPUTS)
    given = {"hidden_size": UNITS, "direction": direction} | attributes
    return Case(op, [x], constants, given, outputs=1 + states, opset=14, reference=bool(batch_first))


def recurrent_cases() -> Iterator[Case]:
    for op in GATES:
        variants: list[dict[str, Any]] = [{"linear_before_reset": 1}, {}] if op == "GRU" else [{}]
        for variant in variants:
            for direction in ("forward", "reverse", "bidirectional"):
                yield recurrent_case(op, direction, **variant)
                yield recurrent_case(op, direction, [3, 5, 1], initial=True, **variant)
            yield recurrent_case(op, biased=False, initial=True, **variant)
            yield recurrent_case(op, layout=1, initial=True, **variant)
    yield recurrent_case("RNN", "bidirectional", activations=["Relu", "Relu"])
    yield recurrent_case("LSTM", activations=["sigmoid", "Tanh", "tanh"])


def recurrent_network(
    op: str = "LSTM", direction: str = "bidirectional", units: int = 32, opset: int = 17, **attributes: Any
) -> onnx.ModelProto:
    """x [batch, steps, 16] -> Transpose -> recurrent layer -> last hidden state -> Gemm -> 5 logits."""
    directions = 1 + (direction == "bidirectional")
    names = [f"recurrent.{part}" for part in ("w", "r", "b")]
    scale = np.float32(0.25)
    stored = [
        numpy_helper.from_array(array * scale, name)
        for name, array in zip(names, parameters(op, directions, 16, units), strict=True)
    ]
    stored += [
        numpy_helper.from_array(floats(directions * units, 5, seed=8) * scale, "head.weight"),
        numpy_helper.from_array(floats(5, seed=9), "head.bias"),
    ]
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], "turn", perm=[1, 0, 2]),
        helper.make_node(
            op,
            ["steps", *names],
            ["", "last"],
            "recurrent",
            hidden_size=units,
            direction=direction,
            **attributes,
        ),
        helper.make_node("Transpose", ["last"], ["by_sample"], "turn_back", perm=[1, 0, 2]),
        helper.make_node("Flatten", ["by_sample"], ["features"], "flat"),
        helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["logits"], "head"),
    ]
    graph = helper.make_graph(
        nodes, "recurrent",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 7, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])], stored,
    )  # fmt: skip
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10
    )
