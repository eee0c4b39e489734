"""Canonical form -> what TensorRT builds, with the same outputs.

    what int8 quantized for another target alone  float
    decoded weight -> Q -> DQ                     INT8 initializer -> DQ
    Gather(codebook, Cast(UINT4 or UINT8))        Gather(codebook, Cast(DQ(INT4 or INT8) + 8 or 128))
    UINT8, UINT4 or zero-point not 0 -> DQ        INT8 or INT4 initializer, zero-point 0 -> DQ
    INT32 or 16-bit constant -> DQ                float initializer
    activation -> Q -> DQ, UINT8, zero-point 128  INT8, zero-point 0
    pair of int8 without a zero-point             zero-point 0
    scale and zero-point of shape [1]             rank 0
    input dimensions named "?"                    without a name

Why: only a DequantizeLinear may read an INT8 or INT4 constant; UINT8 and UINT4 are no types of TensorRT; a
scale of shape [1] counts as per channel, which puts the layer in float; dimensions of one name must be
equal, and "?" is a name.

The rules come from builds with TensorRT-RTX 1.7 and from the source of the ONNX parser of TensorRT 10.1;
docs/targets.md has the table.
"""

import ml_dtypes
import numpy as np
import onnx

from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.constants import constant_to_initializer
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.layers import constant_value, is_constant, is_layer
from onnx_lathe.passes.graph.model import FOUR_BIT, FOUR_BIT_IR_VERSION, FOUR_BIT_OPSET, free_name
from onnx_lathe.passes.graph.quantization.pairs import state_zero_points
from onnx_lathe.passes.graph.rewire import captured_names, disconnect, is_output, replace_input, sweep
from onnx_lathe.passes.lowering.restoring import restore_canonical

WANTED = "TensorRT takes INT8 with zero-point 0 only; quantize the float model with 'int8'"
_BYTES = (np.dtype(np.int8), np.dtype(np.uint8))
_TO_FLOAT = (np.dtype(np.int16), np.dtype(np.uint16), np.dtype(np.int32))
_UNNAMED = ("None", "unknown")


class Lowering(Pass):
    name = "lower-tensorrt"
    takes_half = True
    lossless = True

    def apply(self, graph: Graph, context: Context) -> PassReport:
        work = _Work(graph)
        state_zero_points(graph, work.report)
        for node in graph.nodes:
            if (
                node.op == "Constant"
                and not is_output(graph, node.outputs[0])
                and node.outputs[0].name not in work.captured
            ):
                constant_to_initializer(node)
        restore_canonical(graph, context.placement, work.report)
        quantizers = [
            node
            for node in graph.nodes
            if node.op in ("QuantizeLinear", "DequantizeLinear") and not node.domain
        ]
        for node in quantizers:
            work.scalar_scale(node)
        for node in quantizers:
            if node.op == "DequantizeLinear" and node.inputs and is_constant(node.inputs[0]):
                work.constant(node)
        for node in quantizers:
            if node.op == "QuantizeLinear" and node.outputs and not is_constant(node.inputs[0]):
                work.centre(node)
        for node in quantizers:
            if node.outputs and not is_constant(node.inputs[0]):
                work.refuse(node)
        for node in list(graph.nodes):
            if node.op == "Gather" and not node.domain and node.inputs:
                work.codebook(node)
        work.input_dimensions()
        sweep(graph)
        return work.report


