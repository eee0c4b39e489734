"""Which way branches go at all sizes of inputs between two, proven and not sampled.

    If(Greater(Gather(Shape(x), 2), 48))      its else_branch from 1x3x9x9 to 1x3x48x48

A tensor that follows each size up or down alone is between its values at the ends of the sizes, and is the same
everywhere if it is the same at these. What is computed of such tensors alone is, too, whatever computes it.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnx_lathe.runtime.targets.core.branches import COMPARISONS, above, conditions
from onnx_lathe.runtime.targets.core.facts import SIZE_OPS, Shape, free_tensors, free_values
from onnx_lathe.runtime.targets.core.further import sized_tensors, values_at

MOST_OPEN = 6
"""Sizes whose ends are tried in all combinations."""
PICKING = ("Gather", "Slice", "Split", "Squeeze", "Unsqueeze", "Reshape")
"""Operators whose results are elements of their first input."""
ONE_MOVES = ("Add", "And", "Max", "Min", "Mul", "Or", "Sub")
"""Operators whose result follows one operand up or down, if the others stay as they are."""
Values = Mapping[str, np.ndarray]


def decided_within(
    model: onnx.ModelProto, least: Mapping[str, Shape], greatest: Mapping[str, Shape]
) -> dict[str, bool]:
    """Condition -> what it is at all sizes of inputs from the `least` shapes to the `greatest`, where that is proven.

    Conditions that no size goes into are not among them.
    """
    graph, ends = model.graph, _ends(least, greatest)
    nodes = above(graph, conditions(graph))[::-1] if ends else []
    if not nodes:
        return {}
    sized = sized_tensors(graph)
    wanted = [*dict.fromkeys(name for node in nodes for name in (*node.input, *node.output) if name)]
    known = values_at(model, ends, least, wanted)
    if len(known) < len(ends):  # the model does not run at one of them
        return {}
    free = free_tensors(graph)
    stored = free_values(model, least, [name for name in wanted if name in free and name not in sized])
    proof = _Proof(sized, [{**stored, **one} for one in known])
    for node in nodes:
        proof.add(node)
    return {name: bool(known[0][name]) for name in conditions(graph) if name in proof.steady & sized}


class _Proof:
    """What is known of the tensors that sizes go into. `ends`: the values at each end of the sizes."""

    def __init__(self, sized: set[str], ends: Sequence[Values]) -> None:
        self.sized, self.ends = sized, ends
        self.steady = {name for name in ends[0] if name not in sized}
        """The same at all sizes."""
        self.moving: set[str] = set()
        """Up or down with each size alone."""

    def add(self, node: onnx.NodeProto) -> None:
        """Adds what is known of a node's results, once that is known of what it reads."""
        reads = [name for name in node.input if name]
        if not (node.op_type in SIZE_OPS and not node.domain) and self.steady.issuperset(reads):
            self.steady.update(name for name in node.output if name)
        elif self._follows(node, reads):
            for name in node.output:
                (self.steady if self._is_same(name) else self.moving).add(name)

    def _follows(self, node: onnx.NodeProto, reads: Sequence[str]) -> bool:
        if node.domain:
            return False
        if node.op_type in SIZE_OPS:  # of a tensor that no size is an operand of
            return reads[0] not in self.sized
        if not (self.steady | self.moving).issuperset(reads):
            return False
        moves = [place for place, name in enumerate(node.input) if name in self.moving]
        if node.op_type == "Equal" or _is_test(node):
            return len(moves) == 1 and self._keeps_its_side(node)
        if node.op_type in COMPARISONS:
            return len(moves) == 1
        if node.op_type in ONE_MOVES:
            return len(moves) == 1 and self._holds(node)
        if node.op_type in (*PICKING, "Div"):
            return moves == [0]
        if node.op_type == "Cast":
            return self._holds(node)
        return node.op_type in ("Ceil", "Concat", "Floor", "Identity", "Neg", "Not")

    def _is_same(self, name: str) -> bool:
        return all(
            name in one and np.array_equal(one[name], self.ends[0].get(name, np.nan)) for one in self.ends
        )

    def _keeps_its_side(self, node: onnx.NodeProto) -> bool:
        """Whether one operand is above the other at both ends, or below, or is it all along."""
        names = [*node.input, *([""] if len(node.input) == 1 else [])]
        zero = {"": np.array(0)}
        if any(name and name not in one for one in self.ends for name in names):
            return False
        signs = [
            np.sign(np.subtract(*((one | zero)[name] for name in names), dtype=np.float64))
            for one in map(dict, self.ends)
        ]
        return all(np.array_equal(sign, signs[0]) for sign in signs)

    def _holds(self, node: onnx.NodeProto) -> bool:
        """Whether the result's type holds the values at the ends, and so those between: integers wrap around."""
        compute = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}.get(node.op_type)
        for one in self.ends:
            if any(name not in one for name in (*node.input, *node.output)):
                return False
            kind = one[node.output[0]].dtype
            if kind.kind not in "iu" or (compute is None and node.op_type != "Cast"):
                continue
            operands = [one[name].astype(np.float64) for name in node.input]
            found = compute(*operands) if compute else operands[0]
            limits = np.iinfo(kind)
            if not np.all((found > limits.min - 1.0) & (found < float(limits.max) + 1.0)):
                return False
        return True


def _is_test(node: onnx.NodeProto) -> bool:
    """Whether it asks if a number is 0."""
    return node.op_type == "Cast" and any(
        item.name == "to" and item.i == onnx.TensorProto.BOOL for item in node.attribute
    )


def _ends(least: Mapping[str, Shape], greatest: Mapping[str, Shape]) -> list[dict[str, Shape]]:
    """The inputs' sizes with each open one at either end; nothing where there are too many."""
    places = [
        (name, axis)
        for name, shape in least.items()
        for axis, size in enumerate(shape)
        if greatest[name][axis] != size
    ]
    if len(places) > MOST_OPEN:
        return []
    found = []
    for chosen in itertools.product((False, True), repeat=len(places)):
        high = {place for place, is_high in zip(places, chosen, strict=True) if is_high}
        found.append(
            {
                name: tuple(
                    greatest[name][axis] if (name, axis) in high else size for axis, size in enumerate(shape)
                )
                for name, shape in least.items()
            }
        )
    return found
