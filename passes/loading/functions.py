"""Inlines the local functions of a model, so that the layers in them are compressed and counted like others."""

import onnx
from onnx import inliner

from onnx_lathe.passes.graph.skeleton import skeleton
from onnx_lathe.passes.loading.walk import bodies

NAMED = 3
"""So many functions are named in the note."""


def inline_functions(model: onnx.ModelProto) -> str | None:
    """Replaces, in place, every call of a local function by the function's nodes, at any depth. Returns what
    was done; None without functions.

    The inliner of the ONNX project gives new names to what is inside. It sees no big initializer. A function
    that it leaves alone, being written for another opset, stays one.
    """
    if not model.functions:
        return None
    known = {(function.domain, function.name, function.overload) for function in model.functions}
    calls = sum((node.domain, node.op_type, node.overload) in known for node in _nodes(model.graph))
    light = inliner.inline_local_functions(skeleton(model))
    del model.graph.node[:], model.functions[:]
    model.graph.node.extend(light.graph.node)
    model.functions.extend(light.functions)
    left = {(function.domain, function.name, function.overload) for function in model.functions}
    _import_opsets(model, light)
    gone = sorted(f"{domain}.{name}" for domain, name, _ in known - left)
    if not gone:
        return None
    shown = ", ".join(gone[:NAMED]) + (f" and {len(gone) - NAMED} more" if len(gone) > NAMED else "")
    return (
        f"{len(gone)} local function{'s' if len(gone) > 1 else ''} inlined where {calls} node"
        f"{'s' if calls != 1 else ''} called {'them' if len(gone) > 1 else 'it'}: {shown}"
    )


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes of the graph and of all bodies in it."""
    inside = [node for one in graph.node for body in bodies(one) for node in body.node]
    return [*graph.node, *inside]


def _import_opsets(model: onnx.ModelProto, inlined: onnx.ModelProto) -> None:
    """The opsets of what is in the graph now; the domain of a function that is gone goes too."""
    used = {node.domain for node in _nodes(model.graph)}
    for function in model.functions:
        used |= {function.domain, *(node.domain for node in function.node)}
    kept = [entry for entry in inlined.opset_import if entry.domain in used | {"", "ai.onnx"}]
    del model.opset_import[:]
    model.opset_import.extend(kept)
