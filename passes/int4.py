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
With rounding=hessian the level of each weight makes up for what those before it lose in its layer's answers on calibration
data, layer by layer from the inputs on, and deviations and means of channels are set right.
Source: Frantar et al., "GPTQ", ICLR 2023, sections 3 and 4; passes/numerics/quantization/int4.py for the search
of scales.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable, rewire
from onnx_lathe.passes.graph.answers.aligned import Layer
from onnx_lathe.passes.graph.answers.changing import change_layers
from onnx_lathe.passes.graph.answers.choosing import Judged
from onnx_lathe.passes.graph.answers.forms import form_of
from onnx_lathe.passes.graph.answers.rounding import HESSIAN, NEAREST, round_layer
from onnx_lathe.passes.graph.initializers import read, write
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
from onnx_lathe.passes.numerics.second_order.paired import SplitJointMoments
from onnx_lathe.passes.numerics.second_order.sweep import Blocks

_NODE_BYTES = 250
_RESHAPE_BYTES = 180
"""What a DequantizeLinear, and a Reshape with its shape, add to the file, names included."""


@register
class Int4(Pass):
    """Stores the weights of layers in 4 bits, with a scale for each group of inputs; activations stay
    float.
    """

    name = "int4"
    streams = True
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
        rounding: str = option(
            "nearest",
            "each weight takes the nearest level, or the one with which its layer keeps its answers on calibration data",
            choices=("nearest", HESSIAN),
        )
        layers: dict[str, bool] = option(
            {}, "quantize (true) or leave in float (false) single layers, by pattern"
        )
        min_size: int = option(1024, "smaller weights are left as they are", unit="elements", low=1)

    def __init__(self, config: "Int4.Config | None" = None) -> None:
        super().__init__(config)
        self.needs = ("calibrator",) if self.config.rounding == HESSIAN else ()

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
        signal, noise, compensates = 0.0, 0.0, self.config.rounding == HESSIAN
        found = self._compensated(graph, chosen, context, report) if compensates else {}
        writer = _BlockWriter(graph)
        for weight in chosen:
            context.progress(f"quantizing {weight.name}")
            one = found.get(weight.name) or self._nearest(graph, weight)
            writer.replace(weight, one.encoded, self._group(_inputs(weight, weight.tensor.shape)))
            for node in weight.nodes:
                report.edit(node.name, one.what)
            signal, noise = signal + one.signal, noise + one.noise
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

    def _nearest(self, graph: Graph, weight: Weight) -> "_Rounded":
        values = constant_value(weight.tensor, weight.opset)
        blocks = self._blocks(weight, values.shape)
        encoded = int4.encode(_matrix(weight, values), blocks.columns, blocks.symmetric, blocks.search)
        return _Rounded.of(graph, weight, values, encoded)

    def _blocks(self, weight: Weight, shape: Sequence[int]) -> Blocks:
        group = self._group(_inputs(weight, shape))
        return Blocks(group, not self.config.zero_points, self.config.scales == "mse")

    def _compensated(
        self, graph: Graph, chosen: Sequence[Weight], context: Context, report: PassReport
    ) -> dict[str, "_Rounded"]:
        """By weight, its 4-bit form. In the graph, weights become what that decodes to, and biases move."""
        found, taken, sparse = dict[str, _Rounded](), taken_names(graph), sparse_tensors(graph)

        def change(layer: Layer, moments: SplitJointMoments) -> None:
            weight = layer.rows.weight
            context.progress(f"rounding {weight.name}")
            values = read(weight.tensor)
            judged = Judged.of(graph, form_of(graph, layer.rows), moments)
            best = round_layer(
                judged, judged.form.now, weight.name in sparse, lambda: self._blocks(weight, values.shape)
            )
            judged.take(graph, best.candidate, taken)
            encoded = best.rule.encoded().scaled(best.candidate.gain.reshape(-1))
            found[weight.name] = _Rounded.of(graph, weight, values, encoded, best.said)

        def otherwise(weight: Weight, reason: str) -> None:
            one = found[weight.name] = self._nearest(graph, weight).saying(NEAREST.format(reason))
            write(weight.tensor, _from_matrix(weight, one.encoded.restored()))

        weights = {weight.name: weight for weight in chosen}
        change_layers(graph, weights, change, otherwise, "rounding=hessian", context, report)
        return found


@dataclass(frozen=True)
class _Rounded:
    """The 4-bit form of a weight, what to say of it, the weight's energy and that of what it loses."""

    encoded: int4.Levels
    what: str
    signal: float
    noise: float

    @classmethod
    def of(
        cls, graph: Graph, weight: Weight, values: np.ndarray, encoded: int4.Levels, said: str = ""
    ) -> "_Rounded":
        rows = _matrix(weight, values)
        inputs = rows.shape[1] // encoded.scale.shape[1]
        fell, signal, noise = 0, 0.0, 0.0
        for (place,) in affine.slabs(rows.shape, 0):
            part, restored = rows[place], encoded.part(place).restored()
            fell += int(np.count_nonzero((restored == 0) & (part != 0)))
            own = affine.energies(part, restored)
            signal, noise = signal + own[0], noise + own[1]
        quality = f"{affine.decibels(signal, noise):.1f} dB signal to noise"
        what = f"weight is {encoded.levels.dtype.name.upper()}, a scale for {inputs} inputs: {quality}"
        if weight.name in sparse_tensors(graph):
            what += f"; {fell} small values became zero beside those that must stay"
        return cls(encoded, what, signal, noise).saying(said)

    def saying(self, more: str) -> "_Rounded":
        return replace(self, what=f"{self.what}; {more}") if more else self


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


def _from_matrix(weight: Weight, rows: np.ndarray) -> np.ndarray:
    """An array like the weight, of one like `_matrix`."""
    turned = weight.axis == 1 and not _is_recurrent(weight)
    return np.ascontiguousarray(rows.T if turned else rows).reshape(weight.tensor.shape)


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
