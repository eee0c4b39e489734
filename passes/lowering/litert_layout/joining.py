"""Transposes that follow each other, with or without a Reshape between, as one.

Transpose(p) -> Transpose(q)                          Transpose(p of q)
Transpose(p) -> Reshape, merges axes -> Transpose(q)  Transpose -> Reshape
Transpose(p) -> Reshape, splits axes -> Transpose(q)  Reshape -> Transpose
"""

from collections.abc import Collection, Sequence

from onnx_lathe.passes.graph import Node, Tensor
from onnx_lathe.passes.graph.rewire import disconnect, is_output
from onnx_lathe.passes.lowering.litert_layout.memory import factors
from onnx_lathe.passes.lowering.litert_layout.storage import Size
from onnx_lathe.passes.lowering.litert_layout.work import Work


def join_transposes(work: Work, spared: Collection[int]) -> None:
    """`spared`: ids of the Transposes of sandwiches, which stay."""

    def is_free(node: Node | None) -> bool:
        return node is not None and node.op == "Transpose" and not node.domain and id(node) not in spared

    for second in list(work.graph.nodes):
        if not is_free(second) or not second.outputs:
            continue
        middle = _only_maker(work, second)
        if middle is not None and is_free(middle):
            order = [middle.attrs["perm"][axis] for axis in second.attrs["perm"]]
            _replace(work, middle, second, order, None, None)
        elif middle is not None and middle.op == "Reshape" and is_free(first := _only_maker(work, middle)):
            _join_across(work, first, middle, second)


def _only_maker(work: Work, node: Node) -> Node | None:
    """What computes the first input for this node alone."""
    source: Tensor = node.inputs[0]
    if not source.inputs or len(source.outputs) != 1 or is_output(work.graph, source):
        return None
    maker: Node = source.inputs[0]
    return None if source.name in work.captured else maker


def _join_across(work: Work, first: Node, middle: Node, second: Node) -> None:
    shapes = [work.sizes.get(id(tensor)) for tensor in (middle.inputs[0], middle.outputs[0])]
    if shapes[0] is None or shapes[1] is None:
        return
    parts = factors(shapes[0], shapes[1])
    if parts is None:
        return
    before, behind = list(first.attrs["perm"]), list(second.attrs["perm"])
    lone = [axis for axis, own in enumerate(parts[0]) if not own]
    if all(len(own) <= 1 for own in parts[0]):
        axis_of = {own[0]: axis for axis, own in enumerate(parts[0]) if own}
        order = [before[axis_of[part]] for axis in behind for part in parts[1][axis]]
        order += [before[axis] for axis in lone]
        _replace(work, first, second, order, None, _target([shapes[1][axis] for axis in behind]))
        return
    if not all(len(own) <= 1 for own in parts[1]):
        return
    axis_of = {own[0]: axis for axis, own in enumerate(parts[1]) if own}
    split: list[int] = []
    for axis in [before.index(axis) for axis in range(len(before))]:
        split += [axis_of[part] for part in parts[0][axis]]
    split += [axis for axis, own in enumerate(parts[1]) if not own]
    target = _target([shapes[1][axis] for axis in split])
    _replace(work, first, second, [split.index(axis) for axis in behind], target, None)


def _target(sizes: Sequence[Size]) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in sizes]


def _replace(
    work: Work, first: Node, second: Node, order: list[int], split: list[int] | None, merged: list[int] | None
) -> None:
    """[Reshape to `split`] -> Transpose(order) -> [Reshape to `merged`], each where it does something."""
    if any(shape is not None and shape.count(-1) > 1 for shape in (split, merged)):
        return
    source, result, name = first.inputs[0], second.outputs[0], second.name
    steps: list[tuple[str, list[int]]] = []
    if split is not None:
        steps.append(("Reshape", split))
    if order != sorted(order):
        steps.append(("Transpose", order))
    if merged is not None or not steps:
        steps.append(("Reshape", merged) if merged is not None else ("Identity", []))
    disconnect(second)
    for place, (operator, numbers) in enumerate(steps):
        last = place == len(steps) - 1
        made = result if last else work.variable(f"{result.name}_{operator}", result, None)
        inputs = [source]
        if operator == "Reshape":
            inputs.append(work.integers(f"{made.name}_shape", numbers))
        attrs = {"perm": numbers} if operator == "Transpose" else {}
        work.node(operator, f"{name}_{operator}", inputs, [made], **attrs)
        source = made
    work.report.edit(name, "is one with the Transpose before it")
