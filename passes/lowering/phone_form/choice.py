"""Which nodes compute on integers: the quantized layers, and what lies between tensors that they store."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnx_lathe.passes.graph import Constant, Node, Tensor
from onnx_lathe.passes.graph.biases import BIAS_INPUT
from onnx_lathe.passes.graph.layers import (
    WEIGHT_INPUT,
    constant_shape,
    constant_value,
    is_constant,
    output_axis,
)
from onnx_lathe.passes.graph.quantization.placement import Rows, float_reason, is_floor
from onnx_lathe.passes.graph.shapes import TensorType, infer_types
from onnx_lathe.passes.lowering.ort_integers.work import Work
from onnx_lathe.passes.lowering.phone_form.known import Known
from onnx_lathe.passes.lowering.phone_form.operators import (
    FIXED,
    JOINED,
    NARROW,
    activations,
    constant_ends,
    is_same,
    refusal,
)

COARSEST = 16.0
"""So many times as coarse as by its own range a part of a Concat may be stored: four bits less."""
NO_RANGE = "its result '{}' has no calibrated range; calibrate with this target named, or give data"


@dataclass
class Kernel:
    """A node that computes on integers, and what its runtime does with it: `addition`, of a bias behind a MatMul, and
    `floors`, ReLUs and Clips behind it that storing does. `results` are stored in so many `bits`.
    """

    node: Node
    is_layer: bool
    results: list[Tensor]
    addition: Node | None = None
    floors: list[Node] = field(default_factory=list)
    bits: int = 8

    @property
    def last(self) -> Node:
        return self.node if self.addition is None else self.addition


class Choice:
    """`layers`: those that the placement runs in INT8, by identity; others are to be float."""

    def __init__(self, work: Work, known: Known, operators: Collection[str]) -> None:
        self.work, self.known, self.operators = work, known, operators
        self.refused: dict[int, tuple[Node, str]] = {}
        """Layers that are quantized, and stay float all the same."""
        self._rows = Rows(work.graph)
        self._types: Mapping[str, TensorType] | None = None
        self._stored: dict[int, int] = {}
        """Tensors that kernels store, by identity, in so many bits."""
        self._inputs = {id(tensor) for tensor in work.graph.inputs}
        self._absorbed: set[int] = set()
        self._reasons: dict[int, tuple[Node, str]] = {}

    def kernels(self) -> list[Kernel]:
        """In topological order; the report says of what is between integers and computes in float."""
        found: list[Kernel] = []
        for node in self.work.graph.nodes:
            if id(node) in self._absorbed:
                continue
            kernel = self._kernel(node)
            if kernel is not None:
                found.append(kernel)
                self._stored |= {id(tensor): kernel.bits for tensor in kernel.results}
        kept = _with_layers(found)
        for node, reason in [*self.refused.values(), *self._reasons.values()]:
            self.work.report.skip(node.name, f"{reason}: it computes in float")
        return kept

    def _kernel(self, node: Node) -> Kernel | None:
        is_layer = id(node) in self.known.layers
        if is_layer:
            reason = self._layer_refusal(node)
        else:
            if not node.inputs or not node.outputs or not self._is_between(node):
                return None
            if node.op not in self.operators and not self._is_float(node.outputs[0]):
                return None  # a shape
            reason = refusal(node) if node.op in self.operators else f"{node.op} has no form in INT8 here"
            if reason is None and node.op == JOINED:
                reason = self._joining_refusal(node)
        kernel = self._with_followers(Kernel(node, is_layer, list(node.outputs), bits=self._bits(node)))
        reason = reason or self._range_refusal(kernel)
        if reason is not None:
            (self.refused if is_layer else self._reasons)[id(node)] = node, reason
            return None
        self._absorbed.update(map(id, kernel.floors))
        if kernel.addition is not None:
            self._absorbed.add(id(kernel.addition))
        return kernel

    def _is_between(self, node: Node) -> bool:
        """Whether all activations that the node reads are stored in INT8."""
        read = [node.inputs[index] for index in activations(node) if index < len(node.inputs)]
        computed = [tensor for tensor in read if not is_constant(tensor)]
        return bool(computed) and all(map(self._is_stored, computed))

    def _bits(self, node: Node) -> int:
        """A layer's as int8 chose them; an operator has 16 where all that it reads does."""
        if id(node) in self.known.layers:
            return self.known.layers[id(node)]
        read = [node.inputs[index] for index in activations(node) if index < len(node.inputs)]
        bits = [
            self._stored.get(id(tensor), self.known.bits(tensor))
            for tensor in read
            if not is_constant(tensor)
        ]
        return 8 if node.op in NARROW else min(bits, default=8)

    def _is_stored(self, tensor: Tensor) -> bool:
        if id(tensor) in self._stored:
            return True
        given = id(tensor) in self._inputs or self.known.is_paired(tensor)
        return given and self._has_range(tensor)

    def _is_float(self, tensor: Tensor) -> bool:
        if self._types is None:
            self._types = infer_types(self.work.graph)
        known = self._types.get(tensor.name)
        return known is None or known.element == onnx.TensorProto.FLOAT

    def _has_range(self, tensor: Tensor) -> bool:
        low, high = self.known.ranges.get(tensor.name, (0.0, 0.0))
        return math.isfinite(low) and math.isfinite(high) and low < high

    def _range_refusal(self, kernel: Kernel) -> str | None:
        if is_same(kernel.node) or kernel.node.op in FIXED:
            return None
        missing = [tensor for tensor in kernel.results if tensor.outputs or self.work.is_seen(tensor)]
        missing = [tensor for tensor in missing if not self._has_range(tensor)]
        if not missing:
            return None
        return NO_RANGE.format(missing[0].name)

    def _layer_refusal(self, node: Node) -> str | None:
        opset = self.work.graph.opset
        shape = constant_shape(node.inputs[WEIGHT_INPUT], opset)
        if reason := float_reason(node, shape, self.work.placement, self._rows):
            return reason
        if not self._has_range(node.inputs[0]) and id(node.inputs[0]) not in self._stored:
            return f"what it reads, '{node.inputs[0].name}', has no calibrated range"
        if node.op == "Gemm" and node.attrs.get("transA", 0):
            return "it reads its input transposed"
        if node.op == "MatMul" and len(shape) != 2:
            return "its weight is a batch of matrices"
        if node.op in ("MatMul",) or len(node.inputs) <= BIAS_INPUT or node.inputs[BIAS_INPUT].is_empty():
            return None
        bias = node.inputs[BIAS_INPUT]
        if not is_constant(bias):
            return "its bias is computed"
        values = constant_value(bias, opset)
        channels = shape[output_axis(node, len(shape))] * _groups_of(node)
        if values.size not in (1, channels) or max(values.shape, default=1) != values.size:
            return "its bias is not one number for each output channel"
        return None if np.isfinite(values).all() else "its bias is not finite"

    def _joining_refusal(self, node: Node) -> str | None:
        ends = [self.known.ranges.get(tensor.name) for tensor in node.inputs if not is_constant(tensor)]
        known = [one for one in ends if one is not None and one[0] < one[1]]
        if not known:
            return None
        every = [*known, *constant_ends(node, self.work.graph.opset)]
        whole = max(high for _, high in every) - min(low for low, _ in every)
        finest = min(high - low for low, high in known)
        if whole > COARSEST * finest and self._bits(node) == 8:
            return f"its parts have ranges of {finest:.3g} and of {whole:.3g}, which one scale does not hold"
        return None

    def _with_followers(self, kernel: Kernel) -> Kernel:
        """With the addition and the floors behind the node that nobody else reads in between."""
        node = kernel.node
        if len(node.outputs) != 1 or is_same(node) or node.op in FIXED or node.op == JOINED or is_floor(node):
            return kernel
        tensor = node.outputs[0]
        reader = self._only_reader(tensor)
        if node.op == "MatMul" and kernel.is_layer and reader is not None and self._adds_bias(reader, node):
            kernel.addition, tensor = reader, reader.outputs[0]
            reader = self._only_reader(tensor)
        while reader is not None and is_floor(reader):
            kernel.floors.append(reader)
            tensor = reader.outputs[0]
            reader = self._only_reader(tensor)
        kernel.results = [tensor]
        return kernel

    def _only_reader(self, tensor: Tensor) -> Node | None:
        if len(tensor.outputs) != 1 or self.work.is_seen(tensor):
            return None
        return tensor.outputs[0]

    def _adds_bias(self, reader: Node, matmul: Node) -> bool:
        """Whether the reader adds a constant vector, one number for each column of the weight."""
        if reader.op != "Add" or reader.domain:
            return False
        bias = reader.inputs[1] if reader.inputs[0] is matmul.outputs[0] else reader.inputs[0]
        columns = constant_shape(matmul.inputs[WEIGHT_INPUT], self.work.graph.opset)[-1]
        return isinstance(bias, Constant) and tuple(bias.shape) in ((columns,), (1, columns))


def _groups_of(node: Node) -> int:
    """Output channels are those of the weight's axis, times the groups of a transposed convolution."""
    return int(node.attrs.get("group", 1)) if node.op == "ConvTranspose" else 1


def _with_layers(kernels: list[Kernel]) -> list[Kernel]:
    """The kernels that are joined to a layer by tensors that kernels store: between others, integers gain nothing."""
    writers = {id(tensor): kernel for kernel in kernels for tensor in kernel.results}
    neighbours: dict[int, list[Kernel]] = {id(kernel): [] for kernel in kernels}
    for kernel in kernels:
        for index in activations(kernel.node):
            above = writers.get(id(kernel.node.inputs[index])) if index < len(kernel.node.inputs) else None
            if above is not None:
                neighbours[id(kernel)].append(above)
                neighbours[id(above)].append(kernel)
    reached = {id(kernel) for kernel in kernels if kernel.is_layer}
    open_kernels = [kernel for kernel in kernels if kernel.is_layer]
    while open_kernels:
        for kernel in neighbours[id(open_kernels.pop())]:
            if id(kernel) not in reached:
                reached.add(id(kernel))
                open_kernels.append(kernel)
    return [kernel for kernel in kernels if id(kernel) in reached]
