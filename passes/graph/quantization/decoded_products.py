"""Which layers with a decoded weight ONNX Runtime computes with a rounded input, though the graph reads it in float."""

from collections.abc import Iterable

from onnx_lathe.passes.graph import Node
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT


def rounded_inputs(nodes: Iterable[Node]) -> list[Node]:
    """Of layers whose weight a DequantizeLinear decodes: those that ONNX Runtime's optimizers make a MatMulNBits of,
    which rounds what it reads to INT8. A Gemm with a transposed weight stays one; so do groups that are no power of 2
    (tried with ONNX Runtime 1.32 on x86-64).
    """
    found = []
    for node in nodes:
        if node.op not in ("MatMul", "Gemm") or node.domain or node.attrs.get("transB"):
            continue
        decoder = next(iter(node.inputs[WEIGHT_INPUT].inputs), None)
        if decoder is None or decoder.op != "DequantizeLinear":
            continue
        block = int(decoder.attrs.get("block_size", 0))
        if block & (block - 1) == 0:
            found.append(node)
    return found


def warning(nodes: Iterable[Node]) -> str:
    """One line for the report; empty if there are none."""
    names = sorted({node.name for node in rounded_inputs(nodes)})
    if not names:
        return ""
    count = f"{len(names)} layer{'s' if len(names) > 1 else ''} with a decoded weight ({names[0]}{', ...' if len(names) > 1 else ''})"
    return (
        f"ONNX Runtime rounds what it gives {count} to INT8 (MatMulNBits); its session option "
        "session.qdq_matmulnbits_accuracy_level=1 keeps that in float32"
    )
