"""Weights that several nodes of a model read. ncnn's layers share none: each holds its own."""

import math
from collections import Counter
from collections.abc import Collection

import numpy as np
import onnx

LEAST = 0.5
"""Of the model's own weights: what they take beyond that is said."""
LEAST_BYTES = 100_000


def repeated(model: onnx.ModelProto, half: bool) -> str:
    """What a user is to know of weights that are written several times; empty where that is little. half: with
    storage=float16.
    """
    readers = _readers(model.graph, {tensor.name for tensor in model.graph.initializer})
    read = [tensor for tensor in model.graph.initializer if readers[tensor.name]]
    stored = {tensor.name: _bytes(tensor, half) for tensor in read}
    more = {name: size * (readers[name] - 1) for name, size in stored.items() if readers[name] > 1}
    total = sum(stored.values())
    if not more or sum(more.values()) < max(LEAST * total, LEAST_BYTES):
        return ""
    worst = max(more, key=lambda name: more[name])
    return (
        f"ncnn's layers share no weights: its files hold {sum(more.values()) / 1e6:.1f} MB beside the model's "
        f"{total / 1e6:.1f} MB, most of it '{worst}', which {readers[worst]} nodes read"
    )


def _readers(graph: onnx.GraphProto, stored: Collection[str]) -> Counter[str]:
    """Initializer -> how many nodes read it, or what is computed of initializers alone."""
    constant = set(stored)
    inner = []
    for node in graph.node:
        if node.input and all(name in constant for name in node.input if name):
            constant.update(node.output)
            inner.append(node)
    ends = {id(node) for node in inner}
    found = Counter(
        name
        for node in graph.node
        if id(node) not in ends
        for name in dict.fromkeys(node.input)
        if name in constant
    )
    for node in reversed(inner):
        for name in dict.fromkeys(node.input):
            found[name] += sum(found[result] for result in node.output)
    return found


def _bytes(tensor: onnx.TensorProto, half: bool) -> int:
    """What a layer holds of it: integers, such as those of INT8 and of codebooks, in a byte each. Vectors stay in
    float32.
    """
    dtype, count = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type), math.prod(tensor.dims)
    if dtype.itemsize == 1:
        return count
    return (2 if len(tensor.dims) > 1 and (half or dtype == np.float16) else 4) * count
