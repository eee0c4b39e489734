"""Einsum of one or two operands: a sum over letters, a transposition, or one product of matrices.

"bhqd,bhkd->bhqk"      letters of both and of the result count samples (b h), those of both alone are summed over (d),
                       the others are the rows (q) and the columns (k)
"""

from collections.abc import Sequence
from typing import Any

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.coreml.dimensions import is_open
from onnx_lathe.runtime.targets.coreml.knowledge import Pair
from onnx_lathe.runtime.targets.coreml.network import Network
from onnx_lathe.runtime.targets.coreml.operators.elementwise import operand
from onnx_lathe.runtime.targets.coreml.registry import operator

SEVERAL = "two or more of its sizes depend on the size of the input"


@operator("Einsum")
def einsum(node: Node, net: Network) -> None:
    terms, result = _equation(node)
    parts = [(operand(node, net, place), term) for place, term in enumerate(terms)]
    sizes: dict[str, Pair] = {}
    for place, term in enumerate(terms):
        for letter, pair in zip(term, net.pairs(node.inputs[place]), strict=True):
            if sizes.setdefault(letter, pair) != pair:
                raise Unsupported(f"an operand is repeated along its axis '{letter}'")
    parts = [
        _summed(net, node, variable, term, _others(terms, place) + result, place)
        for place, (variable, term) in enumerate(parts)
    ]
    if len(parts) == 1:
        ((variable, term),) = parts
        net.leave(node, _ordered(net, variable, term, result, node.name))
        return
    _product(node, net, parts, result, sizes)


def _equation(node: Node) -> tuple[list[str], str]:
    """(letters of each operand, letters of the result)."""
    text = node.text("equation", "").replace(" ", "")
    before, arrow, result = text.partition("->")
    terms = before.split(",")
    if not arrow:
        result = "".join(sorted(letter for letter in set(before) - {","} if before.count(letter) == 1))
    if "." in text or len(terms) > 2 or any(len(set(term)) < len(term) for term in (*terms, result)):
        raise Unsupported(
            f"its equation is '{text}'; Lathe writes one or two operands, without dots and repeated letters"
        )
    return terms, result


def _others(terms: Sequence[str], place: int) -> str:
    return "".join(term for other, term in enumerate(terms) if other != place)


def _summed(net: Network, node: Node, variable: Any, term: str, wanted: str, place: int) -> tuple[Any, str]:
    """Over the letters that nothing else has."""
    gone = [axis for axis, letter in enumerate(term) if letter not in wanted]
    if not gone:
        return variable, term
    left = "".join(letter for letter in term if letter in wanted)
    return net.op("reduce_sum", f"{node.name}_sum_{place}", x=variable, axes=gone, keep_dims=False), left


def _ordered(net: Network, variable: Any, term: str, wanted: str, label: str) -> Any:
    if term == wanted:
        return variable
    return net.op("transpose", f"{label}_ordered", x=variable, perm=[term.index(letter) for letter in wanted])


def _product(
    node: Node, net: Network, parts: list[tuple[Any, str]], result: str, sizes: dict[str, Pair]
) -> None:
    (first, one), (second, other) = parts
    both = [letter for letter in one if letter in other]
    samples = "".join(letter for letter in both if letter in result)
    inner = "".join(letter for letter in both if letter not in result)
    rows, columns = ("".join(letter for letter in term if letter not in both) for term in (one, other))
    groups = ((first, one, (samples, rows, inner), 0), (second, other, (samples, inner, columns), 1))
    left, right = (
        _matrix(node, net, variable, term, letters, sizes, place) for variable, term, letters, place in groups
    )
    found = net.op("matmul", f"{node.name}_product", x=left, y=right)
    pairs = [sizes[letter] for letter in samples + rows + columns]
    if sum(map(is_open, pairs)) > 1:
        raise Unsupported(SEVERAL)
    shape = [-1 if is_open(pair) else pair[0] for pair in pairs]
    label = f"{node.name}_apart"
    apart = net.reshaped(found, label, shape) if shape else net.op("squeeze", label, x=found)
    net.leave(node, _ordered(net, apart, samples + rows + columns, result, node.name))


def _matrix(
    node: Node,
    net: Network,
    variable: Any,
    term: str,
    letters: tuple[str, str, str],
    sizes: dict[str, Pair],
    place: int,
) -> Any:
    """[samples, rows, columns]: the letters of each put together."""
    label = f"{node.name}_{place}"
    turned = _ordered(net, variable, term, "".join(letters), label)
    pairs = []
    for part in letters:
        ends = [1, 1]
        for letter in part:
            ends = [ends[0] * sizes[letter][0], ends[1] * sizes[letter][1]]
        pairs.append((ends[0], ends[1]))
    if sum(map(is_open, pairs)) > 1:
        raise Unsupported(SEVERAL)
    return net.reshaped(turned, f"{label}_matrix", [-1 if is_open(pair) else pair[0] for pair in pairs])
