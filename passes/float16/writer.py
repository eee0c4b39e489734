"""Puts chosen nodes of a graph into float16, with a Cast wherever a tensor passes from one precision to the
other.

One Cast serves all readers of a tensor, and none reads another Cast: where a Cast or ConstantOfShape makes
the tensor, a second one of the same input makes it in float16. Inputs and outputs of the graph, and what
bodies of If and Loop capture, stay float32 under their names.
"""

from collections.abc import Mapping

import numpy as np
import onnx

from onnx_lathe.passes.float16.ports import ANY_TYPE, QUANTIZERS, RETYPED, Half, Ports
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.initializers import read, store_tensor, write
from onnx_lathe.passes.graph.model import taken_names, unused_name
from onnx_lathe.passes.graph.rewire import bypass, captured_names, is_output, sweep
from onnx_lathe.passes.graph.shapes import TensorType

_T = onnx.TensorProto
Reader = tuple[Node, int]


class Borders:
    """Who reads and writes which tensor in float16, when the nodes named in `half` compute in it.

    `half`: node name -> its ports; `types`: of all tensors, before anything is changed.
    """

    def __init__(self, graph: Graph, half: Mapping[str, Ports], types: Mapping[str, TensorType]) -> None:
        self.graph, self.half, self.types = graph, half, types
        self.captured = captured_names(graph)
        self.nodes = {id(node) for node in graph.nodes}
        self.produced: dict[str, Tensor] = {}
        """Tensors that a node writes in float16."""
        self.readers: dict[str, list[Reader]] = {}
        """Tensor name -> the nodes that read it in float16, and where."""
        self.read: dict[str, Tensor] = {}
        for node in graph.nodes:
            ports = half.get(node.name)
            if ports is None:
                continue
            self.produced |= {node.outputs[index].name: node.outputs[index] for index in ports.outputs}
            for index in ports.inputs:
                self.read[node.inputs[index].name] = node.inputs[index]
                self.readers.setdefault(node.inputs[index].name, []).append((node, index))

    def is_seen(self, tensor: Tensor) -> bool:
        """Whether somebody outside the graph's own nodes reads the tensor by its name, as float32."""
        return is_output(self.graph, tensor) or tensor.name in self.captured

    def others(self, tensor: Tensor) -> list[Reader]:
        """Who must read it in float32."""
        chosen = {(id(node), index) for node, index in self.readers.get(tensor.name, [])}
        found = []
        for node in {id(node): node for node in tensor.outputs if id(node) in self.nodes}.values():
            for index, source in enumerate(node.inputs):
                if (
                    source is tensor
                    and (id(node), index) not in chosen
                    and (node.op not in ANY_TYPE or node.domain)
                ):
                    found.append((node, index))
        return found

    def is_stored_half(self, tensor: Constant) -> bool:
        return tensor.name in self.readers and not self.others(tensor) and not self.is_seen(tensor)

    def casts(self) -> list[str]:
        """Names of the tensors that a Cast is needed for; some may be had without."""
        up = [name for name, tensor in self.produced.items() if self.is_seen(tensor) or self.others(tensor)]
        down = [
            name
            for name, tensor in self.read.items()
            if name not in self.produced
            and not (isinstance(tensor, Constant) and self.is_stored_half(tensor))
        ]
        return up + down


def write_half(borders: Borders, half: Half | None = None) -> int:
    """Rewrites the graph, in float16 or another type of 16 bits. Returns how many Cast nodes it added."""
    half = half or Half()
    writer = _HalfWriter(borders, half)
    before = len(borders.graph.nodes)
    for tensor in borders.read.values():
        if isinstance(tensor, Constant) and borders.is_stored_half(tensor):
            store_half(tensor, half)
    for tensor in borders.produced.values():
        writer.result(tensor)
    for name, tensor in borders.read.items():
        if name not in borders.produced and not (isinstance(tensor, Constant) and tensor.dtype == half.dtype):
            stand_in = writer.lowered(tensor)
            for node, index in borders.readers[name]:
                node.inputs[index] = stand_in
    added = {node.name for node in borders.graph.nodes[before:] if node.op == "Cast"}
    writer.tidy()
    sweep(borders.graph)
    return sum(node.name in added for node in borders.graph.nodes)


