"""A ReLU or Clip between a fully connected layer on integers and what reads it in float."""

import numpy as np

from onnx_lathe.passes.graph import Node, Tensor, Variable
from onnx_lathe.passes.graph.layers import is_constant
from onnx_lathe.passes.graph.quantization.placement import quantized_layers
from onnx_lathe.passes.graph.rewire import disconnect
from onnx_lathe.passes.lowering.ort_integers.work import Work


def free_results(work: Work) -> None:
    """Writes such a ReLU or Clip as Max and Min, which give the same numbers.

    ONNX Runtime (seen in 1.32) takes a ReLU or Clip for a part of the layer in front of it. As no
    QuantizeLinear is behind it, it then computes the layer in float.
    """
    for layer in quantized_layers(work.graph):
        result = _result(layer)
        if layer.op not in ("MatMul", "Gemm") or len(result.outputs) != 1 or work.is_seen(result):
            continue
        floor = result.outputs[0]
        if floor.op not in ("Relu", "Clip") or floor.domain or floor.inputs[0] is not result:
            continue
        readers = floor.outputs[0].outputs
        ends = _ends(work, floor)
        if ends and readers and not all(reader.op == "QuantizeLinear" for reader in readers):
            _rewrite(work, floor, ends)
            work.report.edit(floor.name, f"written as Max and Min, so that {layer.name} stays on integers")


def _result(layer: Node) -> Tensor:
    """What the layer writes, or the addition of its bias if that is all that reads it."""
    result = layer.outputs[0]
    if layer.op != "MatMul" or len(result.outputs) != 1 or result.outputs[0].op != "Add":
        return result
    add = result.outputs[0]
    return add.outputs[0] if any(map(is_constant, add.inputs)) and not add.domain else result


def _ends(work: Work, floor: Node) -> list[tuple[str, Tensor]]:
    """The operators that say the same, with their second operands."""
    if floor.op == "Relu":
        return [("Max", work.constant(f"{floor.name}_zero", np.zeros((), np.float32)))]
    given = zip(("Max", "Min"), floor.inputs[1:], strict=False)
    return [(op, end) for op, end in given if not end.is_empty()]


def _rewrite(work: Work, floor: Node, ends: list[tuple[str, Tensor]]) -> None:
    value, result = floor.inputs[0], floor.outputs[0]
    disconnect(floor)
    for op, end in ends:
        last = op == ends[-1][0]
        after = result if last else Variable(work.name(f"{result.name}_floor"), np.float32, result.shape)
        work.graph.nodes.append(Node(op, work.name(f"{floor.name}_{op}"), {}, [value, end], [after]))
        value = after
