"""Weights that a codebook decodes at every run: their indices as the integers that TensorRT stores."""

import numpy as np
import onnx

from onnx_lathe.passes.graph import Constant, Node
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.model import FOUR_BIT, FOUR_BIT_OPSET
from onnx_lathe.passes.lowering.engine_types import blocks
from onnx_lathe.passes.lowering.engine_types.parameters import BYTES, zero_point
from onnx_lathe.passes.lowering.engine_types.work import Work

_LARGEST = 255
"""Index that 8 bits hold."""


def store_indices(work: Work, gather: Node) -> None:
    """Indices i -> DQ(i - offset, scale 1) + offset: integers up to 255 are exact in float32."""
    codes = _codes(gather)
    if codes is None:
        return
    if codes.max() > _LARGEST:  # as INT8 has them that counts from the end of a long table
        gather.inputs[1] = work.constant(f"{gather.outputs[0].name}_int32", codes)
        work.report.edit(gather.name, "indices stored as INT32: 8 bits do not hold them from 0 on")
        return
    packed = _packs(work, codes)
    offset, shape = (8, blocks.even_rows(codes.shape)) if packed else (128, codes.shape)
    centred = (codes - offset).reshape(shape)
    values = work.int4(centred) if packed else centred.astype(np.int8)
    weight = gather.outputs[0].name
    stored = work.constant(f"{weight}_{values.dtype}", values)
    scale = work.shared("index_scale", np.array(1, np.float32))
    tensor = work.node("DequantizeLinear", weight, [stored, scale], np.float32)
    middle = work.shared(f"index_offset_{offset}", np.array(offset, np.float32))
    tensor = work.node("Add", weight, [tensor, middle], np.float32)
    tensor = work.node("Cast", weight, [tensor], np.int32, to=int(onnx.TensorProto.INT32))
    if shape != codes.shape:
        target = work.constant(f"{weight}_shape", np.array(codes.shape, np.int64))
        tensor = work.node("Reshape", weight, [tensor, target], np.int32)
    gather.inputs[1] = tensor
    work.report.edit(
        gather.name, f"indices stored as {values.dtype.name.upper()}; the weight is decoded at every run"
    )


def stays_shared(work: Work, node: Node) -> bool:
    """Whether a weight that the DQ reads quantized is decoded from indices of 4 bits, and needs no other form."""
    quantizer, zero = next(iter(node.inputs[0].inputs), None), zero_point(node)
    if quantizer is None or quantizer.op != "QuantizeLinear" or zero is None or zero.dtype != np.int8:
        return False
    source = quantizer.inputs[0]
    maker = next(iter(source.inputs), None)
    parts = [source] if maker is None or maker.op != "Concat" else maker.inputs
    decoders = [next(iter(part.inputs), None) for part in parts]
    return not np.any(zero) and all(
        decoder is not None
        and decoder.op == "Gather"
        and (codes := _codes(decoder)) is not None
        and _packs(work, codes)
        for decoder in decoders
    )


def _packs(work: Work, codes: np.ndarray) -> bool:
    """Whether 4 bits hold the indices."""
    return work.opset >= FOUR_BIT_OPSET and codes.size % 2 == 0 and int(codes.max()) < 16


def _codes(gather: Node) -> np.ndarray | None:
    """Indices, int32, of what decodes a weight: Gather(codebook, Cast(indices)); None of any other."""
    table, cast = gather.inputs[0], gather.inputs[1].inputs[0] if gather.inputs[1].inputs else None
    if not isinstance(table, Constant) or len(table.shape) != 1 or cast is None or cast.op != "Cast":
        return None
    indices = cast.inputs[0]
    if not isinstance(indices, Constant) or indices.dtype not in (*BYTES, *FOUR_BIT) or 0 in indices.shape:
        return None
    codes = read(indices).astype(np.int32)
    return np.where(codes < 0, codes + table.shape[0], codes)
