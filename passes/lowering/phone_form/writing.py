"""Writes kernels with a pair behind each tensor that they store."""

from collections.abc import Sequence

import numpy as np

from onnx_lathe.passes.graph import Node, Tensor, Variable
from onnx_lathe.passes.graph.layers import is_constant
from onnx_lathe.passes.graph.rewire import disconnect
from onnx_lathe.passes.lowering.ort_integers.work import Work
from onnx_lathe.passes.lowering.phone_form.choice import Kernel
from onnx_lathe.passes.lowering.phone_form.layers import store_operand
from onnx_lathe.passes.lowering.phone_form.operators import JOINED, Parameters, activations
from onnx_lathe.passes.lowering.phone_form.scales import Scales, is_done_by, limits_of

SUMS = ("Add", "Sub")


def write(work: Work, kernels: Sequence[Kernel], scales: Scales) -> set[int]:
    """A tensor that a kernel computes keeps its name for what is read of it, behind its pair. Returns these tensors, by
    identity.
    """
    writer = _Writer(work, scales)
    for kernel in kernels:
        writer.store(kernel)
    for kernel in kernels:
        writer.read(kernel)
    return set(writer.stored)


class _Writer:
    def __init__(self, work: Work, scales: Scales) -> None:
        self.work, self.scales = work, scales
        self.stored: dict[int, int] = {}
        self.pairs: dict[tuple[int, Parameters], Tensor] = {}
        """By tensor and parameters, what a pair behind the tensor gives."""
        self.parameters: dict[Parameters, list[Tensor]] = {}

    def store(self, kernel: Kernel) -> None:
        last = kernel.last
        if kernel.floors and is_done_by(
            self.scales.of(kernel.results[0], kernel.bits), limits_of(kernel.floors)
        ):
            for floor in kernel.floors:
                disconnect(floor)
            last.outputs[0] = kernel.results[0]
        elif kernel.floors:
            last = kernel.floors[-1]
        for index, tensor in enumerate(last.outputs):
            if not tensor.outputs and not self.work.is_seen(tensor):
                continue
            raw = Variable(self.work.name(f"{tensor.name}_raw"), np.float32, tensor.shape)
            last.outputs[index] = raw
            self._pair(raw, self.scales.of(tensor, kernel.bits), tensor)
            self.stored[id(tensor)] = kernel.bits

    def read(self, kernel: Kernel) -> None:
        node = kernel.node
        wanted = self.scales.of(kernel.results[0], kernel.bits) if node.op == JOINED else None
        for index in activations(node):
            if index >= len(node.inputs) or (kernel.is_layer and index > 0):
                continue
            tensor = node.inputs[index]
            if is_constant(tensor):
                summed = (
                    float(self.scales.of(kernel.results[0], kernel.bits).scale) if node.op in SUMS else None
                )
                node.inputs[index] = store_operand(self.work, tensor, kernel.bits, wanted, summed)
                continue
            parameters = self.scales.of(tensor, kernel.bits)
            if self.stored.get(id(tensor)) != kernel.bits:
                tensor = self._again(tensor, parameters)
            if wanted is not None and parameters != wanted:
                tensor = self._again(tensor, wanted)
            node.inputs[index] = tensor

    def _again(self, tensor: Tensor, parameters: Parameters) -> Tensor:
        """The tensor behind a pair of its own, one for all that read it so."""
        key = id(tensor), parameters
        if key not in self.pairs:
            result = Variable(self.work.name(f"{tensor.name}_dequantized"), np.float32, tensor.shape)
            self._pair(tensor, parameters, result)
            self.pairs[key] = result
        return self.pairs[key]

    def _pair(self, source: Tensor, parameters: Parameters, result: Tensor) -> None:
        given = self._constants(parameters)
        kind = parameters.zero_point.dtype
        codes = Variable(self.work.name(f"{result.name}_{kind}"), kind, result.shape)
        self.work.graph.nodes += [
            Node("QuantizeLinear", self.work.name(f"{result.name}_Q"), {}, [source, *given], [codes]),
            Node("DequantizeLinear", self.work.name(f"{result.name}_DQ"), {}, [codes, *given], [result]),
        ]

    def _constants(self, parameters: Parameters) -> list[Tensor]:
        if parameters not in self.parameters:
            scale, zero = parameters
            self.parameters[parameters] = [
                self.work.constant("scale", np.asarray(scale, np.float32)),
                self.work.constant("zero_point", np.asarray(zero)),
            ]
        return self.parameters[parameters]
