"""The model without branches that its inputs' sizes decide.

    If(Equal(Gather(Shape(x), 1), 1))      one of its bodies, whichever runs at these sizes

Exporters write such a branch where a layer drops a dimension of 1. ncnn has no branches; where the condition is the same
at all sizes that are looked at, the body's nodes take the place of the If.
"""

import itertools
from collections.abc import Mapping

import numpy as np
import onnx

from onnx_lathe.runtime.targets.ncnn.facts import Shape, free_tensors, free_values
from onnx_lathe.runtime.targets.ncnn.further import further_values

MOST_ROUNDS = 16
"""How deep branches may lie in one another."""


def decided(
    model: onnx.ModelProto, sizes: Mapping[str, Shape], others: Mapping[str, Shape]
) -> onnx.ModelProto:
    """A copy with the bodies that run, or the model itself if no branch is decided. Raises TargetError where ONNX Runtime
    cannot run the model at these sizes.
    """
    for _ in range(MOST_ROUNDS):
        free = free_tensors(model.graph)
        wanted = sorted(
            {node.input[0] for node in model.graph.node if _is_branch(node) and node.input[0] in free}
        )
        if not wanted:
            break
        known = [
            free_values(model, each, wanted) for each in ((sizes, others) if sizes != others else (sizes,))
        ]
        known += further_values(model, sizes, others, wanted) if sizes != others else []
        chosen = {
            name: bool(known[0][name])
            for name in wanted
            if all(np.all(one[name] == known[0][name]) for one in known if name in one)
        }
        if not chosen:
            break
        model = _inlined(model, chosen)
    return model


def _is_branch(node: onnx.NodeProto) -> bool:
    return node.op_type == "If" and not node.domain


def _inlined(model: onnx.ModelProto, chosen: Mapping[str, bool]) -> onnx.ModelProto:
    found = onnx.ModelProto()
    found.CopyFrom(model)
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    taken |= {tensor.name for tensor in model.graph.initializer}
    taken |= {value.name for value in (*model.graph.input, *model.graph.output)}
    del found.graph.node[:]
    for node in model.graph.node:
        if not _is_branch(node) or node.input[0] not in chosen:
            found.graph.node.add().CopyFrom(node)
            continue
        wanted = "then_branch" if chosen[node.input[0]] else "else_branch"
        body = next(item.g for item in node.attribute if item.name == wanted)
        _put(found.graph, node, body, taken)
    return found


def _put(graph: onnx.GraphProto, node: onnx.NodeProto, body: onnx.GraphProto, taken: set[str]) -> None:
    """Adds the body's nodes and constants, under names that are free."""
    names: dict[str, str] = {}
    for name in itertools.chain(
        [tensor.name for tensor in body.initializer], *(one.output for one in body.node)
    ):
        if name and name not in names:
            names[name] = _free(f"{node.name}/{name}" if name in taken else name, taken)
    for tensor in body.initializer:
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = names[tensor.name]
    for one in body.node:
        added = graph.node.add()
        added.CopyFrom(one)
        _rename(added, names)
    for value, output in zip(body.output, node.output, strict=False):
        if output:
            graph.node.append(
                onnx.helper.make_node("Identity", [names.get(value.name, value.name)], [output], name=output)
            )


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Also what the bodies of branches within read; what they write hides the names of outside."""
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for item in node.attribute:
        if item.type == onnx.AttributeProto.GRAPH:
            _rename_within(item.g, names)


def _rename_within(body: onnx.GraphProto, names: Mapping[str, str]) -> None:
    own = {tensor.name for tensor in body.initializer} | {value.name for value in body.input}
    own |= {name for node in body.node for name in node.output}
    outside = {name: new for name, new in names.items() if name not in own}
    for node in body.node:
        node.input[:] = [outside.get(name, name) for name in node.input]
        for item in node.attribute:
            if item.type == onnx.AttributeProto.GRAPH:
                _rename_within(item.g, outside)
    for value in body.output:
        value.name = outside.get(value.name, value.name)


def _free(name: str, taken: set[str]) -> str:
    found = name
    for number in itertools.count(2):
        if found not in taken:
            break
        found = f"{name}_{number}"
    taken.add(found)
    return found
