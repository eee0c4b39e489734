"""Canonical form -> what TensorRT builds, with the same outputs but for the first two lines.

    what int8 quantized for another target alone  float, with biases that make up for its rounding no more
    layers that cost the outputs too much         float (engine_floats.py)
    decoded weight -> Q -> DQ                     INT8 initializer -> DQ; with prefer=size it stays, decoded from 4 bits
    Gather(codebook, Cast(UINT4 or UINT8))        Gather(codebook, Cast(DQ(INT4 or INT8) + 8 or 128))
    UINT8, UINT4 or zero-point not 0 -> DQ        INT8 or INT4 initializer, zero-point 0 -> DQ
    INT32 or 16-bit constant -> DQ                float initializer
    activation -> Q -> DQ, UINT8, zero-point 128  INT8, zero-point 0
    pair of int8 without a zero-point             zero-point 0
    UINT8 that comes in, or goes out              computed: Cast -> Sub -> Mul, Div -> Round -> Add -> Clip -> Cast
    blocks of a convolution's weight              three dimensions -> Reshape; whole weights where blocks are partial
    scale and zero-point of shape [1]             rank 0
    64-bit floats                                 32-bit floats, cast at inputs and outputs
    input dimensions named "?"                    without a name
    last state of an LSTM in a branch             Gather of its steps (recurrent.py)
    If(constant)                                  the body that runs, see passes/graph/branches.py
    names with a NUL, or of more than 4096 bytes  others, but for inputs and outputs

Why: only a DequantizeLinear may read an INT8 or INT4 constant; UINT8 and UINT4 are no types of TensorRT; a
scale of shape [1] counts as per channel, which puts the layer in float; dimensions of one name must be
equal, and "?" is a name. Bodies of If, Loop and Scan get the same forms; helpers are in engine_types/.

The rules come from builds with TensorRT-RTX 1.7 and from the source of the ONNX parser of TensorRT 10.1;
docs/tensorrt.md has the table.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import onnx

from onnx_lathe.engines import SYMMETRIC_ONLY
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.bodies import parts
from onnx_lathe.passes.graph.branches import take_branches
from onnx_lathe.passes.graph.constants import constant_to_initializer
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.layers import constant_value, is_constant, is_layer
from onnx_lathe.passes.graph.model import FOUR_BIT, FOUR_BIT_OPSET, export_model, import_model
from onnx_lathe.passes.graph.quantization.pairs import state_zero_points
from onnx_lathe.passes.graph.rewire import disconnect, is_output, replace_input, sweep
from onnx_lathe.passes.lowering.engine_floats import restore
from onnx_lathe.passes.lowering.engine_types import blocks, names, ports, recurrent
from onnx_lathe.passes.lowering.engine_types.codebooks import stays_shared, store_indices
from onnx_lathe.passes.lowering.engine_types.dimensions import sizes, unname
from onnx_lathe.passes.lowering.engine_types.doubles import single_precision
from onnx_lathe.passes.lowering.engine_types.parameters import (
    BYTES,
    along,
    code_type,
    fits,
    values_of,
    zero_point,
)
from onnx_lathe.passes.lowering.engine_types.work import Work
from onnx_lathe.passes.lowering.tensorrt_speed import choose

_TO_FLOAT = (np.dtype(np.int16), np.dtype(np.uint16), np.dtype(np.int32))


class Lowering(Pass):
    name = "lower-tensorrt"
    takes_half = True

    @dataclass(frozen=True)
    class Config:
        prefer: str = option(
            "speed",
            "codebook in front of an INT8 layer: INT8 weights, or 4 bits where that holds its indices",
            choices=("speed", "size"),
        )
        shapes: dict[str, str] = option(
            {}, "input -> shapes that it is built for, such as 1x3x32x32:8x3x64x64, which may part names"
        )
        speed: str = option(
            "any",
            "keep: layers that do not pay in INT8 are float again; any: all stay",
            choices=("keep", "any"),
        )
        branches: dict[str, bool] = option({}, "condition of an If -> what it always is")

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        if self.config.branches:
            take_branches(graph, self.config.branches, report)
        names.rename(graph, report)  # first: layers are chosen by name
        if self.config.speed == "any":
            self._lower(graph, context, {}, report)
            return report
        model = export_model(graph)

        def lowered(floats: Collection[str]) -> onnx.ModelProto:
            copy = import_model(model)
            tried = dict.fromkeys(floats, "tried in float")
            self._lower(copy, replace(context, fidelity=None), tried, PassReport())
            return export_model(copy)

        choice = choose(graph, model, lowered, context)
        self._lower(graph, context, choice.floats, report)
        report.warnings += choice.warnings
        return report

    def _lower(self, graph: Graph, context: Context, floats: Mapping[str, str], report: PassReport) -> None:
        """`floats`: layers that are to be float again, by name with the reason."""
        state_zero_points(graph, report)
        single_precision(graph, report)
        shared: dict[str, Constant] = {}
        places = parts(graph)
        found = [_Work(graph, part.graph, report, shared) for part in places]
        for work, part in zip(found, places, strict=True):
            work.initializers()
            recurrent.read_steps(work, part)
        restore(graph, context, report, floats)
        for work in found:
            work.quantizers(self.config.prefer == "size")
        for work in found:
            work.codebooks()
        unname(graph, sizes(self.config.shapes), report)
        for work in reversed(found[1:]):
            work.sweep()
        sweep(graph)


class _Work(Work):
    """The steps on one graph or body."""

    def initializers(self) -> None:
        for node in self.graph.nodes:
            if (
                node.op == "Constant"
                and not is_output(self.graph, node.outputs[0])
                and node.outputs[0].name not in self.captured
            ):
                constant_to_initializer(node)

    def quantizers(self, small: bool) -> None:
        """small: codebooks of 4 bits stay in front of INT8 layers."""
        found = [
            node
            for node in self.graph.nodes
            if node.op in ("QuantizeLinear", "DequantizeLinear") and not node.domain
        ]
        for node in found:
            self.scalar_scale(node)
        for node in found:
            if node.op != "DequantizeLinear" or not node.inputs or not is_constant(node.inputs[0]):
                continue
            if not small or not stays_shared(self, node):
                self.store(node)
        for node in found:
            if node.op == "QuantizeLinear" and node.outputs and not is_constant(node.inputs[0]):
                self.centre(node)
        for node in found:
            if node.outputs and not is_constant(node.inputs[0]):
                ports.compute(self, node)
        for node in found:
            if node.outputs and not is_constant(node.inputs[0]):
                self.refuse(node)

    def codebooks(self) -> None:
        for node in list(self.graph.nodes):
            if node.op == "Gather" and not node.domain and node.inputs:
                store_indices(self, node)

    def scalar_scale(self, node: Node) -> None:
        scale = values_of(node.inputs[1])
        if node.attrs.get("block_size", 0) or scale is None or scale.shape != (1,):
            return
        for index, tensor in enumerate(node.inputs[1:3], 1):
            values = values_of(tensor)
            if values is not None and values.size == 1:
                node.inputs[index] = self.shared(f"{tensor.name}_scalar", values.reshape(()))
        node.attrs.pop("axis", None)
        self.report.edit(node.name, "scale of rank 0")

    def store(self, node: Node) -> None:
        """Constant -> DQ, whatever computes the constant: stored as INT8 or INT4 with zero-point 0, or as
        float.
        """
        source, zero = node.inputs[0], zero_point(node)
        scale = values_of(node.inputs[1])
        if scale is None:
            return
        if isinstance(source, Constant) and not np.any(zero):
            form = blocks.as_it_is(node, tuple(source.shape), scale.shape)
            if fits(node, form.shape) and self._is_fine(node, source.dtype, form):
                return
        codes = read(source) if isinstance(source, Constant) else constant_value(source, self.opset)
        if codes.size == 0 or codes.dtype not in (*BYTES, *FOUR_BIT, *_TO_FLOAT):
            return
        if not fits(node, codes.shape):
            self.report.skip(node.name, "its scale or zero-point does not have the shape of its axis")
            return
        form = blocks.as_it_is(node, codes.shape, scale.shape)
        centred = codes.astype(np.int32) - along(node, zero, codes.shape)
        stored = None if codes.dtype in _TO_FLOAT else self._stored(node, codes.dtype, centred, form)
        if stored is None:
            self._to_float(node, blocks.refusal(node, form))
            return
        values, form = stored
        sole = isinstance(source, Constant) and len(source.outputs) == 1
        sole = sole and not is_output(self.graph, source) and not is_output(self.root, source)
        node.inputs[0] = Constant(source.name, values) if sole else Constant("", values)
        while len(node.inputs) > 2:
            node.inputs.pop()
        self._drop_quantizer(source, node.outputs[0])
        if not sole:
            node.inputs[0].name = self.name(f"{node.outputs[0].name}_{values.dtype}")
        said = f"constant stored as {values.dtype.name.upper()} with zero-point 0"
        if form.shape != codes.shape:
            self._reshape(node, form, codes.shape)
            said += f" in {len(form.shape)} dimensions"
        self.report.edit(node.name, said)

    def _is_fine(self, node: Node, dtype: np.dtype, form: blocks.Form) -> bool:
        if blocks.refusal(node, form) or blocks.fitting(node, form) != form:
            return False
        return dtype == np.int8 or (
            dtype == ml_dtypes.int4 and self._takes_int4(node) and blocks.even(node, form) == form
        )

    def _takes_int4(self, node: Node) -> bool:
        """An INT4 constant is for layers with a float input: INT4 and INT8 do not multiply."""
        layers = [reader for reader in node.outputs[0].outputs if is_layer(reader)]
        in_int8 = any(
            layer.inputs[0].inputs and layer.inputs[0].inputs[0].op == "DequantizeLinear" for layer in layers
        )
        return self.opset >= FOUR_BIT_OPSET and not in_int8

    def _stored(
        self, node: Node, dtype: np.dtype, centred: np.ndarray, form: blocks.Form
    ) -> tuple[np.ndarray, blocks.Form] | None:
        """The integers in the smallest type that TensorRT takes, and their form; None if no type holds them.
        `dtype` is what they were stored as.
        """
        low, high = int(centred.min()), int(centred.max())
        if blocks.refusal(node, form) or low < -128 or high > 127:
            return None
        form = blocks.fitting(node, form)
        small = blocks.even(node, form)
        if dtype in FOUR_BIT and low >= -8 and high <= 7 and small is not None and self._takes_int4(node):
            return self.int4(centred.reshape(small.shape)), small
        return centred.astype(np.int8).reshape(form.shape), form

    def _reshape(self, node: Node, form: blocks.Form, shape: tuple[int, ...]) -> None:
        """Lets the node decode the integers in their form, and gives the result its shape back."""
        result, scale = node.outputs[0], node.inputs[1]
        if form.scale != scale.shape:
            node.inputs[1] = self.constant(f"{scale.name}_rows", scale.values.reshape(form.scale))
        if form.scale:
            node.attrs["axis"] = form.axis
        rows = Variable(self.name(f"{result.name}_rows"), result.dtype, list(form.shape))
        node.outputs[0] = rows
        target = self.constant(f"{result.name}_shape", np.array(shape, np.int64))
        name = self.name(f"{node.name}_Reshape")
        self.graph.nodes.append(Node("Reshape", name, {}, [rows, target], [result]))

    def _to_float(self, node: Node, reason: str = "") -> None:
        result = node.outputs[0]
        if is_output(self.graph, result):
            self.report.skip(
                node.name, "TensorRT does not take its integer type, and its result is an output of the graph"
            )
            return
        values = constant_value(result, self.opset)
        disconnect(node)
        decoded = Constant(result.name, values)
        for reader in list(result.outputs):
            replace_input(reader, result, decoded)
        self.report.edit(
            node.name,
            f"{values.size} values stored as {values.dtype}: {reason or 'TensorRT has no integer form for them'}",
        )

    def _drop_quantizer(self, codes: Tensor, result: Tensor) -> None:
        """Takes out a QuantizeLinear that nobody reads any more; the float tensor behind the DQ takes the
        name of the one before the Q.
        """
        if isinstance(codes, Constant) or codes.outputs or is_output(self.graph, codes):
            return
        quantizer = codes.inputs[0]
        weight = quantizer.inputs[0]
        disconnect(quantizer)
        if (
            quantizer.op != "QuantizeLinear"
            or weight.outputs
            or weight.name in self.captured
            or result.name in self.captured
        ):
            return
        if not is_output(self.graph, weight) and not is_output(self.graph, result):
            for decoder in list(weight.inputs):
                disconnect(decoder)
            result.name = weight.name

    def centre(self, quantizer: Node) -> None:
        """UINT8 with zero-point 128 -> INT8 with zero-point 0: clip(round(x/s) + 128, 0, 255) is
        clip(round(x/s), -128, 127) + 128.
        """
        codes = quantizer.outputs[0]
        pair = [quantizer, *codes.outputs]
        zeros = [
            zero
            for zero in map(zero_point, pair)
            if zero is not None and zero.dtype == np.uint8 and np.all(zero == 128)
        ]
        only_read_by_dq = all(
            node.op == "DequantizeLinear" and not node.domain and node.inputs[0] is codes for node in pair[1:]
        )
        if len(zeros) < len(pair) or not only_read_by_dq or is_output(self.graph, codes):
            return
        for node, zero in zip(pair, zeros, strict=True):
            node.inputs[2] = self.shared(
                "_".join(["int8_zero", *map(str, zero.shape)]), np.zeros(zero.shape, np.int8)
            )
        quantizer.attrs.pop("output_dtype", None)
        codes.dtype = np.dtype(np.int8)
        self.report.edit(quantizer.name, "INT8 with zero-point 0 instead of UINT8 with 128")

    def refuse(self, node: Node) -> None:
        """What has no exact INT8 form with zero-point 0."""
        zero = zero_point(node)
        if zero is None and len(node.inputs) > 2 and not node.inputs[2].is_empty():
            self.report.skip(node.name, f"its zero-point is computed at run time; {SYMMETRIC_ONLY}")
        elif code_type(node, zero) in (np.uint8, np.uint16, np.int16, ml_dtypes.uint4):
            self.report.skip(
                node.name, f"it is {np.dtype(code_type(node, zero)).name.upper()}; {SYMMETRIC_ONLY}"
            )
        elif zero is not None and np.any(zero):
            self.report.skip(node.name, f"its zero-point is not 0; {SYMMETRIC_ONLY}")