class _Work:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.report = PassReport()
        self.captured = captured_names(graph)
        self.shared: dict[str, Constant] = {}

    def _constant(self, name: str, values: np.ndarray) -> Constant:
        return Constant(free_name(self.graph, name), values)

    def _shared(self, name: str, values: np.ndarray) -> Constant:
        """One constant of this lowering for all its readers."""
        if name not in self.shared:
            self.shared[name] = self._constant(name, values)
        return self.shared[name]

    def scalar_scale(self, node: Node) -> None:
        scale = _values(node.inputs[1])
        if node.attrs.get("block_size", 0) or scale is None or scale.shape != (1,):
            return
        for index, tensor in enumerate(node.inputs[1:3], 1):
            values = _values(tensor)
            if values is not None and values.size == 1:
                node.inputs[index] = self._shared(f"{tensor.name}_scalar", values.reshape(()))
        node.attrs.pop("axis", None)
        self.report.edit(node.name, "scale of rank 0")

    def constant(self, node: Node) -> None:
        """Constant -> DQ, whatever computes the constant: stored as INT8 or INT4 with zero-point 0, or as
        float.
        """
        source, zero = node.inputs[0], _zero_point(node)
        if (
            isinstance(source, Constant)
            and not np.any(zero)
            and self._is_fine(node, source.dtype, tuple(source.shape))
        ):
            return
        codes = read(source) if isinstance(source, Constant) else constant_value(source, self.graph.opset)
        if (
            _values(node.inputs[1]) is None
            or codes.size == 0
            or codes.dtype not in (*_BYTES, *FOUR_BIT, *_TO_FLOAT)
        ):
            return
        centred = codes.astype(np.int32) - _along(node, zero, codes.shape)
        stored = None if codes.dtype in _TO_FLOAT else self._stored(node, codes.dtype, centred)
        if stored is None:
            self._to_float(node)
            return
        sole = isinstance(source, Constant) and len(source.outputs) == 1
        node.inputs[0] = Constant(source.name, stored) if sole else Constant("", stored)
        while len(node.inputs) > 2:
            node.inputs.pop()
        self._drop_quantizer(source, node.outputs[0])
        if not sole:
            node.inputs[0].name = free_name(self.graph, f"{node.outputs[0].name}_{stored.dtype}")
        self.report.edit(node.name, f"constant stored as {stored.dtype.name.upper()} with zero-point 0")

    def _is_fine(self, node: Node, dtype: np.dtype, shape: tuple[int, ...]) -> bool:
        return dtype == np.int8 or (dtype == ml_dtypes.int4 and self._takes_int4(node, shape))

    def _takes_int4(self, node: Node, shape: tuple[int, ...]) -> bool:
        """An INT4 constant needs an even last dimension and is for layers with a float input: INT4 and INT8
        do not multiply.
        """
        layers = [reader for reader in node.outputs[0].outputs if is_layer(reader)]
        in_int8 = any(
            layer.inputs[0].inputs and layer.inputs[0].inputs[0].op == "DequantizeLinear" for layer in layers
        )
        return self.graph.opset >= FOUR_BIT_OPSET and bool(shape) and shape[-1] % 2 == 0 and not in_int8

    def _stored(self, node: Node, dtype: np.dtype, centred: np.ndarray) -> np.ndarray | None:
        """The integers in the smallest type that TensorRT takes, None if none holds them. `dtype` is what
        they were stored as.
        """
        low, high = int(centred.min()), int(centred.max())
        if dtype in FOUR_BIT and low >= -8 and high <= 7 and self._takes_int4(node, centred.shape):
            return self._int4(centred)
        return centred.astype(np.int8) if low >= -128 and high <= 127 else None

    def _int4(self, values: np.ndarray) -> np.ndarray:
        self.graph.ir_version = max(self.graph.ir_version or 0, FOUR_BIT_IR_VERSION)
        return values.astype(ml_dtypes.int4)

    def _to_float(self, node: Node) -> None:
        result = node.outputs[0]
        if is_output(self.graph, result):
            self.report.skip(
                node.name, "TensorRT does not take its integer type, and its result is an output of the graph"
            )
            return
        values = constant_value(result, self.graph.opset)
        disconnect(node)
        decoded = Constant(result.name, values)
        for reader in list(result.outputs):
            replace_input(reader, result, decoded)
        self.report.edit(
            node.name,
            f"{values.size} values stored as {values.dtype}, for which TensorRT has no integer form",
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
            for zero in map(_zero_point, pair)
            if zero is not None and zero.dtype == np.uint8 and np.all(zero == 128)
        ]
        only_read_by_dq = all(
            node.op == "DequantizeLinear" and not node.domain and node.inputs[0] is codes for node in pair[1:]
        )
        if len(zeros) < len(pair) or not only_read_by_dq or is_output(self.graph, codes):
            return
        for node, zero in zip(pair, zeros, strict=True):
            node.inputs[2] = self._shared(
                "_".join(["int8_zero", *map(str, zero.shape)]), np.zeros(zero.shape, np.int8)
            )
        quantizer.attrs.pop("output_dtype", None)
        codes.dtype = np.dtype(np.int8)
        self.report.edit(quantizer.name, "INT8 with zero-point 0 instead of UINT8 with 128")

    def refuse(self, node: Node) -> None:
        """What has no exact INT8 form with zero-point 0."""
        zero = _zero_point(node)
        if zero is None and len(node.inputs) > 2 and not node.inputs[2].is_empty():
            self.report.skip(node.name, f"its zero-point is computed at run time; {WANTED}")
        elif _code_type(node, zero) in (np.uint8, np.uint16, np.int16, ml_dtypes.uint4):
            self.report.skip(node.name, f"it is {np.dtype(_code_type(node, zero)).name.upper()}; {WANTED}")
        elif zero is not None and np.any(zero):
            self.report.skip(node.name, f"its zero-point is not 0; {WANTED}")

    def codebook(self, gather: Node) -> None:
        """Indices i -> DQ(i - offset, scale 1) + offset: integers up to 255 are exact in float32."""
        table, cast = gather.inputs[0], gather.inputs[1].inputs[0] if gather.inputs[1].inputs else None
        if not isinstance(table, Constant) or len(table.shape) != 1 or cast is None or cast.op != "Cast":
            return
        indices = cast.inputs[0]
        if (
            not isinstance(indices, Constant)
            or indices.dtype not in (*_BYTES, *FOUR_BIT)
            or 0 in indices.shape
        ):
            return
        codes = read(indices).astype(np.int32)
        codes = np.where(codes < 0, codes + table.shape[0], codes)
        packed = self.graph.opset >= FOUR_BIT_OPSET and codes.size % 2 == 0 and int(codes.max()) < 16
        offset, shape = (8, _even(codes.shape)) if packed else (128, codes.shape)
        centred = (codes - offset).reshape(shape)
        values = self._int4(centred) if packed else centred.astype(np.int8)
        weight = gather.outputs[0].name
        stored = self._constant(f"{weight}_{values.dtype}", values)
        tensor = self._node(
            "DequantizeLinear",
            weight,
            np.float32,
            [stored, self._shared("index_scale", np.array(1, np.float32))],
        )
        tensor = self._node(
            "Add",
            weight,
            np.float32,
            [tensor, self._shared(f"index_offset_{offset}", np.array(offset, np.float32))],
        )
        tensor = self._node("Cast", weight, np.int32, [tensor], to=int(onnx.TensorProto.INT32))
        if shape != codes.shape:
            tensor = self._node(
                "Reshape",
                weight,
                np.int32,
                [tensor, self._constant(f"{weight}_shape", np.array(codes.shape, np.int64))],
            )
        gather.inputs[1] = tensor
        self.report.edit(
            gather.name, f"indices stored as {values.dtype.name.upper()}; the weight is decoded at every run"
        )

    def _node(self, op: str, weight: str, dtype: type, inputs: list[Tensor], **attributes: int) -> Variable:
        result = Variable(free_name(self.graph, f"{weight}_{op.lower()}"), dtype)
        node = Node(op, free_name(self.graph, f"{weight}_{op}"), attributes, inputs, [result])
        self.graph.nodes.append(node)
        return result

    def input_dimensions(self) -> None:
        for tensor in self.graph.inputs:
            named = [
                None if isinstance(dim, str) and _says_nothing(dim) else dim for dim in tensor.shape or []
            ]
            if tensor.shape is not None and named != list(tensor.shape):
                tensor.shape = named
                self.report.edit(tensor.name, "dimensions of unknown size have no common name")


