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
    waiting = {key: len(called) for key, called in calls.items()}
    callers: dict[_Key, list[_Key]] = {}
    for key, called in calls.items():
        for one in called:
            callers.setdefault(one, []).append(key)
    sizes: dict[_Key, int] = {}
    ready = [key for key, count in waiting.items() if not count]
    while ready:
        key = ready.pop()
        inlined = len(bodies[key]) + sum(count * sizes[one] for one, count in calls[key].items())
        sizes[key] = min(inlined, 2 * MOST_NODES)  # doubled ten thousand times it would have as many digits
        for caller in callers.get(key, ()):
            waiting[caller] -= 1
            if not waiting[caller]:
                ready.append(caller)
    if left := calls.keys() - sizes.keys():
        domain, name, _ = min(left)
        raise ModelError(f"function '{domain}.{name}' calls itself, or one that does; export the model again")
    total = sum(count * sizes[key] for key, count in _calls(model.graph.node, bodies.keys()).items())
    if total > MOST_NODES:
        raise ModelError(
            f"calls of its local functions are more than {MOST_NODES:,} nodes, which are the most; export the model again"
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
