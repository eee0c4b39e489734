"""Operands of MatMul that ONNX Runtime does not survive in float16.

    Transpose(perm 1, 0, 2) -> Cast -> MatMul with an operand of another rank

crashes the process that loads it (SIGSEGV in MatmulTransposeFusion, seen in 1.31 and 1.32): the fusion
moves the Cast in front of the Transpose, then finds that the ranks differ and goes on with what it has
removed. A processor without float16 arithmetic gets that Cast inserted at load. With the Transpose in
float32 there is no Cast behind it, so that it stays there.
"""

from collections.abc import Iterator, Mapping, Sequence

from onnx_lathe.passes.graph import Graph, Node, Tensor
from onnx_lathe.passes.graph.shapes import TensorType

_PASSED_ON = ("Cast", "Dropout", "Identity")


def moved_batches(graph: Graph, types: Mapping[str, TensorType]) -> Iterator[tuple[Node, Node]]:
    """(Transpose, MatMul) wherever a MatMul of operands of unequal or unknown rank reads the result of a
    Transpose that takes the first axis out of its place.

    Transposes in a row count as one: ONNX Runtime joins them before it fuses.
    """
    for node in graph.nodes:
        if node.op != "MatMul" or node.domain or _alike(node, types):
            continue
        for tensor in node.inputs:
            found, perm = _transposes(tensor)
            if any(_moves_batch(one) for one in (perm, *(_perm(transpose) for transpose in found))):
                yield from ((transpose, node) for transpose in found)


def _alike(node: Node, types: Mapping[str, TensorType]) -> bool:
    shapes = [types[tensor.name].shape if tensor.name in types else None for tensor in node.inputs]
    ranks = {None if shape is None else len(shape) for shape in shapes}
    return len(ranks) == 1 and None not in ranks


def _transposes(tensor: Tensor) -> tuple[list[Node], list[int]]:
    """The Transpose nodes right in front, and the permutation that they are together."""
    found: list[Node] = []
    total: list[int] = []
    while tensor.inputs:
        node = tensor.inputs[0]
        if node.domain or node.op not in ("Transpose", *_PASSED_ON):
            break
        if node.op == "Transpose":
            found.append(node)
            perm = _perm(node)
            total = [perm[axis] for axis in total] if len(total) == len(perm) else perm
        tensor = node.inputs[0]
    return found, total


def _perm(node: Node) -> list[int]:
    """Without the attribute all axes are reversed, which moves the first one to where no fusion looks."""
    return list(node.attrs.get("perm", ()))


def _moves_batch(perm: Sequence[int]) -> bool:
    """Whether axis 0 goes to the last two places, the others before it in order, and the last axis stays
    there or beside it.
    """
    rank = len(perm)
    return (
        rank >= 3 and list(perm[: rank - 2]) == list(range(1, rank - 1)) and {0, rank - 1} == set(perm[-2:])
    )
