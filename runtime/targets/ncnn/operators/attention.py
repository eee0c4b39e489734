"""Attention of opset 23, without a cache: softmax(scale * Q K^T + mask) V for each head.

    Q [1, heads, L, E], K [1, heads, S, E], V [1, heads, S, F], or each as [1, L, heads * E]

Written with layers that every release of ncnn has: MatMul and Softmax.
"""

import math

import numpy as np
import onnx

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.arithmetic import ADD, MUL, binary, scalar
from onnx_lathe.runtime.targets.ncnn.moving import order_type
from onnx_lathe.runtime.targets.ncnn.network import Network
from onnx_lathe.runtime.targets.ncnn.registry import operator

HEADS_FIRST = (1, 0, 2)
"""[L, heads, E] -> [heads, L, E], and back."""
MASK, PAST_KEY = 3, 4
HIDDEN = -1e30
"""What is added to a score that is not to count: no infinity, which ncnn's files cannot hold in every layer."""


@operator("Attention")
def attention(node: Node, net: Network) -> None:
    _check(node, net)
    query, key, value = (_heads(node, net, place) for place in range(3))
    name = node.name
    factor = node.number("scale", 0.0) or 1 / math.sqrt(_width(node, net))
    scores = net.inner(
        "MatMul", f"{name}_scores", [scalar(net, f"{name}_scaled", MUL, query, factor), key], {0: 1}
    )
    mask = _mask(node, net)
    if mask is not None:
        scores = binary(net, f"{name}_masked", ADD, scores, mask)
    weights = net.inner("Softmax", f"{name}_softmax", [scores], {0: -1, 1: 1})
    if net.rank(node.inputs[0]) == 4:
        net.put(node, "MatMul", [weights, value], axes=(1, 2, 3))
        return
    found = net.inner("MatMul", f"{name}_heads", [weights, value])
    turned = net.inner("Permute", f"{name}_turned", [found], {0: order_type(HEADS_FIRST)})
    width = net.shape(node.outputs[0])[2]
    net.name_output(node, net.reshaped(turned, node.outputs[0], [-1, width]), (1, 2))


def _check(node: Node, net: Network) -> None:
    if net.sizes(node.inputs[0])[0] != 1:
        raise Unsupported("it takes several samples at once, which are no batch of the model's input")
    if any(node.given(place) for place in range(PAST_KEY, len(node.inputs))):
        raise Unsupported("it continues with keys and values of an earlier call")
    if any(node.outputs[1:]):
        raise Unsupported("more than its first output is read")
    if node.number("softcap", 0.0):
        raise Unsupported("it has a softcap")
    if _count(node, net, 0) != _count(node, net, 1):
        raise Unsupported("several of its heads share keys and values")


def _count(node: Node, net: Network, place: int) -> int:
    """How many heads an input has."""
    if net.rank(node.inputs[place]) == 4:
        return net.shape(node.inputs[place])[1]
    return node.integer("q_num_heads" if place == 0 else "kv_num_heads")


def _width(node: Node, net: Network) -> int:
    """Values of a query in one head."""
    last = net.shape(node.inputs[0])[-1]
    return last if net.rank(node.inputs[0]) == 4 else last // _count(node, net, 0)


def _heads(node: Node, net: Network, place: int) -> str:
    """The blob [heads, steps, values] of an input."""
    tensor = node.inputs[place]
    if net.rank(tensor) == 4:
        return net.form(tensor, (1, 2, 3)).name
    count = _count(node, net, place)
    apart = net.reshaped(net.form(tensor, (1, 2)).name, tensor, [-1, count, net.shape(tensor)[2] // count])
    return net.inner("Permute", f"{tensor}_heads", [apart], {0: order_type(HEADS_FIRST)})


def _mask(node: Node, net: Network) -> str | None:
    """A blob to add to the scores [heads, L, S]."""
    causal = node.integer("is_causal")
    if not causal and not node.given(MASK):
        return None
    if causal:
        added = _causal(node, net)
        if not node.given(MASK):
            return net.memory(f"{node.name}_mask", added)
        if net.is_free(node.inputs[MASK]):
            return net.memory(f"{node.name}_mask", _seen(_constant_mask(node, net) + added))
        return binary(net, f"{node.name}_masks", ADD, _given_mask(node, net), net.memory(node.name, added))
    return _given_mask(node, net)


def _causal(node: Node, net: Network) -> np.ndarray:
    """[1, L, S]: each query sees the keys up to its own place."""
    axis = 2 if net.rank(node.inputs[0]) == 4 else 1
    steps, others = (net.sizes(tensor)[axis] for tensor in node.inputs[:2])
    if steps is None or others is None:
        raise Unsupported("it is causal, and the number of steps depends on the size of the input")
    return np.triu(np.full((1, steps, others), HIDDEN, np.float32), 1)


def _given_mask(node: Node, net: Network) -> str:
    tensor = node.inputs[MASK]
    rank = net.rank(tensor)
    if net.is_free(tensor):
        return net.memory(f"{node.name}_mask", _seen(_constant_mask(node, net)))
    if net.facts.types.get(tensor) == onnx.TensorProto.BOOL or net.is_integer(tensor):
        raise Unsupported("its mask is computed, and says yes or no in place of what to add")
    return net.form(tensor, (rank - 3, rank - 2, rank - 1)).name


def _constant_mask(node: Node, net: Network) -> np.ndarray:
    """[heads or 1, L or 1, S], to be added."""
    values = net.constant(node.inputs[MASK], "mask")
    if values.dtype == np.bool_:
        values = np.where(values, np.float32(0), np.float32(HIDDEN))
    floats = np.maximum(values.astype(np.float32), np.float32(HIDDEN))
    rank = floats.ndim
    return floats.reshape((1,) * (3 - rank) + floats.shape[max(rank - 3, 0) :])


def _seen(mask: np.ndarray) -> np.ndarray:
    """The mask, in which every query sees a key: of one that sees none ONNX's attention is zero, a softmax is not."""
    if bool(np.any(mask.max(axis=-1) <= HIDDEN)):
        raise Unsupported("its mask hides all keys from a query")
    return np.maximum(mask, np.float32(HIDDEN))
