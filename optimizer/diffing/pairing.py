"""Which tensor of the candidate is which of the base: by name first, by its place in the graph where names moved.

    base        x -> Conv -> c -> BatchNormalization -> b -> Relu -> r
    candidate   x -> Conv -> c -> Quantize, Dequantize -> q -> Relu -> r'

`r'` is `r`: the same operator reads the same tensors. `q` is what `b` is: Relu reads it. And `c` is no longer `c` but
`b`, since the normalization is part of the convolution now: what reads it reads `b` in the base.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnx_lathe.passes.extraction.submodel import Flow

BY_NAME = "name"
TRUSTED = 0.5
"""With fewer of the names in common, a name counts only for nodes of the same operator: old exporters number
tensors anew each time.
"""
AFFINE = ("Add", "BatchNormalization", "Div", "Mul", "Sub")
"""Operators that are folded into the layer before them where their other inputs are constants."""
COPIES = ("Identity", "Cast")
TO_INTEGERS = ("QuantizeLinear", "DynamicQuantizeLinear")
"""What they write is no tensor of a float model."""
LAYERS = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")
"""What one of these makes of a tensor is another one, as the first of two layers that replace one."""
PASSING = ("QuantizeLinear", "DequantizeLinear", *COPIES)
"""What they write is what they read, up to rounding."""
_ROUNDS = 4


@dataclass(frozen=True)
class Pair:
    """`name` in the candidate is what `base` is in the base. `how`: "name", or the reason. `node`: that computes it
    in the candidate, `place` where that stands in the graph, -1 for an output that no node computes.
    """

    name: str
    base: str
    how: str
    node: str
    operator: str
    place: int
    output: bool

    @property
    def by_structure(self) -> bool:
        return self.how.startswith("structure")


def pairs(base: onnx.ModelProto, candidate: onnx.ModelProto, flow: Flow, other: Flow) -> list[Pair]:
    """Every tensor of the main graph that depends on the inputs and has a counterpart, in the order in which the
    candidate computes them; of its outputs all that the base has, by name or, if both have as many, by position.

    flow: of the base; other: of the candidate.
    """
    found = _Pairing(base, candidate, flow, other).found()
    outputs = _outputs(base, candidate)
    found |= outputs
    ordered = sorted(found, key=lambda name: other.makers.get(name, -1))
    return [_pair(name, *found[name], other, name in outputs) for name in ordered]


def _outputs(base: onnx.ModelProto, candidate: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    wanted = [value.name for value in base.graph.output]
    names = [value.name for value in candidate.graph.output]
    by_place = len(wanted) == len(names)
    return {
        name: (name, BY_NAME) if name in wanted else (wanted[place], f"output number {place + 1}")
        for place, name in enumerate(names)
        if name in wanted or (by_place and wanted[place] not in names)
    }


def _pair(name: str, base: str, how: str, flow: Flow, output: bool) -> Pair:
    place = flow.makers.get(name, -1)
    if place < 0:
        return Pair(name, base, how, "", "", place, output)
    node = flow.nodes[place]
    return Pair(name, base, how, node.name or name, node.op_type, place, output)


class _Pairing:
    def __init__(self, base: onnx.ModelProto, candidate: onnx.ModelProto, flow: Flow, other: Flow) -> None:
        self.flow, self.other = flow, other
        self.base_readers, self.readers = _readers(flow), _readers(other)
        self.shapes = [{one.name: tuple(one.dims) for one in m.graph.initializer} for m in (base, candidate)]
        self.of: dict[str, tuple[str, str]] = {name: (name, BY_NAME) for name in other.inputs & flow.inputs}
        self.used = set[str]()
        self.twins: dict[str, onnx.NodeProto] = {}
        """First result of a layer in the candidate -> the base's layer of the same weight."""
        self.given = {value.name for value in candidate.graph.output}

    def found(self) -> dict[str, tuple[str, str]]:
        """Name in the candidate -> (name in the base, how)."""
        self._by_name()
        self._by_weights()
        for _ in range(_ROUNDS):
            before = dict(self.of)
            for place in range(len(self.other.nodes)):
                self._by_inputs(place)
            for place in reversed(range(len(self.other.nodes))):
                self._by_readers(place)
            if self.of == before:
                break
        return {name: pair for name, pair in self.of.items() if name in self.other.makers}

    def _set(self, name: str, base: str, how: str) -> None:
        self.of[name] = (base, how)
        self.used.add(base)

    def _by_name(self) -> None:
        names = [name for name in self.other.makers if name in self.other.varying]
        common = [name for name in names if name in self.flow.makers and name in self.flow.varying]
        trusted = len(common) >= TRUSTED * min(len(names), len(self.flow.makers))
        for name in common:
            if trusted or self._operator(self.flow, name) == self._operator(self.other, name):
                self._set(name, name, BY_NAME)

    def _by_weights(self) -> None:
        """Results of layers that read a weight of the same name, where one layer reads it in each graph."""
        layers, others = _by_weight(self.flow), _by_weight(self.other)
        for weight, node in others.items():
            twin, name = layers.get(weight), node.output[0]
            if twin is None or twin.op_type != node.op_type:
                continue
            self.twins[name] = twin
            if name in self.of or twin.output[0] in self.used:
                continue
            folded = "" if self._goes_on(name) else self._behind(twin.output[0])
            how = self._folding(folded) if folded else f"structure: the layer of weight '{weight}'"
            if folded or len(node.input) == len(twin.input):  # a new bias: something was folded into it
                self._set(name, folded or twin.output[0], how)

    def _goes_on(self, name: str) -> bool:
        """Whether the candidate has an affine operator of its own behind the layer."""
        readers = [self.other.nodes[place] for place in self.readers[name]]
        return len(readers) == 1 and readers[0].op_type in AFFINE

    @staticmethod
    def _operator(flow: Flow, name: str) -> str:
        return flow.nodes[flow.makers[name]].op_type

    def _by_inputs(self, place: int) -> None:
        """The node's results, where one node of the base does the same to the same tensors."""
        node = self.other.nodes[place]
        new = [name for name in node.output if name in self.other.varying and name not in self.of]
        if not new:
            return
        if through := self._copied(place):
            base, what = through
            self._set(new[0], base, f"structure: '{base}' after {what}")
            return
        inputs = [self.of.get(name, (None,))[0] if name in self.other.varying else "" for name in node.input]
        if None in inputs or not any(inputs):
            return
        twin = self._twin(node, inputs)
        if twin is not None:
            for name, base in zip(node.output, twin.output, strict=False):
                if name in new and base and base not in self.used:
                    self._set(name, base, f"structure: {node.op_type} of the same tensors")

    def _copied(self, place: int) -> tuple[str, str] | None:
        """(tensor of the base, operators) if the node gives on a paired tensor as it is, up to rounding."""
        node = self.other.nodes[place]
        if node.op_type in COPIES and node.input[0] in self.of:
            return self.of[node.input[0]][0], node.op_type
        before = self.other.makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        source = None if before is None else self.other.nodes[before]
        if source is not None and source.op_type == "QuantizeLinear" and source.input[0] in self.of:
            return self.of[source.input[0]][0], "a Q/DQ pair"
        return None

    def _twin(self, node: onnx.NodeProto, inputs: Sequence[str | None]) -> onnx.NodeProto | None:
        """The base's node of this operator that reads these tensors; of several the one with weights of the same
        shapes, and of those the first that has no pair yet.
        """
        for read, folded in self._choices(node, inputs):
            first = next(filter(None, read))
            able = [
                self.flow.nodes[place]
                for place in dict.fromkeys(self.base_readers[first])
                if self._reads(self.flow.nodes[place], node, read)
            ]
            able = [one for one in able if not self.used.issuperset(filter(None, one.output))]
            alike = [one for one in able if self._weights(one, 0) == self._weights(node, 1)]
            if able:
                for name, base in folded.items():
                    self._set(name, base, self._folding(base))
                return (alike or able)[0]
        return None

    def _folding(self, base: str) -> str:
        operator = self._operator(self.flow, base)
        return f"structure: the base's {operator} is part of the layer before it"

    def _choices(
        self, node: onnx.NodeProto, inputs: Sequence[str | None]
    ) -> Iterator[tuple[list[str], dict[str, str]]]:
        """What the node may read in the base, and which tensors are then others than thought: as paired; or behind
        an affine operator of the base that is folded in the candidate.
        """
        read = [name or "" for name in inputs]
        yield read, {}
        behind = [self._behind(name) if name and self._sole(name) else "" for name in read]
        if any(behind):
            changed = [new or old for old, new in zip(read, behind, strict=True)]
            yield changed, {name: new for name, new in zip(node.input, behind, strict=True) if new}

    def _sole(self, base: str) -> bool:
        return len(self.base_readers[base]) == 1

    def _behind(self, base: str) -> str:
        """What the last of the affine operators with constants makes that follow each other after the tensor."""
        last = ""
        while len(readers := self.base_readers[base]) == 1:
            node = self.flow.nodes[readers[0]]
            varying = [name for name in node.input if name in self.flow.varying]
            if node.op_type not in AFFINE or varying != [base] or node.output[0] in self.used:
                break
            last = base = node.output[0]
        return last

    @staticmethod
    def _reads(one: onnx.NodeProto, node: onnx.NodeProto, inputs: Sequence[str]) -> bool:
        if one.op_type != node.op_type or len(one.output) != len(node.output):
            return False
        return all(
            not name or (place < len(one.input) and one.input[place] == name)
            for place, name in enumerate(inputs)
        )

    def _weights(self, node: onnx.NodeProto, which: int) -> list[tuple[int, ...]]:
        shapes: Mapping[str, tuple[int, ...]] = self.shapes[which]
        return [shapes[name] for name in node.input if name in shapes]

    def _by_readers(self, place: int) -> None:
        """The node's results, where all that read one are paired with nodes that read one tensor of the base."""
        node = self.other.nodes[place]
        if node.op_type in TO_INTEGERS:
            return
        for name in node.output:
            if name not in self.other.varying or name in self.given:
                continue
            roles = {role for reader in self.readers[name] for role in self._roles(reader, name)}
            if len(roles) != 1 or (base := roles.pop()) not in self.flow.makers:
                continue
            known = self.of.get(name)
            if known is None and (base not in self.used or node.op_type not in LAYERS):
                self._set(name, base, f"structure: read where the base reads '{base}'")
            elif (
                known is not None
                and known[0] != base
                and self._behind_is(known[0], base)
                and base not in self.used
            ):
                self._set(name, base, self._folding(base))

    def _behind_is(self, name: str, wanted: str) -> bool:
        return self._sole(name) and self._behind(name) == wanted

    def _roles(self, reader: int, name: str) -> Iterator[str]:
        """What the base's counterpart of a node reads in the place of `name`; nothing certain is ''."""
        node = self.other.nodes[reader]
        if node.op_type in PASSING and node.input[0] == name:
            for place in self.readers[node.output[0]]:
                yield from self._roles(place, node.output[0])
            return
        base = next((self.of[output][0] for output in node.output if output in self.of), "")
        twin = self.twins.get(node.output[0])
        if twin is None and base in self.flow.makers:
            twin = self.flow.nodes[self.flow.makers[base]]
        for place, read in enumerate(node.input):
            if read == name:
                same = twin is not None and twin.op_type == node.op_type and place < len(twin.input)
                yield twin.input[place] if twin is not None and same else ""


def _by_weight(flow: Flow) -> dict[str, onnx.NodeProto]:
    """Name of a weight -> the only layer that reads it."""
    found: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in flow.nodes:
        if node.op_type in LAYERS and len(node.input) > 1 and node.input[1] not in flow.varying:
            found[node.input[1]].append(node)
    return {name: nodes[0] for name, nodes in found.items() if len(nodes) == 1}


def _readers(flow: Flow) -> dict[str, list[int]]:
    found = defaultdict[str, list[int]](list)
    for place, names in enumerate(flow.reads):
        for name in names:
            found[name].append(place)
    return found