def _says_nothing(dimension: str) -> bool:
    return dimension in _UNNAMED or not any(character.isalpha() for character in dimension)


def _values(tensor: Tensor) -> np.ndarray | None:
    return tensor.values if isinstance(tensor, Constant) else None


def _zero_point(node: Node) -> np.ndarray | None:
    return _values(node.inputs[2]) if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None


def _code_type(node: Node, zero: np.ndarray | None) -> np.dtype | None:
    """The type of the integers that the node writes or reads; a QuantizeLinear without zero-point and type
    writes UINT8.
    """
    if zero is not None:
        return zero.dtype
    if node.op == "DequantizeLinear":
        return node.inputs[0].dtype
    return onnx.helper.tensor_dtype_to_np_dtype(node.attrs.get("output_dtype", 0) or onnx.TensorProto.UINT8)


def _along(node: Node, zero: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """The zero-point, int32, in a shape that broadcasts to the tensor's: per tensor, along an axis, or per
    block along an axis.
    """
    if zero is None or zero.ndim == 0:
        return np.array(0 if zero is None else zero, np.int32)
    axis, block = node.attrs.get("axis", 1) % len(shape), node.attrs.get("block_size", 0)
    wide = zero.astype(np.int32)
    if block:
        return np.repeat(wide, block, axis).take(range(shape[axis]), axis)
    return wide.reshape([-1 if index == axis else 1 for index in range(len(shape))])


def _even(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape of the same even number of elements whose last dimension is even: the parser of TensorRT 10
    takes no other INT4.
    """
    if shape and shape[-1] % 2 == 0:
        return shape
    size = int(np.prod(shape))
    return (shape[0], size // shape[0]) if size // shape[0] % 2 == 0 else (size // 2, 2)
