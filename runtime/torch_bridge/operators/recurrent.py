"""LSTM, GRU and RNN by PyTorch's own kernels, one direction at a time.

ONNX stacks the gates of W [directions, gates * H, I] and R [directions, gates * H, H] in another order than
PyTorch, and both biases in one B [directions, 2 * gates * H]:

| operator | gates in ONNX | in PyTorch |
|---|---|---|
| LSTM | input, output, forget, cell | input, forget, cell, output |
| GRU | update, reset, hidden | reset, update, hidden |

A reversed direction is the forward one on the reversed sequence. A GRU whose reset gate acts before the matrix
product (linear_before_reset=0) has no kernel in PyTorch, and is computed step by step.
Source: Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997; Cho et al., "Learning Phrase
Representations using RNN Encoder-Decoder", 2014.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from onnx_lathe.runtime.torch_bridge.registry import Function, Node, RefusedError, operator

_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
State = tuple[Tensor, ...]
"""Hidden state, and for LSTM the cell's, each [batch, H]."""


class _Cell(NamedTuple):
    """The weights of one direction, gates in PyTorch's order; without biases the last two are None."""

    w: Tensor
    r: Tensor
    w_bias: Tensor | None
    r_bias: Tensor | None

    @property
    def given(self) -> list[Tensor]:
        return [tensor for tensor in self if tensor is not None]


Kernel = Callable[[Tensor, Tensor | None, State, _Cell], tuple[Tensor, State]]
"""(x [steps, batch, I], lengths [batch], state, weights) -> (hidden state of each step, state after the last)."""


@operator("LSTM", since=7)
def lstm(node: Node) -> Function:
    _refuse(node, ("sigmoid", "tanh", "tanh"))
    if node.given(7):
        raise RefusedError("with peepholes")
    if node.integer("input_forget"):
        raise RefusedError("with input_forget=1")
    return _layer(node, (0, 2, 3, 1), 2, _packed(torch.lstm))


@operator("GRU", since=7)
def gru(node: Node) -> Function:
    _refuse(node, ("sigmoid", "tanh"))
    kernel = _packed(torch.gru) if node.integer("linear_before_reset") else _reset_first
    return _layer(node, (1, 0, 2), 1, kernel)


@operator("RNN", since=7)
def rnn(node: Node) -> Function:
    chosen = _refuse(node, ("tanh",), ("relu",))
    return _layer(node, (0,), 1, _packed(torch.rnn_relu if chosen == ("relu",) else torch.rnn_tanh))


def _refuse(node: Node, *known: tuple[str, ...]) -> tuple[str, ...]:
    """The activations of one direction, the first of `known` by default. Raises RefusedError for others, and
    for what no kernel does.
    """
    if node.text("direction", "forward") not in _DIRECTIONS:
        raise RefusedError(f"with direction {node.text('direction', '')}")
    directions = _DIRECTIONS[node.text("direction", "forward")]
    given = [
        name.decode() if isinstance(name, bytes) else str(name)
        for name in node.attributes.get("activations", ())
    ]
    named = tuple(name.lower() for name in given) or known[0] * directions
    if named not in [choice * directions for choice in known]:
        raise RefusedError(f"with activations {', '.join(given)}")
    if node.number("clip", 0.0):
        raise RefusedError("with clip")
    return named[: len(known[0])]