def store_half(tensor: Constant, half: Half) -> None:
    """The initializer's values in 16 bits. The scale of a channel without values stays positive, as
    TensorRT asks.
    """
    values = half.of(read(tensor))
    if any(node.op in QUANTIZERS for node in tensor.outputs):
        values = np.maximum(values, half.smallest)
    if isinstance(half.dtype, int):
        store_tensor(tensor, onnx.numpy_helper.from_array(values, tensor.name))
    else:
        write(tensor, values)


class _HalfWriter:
    def __init__(self, borders: Borders, half: Half) -> None:
        self.borders, self.graph, self.half = borders, borders.graph, half
        self.taken = taken_names(borders.graph)
        self.halves: dict[str, Tensor] = {}
        """Tensor name -> its float16 form, where that is another tensor."""

    def result(self, tensor: Tensor) -> None:
        """Makes what a float16 node writes float16, and adds the float32 form for those who want it."""
        others = self.borders.others(tensor)
        if self.borders.is_seen(tensor):
            half = Variable(self._name(f"{tensor.name}_float16"), self.half.dtype, tensor.shape)
            producer = tensor.inputs[0]
            place = next(index for index, output in enumerate(producer.outputs) if output is tensor)
            keep = {(id(node), index) for node, index in others}
            for node in [node for node in tensor.outputs if id(node) in self.borders.nodes]:
                for index, source in enumerate(node.inputs):
                    if source is tensor and (id(node), index) not in keep:
                        node.inputs[index] = half
            producer.outputs[place] = half
            self._cast(half, tensor, _T.FLOAT)
            self.halves[tensor.name] = half
            return
        tensor.dtype = self.half.dtype
        if others:
            wide = Variable(self._name(f"{tensor.name}_float32"), np.float32, tensor.shape)
            for node, index in others:
                node.inputs[index] = wide
            self._cast(tensor, wide, _T.FLOAT)

    def lowered(self, tensor: Tensor) -> Tensor:
        """The float16 form of a tensor that is float32."""
        if tensor.name in self.halves:
            return self.halves[tensor.name]
        producer = next((node for node in tensor.inputs if node.op in RETYPED and not node.domain), None)
        source = producer.inputs[0] if producer is not None and producer.op == "Cast" else tensor
        half = self.halves.get(source.name, source)
        if not self._is_half(half):
            half = Variable(self._name(f"{tensor.name}_float16"), self.half.dtype, tensor.shape)
            if producer is not None and producer.op == "ConstantOfShape":
                value = Constant("", self.half.of(fill_value(producer)))
                self.graph.nodes.append(
                    Node(
                        producer.op,
                        self._name(f"{half.name}_fill"),
                        {"value": value},
                        list(producer.inputs),
                        [half],
                    )
                )
            else:
                self._cast(source, half, self.half.element)
        self.halves[tensor.name] = half
        return half

    def tidy(self) -> None:
        """Takes out the Cast nodes that the model had and that now cast float16 to float16; a stated type
        of results follows.
        """
        for node in list(self.graph.nodes):
            if (
                node.op == "Cast"
                and not node.domain
                and node.inputs
                and node.attrs.get("to") == self.half.element
            ):
                if self._is_half(node.inputs[0]):
                    bypass(self.graph, node, self.borders.captured)
            elif node.name in self.borders.half and node.attrs.get("output_dtype") == _T.FLOAT:
                node.attrs["output_dtype"] = self.half.element

    def _is_half(self, tensor: Tensor) -> bool:
        if tensor.name in self.borders.produced:
            return not self.borders.is_seen(tensor)
        if tensor.name in self.borders.types:
            return self.borders.types[tensor.name].element == self.half.element
        return bool(tensor.dtype == self.half.dtype)

    def _cast(self, source: Tensor, result: Tensor, to: int) -> None:
        self.graph.nodes.append(
            Node("Cast", self._name(f"{result.name}_cast"), {"to": int(to)}, [source], [result])
        )

    def _name(self, wanted: str) -> str:
        name = unused_name(wanted, self.taken)
        self.taken.add(name)
        return name


def fill_value(node: Node) -> np.ndarray:
    """What a ConstantOfShape fills its result with."""
    value = node.attrs.get("value")
    return read(value) if isinstance(value, Constant) else np.zeros(1, np.float32)
