"""ncnn's expressions: sizes that a layer computes from those of its inputs when it runs.

    6="*(0w,2),1h,64"       twice the first input's width, the second input's height, 64: innermost dimension first

Where a size is open, it is known at two sizes of the model's input. A formula is taken only if it holds at both and
no other of its kind does: what comes after a guess would be wrong at every other size.
Source: ncnn, docs/developer-guide/expression.md and src/expression.cpp.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.core.facts import SIZE_OPS
from onnx_lathe.runtime.targets.core.node import Unsupported
from onnx_lathe.runtime.targets.ncnn.network import Network

Pair = tuple[int, int]
"""A size at the sizes that the model is built for, and at others."""
LETTERS = {1: "w", 2: "hw", 3: "chw", 4: "cdhw"}
ONE = (1, 1)
TRIALS, STRIDES = 3, (7, 11, 17, 23, 31)
"""How many other sizes a rule is tried with, and by what they grow along each axis."""


def pairs(net: Network, tensor: str) -> tuple[Pair, ...]:
    """The tensor's sizes at both sizes of the model's input."""
    net.sizes(tensor)  # refuses a tensor whose number of dimensions is open
    return tuple(zip(net.shape(tensor), net.facts.shapes[1][tensor], strict=True))


def is_open(size: Pair) -> bool:
    return size[0] != size[1]


def product(sizes: Sequence[Pair]) -> Pair:
    first = second = 1
    for a, b in sizes:
        first, second = first * a, second * b
    return first, second


class Sources:
    """The blobs that a layer's expressions may read, its own input first. `bottoms`: those that they do read."""

    def __init__(self, name: str, dims: Sequence[Pair]) -> None:
        self.bottoms = [name]
        self.known: list[tuple[str, Pair]] = _named(0, dims)

    def add(self, net: Network, tensor: str) -> None:
        blob = net.blobs.get(tensor)
        if blob is not None and blob.axes and len(self.bottoms) < 10:  # an input's number has one digit
            sizes = pairs(net, tensor)
            self.known += _named(len(self.bottoms), [sizes[axis] for axis in blob.axes])
            self.bottoms.append(blob.name)

    def equal(self, size: Pair) -> str | None:
        """What says this size, if one thing does; a fixed size is a number."""
        if not is_open(size):
            return str(size[0])
        return _single([name for name, known in self.known if known == size])

    def formula(self, size: Pair) -> str | None:
        """The same, or a multiple, a part or a product of what is known."""
        found = self.equal(size)
        if found is not None or any(known == size for _, known in self.known):
            return found
        return _single(list(_formulas(size, self.known)))


def _named(place: int, dims: Sequence[Pair]) -> list[tuple[str, Pair]]:
    return [
        (f"{place}{letter}", size)
        for letter, size in zip(LETTERS[len(dims)], dims, strict=True)
        if is_open(size)
    ]


def _formulas(size: Pair, known: Sequence[tuple[str, Pair]]) -> Iterator[str]:
    for name, (a, b) in known:
        if size[0] % a == 0 and size[0] // a == size[1] / b:
            yield f"*({name},{size[0] // a})"
        elif a % size[0] == 0 and a // size[0] == b / size[1]:
            yield f"//({name},{a // size[0]})"
    for place, (name, (a, b)) in enumerate(known):
        for other, (c, d) in known[place + 1 :]:
            if (a * c, b * d) == size:
                yield f"*({name},{other})"


def _single(found: list[str]) -> str | None:
    return found[0] if len(found) == 1 else None


def shape_expression(before: Sequence[Pair], after: Sequence[Pair]) -> str:
    """Reshape's: from a blob of dimensions `before` to one of `after`, outermost first. Dimensions at either end that
    do not change are themselves; of those between, one may be what is left.
    """
    letters = LETTERS[len(before)]
    head = 0
    while head < min(len(before), len(after)) and before[head] == after[head]:
        head += 1
    tail = 0
    while tail < min(len(before), len(after)) - head and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    said: list[str | None] = []
    for place, size in enumerate(after):
        same = place if place < head else place - len(after) + len(before)
        if not is_open(size):
            said.append(str(size[0]))
        elif place < head or place >= len(after) - tail:
            said.append(f"0{letters[same]}")
        else:
            said.append(None)
    unsaid = [place for place, text in enumerate(said) if text is None]
    sources = Sources("", before)
    formulas = {place: sources.formula(after[place]) for place in unsaid} if len(unsaid) > 1 else {}
    for place, text in formulas.items():
        said[place] = text
    left = [place for place, text in enumerate(said) if text is None]
    if len(left) > 1:
        raise Unsupported(
            "two or more sizes of its result depend on the size of the input, and it is not certain how"
        )
    return ",".join("-1" if text is None else text for text in reversed(said))


def origins(net: Network, tensor: str) -> set[str]:
    """The tensors whose sizes a free tensor is computed from."""
    return {node.input[0] for node in _computing(net, tensor) if node.op_type in SIZE_OPS}


def holds(
    net: Network, opset: int, tensor: str, source: str, rule: Callable[[np.ndarray, Sequence[int]], bool]
) -> bool:
    """Whether a rule about the values of a free tensor, found at two sizes, is true at others too: the values are
    computed anew from other sizes of `source`, one for each open axis. False where they depend on another tensor's.
    """
    sizes = pairs(net, source)
    if any(pairs(net, name) != sizes for name in origins(net, tensor)):
        return False
    for trial in range(TRIALS):
        shape = [
            size[0] + STRIDES[axis % len(STRIDES)] * (trial + 1) if is_open(size) else size[0]
            for axis, size in enumerate(sizes)
        ]
        try:
            if not rule(_recomputed(net, opset, tensor, shape), shape):
                return False
        except ModelError:
            return False
    return True


def _computing(net: Network, tensor: str) -> list[onnx.NodeProto]:
    """The nodes that a free tensor is computed by, from Shape and constants on, in the order of the model."""
    seen, waiting = set[str](), [tensor]
    while waiting:
        name = waiting.pop()
        node = net.nodes.get(name)
        if name in seen or node is None:
            continue
        seen.add(name)
        if node.op_type not in SIZE_OPS:
            waiting += [item for item in node.input if item]
    found = {id(node): node for name, node in net.nodes.items() if name in seen}
    return list(found.values())


def _recomputed(net: Network, opset: int, tensor: str, shape: Sequence[int]) -> np.ndarray:
    nodes = _computing(net, tensor)
    fed = dict[str, np.ndarray]()
    for node in nodes:
        if node.op_type in SIZE_OPS:
            bounds = {item.name: item.i for item in node.attribute}
            part = np.array(shape, np.int64)[bounds.get("start", 0) : bounds.get("end")]
            fed[node.output[0]] = part if node.op_type == "Shape" else np.array(np.prod(shape), np.int64)
    for node in nodes:
        for name in node.input:
            if name and name not in net.nodes and (value := net.value(name)) is not None:
                fed[name] = value
    graph = onnx.helper.make_graph(
        [node for node in nodes if node.op_type not in SIZE_OPS],
        "sizes",
        [],
        [onnx.ValueInfoProto(name=tensor)],
        [onnx.numpy_helper.from_array(value, name) for name, value in fed.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    return fed[tensor] if tensor in fed else ort.run(ort.session(model), {})[tensor]
