"""A graph as a list of steps over numbered slots, made once, so that running it costs little more than the
operators themselves.

Initializers that are not trained, and everything computed from them alone (decoded indices, dequantized
weights), are constants: evaluated here and not at every step. What is computed from shapes alone stays on
the CPU ("host"), where the next step reads it as numbers.
"""

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
from onnx import inliner

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.torch_bridge.arrays import to_torch, torch_type
from onnx_lathe.runtime.torch_bridge.frozen import (
    Frozen,
    Kept,
    OnnxRuntimeNode,
    can_freeze,
    captured,
    gives_floats,
)
from onnx_lathe.runtime.torch_bridge.parameters import trainable
from onnx_lathe.runtime.torch_bridge.registry import Function, Node, RefusedError, Unsupported, find

NOTHING, DISCARDED = 0, 1
"""The slot of an omitted input, always None, and of an omitted output."""


@dataclass
class Step:
    """One node: `run(*values[inputs])` gives `values[outputs]`; `release` are the slots that no later step
    reads.
    """

    run: Function
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    node: onnx.NodeProto
    static: bool
    """Whether it depends on parameters alone, not on the model's inputs."""
    release: tuple[int, ...] = ()


@dataclass
class Plan:
    slots: dict[Hashable, int] = field(default_factory=lambda: {"": NOTHING, None: DISCARDED})
    """Slot of a tensor by its name (other keys: the same constant in another form)."""
    steps: list[Step] = field(default_factory=list)
    constants: dict[int, torch.Tensor] = field(default_factory=dict)
    """By slot: what steps on the device read."""
    numbers: dict[int, Any] = field(default_factory=dict)
    """By slot: Python numbers, and the CPU tensors that steps on the host read."""
    static: set[str] = field(default_factory=set)
    """Names of the tensors that do not depend on the model's inputs."""
    host: set[str] = field(default_factory=set)
    """Names of the tensors that are known from shapes alone, and stay on the CPU."""
    refused: list[Unsupported] = field(default_factory=list)
    frozen: list[Frozen] = field(default_factory=list)
    """Nodes that ONNX Runtime computes."""
    untrained: dict[str, Frozen] = field(default_factory=dict)
    """Parameters that are not trained -> the node behind them that has no gradient."""

    def slot(self, key: Hashable) -> int:
        return self.slots.setdefault(key, len(self.slots))


def unsupported(model: onnx.ModelProto, freeze: bool = False) -> list[Unsupported]:
    """Every node that has no PyTorch counterpart, in graph order; empty if `GraphModule(model, freeze=freeze)`
    can be built.
    """
    model = inlined(model)
    return make_plan(model, trainable(model.graph), freeze).refused


def check_runs(model: onnx.ModelProto) -> None:
    """Raises ModelError naming the nodes for which `GraphModule(model, freeze=True)` cannot be built."""
    raise_refused(unsupported(model, freeze=True))


def raise_refused(refused: Sequence[Unsupported]) -> None:
    if refused:
        raise ModelError(
            f"PyTorch cannot run {len(refused)} of the model's nodes: {', '.join(map(str, refused))}"
        )


def kept(model: onnx.ModelProto) -> list[Kept]:
    """What `GraphModule(model, freeze=True)` runs, but does not train, in graph order."""
    model = inlined(model)
    parameters = trainable(model.graph)
    plan = make_plan(model, parameters, freeze=True)
    found = [Kept(one.node, one.reason) for one in plan.frozen]
    readers = {name: node.name or node.op_type for node in reversed(model.graph.node) for name in node.input}
    return found + [
        Kept(readers.get(name, name), f"{name} is not trained: {one.node} behind it has no gradient")
        for name, one in plan.untrained.items()
    ]


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its own functions expanded into operators; the same object if it has none."""
    expanded: onnx.ModelProto = inliner.inline_local_functions(model) if model.functions else model
    return expanded


def make_plan(model: onnx.ModelProto, parameters: Collection[str], freeze: bool = False) -> Plan:
    """The plan of a model in which the initializers `parameters` are trained. If `refused` lists nodes, it
    cannot run. `freeze`: nodes without counterpart are left to ONNX Runtime where that can be.
    """
    planner = _Planner(model, parameters, freeze)
    for value in model.graph.input:
        planner.plan.slot(value.name)  # also if nothing reads it
    for index, node in enumerate(_needed(model.graph)):
        planner.add(node, node.name or f"{node.op_type}_{index}")
    for value in model.graph.output:
        planner.check_output(value)
    plan = planner.finish()
    plan.untrained.update(_untrained(model.graph, plan, parameters))
    if parameters and plan.untrained.keys() >= set(parameters):
        plan.refused += planner.without
    return plan


def _untrained(graph: onnx.GraphProto, plan: Plan, parameters: Collection[str]) -> dict[str, Frozen]:
    """Parameters before a frozen node that a gradient would go through, in graph order -> that node."""
    producers = {name: node for node in graph.node for name in node.output}
    found: dict[str, Frozen] = {}
    for one in plan.frozen:
        waiting = list(one.reads) if one.passes_gradient else []
        seen = set(waiting)
        while waiting:
            name = waiting.pop()
            if name in parameters:
                found.setdefault(name, one)
            elif name in producers:
                above = set(_read(producers[name])) - seen
                seen |= above
                waiting += above
    return {tensor.name: found[tensor.name] for tensor in graph.initializer if tensor.name in found}


def _needed(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that some output depends on, in graph order."""
    wanted = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(_read(node))
            nodes.append(node)
    return nodes[::-1]


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node reads, those that its subgraphs take from outside included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _read(inner)
            yield from (value.name for value in graph.output)


