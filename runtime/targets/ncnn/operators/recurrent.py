"""LSTM, GRU and RNN over one sequence, forward, backward or both.

    X [T, 1, C]   Y [T, directions, 1, H]   Y_h, Y_c [directions, 1, H]

ncnn's layers read [T, C], and write [T, directions * H] and, if they have several tops, the last states as
[directions, H]. Their gates stand in another order, and the biases of input and state are added already but for
GRU's new gate: ncnn has that of ONNX's linear_before_reset=1 alone.
Source: ncnn, src/layer/lstm.cpp, gru.cpp and rnn.cpp.
"""

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.dialect import Stored, Value, Weight
from onnx_lathe.runtime.targets.ncnn.network import Network
from onnx_lathe.runtime.targets.ncnn.registry import operator

ORDER = {"LSTM": (0, 2, 1, 3), "GRU": (1, 0, 2), "RNN": (0,)}
"""Places of ncnn's gates among ONNX's: i f o g of i o f c, and r u n of z r h."""
ACTIVATIONS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
DIRECTIONS = {"forward": 0, "reverse": 1, "bidirectional": 2}
LENGTHS, FIRST_HIDDEN, FIRST_CELL, PEEPHOLES = 4, 5, 6, 7
Y, Y_H, Y_C = 0, 1, 2


@operator("LSTM", "GRU", "RNN")
def recurrent(node: Node, net: Network) -> None:
    _check(node, net)
    weight, state_weight = (_gates(node, net, place) for place in (1, 2))
    directions, rows, _ = state_weight.values.shape
    units = rows // len(ORDER[node.op])
    params: dict[int, Value] = {0: units, 1: weight.values.size}
    params[2] = DIRECTIONS[node.text("direction", "forward")]
    if node.op == "LSTM":
        params[3] = units
    stored = (weight, Stored(_bias(node, net, directions, units)), state_weight)
    weights = [Weight(one.moved(lambda values: values.reshape(-1)), tagged=True) for one in stored]
    bottoms = [net.form(node.inputs[0], (0, 2)).name, *_states(node, net, directions, units)]
    _put(node, net, bottoms, params, weights, (directions, units))


def _check(node: Node, net: Network) -> None:
    sizes = net.sizes(node.inputs[0])
    steps = sizes[0]
    if node.integer("layout"):
        raise Unsupported("its layout is 1, batch first")
    if sizes[1] != 1:
        raise Unsupported("it takes several sequences at once")
    names = tuple(
        item.decode().lower() if isinstance(item, bytes) else str(item).lower()
        for item in node.attributes.get("activations", ())
    )
    directions = 2 if node.text("direction", "forward") == "bidirectional" else 1
    if names not in ((), ACTIVATIONS[node.op] * directions):
        raise Unsupported(
            f"its activations are {', '.join(names)}; ncnn has {', '.join(ACTIVATIONS[node.op])}"
        )
    if "clip" in node.attributes or node.integer("input_forget"):
        raise Unsupported("it has clip or input_forget, which ncnn lacks")
    if node.op == "GRU" and not node.integer("linear_before_reset"):
        raise Unsupported("its linear_before_reset is 0; ncnn computes with 1")
    if node.given(PEEPHOLES) and np.any(net.constant(node.inputs[PEEPHOLES], "weight of peepholes")):
        raise Unsupported("it has peepholes")
    if node.given(LENGTHS):
        lengths = net.values(node.inputs[LENGTHS])
        whole = tuple(shapes[node.inputs[0]][0] for shapes in net.facts.shapes)
        if lengths is None or any(int(one[0]) != step for one, step in zip(lengths, whole, strict=True)):
            raise Unsupported(f"its sequence is not known to have all {steps or 'of its'} steps")


def _gates(node: Node, net: Network, place: int) -> Stored:
    """[directions, gates * units, inputs] in ncnn's order of gates."""
    order = ORDER[node.op]

    def ordered(values: np.ndarray) -> np.ndarray:
        directions, rows, inputs = values.shape
        apart = values.reshape(directions, len(order), rows // len(order), inputs)
        return apart[:, list(order)].reshape(values.shape)

    return net.weight(node.inputs[place]).moved(ordered)


def _bias(node: Node, net: Network, directions: int, units: int) -> np.ndarray:
    """[directions, gates, units], the sum of both biases; GRU's new gate has two, of the input and of the state."""
    order = ORDER[node.op]
    both = np.zeros((directions, 2, len(order), units), np.float32)
    if node.given(3):
        both[:] = net.constant(node.inputs[3], "bias").reshape(both.shape)
    both = both[:, :, list(order)]
    if node.op != "GRU":
        return both.sum(axis=1)
    added = both[:, :, :2].sum(axis=1)
    return np.concatenate([added, both[:, 0, 2:], both[:, 1, 2:]], axis=1)


def _states(node: Node, net: Network, directions: int, units: int) -> list[str]:
    """Blobs of the first states; none where all of them are zero."""
    places = (FIRST_HIDDEN, FIRST_CELL) if node.op == "LSTM" else (FIRST_HIDDEN,)
    given = [place for place in places if node.given(place) and not _is_zero(net, node.inputs[place])]
    if not given:
        return []
    return [
        net.form(node.inputs[place], (0, 2)).name
        if place in given
        else net.memory(f"{node.name}_zero", np.zeros((directions, units), np.float32))
        for place in places
    ]


def _is_zero(net: Network, tensor: str) -> bool:
    values = net.value(tensor)
    return values is not None and not np.any(values)


def _put(
    node: Node,
    net: Network,
    bottoms: list[str],
    params: dict[int, Value],
    weights: list[Weight],
    form: tuple[int, int],
) -> None:
    directions, units = form
    states = [place for place in (Y_H, Y_C) if place < len(node.outputs) and node.outputs[place]]
    names = [f"{node.name}_steps", *([f"{node.name}_hidden", f"{node.name}_cell"] if states else [])]
    tops = net.several(node.op, node.name, bottoms, names[: 2 if node.op != "LSTM" else 3], params, weights)
    for place in states:
        net.name_output(node, tops[place], (0, 2), place)
    if not node.outputs[Y]:
        return
    if directions == 1:
        net.name_output(node, tops[Y], (0, 3), Y)
    else:
        apart = net.reshaped(tops[Y], node.outputs[Y], [-1, directions, units])
        net.name_output(node, apart, (0, 1, 3), Y)
