"""Rewrites a model of opset 7 to 10 at opset 17, node by node, bodies of If and Loop included.

The converter of the ONNX project copies every weight, forgets metadata and gets some operators wrong, so the
rules are here (old_operators.py). Operators without a rule only took more types since:
a test compares all schemas of the standard.
"""

from contextlib import suppress

import onnx

from onnx_lathe.errors import ModelError
from onnx_lathe.passes.graph.skeleton import skeleton
from onnx_lathe.passes.loading.old_operators import RULES, Rewriter
from onnx_lathe.passes.loading.walk import bodies, names, standard_opset

OLDEST = 7
"""ONNX Runtime runs no older operators."""
NEWEST_OLD = 10
MODERN = 17


def modernize(model: onnx.ModelProto) -> str | None:
    """Rewrites the model in place. Returns what was done; None for one of opset 11 and later.

    Raises ModelError naming a node that cannot be said at opset 17.
    """
    opset = standard_opset(model)
    if opset is None or opset.version > NEWEST_OLD:
        return None
    if opset.version < OLDEST:
        raise ModelError(
            f"opset {opset.version} is older than {OLDEST}, the oldest that ONNX Runtime runs; "
            f"export the model again with opset_version={MODERN}"
        )
    if model.functions:
        raise ModelError("its local functions are of other opsets than the model; export it again")
    old = opset.version
    rewriter = Rewriter(model.graph, old, names(model.graph), _types(model))
    _rewrite(model.graph, rewriter)
    opset.version = MODERN
    model.ir_version = max(model.ir_version, onnx.helper.find_min_ir_version_for([opset]))
    done = ", ".join(f"{count} {op}" for op, count in sorted(rewriter.done.items()))
    return f"opset {old} converted to {MODERN}" + (f" ({done} written anew)" if done else "")


def _rewrite(graph: onnx.GraphProto, rewriter: Rewriter) -> None:
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for body in _own_bodies(node):
            _rewrite(body, rewriter.of_body(body))
        rule = None if node.domain not in ("", "ai.onnx") else RULES.get(node.op_type)
        written = None if rule is None else rule(rewriter, node)
        if written is None:
            nodes.append(node)
            continue
        rewriter.done[node.op_type] += 1
        nodes.extend(written)
    copies = [_copy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    graph.initializer.extend(rewriter.constants)


def _own_bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Types of the values, by shape inference at the old opset; those that bodies declare too."""
    light = skeleton(model)
    with suppress(onnx.shape_inference.InferenceError):  # then what the model declares must do
        light = onnx.shape_inference.infer_shapes(light)
    found: dict[str, onnx.TypeProto.Tensor] = {}
    unsure: set[str] = set()
    parts = [light.graph, *(body for node in light.graph.node for body in bodies(node))]
    for part in parts:
        for value in (*part.value_info, *part.input, *part.output):
            if value.type.HasField("tensor_type"):
                kind = value.type.tensor_type
                if found.setdefault(value.name, kind) != kind:  # two bodies with values of one name
                    unsure.add(value.name)
        for tensor in part.initializer:
            stored = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
            found[tensor.name] = stored.tensor_type
    return {name: kind for name, kind in found.items() if name not in unsure}