def _uncarried(value: onnx.ValueInfoProto) -> str | None:
    """Why PyTorch cannot carry an input or output of the model; None if it can."""
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return kind.removesuffix("_type").replace("_", " ") if kind else "no declared type"
    try:
        torch_type(value.type.tensor_type.elem_type)
    except RefusedError as refusal:
        return "no declared type" if str(refusal) == "UNDEFINED" else str(refusal)
    return None


class _Planner:
    def __init__(self, model: onnx.ModelProto, parameters: Collection[str], freeze: bool) -> None:
        graph = model.graph
        self.model, self.freeze = model, freeze
        self.without: list[Unsupported] = []
        """The frozen nodes, as they are refused where they leave nothing to train."""
        self.plan = Plan()
        self.opsets = {_domain(entry): entry.version for entry in model.opset_import}
        self.outputs = [value.name for value in graph.output]
        self.read = {name for node in graph.node for name in node.input} | set(self.outputs)
        self.plan.static.update(tensor.name for tensor in graph.initializer)
        self.known: dict[str, torch.Tensor] = {}
        self.elements = {
            value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)
        }
        self.ranks = {
            value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.input, *graph.value_info)
        }
        self.elements.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
        self.elements.update((value.name, value.type.tensor_type.elem_type) for value in graph.output)
        self.ranks.update((tensor.name, len(tensor.dims)) for tensor in graph.initializer)
        self.elements.update(
            (node.output[0], attribute.t.data_type)
            for node in graph.node if node.op_type == "Constant" for attribute in node.attribute if attribute.name == "value"
        )  # fmt: skip
        self.unreadable = {sparse.values.name: "a sparse initializer" for sparse in graph.sparse_initializer}
        self.unreadable.update((value.name, reason) for value in graph.input if (reason := _uncarried(value)))
        self.producers: dict[str, tuple[onnx.NodeProto, str]] = {}
        for tensor in graph.initializer:
            if tensor.name not in parameters:
                try:
                    self.known[tensor.name] = to_torch(onnx.numpy_helper.to_array(tensor))
                except RefusedError as refusal:
                    self.unreadable[tensor.name] = str(refusal)

    def add(self, node: onnx.NodeProto, name: str) -> None:
        domain = _domain(node)
        opset = self.opsets.get(domain, 0)
        self.producers.update(dict.fromkeys(node.output, (node, name)))
        try:
            self.lower(node, domain, Node(
                node.op_type, opset,
                {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute},
                [self.known.get(source) for source in node.input],
                node.input,
                [self.elements.get(source, 0) for source in node.input],
                [self.ranks.get(source, 0) for source in node.input],
                len(node.output),
                max((index + 1 for index, output in enumerate(node.output) if output in self.read), default=0),
            ))  # fmt: skip
        except RefusedError as refusal:
            refused = Unsupported(name, f"{node.op_type} {refusal}".rstrip(), opset, domain)
            if self.freeze and can_freeze(node) and not self.unreadable.keys() & set(node.input):
                self.add_frozen(node, name, opset)
                self.without.append(refused)
            else:
                self.plan.refused.append(refused)

    def add_frozen(self, node: onnx.NodeProto, name: str, opset: int) -> None:
        """A step that ONNX Runtime runs; what it gives PyTorch carries on the device."""
        known = self.known.keys() | self.plan.static | self.producers.keys()
        known |= {value.name for value in self.model.graph.input}
        names = [*node.input, *captured(node, known)]
        sources = [source for source in names if source]
        run = OnnxRuntimeNode(node, names, self.model, self.elements)
        floats = gives_floats(node, self.elements, opset)
        self.plan.frozen.append(Frozen(name, node.op_type, tuple(sources), floats))
        if static := self.plan.static.issuperset(sources):
            self.plan.static.update(node.output)
        inputs = tuple(self.argument(source, False, False) for source in names)
        outputs = tuple(self.plan.slot(output or None) for output in node.output)
        self.plan.steps.append(Step(run, inputs, outputs, node, static))

    def check_output(self, value: onnx.ValueInfoProto) -> None:
        """Refuse the node that gives an output of a type that PyTorch lacks, unless it is refused already."""
        reason = _uncarried(value)
        node, name = self.producers.get(value.name, (onnx.NodeProto(op_type="output"), value.name))
        if reason is not None and name not in {refused.node for refused in self.plan.refused}:
            domain = _domain(node)
            self.plan.refused.append(
                Unsupported(name, f"{node.op_type} giving {reason}", self.opsets.get(domain, 0), domain)
            )

    def lower(self, node: onnx.NodeProto, domain: str, described: Node) -> None:
        found = find(domain, described.op, described.opset)
        if found is None:
            raise RefusedError
        for source in node.input:
            if source in self.unreadable:
                raise RefusedError(f"of {self.unreadable[source]}")
        run = found.build(described)
        sources = [source for source in node.input if source]
        static = self.plan.static.issuperset(sources)
        if static:
            self.plan.static.update(node.output)
        if all(source in self.known for source in sources):
            self.fold(run, node, found.numbers)
            return
        on_host = all(source in self.known or source in self.plan.host for source in sources)
        if on_host or node.op_type in ("Shape", "Size"):
            self.plan.host.update(node.output)
        inputs = tuple(
            self.argument(source, position in found.numbers, on_host)
            for position, source in enumerate(node.input)
        )
        outputs = tuple(self.plan.slot(output or None) for output in node.output)
        run = self.adapted(run, node, found.numbers, on_host)
        self.plan.steps.append(Step(run, inputs, outputs, node, static))

    def fold(self, run: Function, node: onnx.NodeProto, numbers: tuple[int, ...]) -> None:
        arguments = [self.known.get(source) for source in node.input]
        with torch.no_grad():
            result = run(
                *[
                    _numbers(value) if position in numbers else value
                    for position, value in enumerate(arguments)
                ]
            )
        self.known.update(zip(node.output, result if isinstance(result, tuple) else (result,), strict=False))

    def argument(self, source: str, as_numbers: bool, on_host: bool) -> int:
        """The slot that an input is read from; a constant gets one for each form that it is read in."""
        if source not in self.known:
            return self.plan.slot(source)
        if as_numbers or on_host:
            slot = self.plan.slot((source, as_numbers))
            self.plan.numbers[slot] = _numbers(self.known[source]) if as_numbers else self.known[source]
        else:
            slot = self.plan.slot(source)
            self.plan.constants[slot] = self.known[source]
        return slot

    def adapted(
        self, run: Function, node: onnx.NodeProto, numbers: tuple[int, ...], on_host: bool
    ) -> Function:
        """`run`, after turning inputs computed at run time into numbers where it wants those, and moving
        host tensors to its device.
        """
        late = [
            position
            for position in numbers
            if position < len(node.input) and node.input[position] not in self.known
        ]
        moved = (
            []
            if on_host
            else [p for p, source in enumerate(node.input) if source in self.plan.host and p not in late]
        )
        if not late and not moved:
            return run
        anchor = next(
            (
                p
                for p, source in enumerate(node.input)
                if source not in self.known and source not in self.plan.host
            ),
            0,
        )

        def with_adapted_inputs(*arguments: Any) -> Any:
            values = list(arguments)
            for position in late:
                values[position] = _numbers(values[position])
            for position in moved:
                values[position] = values[position].to(values[anchor].device)
            return run(*values)

        return with_adapted_inputs

    def finish(self) -> Plan:
        for name in self.outputs:
            if name in self.known:
                self.plan.constants[self.plan.slot(name)] = self.known[name]
        last_reader: dict[int, Step] = {}
        for step in self.plan.steps:
            last_reader.update(dict.fromkeys(step.outputs + step.inputs, step))
        kept = {NOTHING, *map(self.plan.slot, self.outputs)}
        for slot, step in last_reader.items():
            if slot not in kept:
                step.release += (slot,)
        return self.plan


def _domain(entry: onnx.NodeProto | onnx.OperatorSetIdProto) -> str:
    return "" if entry.domain == "ai.onnx" else entry.domain


def _numbers(value: torch.Tensor | None) -> Any:
    return None if value is None else value.tolist()
