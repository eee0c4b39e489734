"""Local functions, counted before anything inlines them: forty that call each other twice are a trillion nodes."""

from collections import Counter
from collections.abc import Iterable

import onnx
from onnx import ModelProto

from onnx_lathe.errors import ModelError

MOST_NODES = 1_000_000
"""That calls of functions may become, inlined."""
_Key = tuple[str, str, str]


def check_functions(model: ModelProto) -> None:
    """Raises ModelError for a function that calls itself, perhaps by way of others, and for calls of more than
    MOST_NODES nodes.
    """
    if not model.functions:
        return
    bodies = {(one.domain, one.name, one.overload): one.node for one in model.functions}
    calls = {key: _calls(nodes, bodies.keys()) for key, nodes in bodies.items()}
    sizes: dict[_Key, int] = {}
    left = dict(calls)
    while ready := [key for key, called in left.items() if called.keys() <= sizes.keys()]:
        for key in ready:
            inlined = sum(count * sizes[one] for one, count in left.pop(key).items())
            sizes[key] = len(bodies[key]) + inlined
    if left:
        domain, name, _ = min(left)
        raise ModelError(f"function '{domain}.{name}' calls itself, or one that does; export the model again")
    total = sum(count * sizes[key] for key, count in _calls(model.graph.node, bodies.keys()).items())
    if total > MOST_NODES:
        raise ModelError(
            f"calls of its local functions are {total:.3g} nodes, and {MOST_NODES:,} are the most; export the model again"
        )


def _calls(nodes: Iterable[onnx.NodeProto], known: Iterable[_Key]) -> Counter[_Key]:
    """How often these nodes, and those of bodies in them, call each function."""
    found: Counter[_Key] = Counter()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        key = (node.domain, node.op_type, node.overload)
        if key in known:
            found[key] += 1
        for attribute in node.attribute:
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                pending.extend(graph.node)
    return found
