"""A part of a model as a model of its own: the nodes that some tensors need, from others on.

    x -> Conv(W1) -> a -> Relu -> b -> Conv(W2) -> y      `submodel(model, outputs=["y"], given={"b": value})`
                                  b -> Conv(W2) -> y      is fed with b

Bodies of If, Loop and Scan stay whole: what they read of the graph around them counts as read by their node.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_lathe.errors import ModelError
from onnx_lathe.passes.graph.skeleton import runtime_inputs

RESULT = "/computed"
"""Behind the name of an output that is an input too, for other nodes: what the part computes of it."""


@dataclass(frozen=True)
class Flow:
    """Who makes and who reads the tensors of a main graph; nodes by their place in it."""

    nodes: Sequence[onnx.NodeProto]
    reads: Sequence[tuple[str, ...]]
    makers: Mapping[str, int]
    inputs: frozenset[str]
    """What a caller feeds."""
    varying: frozenset[str]
    """Tensors that depend on an input, or are drawn at random; the others are constants of the model."""

    def needed(self, outputs: Iterable[str], given: Collection[str]) -> tuple[list[int], list[str]]:
        """(the nodes, in their order, that compute `outputs` if `given` and the initializers are known; which of
        `given` and the graph's inputs these read). An output that is in `given` is computed all the same.
        """
        pending = [self.makers[name] for name in outputs if name in self.makers]
        chosen, fed = set(pending), dict[str, None]()
        while pending:
            for name in self.reads[pending.pop()]:
                if name in given or name in self.inputs:
                    fed[name] = None
                elif (maker := self.makers.get(name)) is not None and maker not in chosen:
                    chosen.add(maker)
                    pending.append(maker)
        return sorted(chosen), sorted(fed)


RANDOM = (
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)


def flow(model: onnx.ModelProto) -> Flow:
    """Of a model whose nodes are in the order of execution."""
    nodes = list(model.graph.node)
    reads = [reads_of(node) for node in nodes]
    inputs = frozenset(value.name for value in runtime_inputs(model))
    varying, makers = set(inputs), dict[str, int]()
    for place, node in enumerate(nodes):
        moves = node.op_type in RANDOM or any(name in varying for name in reads[place])
        for name in filter(None, node.output):
            makers[name] = place
            if moves:
                varying.add(name)
    return Flow(nodes, reads, makers, inputs, frozenset(varying))


def reads_of(node: onnx.NodeProto) -> tuple[str, ...]:
    """What the node reads of the graph that it is in, its bodies included."""
    found = dict.fromkeys(filter(None, node.input))
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            found |= dict.fromkeys(_free(body))
    return tuple(found)


def _free(body: onnx.GraphProto) -> list[str]:
    """Names that the body reads and does not have itself."""
    own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
    own |= {sparse.values.name for sparse in body.sparse_initializer}
    free: dict[str, None] = {}
    for node in body.node:
        free |= dict.fromkeys(name for name in reads_of(node) if name not in own)
        own.update(node.output)
    return [*free, *(value.name for value in body.output if value.name not in own and value.name not in free)]


@dataclass(frozen=True)
class Part:
    """A model that computes `outputs` (name in it -> name in the whole model) when it is fed with `inputs`."""

    model: onnx.ModelProto
    inputs: Sequence[str]
    outputs: Mapping[str, str]
    nodes: Sequence[int]
    """Places of its nodes in the whole model."""


def submodel(
    model: onnx.ModelProto,
    whole: Flow,
    outputs: Sequence[str],
    given: Mapping[str, np.dtype],
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Part:
    """The part that computes `outputs` from the tensors in `given`, which are its inputs with these types, and
    from the model's own inputs. It keeps names, functions, metadata and the initializers that it reads.

    shapes: of inputs and outputs, where they are known; those that are not named are open.

    An output in `given` is named NAME/computed in the part if its nodes read NAME too. Raises ModelError for an
    output that no node computes.
    """
    if missing := [name for name in outputs if name not in whole.makers]:
        raise ModelError(f"no node computes '{missing[0]}', so there is no part of the model that does")
    places, fed = whole.needed(outputs, given)
    made = {name: f"{name}{RESULT}" if name in fed else name for name in outputs}
    part = onnx.ModelProto(ir_version=max(model.ir_version, 4), producer_name=model.producer_name)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.metadata_props.extend(entry for entry in model.metadata_props if not entry.key.startswith("lathe."))
    graph = part.graph
    graph.name = model.graph.name or "part"
    read = set[str]()
    for place in places:
        node = graph.node.add()
        node.CopyFrom(whole.nodes[place])
        node.output[:] = [made.get(name, name) for name in node.output]
        read.update(whole.reads[place])
    declared = {value.name: value for value in (*model.graph.input, *model.graph.output)}
    for name in fed:
        graph.input.append(_typed(name, given.get(name), (shapes or {}).get(name), declared.get(name)))
    taken = read - set(fed)
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in taken)
    graph.sparse_initializer.extend(
        sparse for sparse in model.graph.sparse_initializer if sparse.values.name in taken
    )
    for name in outputs:
        known = (given.get(name), (shapes or {}).get(name)) if shapes else (None, None)
        graph.output.append(_typed(made[name], *known, None))
    return Part(part, fed, {new: name for name, new in made.items()}, places)


def _typed(
    name: str, dtype: np.dtype | None, shape: Sequence[int] | None, declared: onnx.ValueInfoProto | None
) -> onnx.ValueInfoProto:
    """Of a known type; else as the model declares it; else without one, which ONNX Runtime infers."""
    if dtype is None:
        found = onnx.ValueInfoProto() if declared is None else declared
        copy = onnx.ValueInfoProto()
        copy.CopyFrom(found)
        copy.name = name
        return copy
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(dtype), shape)
