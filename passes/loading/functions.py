"""Inlines the local functions of a model, so that the layers in them are compressed and counted like others."""

from collections.abc import Iterable

import onnx
from onnx import inliner

from onnx_lathe.errors import ModelError, first_few
from onnx_lathe.passes.graph.skeleton import skeleton
from onnx_lathe.passes.loading.walk import bodies


def inline_functions(model: onnx.ModelProto) -> str | None:
    """Replaces, in place, every call of a local function by the function's nodes, at any depth. Returns what
    was done; None without functions.

    The inliner of the ONNX project gives new names to what is inside. It sees no big initializer. A function
    that it leaves alone, being written for another opset, stays one. Raises ModelError for functions that do not fit
    their calls.
    """
    if not model.functions:
        return None
    known = {(function.domain, function.name, function.overload) for function in model.functions}
    calls = sum((node.domain, node.op_type, node.overload) in known for node in _nodes(model.graph.node))
    light = skeleton(model)
    _give_defaults(light)
    try:
        light = inliner.inline_local_functions(light)
    except (RuntimeError, ValueError) as error:
        # such as a call that gives more inputs than the function takes
        raise ModelError(
            f"its local functions cannot be inlined ({' '.join(str(error).split())}); export the model again"
        ) from error
    del model.graph.node[:], model.functions[:]
    model.graph.node.extend(light.graph.node)
    model.functions.extend(light.functions)
    left = {(function.domain, function.name, function.overload) for function in model.functions}
    _import_opsets(model, light)
    gone = sorted(f"{domain}.{name}" for domain, name, _ in known - left)
    if not gone:
        return None
    return (
        f"{len(gone)} local function{'s' if len(gone) > 1 else ''} inlined where {calls} node"
        f"{'s' if calls != 1 else ''} called {'them' if len(gone) > 1 else 'it'}: {first_few(gone)}"
    )


def _give_defaults(model: onnx.ModelProto) -> None:
    """Writes the defaults of functions' attributes into the calls that leave them out: the inliner forgets them
    (seen in onnx 1.23).
    """
    defaults = {
        (function.domain, function.name, function.overload): function.attribute_proto
        for function in model.functions
    }
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in _nodes(nodes):
            given = {attribute.name for attribute in node.attribute}
            missing = defaults.get((node.domain, node.op_type, node.overload), ())
            node.attribute.extend(attribute for attribute in missing if attribute.name not in given)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes and those of all bodies in them."""
    outer = list(nodes)
    return [*outer, *(node for one in outer for body in bodies(one) for node in body.node)]


def _import_opsets(model: onnx.ModelProto, inlined: onnx.ModelProto) -> None:
    """The opsets of what is in the graph now; the domain of a function that is gone goes too."""
    used = {node.domain for node in _nodes(model.graph.node)}
    for function in model.functions:
        used |= {function.domain, *(node.domain for node in _nodes(function.node))}
    kept = [entry for entry in inlined.opset_import if entry.domain in used | {"", "ai.onnx"}]
    del model.opset_import[:]
    model.opset_import.extend(kept)
