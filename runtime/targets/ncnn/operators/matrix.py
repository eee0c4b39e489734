"""Gemm and MatMul with a constant weight: InnerProduct."""

import numpy as np

from onnx_lathe.runtime.targets.ncnn.dialect import Stored, Weight
from onnx_lathe.runtime.targets.ncnn.network import Network
from onnx_lathe.runtime.targets.ncnn.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.registry import operator


@operator("Gemm")
def gemm(node: Node, net: Network) -> None:
    if node.integer("transA"):
        raise Unsupported("it transposes its first operand")
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    stored = net.weight(node.inputs[1])
    weight = stored if node.integer("transB") else stored.moved(np.transpose)
    if alpha != 1.0:
        weight = (
            Stored(weight.values * np.float32(alpha))
            if weight.table is None
            else Stored(weight.values, weight.table * np.float32(alpha))
        )
    outputs, inputs = weight.values.shape
    rows = net.sizes(node.inputs[0])[0]
    bias = None
    if node.given(2) and beta != 0.0:
        added = net.constant(node.inputs[2], "third operand").astype(np.float32) * np.float32(beta)
        if added.size not in (1, outputs) or (added.ndim == 2 and added.shape[0] not in (1,)):
            raise Unsupported("its third operand is another one for each row")
        bias = np.broadcast_to(added.reshape(-1), (outputs,)).copy()
    params = {0: outputs, 1: int(bias is not None), 2: outputs * inputs}
    weights = [Weight(weight.moved(lambda values: values.reshape(-1)), tagged=True)]
    if bias is not None:
        weights.append(Weight(Stored(bias)))
    axes = (1,) if rows == 1 else (0, 1)
    net.put(node, "InnerProduct", [net.form(node.inputs[0], axes).name], params, weights, axes)
