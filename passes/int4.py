"""Weight-only INT4: groups of a layer's inputs share a scale, and the weight takes 4 bits plus its share of
that.

    MatMul, Gemm:  W f32[K, N]        becomes   DequantizeLinear(W INT4 [K, N], scale [K/group, N], block_size=group) -> W
    Conv:          W f32[O, C, R, S]  becomes   DequantizeLinear(W INT4 [O, C*R*S], scale [O, C*R*S/group]) -> Reshape -> W
    ConvTranspose: W f32[C, O, R, S]  becomes   DequantizeLinear(W INT4 [C, O*R*S], scale [C/group, O*R*S]) -> Reshape -> W
    LSTM, GRU, RNN W f32[D, G*H, I]   becomes   DequantizeLinear(W INT4 [D, G*H, I], scale [D, G*H, I/group]) -> W
    Gather:        table f32[N, C]    becomes   DequantizeLinear(table INT4 [N, C], scale [N, C/group]) -> table

A group never crosses output channels. Its size is the divisor of the number of inputs next to the option
group: TensorRT takes whole blocks only. What decodes weights as it goes reads less memory: TensorRT, and
ONNX Runtime for a MatMul whose groups are a power of 2 or all inputs (MatMulNBits, which rounds activations
to INT8 unless the session's qdq_matmulnbits_accuracy_level is 1). Of any other layer ONNX Runtime decodes
the whole weight at every run, and is slower than with float.
Source: Frantar et al., "GPTQ", ICLR 2023, section 4, for groups; passes/numerics/quantization/int4.py for
the search of scales.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable, rewire
from onnx_lathe.passes.graph.layers import (
    Weight,
    constant_shape,
    constant_value,
    is_layer,
    is_recurrent,
    not_float,
    other_use,
    output_axis,
    weights,
)
from onnx_lathe.passes.graph.model import (
    FOUR_BIT_IR_VERSION,
    FOUR_BIT_OPSET,
    sparse_tensors,
    taken_names,
    unused_name,
)
from onnx_lathe.passes.graph.opset import raise_opset
from onnx_lathe.passes.graph.patterns import by_weight
from onnx_lathe.passes.graph.quantization import decoded_products, pairs
from onnx_lathe.passes.numerics.quantization import affine, int4

_NODE_BYTES = 250
_RESHAPE_BYTES = 180
"""What a DequantizeLinear, and a Reshape with its shape, add to the file, names included."""


@register
class Int4(Pass):
    """Stores the weights of layers in 4 bits, with a scale for each group of inputs; activations stay
    float.
    """

    name = "int4"
    after = {
        "fold": "batch normalization must be part of the weights before they are quantized",
        "prune": "pruning compares float weights",
        "prune_channels": "pruning compares float weights",
        "prune_nm": "pruning compares float weights",
        "svd": "factors are computed from float weights",
        "tensor_train": "factors are computed from float weights",
        "tucker": "factors are computed from float weights",
        "equalize": "weights are equalized before they are quantized",
    }
    before = {
        "int8": "INT8 multiplies INT8 alone; give int4 the layers that int8 leaves in float by its option layers, and run it first"
    }

    @dataclass(frozen=True)
    class Config:
        group: int = option(
            32, "inputs of an output channel that share a scale; 0: all of them", low=0, high=4096
        )
        zero_points: bool = option(
            False, "UINT4 with a zero-point per group; TensorRT then stores it as INT8"
        )
        scales: str = option(
            "mse",
            "a group's scale: least squared error, or its largest value is the last level",
            choices=("mse", "max"),
        )
        layers: dict[str, bool] = option(
            {}, "quantize (true) or leave in float (false) single layers, by pattern"
        )
        min_size: int = option(1024, "smaller weights are left as they are", unit="elements", low=1)

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        chosen = self._choose(graph, report)
        if chosen and graph.opset < FOUR_BIT_OPSET:
            opset, reason = graph.opset, raise_opset(graph, FOUR_BIT_OPSET)
            if reason is not None:
                for node in [node for weight in chosen for node in weight.nodes]:
                    report.skip(
                        node.name,
                        f"opset {opset} has no 4-bit weights and cannot be raised: {reason}; export at 21 or later",
                    )
                return report
            chosen = self._choose(graph, report := PassReport())
        writer, signal, noise = _BlockWriter(graph), 0.0, 0.0
        for weight in chosen:
            context.progress(f"quantizing {weight.name}")
            more = self._quantize(writer, weight, report)
            signal, noise = signal + more[0], noise + more[1]
        if chosen:
            rewire.sweep(graph)
        if note := decoded_products.warning(node for weight in chosen for node in weight.nodes):
            report.warnings.append(note)
        report.metrics["layers"] = float(len({node.name for weight in chosen for node in weight.nodes}))
        if noise:
            report.metrics["weight_sqnr_db"] = float(10 * np.log10(signal / noise))
        return report

    def _choose(self, graph: Graph, report: PassReport) -> list[Weight]:
        found = list(weights(graph, refuse=report.skip, bodies=True, everywhere=True))
        wanted = by_weight(
            self.config.layers, found, [skip.node for skip in report.skips], "int4(layers=...)"
        )
        chosen = []
        for weight in found:
            explicit = wanted.get(weight.name)
            reason = (
                "the option layers leaves it in float"
                if explicit is False
                else self._refusal(graph, weight, explicit is True)
            )
            if reason is None:
                chosen.append(weight)
                continue
            for node in weight.nodes:
                report.skip(node.name, reason)
        return chosen

    def _refusal(self, graph: Graph, weight: Weight, explicit: bool) -> str | None:
        """Why this weight stays as it is; `explicit`: the option layers asks for it."""
        if reason := not_float(weight.tensor, self.name):
            return reason
        shape = constant_shape(weight.tensor, graph.opset)
        size = int(np.prod(shape))
        if (
            len({output_axis(node, len(shape)) for node in weight.nodes}) > 1
            or len({node.op in ("Conv", "ConvTranspose") for node in weight.nodes}) > 1
        ):
            return "its weight is shared with a layer that has its output channels on another axis"
        for node in weight.nodes:
            if is_layer(node) and pairs.is_dequantized(node.inputs[0]):
                return "its input is INT8, which does not multiply with INT4"
        if len(shape) > 2 and weight.nodes[0].op == "MatMul":
            return "its weight is a batch of matrices, which TensorRT takes in no blocks"
        if size < self.config.min_size and not explicit:
            return f"its weight has {size} elements, fewer than min_size={self.config.min_size}"
        inputs = _inputs(weight, shape)
        stored = size / 2 + size / self._group(inputs) * (4.5 if self.config.zero_points else 4)
        if stored + _NODE_BYTES + (_RESHAPE_BYTES if len(shape) > 2 else 0) >= 4 * size:
            return f"its {4 * size} bytes would not become fewer, with one scale for {self._group(inputs)} inputs"
        if reason := other_use(graph, weight):
            return reason
        return (
            None
            if np.isfinite(constant_value(weight.tensor, weight.opset)).all()
            else "its weight holds NaN or infinity"
        )

    def _group(self, inputs: int) -> int:
        """How many of the inputs of an output channel share a scale."""
        wanted = self.config.group
        return inputs if wanted == 0 or inputs <= wanted else int4.divisor_near(inputs, wanted) or inputs

    def _quantize(self, writer: "_BlockWriter", weight: Weight, report: PassReport) -> tuple[float, float]:
        """Puts the 4-bit form in place of the weight. Returns the energy of the weight, and of what it
        loses.
        """
        values = constant_value(weight.tensor, weight.opset)
        rows = _matrix(weight, values)
        group = self._group(_inputs(weight, values.shape))
        encoded = int4.encode(rows, group, not self.config.zero_points, self.config.scales == "mse")
        restored = encoded.restored()
        fell = int(np.count_nonzero((restored == 0) & (rows != 0)))
        quality = f"{affine.signal_to_noise_db(rows, restored):.1f} dB signal to noise"
        what = f"weight is {encoded.levels.dtype.name.upper()}, a scale for {group} inputs: {quality}"
        if weight.name in sparse_tensors(writer.graph):
            what += f"; {fell} small values became zero beside those that must stay"
        writer.replace(weight, encoded, group)
        for node in weight.nodes:
            report.edit(node.name, what)
        return float(np.square(rows, dtype=np.float64).sum()), float(
            np.square(rows.astype(np.float64) - restored).sum()
        )


def _is_transposed(weight: Weight) -> bool:
    return any(node.op == "ConvTranspose" for node in weight.nodes)


def _is_recurrent(weight: Weight) -> bool:
    return any(is_recurrent(node) for node in weight.nodes)


def _inputs(weight: Weight, shape: Sequence[int]) -> int:
    """How many values in a row of `_matrix` belong to one output channel, so that they may share a scale."""
    if _is_transposed(weight):
        return int(shape[0]) // math.lcm(*(int(node.attrs.get("group", 1)) for node in weight.nodes))
    if _is_recurrent(weight):
        return int(shape[-1])
    return int(np.prod(shape)) // int(shape[weight.axis])


def _matrix(weight: Weight, values: np.ndarray) -> np.ndarray:
    """The weight as rows along which values share a scale: of an output channel all inputs; of a transposed
    convolution, of an output channel and a place of the kernel; of a recurrent layer, of a gate.
    """
    if _is_recurrent(weight):
        return values.reshape(-1, values.shape[-1])
    if weight.axis == 1:
        return values.reshape(len(values), -1).T
    return values.reshape(len(values), -1)


class _BlockWriter:
    """Writes the form into one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.taken = taken_names(graph)

    def replace(self, weight: Weight, encoded: int4.Levels, group: int) -> None:
        """Makes the weight, under its own name, the decoded 4-bit form."""
        self.graph.ir_version = max(self.graph.ir_version or 0, FOUR_BIT_IR_VERSION)
        name, shape = weight.name, list(weight.tensor.shape)
        turned, recurrent = weight.axis == 1 and not _is_recurrent(weight), _is_recurrent(weight)
        parts = {"int4": encoded.levels, "scale": encoded.scale, "zero_point": encoded.zeros}
        arrays = {part: array for part, array in parts.items() if array is not None}
        axis, one_group = 0 if turned else 1, encoded.scale.shape[1] == 1
        if recurrent:  # in its own shape: there is no scale per direction and row of gates without blocks
            arrays = {part: array.reshape(*shape[:2], -1) for part, array in arrays.items()}
            axis = 2
        elif turned:
            arrays = {part: array.T for part, array in arrays.items()}
        attrs = {"axis": axis, "block_size": group}
        if one_group and not recurrent:  # one group is one output channel
            attrs = {"axis": 1 - axis}
            arrays |= {part: array.reshape(-1) for part, array in arrays.items() if part != "int4"}
        stored: list[Tensor] = [
            Constant(self._name(f"{name}_{part}"), np.ascontiguousarray(array))
            for part, array in arrays.items()
        ]
        result = Variable(name, np.float32, shape)
        levels = list(arrays["int4"].shape)
        flat = result if levels == shape else Variable(self._name(f"{name}_matrix"), np.float32, levels)
        self.graph.nodes.append(
            Node("DequantizeLinear", self._name(f"{name}_DequantizeLinear"), attrs, stored, [flat])
        )
        if flat is not result:
            target = Constant(self._name(f"{name}_shape"), np.array(shape, np.int64))
            self.graph.nodes.append(
                Node("Reshape", self._name(f"{name}_Reshape"), {}, [flat, target], [result])
            )
        for node in weight.nodes:
            rewire.replace_input(node, weight.tensor, result)

    def _name(self, wanted: str) -> str:
        name = unused_name(wanted, self.taken)
        self.taken.add(name)
        return name
