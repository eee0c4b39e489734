"""Which nodes of the graph are one operator of LiteRT.

    x -> Transpose -> Conv -> Relu -> Transpose -> y        one CONV_2D with a fused activation, from x to y
    q -> DequantizeLinear -> ... -> QuantizeLinear -> p     with what stands between, one operator on integers, from q to p

A DequantizeLinear behind which a node computes in float is an operator of its own, which is written when it is read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnx_lathe.runtime.targets.core.facts import Facts
from onnx_lathe.runtime.targets.core.node import view
from onnx_lathe.runtime.targets.litert.node import Node
from onnx_lathe.runtime.targets.litert.quantization import alike
from onnx_lathe.runtime.targets.litert.registry import Entry
from onnx_lathe.runtime.targets.litert.tensors import NUMPY, Quantization, Stored

Find = Callable[[str, str], Entry | None]
FLOATS = (0, onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
CLIPS = {(0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}


@dataclass
class Grouping:
    """`nodes`: in the model's order, with what they are in the graph."""

    nodes: list[Node] = field(default_factory=list)
    protos: list[onnx.NodeProto] = field(default_factory=list)
    stored: Stored = field(default_factory=Stored)


def group(model: onnx.ModelProto, facts: Facts, find: Find) -> Grouping:
    return _Grouper(model, facts, find).all()


