"""Attention of opset 23, without a cache: softmax(scale * Q K^T + mask) V for each head.

Q [B, heads, L, E], K [B, heads, S, E], V [B, heads, S, F], or each as [B, L, heads * E]
"""

import math

import numpy as np

from onnx_lathe.runtime.targets.litert.dimensions import is_open
from onnx_lathe.runtime.targets.litert.emitter import BOOL, FLOAT, Emitter
from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.registry import operator

HEADS_SECOND = (0, 2, 1, 3)
"""[B, L, heads, E] -> [B, heads, L, E], and back."""
MASK, PAST_KEY = 3, 4
HIDDEN = float(np.finfo(np.float32).min) / 2
"""What is added to a score that is not to count: finite, so that two of them still are."""


@operator("Attention")
def attention(node: Node, net: Network) -> None:
    _check(node)
    emit = Emitter(node, net)
    counts = [_count(node, net, place) for place in range(3)]
    query, key, value = (_heads(emit, place, counts[place]) for place in range(3))
    key, value = (_repeated(emit, one, counts[0]) for one in (key, value))
    width = emit.dims(query)[-1]
    factor = node.number("scale", 0.0) or 1 / math.sqrt(width[0])
    scores = emit.matmul(emit.mul(query, emit.number(factor)), key, turned=True)
    if node.given(MASK):
        scores = emit.add(scores, _mask(emit))
    if node.integer("is_causal"):
        scores = emit.add(scores, _causal(emit, scores))
    if softcap := node.number("softcap", 0.0):
        raise Unsupported(f"it has a softcap of {softcap:g}")
    found = emit.matmul(emit.softmax(scores), value)
    if net.rank(node.inputs[0]) == 3:
        found = emit.reshape(emit.transpose(found, HEADS_SECOND), emit.given())
    emit.leave(found)


def _check(node: Node) -> None:
    node.integer("softmax_precision")
    node.integer("qk_matmul_output_mode")
    if any(node.given(place) for place in range(PAST_KEY, len(node.inputs))):
        raise Unsupported(
            "it continues with keys and values of an earlier call, or has a number of keys of its own"
        )
    if any(node.outputs[1:]):
        raise Unsupported("more than its first output is read")


def _count(node: Node, net: Network, place: int) -> int:
    """How many heads an input has."""
    if net.rank(node.inputs[place]) == 4:
        return net.shape(node.inputs[place])[1]
    return node.integer("q_num_heads" if place == 0 else "kv_num_heads")


def _heads(emit: Emitter, position: int, count: int) -> int:
    """[B, heads, steps, values] of an input."""
    place = emit.computed(position, {FLOAT})
    dims = emit.dims(place)
    if len(dims) == 4:
        return place
    each = (dims[2][0] // count,) * 2
    return emit.transpose(emit.reshape(place, (*dims[:2], (count, count), each)), HEADS_SECOND)


def _repeated(emit: Emitter, place: int, count: int) -> int:
    """Keys or values that several heads of the query share, once for each of these."""
    own = emit.dims(place)[1][0]
    if own == count:
        return place
    return emit.gather(place, np.repeat(np.arange(own), count // own), 1)


def _mask(emit: Emitter) -> int:
    """What is added to the scores."""
    node, net = emit.node, emit.net
    values = net.value(node.inputs[MASK])
    if values is None:
        if net.element(node.inputs[MASK]) == BOOL:
            raise Unsupported("its mask is computed, and says yes or no: give it one of numbers to add")
        return emit.read(MASK)
    if values.dtype == np.bool_:
        values = np.where(values, np.float32(0), np.float32(HIDDEN))
    values = np.maximum(values.astype(np.float32), np.float32(HIDDEN))
    if bool(np.any(values.max(axis=-1) <= HIDDEN)):
        raise Unsupported("its mask hides all keys from a query")
    return emit.floats(values, "mask")


def _causal(emit: Emitter, scores: int) -> int:
    """Each query sees the keys up to its own place."""
    queries, keys = emit.dims(scores)[-2:]
    if is_open(queries) or is_open(keys):
        raise Unsupported("it is causal, and the number of its steps depends on the size of the input")
    return emit.floats(np.triu(np.full((queries[0], keys[0]), HIDDEN, np.float32), 1), "causal")
