"""Several nodes of the graph that LiteRT has one operator for.

x / sqrt(2) -> Erf -> + 1 -> * x -> * 1/2       GELU; the factors in any order
x -> MatMul with a constant -> + constant       FULLY_CONNECTED with a bias, and the activation behind it
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from onnx_lathe.runtime.targets.core.facts import Facts
from onnx_lathe.runtime.targets.core.node import Attributes
from onnx_lathe.runtime.targets.litert.node import Node

Pair = tuple[Node, onnx.NodeProto]
Found = tuple[Node, list[Node]]
"""A node, and those that it stands for, the last one last."""


def joined(nodes: Sequence[Pair], facts: Facts, handed_out: frozenset[str]) -> list[Pair]:
    """The nodes with one in the place of the last of those that it stands for. `handed_out`: outputs of the model."""
    graph = _Graph(nodes, facts, handed_out)
    replaced: dict[int, Node | None] = {}
    for node, proto in nodes:
        search = {"Erf": graph.gelu, "MatMul": graph.biased}.get(node.op)
        found = search(node) if search is not None and not proto.domain else None
        if found is not None and not replaced.keys() & {id(one) for one in found[1]}:
            replaced |= dict.fromkeys((id(one) for one in found[1]), None)
            replaced[id(found[1][-1])] = found[0]
    kept = [(replaced.get(id(node), node), proto) for node, proto in nodes]
    return [(node, proto) for node, proto in kept if node is not None]


class _Graph:
    def __init__(self, nodes: Sequence[Pair], facts: Facts, handed_out: frozenset[str]) -> None:
        self.facts, self.handed_out = facts, handed_out
        self.made = {name: node for node, proto in nodes if not proto.domain for name in node.outputs if name}
        self.readers: dict[str, list[Node]] = {}
        self.foreign = {id(node) for node, proto in nodes if proto.domain}
        for node, proto in nodes:
            for name in {*_all_inputs(node, proto)}:
                self.readers.setdefault(name, []).append(node)

    def gelu(self, erf: Node) -> Found | None:
        before = self.made.get(erf.inputs[0])
        source = self._scaled(before, math.sqrt(0.5))
        last = self._reader(erf, "Add")
        if before is None or source is None or last is None or self._number(last, erf.outputs[0]) != 1.0:
            return None
        covered = [*([before] if self._reader(before, "Erf") is erf else []), erf, last]
        factor, weighed = 1.0, False
        while not weighed or not math.isclose(factor, 0.5, rel_tol=1e-6):
            behind = self._reader(last, "Mul")
            if behind is None:
                return None
            other = _other(behind, last.outputs[0])
            halved = self.made.get(other)
            number = self._constant(other)
            if number is not None:
                factor *= number
            elif other == source and not weighed:
                weighed = True
            elif halved is not None and not weighed and self._reader(halved, "Mul") is behind:
                number = self._number(halved, source) if halved.op == "Mul" else None
                if number is None:
                    return None
                factor, weighed = factor * number, True
                covered.append(halved)
            else:
                return None
            covered.append(behind)
            last = behind
        if any(one.activation != "NONE" for one in covered):
            return None
        return _standing_for(covered, "Gelu", (source,), last), covered

    def biased(self, matmul: Node) -> Found | None:
        """A MatMul of a constant matrix, with what is added to each of its columns as third input."""
        weight = self.facts.values[0].get(matmul.inputs[1])
        behind = self._reader(matmul, "Add")
        if weight is None or behind is None or weight.ndim != 2 or matmul.on_integers or behind.on_integers:
            return None
        name = _other(behind, matmul.outputs[0])
        bias = self.facts.values[0].get(name)
        columns = weight.shape[1]
        rank = len(self.facts.shapes[0].get(matmul.outputs[0], ()))
        if (
            bias is None
            or bias.size != columns
            or bias.ndim > max(rank, 1)
            or rank < 2
            or bias.shape[-1] != columns
            or matmul.activation != "NONE"
        ):
            return None
        inputs = (*matmul.inputs, name)
        return _standing_for([matmul, behind], "MatMul", inputs, behind), [matmul, behind]

    def _reader(self, node: Node, op: str) -> Node | None:
        """The only one that reads the node's result, if it is such an operator."""
        name = node.outputs[0]
        readers = self.readers.get(name, [])
        if (
            len(readers) != 1
            or name in self.handed_out
            or readers[0].op != op
            or id(readers[0]) in self.foreign
        ):
            return None
        return readers[0] if list(readers[0].inputs).count(name) == 1 else None

    def _scaled(self, node: Node | None, factor: float) -> str | None:
        """What a node multiplies with the factor, or divides by its inverse."""
        if node is None or node.op not in ("Mul", "Div"):
            return None
        for name, other in (node.inputs, reversed(node.inputs)):
            number = self._constant(other)
            if number is None or (node.op == "Div" and other == node.inputs[0]):
                continue
            if math.isclose(number if node.op == "Mul" else 1 / number, factor, rel_tol=1e-6):
                return name
        return None

    def _number(self, node: Node, operand: str) -> float | None:
        """The number that a node of two inputs has beside an operand."""
        return self._constant(_other(node, operand)) if operand in node.inputs else None

    def _constant(self, name: str) -> float | None:
        values: Mapping[str, np.ndarray] = self.facts.values[0]
        found = values.get(name)
        return float(found.reshape(())) if found is not None and found.size == 1 and found.ndim < 2 else None


def _all_inputs(node: Node, proto: onnx.NodeProto) -> Iterator[str]:
    """What bodies read, too."""
    yield from node.inputs
    for item in proto.attribute:
        if item.type == onnx.AttributeProto.GRAPH:
            for one in item.g.node:
                yield from _all_inputs(node, one)
                yield from one.input


def _other(node: Node, operand: str) -> str:
    first, second = node.inputs
    return second if first == operand else first


def _standing_for(covered: Sequence[Node], op: str, inputs: tuple[str, ...], last: Node) -> Node:
    names = tuple(name for one in covered for name in (one.covers or (one.name,)))
    values = {**vars(last), "op": op, "inputs": inputs, "attributes": Attributes({}), "covers": names}
    return Node(**values)
