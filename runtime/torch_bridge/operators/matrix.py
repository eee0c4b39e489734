"""Matrix products."""

import torch
import torch.nn.functional as F
from torch import Tensor

from onnx_lathe.runtime.torch_bridge.registry import Function, Node, operator


@operator("MatMul", since=1)
def matmul(node: Node) -> Function:
    return torch.matmul


@operator("Gemm", since=1)
def gemm(node: Node) -> Function:
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    transpose_a, transpose_b = node.integer("transA"), node.integer("transB")

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        if transpose_a:
            a = a.t()
        if alpha == 1 and (c is None or (beta == 1 and c.dim() == 1)):
            return F.linear(a, b if transpose_b else b.t(), c)
        if transpose_b:
            b = b.t()
        return alpha * (a @ b) if c is None else torch.addmm(c, a, b, beta=beta, alpha=alpha)

    return run


@operator("Det", since=11)
def det(node: Node) -> Function:
    return torch.linalg.det


@operator("Einsum", since=12)
def einsum(node: Node) -> Function:
    equation = node.text("equation", "")
    return lambda *operands: torch.einsum(equation, *operands)
