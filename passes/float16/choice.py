"""Which nodes of a graph compute in float16, and why the others do not."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

import numpy as np
import onnx

from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.passes.core.services import Calibrator
from onnx_lathe.passes.float16.operands import moved_batches
from onnx_lathe.passes.float16.ports import QUANTIZERS, RETYPED, Ports, half_ports
from onnx_lathe.passes.float16.writer import Borders, fill_value
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor
from onnx_lathe.passes.graph.initializers import read, size_bytes
from onnx_lathe.passes.graph.layers import is_constant, is_layer
from onnx_lathe.passes.graph.model import export_model
from onnx_lathe.passes.graph.shapes import TensorType
from onnx_lathe.passes.numerics.quantization import affine, half

_SENSITIVE = """
    Attention CumSum Exp GlobalAveragePool GlobalLpPool GroupNormalization InstanceNormalization LayerNormalization Log LogSoftmax
    LpNormalization Pow RMSNormalization ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd ReduceSum ReduceSumSquare
    Softmax
"""
SENSITIVE = frozenset(_SENSITIVE.split())
"""Stay in float32 unless asked for: sums of many terms, squares and exponentials, which leave float16's
range or bits on the way to a result that does not.
"""

SCALAR_ERROR = 1e-3
"""Largest relative error of a constant that is one number, such as the epsilon of a normalization written
out.
"""
SCALE_ERROR = 2.0**-8
"""Largest relative error of a single scale of Q/DQ: half a level of 127 at the end of the range."""
CAST_BYTES = 100
"""What a Cast node adds to a file, names included."""

_WIDE = tuple(
    getattr(onnx.TensorProto, name)
    for name in ("DOUBLE", "BFLOAT16", "INT16", "INT32", "INT64", "UINT16", "UINT32", "UINT64")
)
_WHOLE = tuple(
    getattr(onnx.TensorProto, name)
    for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
)


class Choice:
    """`ports`: name -> ports of the nodes that are to compute in float16 so far; `reasons`: node name ->
    why another one does not.
    """

    def __init__(self, graph: Graph, types: Mapping[str, TensorType]) -> None:
        self.graph, self.types = graph, types
        self.nodes = {node.name: node for node in graph.nodes}
        self.ports: dict[str, Ports] = {}
        self.reasons: dict[str, str] = {}
        for node in graph.nodes:
            found = half_ports(node, graph.opset, types)
            if isinstance(found, Ports):
                self.ports[node.name] = found
            elif found is not None:
                self.reasons[node.name] = found

    def keep(self, node: Node, reason: str) -> None:
        """The node stays in float32."""
        if self.ports.pop(node.name, None) is not None:
            self.reasons[node.name] = reason

    def _chosen(self) -> list[tuple[Node, Ports]]:
        return [(self.nodes[name], ports) for name, ports in self.ports.items()]

    def by_name(self, patterns: Mapping[str, bool]) -> None:
        """Nodes that the option keep names, and those that stay in float32 unless it does. Raises
        UsageError if a pattern fits nothing.
        """
        aliases = {
            node.name: [
                node.name,
                node.op,
                *(t.name for t in [*node.inputs, *node.outputs] if not t.is_empty()),
            ]
            for node in self.graph.nodes
        }
        asked: dict[str, bool] = {}
        for pattern, value in patterns.items():
            found = [
                name
                for name, known in aliases.items()
                if any(a == pattern or fnmatchcase(a, pattern) for a in known)
            ]
            if not found and not onnx.defs.has(pattern):
                words = [word for known in aliases.values() for word in known]
                raise UsageError(
                    f"float16(keep=...): no node, operator or tensor is named '{pattern}'{nearest(pattern, words)}"
                )
            asked.update(dict.fromkeys(found, value))
        for node, _ in self._chosen():
            if asked.get(node.name, False):
                self.keep(node, "the option keep leaves it in float32")
            elif node.op in SENSITIVE and node.name not in asked:
                self.keep(
                    node,
                    f"{node.op} sums or grows fast and stays in float32; keep={{{node.op}: false}} puts it in float16",
                )

    def by_whole_numbers(self) -> None:
        """What computes shapes and positions, which float16 counts one by one only up to 2048."""
        shapes: set[str] = set()
        for node in self.graph.nodes:  # in topological order
            sources = [tensor for tensor in node.inputs if not tensor.is_empty()]
            known = all(isinstance(tensor, Constant) or tensor.name in shapes for tensor in sources)
            if node.op in ("Shape", "Size") or (known and any(tensor.name in shapes for tensor in sources)):
                shapes.update(tensor.name for tensor in node.outputs)
                if node.op not in RETYPED:
                    self.keep(node, "it computes a shape")
            if (
                node.op == "Cast"
                and node.attrs.get("to") in _WHOLE
                and node.inputs[0].inputs
                and not is_layer(node.inputs[0].inputs[0])
            ):
                self.keep(node.inputs[0].inputs[0], "its result becomes whole numbers")

    def by_operands(self) -> None:
        """Transposes in front of a MatMul that would crash ONNX Runtime."""
        for node, reader in moved_batches(self.graph, self.types):
            self.keep(
                node,
                f"in float16, ONNX Runtime crashes on it in front of {reader.name}, whose other operand has another rank",
            )

    def by_constants(self, max_error: float) -> None:
        """Constants that float16 does not hold: beyond 65504, or so small that they lose more than
        `max_error` of their energy's root.
        """
        known: dict[str, half.Rounding] = {}
        for node, ports in self._chosen():
            for index in sorted(ports.inputs):
                tensor = node.inputs[index]
                if not isinstance(tensor, Constant):
                    reason = self._unsafe_source(tensor)
                else:
                    if tensor.name not in known:
                        known[tensor.name] = half.rounding(read(tensor))
                    reason = _unfit(node, index, tensor, known[tensor.name], max_error)
                if reason is not None:
                    self.keep(node, reason)
                    break

    def _unsafe_source(self, tensor: Tensor) -> str | None:
        """Why the result of a Cast or ConstantOfShape may be beyond float16."""
        producer = tensor.inputs[0] if tensor.inputs else None
        if producer is None or producer.domain:
            return None
        if producer.op == "ConstantOfShape" and half.rounding(fill_value(producer)).worst > SCALAR_ERROR:
            return f"its input {tensor.name} holds {float(fill_value(producer).flat[0]):.4g}, which is no float16 number"
        if producer.op == "ConstantOfShape" and half.rounding(fill_value(producer)).overflows:
            return f"its input {tensor.name} is beyond float16's {half.LARGEST:.0f}"
        source = self.types.get(producer.inputs[0].name) if producer.op == "Cast" else None
        if source is not None and source.element in _WIDE:
            return f"its input {tensor.name} is cast from {onnx.TensorProto.DataType.Name(source.element)}, and may be beyond float16"
        return None

    def by_ranges(self, calibrator: Calibrator, margin: float) -> None:
        """Tensors that on calibration data come nearer than `margin` times to the end of float16, or lie
        below its normal numbers.
        """
        borders = Borders(self.graph, self.ports, self.types)
        names = [
            name for name, tensor in (borders.produced | borders.read).items() if not is_constant(tensor)
        ]
        if not names:
            return
        largest = dict.fromkeys(names, 0.0)
        for values in calibrator.observe(export_model(self.graph), names):
            for name in names:
                largest[name] = max(largest[name], half.largest_magnitude(values[name]))
        for node, ports in self._chosen():
            for tensor, whose in [(node.inputs[i], "input") for i in ports.inputs] + [
                (node.outputs[i], "result") for i in ports.outputs
            ]:
                reach = largest.get(tensor.name, 0.0)
                if reach * margin > half.LARGEST:
                    self.keep(
                        node,
                        f"its {whose} {tensor.name} reaches {reach:.3g}, and float16 ends at {half.LARGEST:.0f}",
                    )
                elif 0 < reach < half.SMALLEST_NORMAL:
                    self.keep(
                        node, f"its {whose} {tensor.name} stays below {reach:.2g}, where float16 loses bits"
                    )

    def by_pairs(self) -> None:
        """Q, DQ and the layer that reads them compute in one precision: a Cast between them would keep
        targets from joining them.
        """
        groups = _Groups()
        for node in self.graph.nodes:
            for tensor in node.inputs:
                for producer in tensor.inputs:
                    pair = producer.op == "QuantizeLinear" and node.op == "DequantizeLinear"
                    operand = producer.op == "DequantizeLinear" and (
                        is_layer(node) or node.op in ("Add", "Sum")
                    )
                    behind = producer.op == "DequantizeLinear" and node.op in (
                        "Reshape",
                        "Transpose",
                        "QuantizeLinear",
                    )
                    if pair or operand or (behind and is_constant(tensor)):
                        groups.join(producer.name, node.name)
        for members in groups.sets():
            float32 = [name for name in members if name not in self.ports and name in self.reasons]
            if float32:
                for name in members:
                    self.keep(
                        self.nodes[name],
                        f"it goes with {float32[0]}, which stays in float32: {self.reasons[float32[0]]}",
                    )

    def by_gain(self) -> None:
        """Parts of the graph whose constants save less than the Cast nodes around them cost: they would
        only be slower and larger.
        """
        borders = Borders(self.graph, self.ports, self.types)
        groups = _Groups()
        saved: dict[str, int] = {}
        for name in self.ports:
            groups.join(name, name)
        for name, tensor in borders.produced.items():
            for reader, _ in borders.readers.get(name, []):
                groups.join(tensor.inputs[0].name, reader.name)
        for node, ports in self._chosen():
            if (
                node.op == "DequantizeLinear"
                and node.inputs[0].inputs
                and node.inputs[0].inputs[0].name in self.ports
            ):
                groups.join(node.inputs[0].inputs[0].name, node.name)
            constants = {id(node.inputs[index]): node.inputs[index] for index in ports.inputs}.values()
            saved[node.name] = sum(
                size_bytes(t) // 2 for t in constants if isinstance(t, Constant) and borders.is_stored_half(t)
            )
        casts = dict.fromkeys(self.ports, 0)
        for name in borders.casts():
            ends = [node.name for node, _ in borders.readers.get(name, [])]
            ends += [borders.produced[name].inputs[0].name] if name in borders.produced else []
            for part in {groups.of(end) for end in ends}:
                casts[part] += 1
        for members in groups.sets():
            gain, cost = sum(saved[name] for name in members), CAST_BYTES * casts[groups.of(members[0])]
            if gain <= cost:
                for name in members:
                    reason = f"float16 would save {gain} bytes of constants here and add {cost} of Cast nodes"
                    self.keep(self.nodes[name], reason)


def _unfit(node: Node, index: int, tensor: Constant, rounding: half.Rounding, max_error: float) -> str | None:
    """Why this constant cannot be float16 as an input of this node."""
    if rounding.overflows:
        largest = half.largest_magnitude(read(tensor))
        return f"{tensor.name} reaches {largest:.4g}, and float16 ends at {half.LARGEST:.0f}"
    if node.op in QUANTIZERS:
        scale = read(tensor)
        if float(scale.max(initial=0)) * 255 > half.LARGEST:
            return f"its scale {tensor.name} gives numbers beyond float16's {half.LARGEST:.0f}"
        worst = half.rounding(scale[scale > affine.SMALLEST_SCALE] if scale.ndim else scale).worst
        return f"float16 would change a scale by {100 * worst:.2g} %" if worst > SCALE_ERROR else None
    if int(np.prod(tensor.shape)) == 1:
        return (
            f"{tensor.name} is {float(read(tensor).flat[0]):.3g}, which is no float16 number"
            if rounding.worst > SCALAR_ERROR
            else None
        )
    divides = (node.op == "Div" and index == 1) or (node.op == "BatchNormalization" and index == 4)
    if divides and rounding.worst > SCALAR_ERROR:
        return f"it divides by {tensor.name}, of which float16 would change an element by {100 * rounding.worst:.2g} %"
    if rounding.error > max_error:
        return f"float16 would change {tensor.name} by {100 * rounding.error:.2g} %"
    return None


class _Groups:
    """Sets of names that belong together (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def of(self, name: str) -> str:
        """The name that stands for its set."""
        root = name
        while self._parent.setdefault(root, root) != root:
            root = self._parent[root]
        while self._parent[name] != root:
            self._parent[name], name = root, self._parent[name]
        return root

    def join(self, first: str, second: str) -> None:
        self._parent[self.of(first)] = self.of(second)

    def sets(self) -> list[list[str]]:
        found: dict[str, list[str]] = {}
        for name in list(self._parent):
            found.setdefault(self.of(name), []).append(name)
        return list(found.values())
