"""LSTM, GRU and RNN as ncnn's layers, against ONNX Runtime."""

from collections.abc import Mapping

import numpy as np
import onnx
import pytest

from tests.support.builders import build, random
from tests.support.ncnn import agree, refusals, types

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ALL = "y, h, c"


def layer(
    op: str,
    direction: str = "forward",
    *,
    inputs: int = 5,
    units: int = 6,
    steps: int | str = 7,
    given: Mapping[str, np.ndarray] = {},
    attributes: str = "",
    outputs: str | None = None,
) -> onnx.ModelProto:
    """A model of one layer. `given`: of the optional inputs B, lengths, h0, c0 and P, those that are there."""
    count, rows = 1 + (direction == "bidirectional"), GATES[op] * units
    state = f"float[{count}, 1, {units}]"
    read = (
        ["x", "w", "r", *(name if name in given else '""' for name in ("b", "lengths", "h0", "c0", "p"))]
        if given
        else ["x", "w", "r"]
    )
    names = outputs or ("y, h, c" if op == "LSTM" else "y, h")
    types_of = {"y": f"float[{steps}, {count}, 1, {units}]", "h": state, "c": state}
    declared = ", ".join(f"{types_of[name]} {name}" for name in names.split(", ") if name in types_of)
    if op != "LSTM":
        read = read[:6]
    while read[-1] == '""':
        read.pop()
    extra = "linear_before_reset = 1, " if op == "GRU" and "linear_before_reset" not in attributes else ""
    text = f"""(float[{steps}, 1, {inputs}] x) => ({declared}) {{
        [layer] {names} = {op} <{extra}hidden_size = {units}, direction = "{direction}"{attributes}> ({", ".join(read)})
    }}"""
    return build(
        text,
        w=random(count, rows, inputs),
        r=random(count, rows, units) * np.float32(0.5),
        **given,
    )


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("units", [1, 3, 4, 8, 17])
def test_layers(op: str, direction: str, units: int) -> None:
    count = 1 + (direction == "bidirectional")
    bias = random(count, 2 * GATES[op] * units)
    assert op in types(agree(layer(op, direction, units=units, given={"b": bias})))
    agree(layer(op, direction, units=units, inputs=16))


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_first_states(op: str, direction: str) -> None:
    count = 1 + (direction == "bidirectional")
    hidden, cell = random(count, 1, 6), random(count, 1, 6)
    agree(layer(op, direction, given={"h0": hidden}))
    zero = np.zeros_like(hidden)
    assert "MemoryData" not in types(agree(layer(op, direction, given={"h0": zero})))
    if op == "LSTM":
        agree(layer(op, direction, given={"h0": hidden, "c0": cell}))
        agree(layer(op, direction, given={"c0": cell}))


def test_first_states_that_are_inputs() -> None:
    for count, direction in ((1, "forward"), (2, "bidirectional")):
        text = f"""(float[7, 1, 5] x, float[{count}, 1, 6] h0, float[{count}, 1, 6] c0) => (
            float[7, {count}, 1, 6] y, float[{count}, 1, 6] h, float[{count}, 1, 6] c
        ) {{ y, h, c = LSTM <hidden_size = 6, direction = "{direction}"> (x, w, r, "", "", h0, c0) }}"""
        agree(build(text, w=random(count, 24, 5), r=random(count, 24, 6)))


@pytest.mark.parametrize("outputs", ["y", "y, h", '"", h', '"", "", c'])
def test_outputs_may_be_left_out(outputs: str) -> None:
    for direction in ("forward", "bidirectional"):
        agree(layer("LSTM", direction, outputs=outputs))


@pytest.mark.parametrize("op", GATES)
def test_the_number_of_steps_may_be_open(op: str) -> None:
    for direction in ("forward", "bidirectional"):
        agree(layer(op, direction, steps="T"), {"x": (7, 1, 5)}, {"x": (1, 1, 5)})


def test_lengths_and_peepholes_that_change_nothing() -> None:
    agree(layer("LSTM", given={"lengths": np.array([7], np.int32), "p": np.zeros((1, 18), np.float32)}))


@pytest.mark.parametrize(
    "op, given, attributes, reason",
    [
        ("LSTM", {"lengths": np.array([5], np.int32)}, "", "not known to have all 7 steps"),
        ("LSTM", {"p": np.ones((1, 18), np.float32)}, "", "peepholes"),
        ("LSTM", {}, ', activations = ["Sigmoid", "Relu", "Tanh"]', "activations are sigmoid, relu, tanh"),
        ("RNN", {}, ', activations = ["Relu"]', "activations are relu"),
        ("GRU", {}, ", linear_before_reset = 0", "linear_before_reset is 0"),
        ("LSTM", {}, ", clip = 1.0", "clip"),
        ("LSTM", {}, ", input_forget = 1", "input_forget"),
    ],
)
def test_what_ncnn_computes_otherwise_is_refused(
    op: str, given: Mapping[str, np.ndarray], attributes: str, reason: str
) -> None:
    ((node, _, found),) = refusals(layer(op, given=given, attributes=attributes))
    assert node == "layer"
    assert reason in found


def test_several_sequences_are_refused() -> None:
    text = "(float[7, 3, 5] x) => (float[7, 1, 3, 6] y) { [layer] y = RNN <hidden_size = 6> (x, w, r) }"
    ((_, _, reason),) = refusals(build(text, w=random(1, 6, 5), r=random(1, 6, 6)))
    assert reason == "it takes several sequences at once"


def test_default_activations_by_name() -> None:
    names = ', activations = ["sigmoid", "Tanh", "tanh", "Sigmoid", "Tanh", "Tanh"]'
    agree(layer("LSTM", "bidirectional", attributes=names))


def test_weights_in_float16() -> None:
    agree(layer("LSTM", given={"b": random(1, 48)}), half_weights=True, tolerance=5e-3)
