"""LSTM, GRU and RNN.

    X [T, N, C]   Y [T, directions, N, H]   Y_h, Y_c [directions, N, H]

MIL's `lstm` and `rnn` write [T, N, directions * H] and the last states as [N, directions * H]; of a sequence that is
read backwards they are given the reversed one. MIL's `gru` leaves open where its reset gate applies, so a GRU is
written step by step, for a number of steps that is known.
Source: coremltools, mil/ops/defs/iOS15/recurrent.py; the ONNX operators LSTM, GRU and RNN.
"""

from typing import Any

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.coreml.dimensions import computed
from onnx_lathe.runtime.targets.coreml.network import Network
from onnx_lathe.runtime.targets.coreml.registry import operator

ORDER = {"LSTM": (0, 2, 1, 3), "GRU": (0, 1, 2), "RNN": (0,)}
"""Places of MIL's gates among ONNX's: i f o g of i o f c."""
ACTIVATIONS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
LENGTHS, FIRST_HIDDEN, FIRST_CELL, PEEPHOLES = 4, 5, 6, 7
Y, Y_H, Y_C = 0, 1, 2
MOST_STEPS = 128
"""Of a GRU: each is eleven operations."""


@operator("LSTM", "GRU", "RNN")
def recurrent(node: Node, net: Network) -> None:
    _check(node, net)
    source = net.variable(node.inputs[0])
    ways = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    backwards = ways[node.text("direction", "forward")]
    found = [_direction(node, net, source, place, back) for place, back in enumerate(backwards)]
    for place, name in enumerate(node.outputs):
        if not name:
            continue
        axis = 1 if place == Y else 0
        parts = [
            net.op("expand_dims", f"{node.name}_{place}_{number}", x=one[place], axes=[axis])
            for number, one in enumerate(found)
        ]
        if len(parts) == 1:
            net.leave(node, parts[0], place)
        else:
            net.put(node, "concat", output=place, values=parts, axis=axis)


def _check(node: Node, net: Network) -> None:
    if node.integer("layout"):
        raise Unsupported("its layout is 1, batch first")
    names = tuple(
        item.decode().lower() if isinstance(item, bytes) else str(item).lower()
        for item in node.attributes.get("activations", ())
    )
    directions = 2 if node.text("direction", "forward") == "bidirectional" else 1
    if names not in ((), ACTIVATIONS[node.op] * directions):
        raise Unsupported(
            f"its activations are {', '.join(names)}; Lathe writes {', '.join(ACTIVATIONS[node.op])}"
        )
    if "clip" in node.attributes or node.integer("input_forget"):
        raise Unsupported("it has clip or input_forget")
    if node.given(PEEPHOLES) and np.any(net.constant(node.inputs[PEEPHOLES], "weight of peepholes")):
        raise Unsupported("it has peepholes")
    if net.form.precision == "float16" and not net.form.quantizes and node.op != "GRU":
        raise Unsupported(
            "recurrent layers compute in float16 from iOS 17 on: deployment=iOS17, or precision=float32"
        )
    if node.given(LENGTHS):
        lengths = net.values(node.inputs[LENGTHS])
        steps = net.pairs(node.inputs[0])[0]
        if lengths is None or any(np.any(one != step) for one, step in zip(lengths, steps, strict=True)):
            raise Unsupported("its sequences are not known to have all steps")


def _direction(node: Node, net: Network, source: Any, place: int, back: bool) -> tuple[Any, ...]:
    """(every step [T, N, H], last state [N, H], last cell) of one direction."""
    label = f"{node.name}_{place}"
    if back:
        source = net.op("reverse", f"{label}_reversed", x=source, axes=[0])
    if node.op == "GRU":
        steps, hidden = _gru(node, net, source, place, label)
        rest: tuple[Any, ...] = ()
    else:
        inputs = {
            "x": source,
            "initial_h": _state(node, net, FIRST_HIDDEN, place, source),
            "weight_ih": _gates(node, net, 1, place),
            "weight_hh": _gates(node, net, 2, place),
            "bias": _bias(node, net, place),
            "output_sequence": True,
        }
        if node.op == "LSTM":
            inputs["initial_c"] = _state(node, net, FIRST_CELL, place, source)
        steps, hidden, *others = net.several(node.op.lower(), label, **inputs)
        rest = tuple(others)
    if back:
        steps = net.op("reverse", f"{label}_steps", x=steps, axes=[0])
    return (steps, hidden, *rest)


def _gates(node: Node, net: Network, position: int, place: int) -> Any:
    """[gates * H, inputs] in MIL's order, of one direction."""
    order = list(ORDER[node.op])

    def ordered(values: np.ndarray) -> np.ndarray:
        own = values[place]
        return own.reshape(len(order), -1, own.shape[1])[order].reshape(own.shape)

    return net.weight(node.inputs[position], move=ordered, way=f"gates {place}")