class _Grouper:
    def __init__(self, model: onnx.ModelProto, facts: Facts, find: Find) -> None:
        self.graph, self.facts, self.find = model.graph, facts, find
        self.opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 1)
        self.made = {name: node for node in self.graph.node for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.handed_out = {value.name for value in self.graph.output}
        self.found = Grouping()
        self.folded: set[int] = set()

    def all(self) -> Grouping:
        for node in self.graph.node:
            self._note_quantization(node)
        for index, proto in enumerate(self.graph.node):
            self._fold(proto, index)
        kept = [
            (node, proto)
            for node, proto in zip(self.found.nodes, self.found.protos, strict=True)
            if id(proto) not in self.folded
        ]
        self.found.nodes = [node for node, _ in kept]
        self.found.protos = [proto for _, proto in kept]
        return self.found

    def _note_quantization(self, node: onnx.NodeProto) -> None:
        if node.domain not in ("", "ai.onnx"):
            return
        is_decoder = node.op_type == "DequantizeLinear"
        if not is_decoder and (node.op_type != "QuantizeLinear" or node.output[0] in self.facts.free):
            return
        known = self._quantization(node, node.output[0] if is_decoder else node.input[0])
        if known is not None and not is_decoder:
            self.found.stored.activations[node.output[0]] = known
        elif known is not None:
            source, result = node.input[0], node.output[0]
            if source not in self.facts.free:
                kind, held = self.found.stored.activations.setdefault(source, known)
                if kind == known[0] and alike(
                    held, known[1]
                ):  # else it is computed (operators/quantization.py)
                    self.found.stored.decoded[result] = source
            elif source in self.facts.values[0]:
                self.found.stored.weights[result] = (source, known[1])

    def _quantization(self, node: onnx.NodeProto, shaped: str) -> tuple[str, Quantization] | None:
        """(type, quantization) of what the node writes or reads; None for blocks, and for scales that are computed."""
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        scale = self.facts.values[0].get(node.input[1])
        if scale is None or attributes.get("block_size"):
            return None
        zero, kind = self._zero_point(node, attributes)
        if zero is None or kind not in NUMPY:
            return None
        rank = len(self.facts.shapes[0].get(shaped, ()))
        axis = int(attributes.get("axis", 1))
        points = np.broadcast_to(zero.reshape(-1), (scale.size,))
        return kind, Quantization(
            tuple(float(one) for one in scale.reshape(-1)),
            tuple(int(one) for one in points),
            (axis + rank if axis < 0 else axis) if scale.size > 1 else 0,
        )

    def _zero_point(
        self, node: onnx.NodeProto, attributes: Mapping[str, object]
    ) -> tuple[np.ndarray | None, str]:
        """(values, type's name); of a DequantizeLinear without one the type is that of what it reads."""
        if len(node.input) > 2 and node.input[2]:
            values = self.facts.values[0].get(node.input[2])
            element = self.facts.types.get(node.input[2], 0) or self._element(node.input[2])
            return values, _type_name(element, values)
        if node.op_type == "QuantizeLinear":
            element = int(attributes.get("output_dtype", 0) or onnx.TensorProto.UINT8)  # type: ignore[call-overload]
        else:
            element = self.facts.types.get(node.input[0], 0) or self._element(node.input[0])
        values = self.facts.values[0].get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        return np.zeros((), np.int32), _type_name(element, values)

    def _element(self, name: str) -> int:
        return next((one.data_type for one in self.graph.initializer if one.name == name), 0)

    def _sole_reader(self, name: str) -> onnx.NodeProto | None:
        readers = self.readers.get(name, ())
        return readers[0] if len(readers) == 1 and name not in self.handed_out else None

    def _fold(self, proto: onnx.NodeProto, index: int) -> None:
        node = Node(**vars(view(proto, index, self.opset)))
        entry = self.find(proto.domain, proto.op_type)
        if id(proto) in self.folded or entry is None or node.op in ("QuantizeLinear", "DequantizeLinear"):
            self._keep(node, proto, [proto])
            return
        chain = _Chain(self, proto, node, entry)
        self._keep(chain.result(), proto, chain.covered)
        self.folded |= {id(one) for one in chain.covered} - {id(proto)}

    def _keep(self, node: Node, proto: onnx.NodeProto, covered: Sequence[onnx.NodeProto]) -> None:
        names = tuple(one.name for one in covered if one.name)
        self.found.nodes.append(Node(**{**vars(node), "covers": names or (node.name,)}))
        self.found.protos.append(proto)


class _Chain:
    """What can be folded into one node: on the way to it and on the way from it."""

    def __init__(self, grouper: _Grouper, proto: onnx.NodeProto, node: Node, entry: Entry) -> None:
        self.grouper, self.proto, self.node, self.entry = grouper, proto, node, entry
        self.covered = [proto]
        self.source, self.output = node.inputs[0] if node.inputs else "", node.outputs[0]
        self.activation, self.channels_last = "NONE", False

    def result(self) -> Node:
        single = len([name for name in self.node.outputs if name]) == 1
        if single:
            self._activate()
            self._stand_in_sandwich()
            if self.channels_last:
                self._activate()
        inputs = (self.source, *self.node.inputs[1:]) if self.node.inputs else ()
        outputs = (self.output, *self.node.outputs[1:])
        found = Node(
            **{
                **vars(self.node),
                "inputs": inputs,
                "outputs": outputs,
                "activation": self.activation,
                "channels_last": self.channels_last,
            }
        )
        return self._on_integers(found) or found

    def _activate(self) -> None:
        reader = self.grouper._sole_reader(self.output)
        if reader is None or not self.entry.fuses or self.activation != "NONE":
            return
        if word := self._word(reader):
            self.activation, self.output = word, reader.output[0]
            self.covered.append(reader)

    def _word(self, node: onnx.NodeProto) -> str:
        if node.op_type == "Relu":
            return "RELU"
        if node.op_type != "Clip":
            return ""
        bounds = []
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        for place, name in ((1, "min"), (2, "max")):
            given = node.input[place] if len(node.input) > place else ""
            value = self.grouper.facts.values[0].get(given) if given else attributes.get(name)
            if value is None:
                return ""
            bounds.append(float(np.asarray(value).reshape(-1)[0]))
        return CLIPS.get((bounds[0], bounds[1]), "")

    def _stand_in_sandwich(self) -> None:
        before, behind = self.grouper.made.get(self.source), self.grouper._sole_reader(self.output)
        if not self.entry.spatial or before is None or behind is None:
            return
        rank = len(self.grouper.facts.shapes[0].get(self.source, ()))
        to_first = (0, rank - 1, *range(1, rank - 1))
        to_last = (0, *range(2, rank), 1)
        own = self.grouper._sole_reader(self.source) is self.proto
        if own and rank > 2 and _permutation(before) == to_first and _permutation(behind) == to_last:
            self.source, self.output, self.channels_last = before.input[0], behind.output[0], True
            self.covered += [before, behind]

    def _on_integers(self, node: Node) -> Node | None:
        """The node between stored tensors, if it computes on integers."""
        stored_tensors, types = self.grouper.found.stored, self.grouper.facts.types
        inputs = list(node.inputs)
        places = self.entry.data if self.entry.data is not None else range(len(inputs))
        read = False
        for place in places:
            name = inputs[place] if place < len(inputs) else ""
            if not name or types.get(name, 0) not in FLOATS or name in stored_tensors.weights:
                continue
            stored = stored_tensors.decoded.get(name)
            if stored is None or stored_tensors.activations[stored][0] not in self.entry.integers:
                return None
            inputs[place], read = stored, True
        outputs, covered = self._stored_outputs(node)
        if not read or outputs is None:
            return None
        self.covered += covered
        return Node(**{**vars(node), "inputs": tuple(inputs), "outputs": tuple(outputs), "on_integers": True})

    def _stored_outputs(self, node: Node) -> tuple[list[str] | None, list[onnx.NodeProto]]:
        outputs, covered = [], []
        for name in node.outputs:
            reader = self.grouper._sole_reader(name)
            if name and self.grouper.facts.types.get(name, 0) in FLOATS:
                stored = reader.output[0] if reader is not None and reader.op_type == "QuantizeLinear" else ""
                known = self.grouper.found.stored.activations.get(stored)
                if known is None or known[0] not in self.entry.integers:
                    return None, []
                outputs.append(stored)
                covered += [reader] if reader is not None else []
            else:
                outputs.append(name)
        return outputs, covered


def _permutation(node: onnx.NodeProto) -> tuple[int, ...] | None:
    if node.op_type != "Transpose" or node.domain not in ("", "ai.onnx"):
        return None
    return next((tuple(item.ints) for item in node.attribute if item.name == "perm"), None)


def _type_name(element: int, values: np.ndarray | None) -> str:
    if element:
        return str(onnx.TensorProto.DataType.Name(element))
    return str(values.dtype).upper() if values is not None else "INT8"
