"""LSTM, GRU and RNN, step after step: LiteRT's own kernel for sequences keeps its state from one call to the next.

    X [T, B, C]   Y [T, directions, B, H]   Y_h, Y_c [directions, B, H]

What the input gives to the gates is one FULLY_CONNECTED for all steps; each step adds that of the state. With layout=1 the
batch comes first, and is moved there and back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.runtime.targets.litert.dimensions import Dim, is_open
from onnx_lathe.runtime.targets.litert.emitter import FLOAT, Emitter
from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.registry import operator

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
USUAL = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
CURVES = {"sigmoid": "LOGISTIC", "tanh": "TANH", "relu": "RELU"}
BIAS, LENGTHS, FIRST_HIDDEN, FIRST_CELL, PEEPHOLES = 3, 4, 5, 6, 7


@dataclass
class Cell:
    """What one direction computes with. `state_weight` [gates * H, H] and `state_bias` [gates * H] as ONNX orders the gates;
    `peepholes` [3, H] or None; `curves`: of the gates, the new values and the LSTM's output.
    """

    emit: Emitter
    units: int
    state_weight: np.ndarray
    state_bias: np.ndarray
    peepholes: np.ndarray | None
    curves: Sequence[str]
    clip: float

    def curve(self, number: int, place: int) -> int:
        if self.clip:
            bounded = self.emit.minimum(place, self.emit.number(self.clip))
            place = self.emit.maximum(bounded, self.emit.number(-self.clip))
        return self.emit.unary(CURVES[self.curves[number]], place)

    def from_state(self, hidden: int, first: int = 0, end: int | None = None) -> int:
        """The state times the weights of these gates, and their bias."""
        rows = slice(first * self.units, None if end is None else end * self.units)
        return connected(self.emit, hidden, self.state_weight[rows], self.state_bias[rows])

    def split(self, place: int, count: int) -> list[int]:
        """The gates of [B, count * H]."""
        if count == 1:
            return [place]
        dims = (*self.emit.dims(place)[:-1], (self.units, self.units))
        axis = self.emit.scalar(len(dims) - 1)
        results = [(dims, FLOAT)] * count
        return self.emit.several("SPLIT", [axis, place], results, "SplitOptions", like=1, numSplits=count)

    def peep(self, gate: int, number: int, state: int | None) -> int:
        if self.peepholes is None or state is None:
            return gate
        weights = self.emit.floats(self.peepholes[number], "peephole")
        return self.emit.add(gate, self.emit.mul(state, weights))


State = tuple[int | None, int | None]
"""Hidden and cell; None for zeros."""


@operator("LSTM", "GRU", "RNN")
def recurrent(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    source = emit.computed(0, {FLOAT})
    batch_first = bool(node.integer("layout"))
    if batch_first:
        source = emit.transpose(source, (1, 0, 2))
    _check(node, net, emit, source)
    weights, state_weights = (net.constant(node.inputs[place], "weight") for place in (1, 2))
    directions, rows, _ = state_weights.shape
    units = rows // GATES[node.op]
    both = np.zeros((directions, 2, rows), np.float32)
    if node.given(BIAS):
        both[:] = net.constant(node.inputs[BIAS], "bias").reshape(both.shape)
    names = _curves(node, directions)
    sequences, hiddens, cells = [], [], []
    for number in range(directions):
        apart = node.op == "GRU" and node.integer("linear_before_reset")
        bias, state_bias = (
            (both[number, 0], both[number, 1]) if apart else (both[number].sum(0), both[number, 1] * 0)
        )
        cell = Cell(
            emit,
            units,
            state_weights[number],
            state_bias,
            _peepholes(node, net, number, units),
            names[number],
            node.number("clip", 0.0),
        )
        inputs = connected(emit, source, weights[number], bias)
        first = tuple(
            _first_state(node, net, emit, place, number, batch_first) for place in (FIRST_HIDDEN, FIRST_CELL)
        )
        backwards = node.text("direction", "forward") == "reverse" or number == 1
        found, (hidden, last) = _unrolled(node, cell, inputs, (first[0], first[1]), backwards)
        sequences.append(found)
        hiddens.append(hidden)
        cells.append(last)
    _leave(emit, sequences, [hiddens, cells], batch_first)


def connected(emit: Emitter, place: int, weight: np.ndarray, bias: np.ndarray) -> int:
    """FULLY_CONNECTED along the last axis."""
    inputs = [place, emit.floats(weight, "weight"), emit.floats(bias, "bias")]
    dims = (*emit.dims(place)[:-1], (len(weight), len(weight)))
    return emit.op("FULLY_CONNECTED", inputs, dims, FLOAT, "FullyConnectedOptions", keepNumDims=True)


def _check(node: Node, net: Network, emit: Emitter, source: int) -> None:
    time, _batch, _ = emit.dims(source)
    node.integer("hidden_size")
    if is_open(time):
        raise Unsupported("the number of its steps depends on the size of the input: build for a fixed size")
    if node.integer("input_forget") and node.op == "LSTM":
        raise Unsupported("it has input_forget: Lathe writes LSTMs with a forget gate of their own")
    if node.given(LENGTHS):
        lengths = net.values(node.inputs[LENGTHS])
        if lengths is None or any(np.any(one != time[0]) for one in lengths):
            raise Unsupported(
                f"its sequences are not known to have all {time[0]} steps: leave out sequence_lens"
            )
    if node.attributes.get("activation_alpha") or node.attributes.get("activation_beta"):
        raise Unsupported("its activations have an alpha or beta")


def _curves(node: Node, directions: int) -> list[tuple[str, ...]]:
    """The names of the activations of each direction."""
    given = node.attributes.get("activations") or [name.encode() for name in USUAL[node.op] * directions]
    names = [item.decode().lower() if isinstance(item, bytes) else str(item).lower() for item in given]
    if unknown := [name for name in names if name not in CURVES]:
        raise Unsupported(f"its activation is {unknown[0]}; Lathe writes {', '.join(CURVES)}")
    count = len(USUAL[node.op])
    return [tuple(names[count * number : count * (number + 1)]) for number in range(directions)]


def _peepholes(node: Node, net: Network, number: int, units: int) -> np.ndarray | None:
    if node.op != "LSTM" or not node.given(PEEPHOLES):
        return None
    values = net.constant(node.inputs[PEEPHOLES], "weight of peepholes")[number]
    return values.reshape(3, units) if np.any(values) else None


def _first_state(
    node: Node, net: Network, emit: Emitter, position: int, number: int, batch_first: bool
) -> int | None:
    """[B, H]; None for zeros."""
    if not node.given(position) or (position == FIRST_CELL and node.op != "LSTM"):
        return None
    both = net.values(node.inputs[position])
    if both is not None and not any(map(np.any, both)):
        return None
    place = emit.read(position)
    if batch_first:
        place = emit.transpose(place, (1, 0, 2))
    dims = emit.dims(place)
    if dims[0] == (1, 1):
        return emit.reshape(place, dims[1:])
    return emit.gather(place, np.array(number), 0)


def _unrolled(node: Node, cell: Cell, inputs: int, state: State, backwards: bool) -> tuple[list[int], State]:
    """(the hidden state after each step in the order of time, the last state). `inputs`: [T, B, gates * H]."""
    emit = cell.emit
    dims = emit.dims(inputs)
    count = dims[0][0]
    each: list[tuple[Sequence[Dim], str]] = [(dims[1:], FLOAT)] * count
    parts = emit.several("UNPACK", [inputs], each, "UnpackOptions", axis=0, num=count)
    step = STEPS[node.op]
    hidden: list[int] = []
    for part in reversed(parts) if backwards else parts:
        state = step(cell, part, state)
        assert state[0] is not None
        hidden.append(state[0])
    return (hidden[::-1] if backwards else hidden), state


def _lstm(cell: Cell, given: int, state: State) -> State:
    """Gates i o f c: c' = f * c + i * tanh(g), h' = o * tanh(c')."""
    emit = cell.emit
    hidden, old = state
    whole = given if hidden is None else emit.add(given, cell.from_state(hidden))
    into, out, forget, new = cell.split(whole, 4)
    into = cell.curve(0, cell.peep(into, 0, old))
    fresh = emit.mul(into, cell.curve(1, new))
    if old is not None:
        fresh = emit.add(emit.mul(cell.curve(0, cell.peep(forget, 2, old)), old), fresh)
    gate = cell.curve(0, cell.peep(out, 1, fresh))
    return emit.mul(gate, _plain(cell, 2, fresh)), fresh


def _plain(cell: Cell, number: int, place: int) -> int:
    """The cell's own activation, which is not clipped."""
    return cell.emit.unary(CURVES[cell.curves[number]], place)


def _gru(cell: Cell, given: int, state: State) -> State:
    """Gates z r h: h' = (1 - z) * new + z * h. The reset gate weighs the state before its weights, or behind them."""
    emit, hidden = cell.emit, state[0]
    behind = bool(cell.emit.node.integer("linear_before_reset"))
    update, reset, new = cell.split(given, 3)
    if hidden is None:
        if behind:
            bias = emit.floats(cell.state_bias, "state_bias")
            split = cell.split(emit.add(given, bias), 3)
            update, reset = split[:2]
            own = emit.floats(cell.state_bias[2 * cell.units :], "state_bias")
            new = emit.add(new, emit.mul(cell.curve(0, reset), own))
        gate = cell.curve(0, update)
        fresh = cell.curve(1, new)
        return emit.mul(emit.sub(emit.number(1.0), gate), fresh), None
    from_state = cell.split(cell.from_state(hidden, 0, 3 if behind else 2), 3 if behind else 2)
    gate = cell.curve(0, emit.add(update, from_state[0]))
    weighed = cell.curve(0, emit.add(reset, from_state[1]))
    if behind:
        new = emit.add(new, emit.mul(weighed, from_state[2]))
    else:
        new = emit.add(new, cell.from_state(emit.mul(weighed, hidden), 2))
    fresh = cell.curve(1, new)
    return emit.add(fresh, emit.mul(gate, emit.sub(hidden, fresh))), None


def _rnn(cell: Cell, given: int, state: State) -> State:
    whole = given if state[0] is None else cell.emit.add(given, cell.from_state(state[0]))
    return cell.curve(0, whole), None


STEPS: dict[str, Callable[[Cell, int, State], State]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


def _leave(
    emit: Emitter,
    sequences: Sequence[Sequence[int]],
    states: Sequence[Sequence[int | None]],
    batch_first: bool,
) -> None:
    outputs = emit.node.outputs
    if outputs[0]:
        along = [_packed(emit, one, 0) for one in sequences]
        whole = _packed(emit, along, 1)
        emit.leave(emit.transpose(whole, (2, 0, 1, 3)) if batch_first else whole, 0)
    for position, found in enumerate(states, start=1):
        if position < len(outputs) and outputs[position]:
            whole = _packed(emit, [one for one in found if one is not None], 0)
            emit.leave(emit.transpose(whole, (1, 0, 2)) if batch_first else whole, position)


def _packed(emit: Emitter, places: Sequence[int], axis: int) -> int:
    """Side by side along a new axis."""
    if len(places) == 1:
        return emit.expand_dims(places[0], axis)
    dims = list(emit.dims(places[0]))
    dims.insert(axis, (len(places), len(places)))
    return emit.op("PACK", places, dims, FLOAT, "PackOptions", axis=axis, valuesCount=len(places))