def _bias(node: Node, net: Network, place: int) -> Any:
    """[gates * H], the sum of both biases."""
    if not node.given(3):
        return None
    order = list(ORDER[node.op])
    both = net.constant(node.inputs[3], "bias").astype(np.float32)[place]
    summed = both.reshape(2, len(order), -1)[:, order].sum(axis=0)
    return net.stored(node.inputs[3], summed.reshape(-1))


def _state(node: Node, net: Network, position: int, place: int, source: Any) -> Any:
    """[N, H], zeros if none is given."""
    label = f"{node.name}_state_{position}_{place}"
    if node.given(position):
        given = net.variable(node.inputs[position])
        return net.op(
            "slice_by_index",
            label,
            x=given,
            begin=[place, 0, 0],
            end=[place + 1, 0, 0],
            begin_mask=[False, True, True],
            end_mask=[False, True, True],
            squeeze_mask=[True, False, False],
        )
    batch, units = net.pairs(node.inputs[0])[1], net.shape(node.inputs[2])[2]
    shape = computed(net, node.inputs[0], source, [batch, (units, units)], label)
    return net.op("fill", label, shape=shape, value=net.number(0.0))


def _gru(node: Node, net: Network, source: Any, place: int, label: str) -> tuple[Any, Any]:
    """z and r = sigmoid; n = tanh(Wx + b + r * (Rh + c)), or with r * h in R if linear_before_reset is 0;
    h = n + z * (h - n).
    """
    steps = net.sizes(node.inputs[0])[0]
    if steps is None or steps > MOST_STEPS:
        raise Unsupported(
            f"it runs over {steps or 'an open number of'} steps; Lathe writes up to {MOST_STEPS}, one by one"
        )
    units = net.shape(node.inputs[2])[2]
    both = np.zeros((2, 3 * units), np.float32)
    if node.given(3):
        both[:] = net.constant(node.inputs[3], "bias").astype(np.float32)[place].reshape(2, -1)
    weight, state_weight = (_gates(node, net, position, place) for position in (1, 2))
    bias, state_bias = (net.stored(f"{node.inputs[2]}_bias", one) for one in both)
    whole = net.op("linear", f"{label}_input", x=source, weight=weight, bias=bias)
    inputs = net.several("split", f"{label}_gates", x=whole, split_sizes=[units, units, units], axis=2)
    hidden = _state(node, net, FIRST_HIDDEN, place, source)
    results = []
    for step in range(steps):
        z, r, n = (
            net.op("slice_by_index", f"{label}_{step}", x=one, begin=[step, 0, 0], end=[step + 1, 0, 0],
                   begin_mask=[False, True, True], end_mask=[False, True, True], squeeze_mask=[True, False, False])
            for one in inputs
        )  # fmt: skip
        hidden = _gru_step(net, (z, r, n), hidden, (state_weight, state_bias), units, node, f"{label}_{step}")
        results.append(net.op("expand_dims", f"{label}_{step}_step", x=hidden, axes=[0]))
    return net.op("concat", f"{label}_steps", values=results, axis=0), hidden


def _gru_step(
    net: Network,
    gates: tuple[Any, Any, Any],
    hidden: Any,
    state: tuple[Any, Any],
    units: int,
    node: Node,
    label: str,
) -> Any:
    z, r, n = gates
    before = net.op("linear", f"{label}_state", x=hidden, weight=state[0], bias=state[1])
    own = net.several("split", f"{label}_parts", x=before, split_sizes=[units, units, units], axis=1)
    update = net.op("sigmoid", f"{label}_z", x=net.op("add", f"{label}_zs", x=z, y=own[0]))
    reset = net.op("sigmoid", f"{label}_r", x=net.op("add", f"{label}_rs", x=r, y=own[1]))
    if node.integer("linear_before_reset"):
        turned = net.op("mul", f"{label}_turned", x=reset, y=own[2])
    else:
        kept = net.op("mul", f"{label}_kept", x=reset, y=hidden)
        again = net.op("linear", f"{label}_again", x=kept, weight=state[0], bias=state[1])
        turned = net.several("split", f"{label}_last", x=again, split_sizes=[units, units, units], axis=1)[2]
    new = net.op("tanh", f"{label}_n", x=net.op("add", f"{label}_ns", x=n, y=turned))
    apart = net.op("sub", f"{label}_apart", x=hidden, y=new)
    return net.op("add", f"{label}_h", x=new, y=net.op("mul", f"{label}_share", x=update, y=apart))