def _layer(node: Node, order: Sequence[int], states: int, kernel: Kernel) -> Function:
    """All directions of the layer. `order`: where each of PyTorch's gates lies among ONNX's."""
    direction, batch_first = node.text("direction", "forward"), node.integer("layout")

    def layer(
        x: Tensor, w: Tensor, r: Tensor, bias: Tensor | None, lengths: Tensor | None, start: State
    ) -> tuple[Tensor, ...]:
        outputs, ends = [], []
        for number in range(w.shape[0]):
            reverse = direction == "reverse" or number == 1
            state = tuple(part[number] for part in start)
            sequence, end = kernel(
                _reversed(x, lengths) if reverse else x, lengths, state, _cell(w, r, bias, number, order)
            )
            outputs.append(_reversed(sequence, lengths) if reverse else sequence)
            ends.append(end)
        return (torch.stack(outputs, 1), *(torch.stack(parts) for parts in zip(*ends, strict=True)))

    def run(
        x: Tensor, w: Tensor, r: Tensor, bias: Tensor | None = None, lengths: Tensor | None = None,
        *initial: Tensor | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        x = (x.transpose(0, 1) if batch_first else x).to(w.dtype)
        start = tuple(_start(state, x, r, bool(batch_first)) for state in (*initial, None, None)[:states])
        # PyTorch's kernels on a CPU refuse operands of different precision, which automatic casts make
        with torch.autocast(x.device.type, enabled=False):
            y, *last = layer(x, w, r, bias, lengths, start)
        if batch_first:
            y, last = y.permute(2, 0, 1, 3), [part.transpose(0, 1) for part in last]
        return (y, *last)

    return run


def _start(state: Tensor | None, x: Tensor, r: Tensor, batch_first: bool) -> Tensor:
    """The initial state, [directions, batch, H]; that of one sample is every sample's.

    PyTorch's kernels (seen in 2.13) read beyond the end of one for fewer samples than the input has, which a
    graph that works at its own batch size holds: RuntimeError where its size is neither.
    """
    if state is None:
        return x.new_zeros(r.shape[0], x.shape[1], r.shape[2])
    given = (state.transpose(0, 1) if batch_first else state).to(r.dtype)
    return given.expand(r.shape[0], x.shape[1], r.shape[2]).contiguous()


def _cell(w: Tensor, r: Tensor, bias: Tensor | None, number: int, order: Sequence[int]) -> _Cell:
    def sorted_gates(stacked: Tensor) -> Tensor:
        gates = stacked.chunk(len(order))
        return torch.cat([gates[place] for place in order])

    halves = (None, None) if bias is None else (sorted_gates(half) for half in bias[number].chunk(2))
    return _Cell(sorted_gates(w[number]), sorted_gates(r[number]), *halves)


def _reversed(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Each sample's sequence [steps, batch, ...] from its last step to its first; what is behind it stays."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(x.shape[0], device=x.device)[:, None]
    places = torch.where(steps < lengths, lengths - 1 - steps, steps).long()
    return x.gather(0, places[:, :, None].expand_as(x))


def _packed(kernel: Callable[..., Any]) -> Kernel:
    """One of PyTorch's kernels, which take sequences of unequal length packed, and none that is empty."""

    def run(x: Tensor, lengths: Tensor | None, state: State, cell: _Cell) -> tuple[Tensor, State]:
        # cuDNN refuses the backward pass where the last but two, training, is false; there is no dropout
        options = [cell.w_bias is not None, 1, 0.0, True, False]
        first = [part[None] for part in state]
        if lengths is None:
            y, *end = kernel(x, first if len(first) > 1 else first[0], cell.given, *options, False)
            return y, tuple(part[0] for part in end)
        order = lengths.argsort(descending=True)
        back = order.argsort()
        packed = pack_padded_sequence(x[:, order], lengths[order].clamp(min=1).cpu())
        first = [part[:, order] for part in first]
        y, *end = kernel(
            packed.data, packed.batch_sizes, first if len(first) > 1 else first[0], cell.given, *options
        )
        y, _ = pad_packed_sequence(PackedSequence(y, packed.batch_sizes), total_length=x.shape[0])
        y, last, empty = y[:, back], [part[0, back] for part in end], lengths == 0
        return y.masked_fill(empty[:, None], 0), tuple(
            torch.where(empty[:, None], before, after) for before, after in zip(state, last, strict=True)
        )

    return run


def _reset_first(x: Tensor, lengths: Tensor | None, state: State, cell: _Cell) -> tuple[Tensor, State]:
    """GRU with linear_before_reset=0: hidden = tanh(x W^T + (reset * h) R^T + both biases)."""
    size, (h,) = cell.r.shape[1], state
    given = x @ cell.w.t()
    for bias in (cell.w_bias, cell.r_bias):
        given = given if bias is None else given + bias
    gates, hidden = cell.r.split([2 * size, size])
    outputs = []
    for step, row in enumerate(given):
        reset, update = (row[:, : 2 * size] + h @ gates.t()).sigmoid().chunk(2, 1)
        new = torch.tanh(row[:, 2 * size :] + (reset * h) @ hidden.t())
        after = (1 - update) * new + update * h
        if lengths is None:
            outputs.append(h := after)
            continue
        inside = (step < lengths)[:, None]
        outputs.append(after * inside)
        h = torch.where(inside, after, h)
    return torch.stack(outputs), (h,)
