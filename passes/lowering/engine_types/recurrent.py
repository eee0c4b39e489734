"""Last states of recurrent layers in a branch, read from what the layer gives at all steps.

    _, h = LSTM(x)          y = LSTM(x), h = Gather(y, -1)      forward
                            y = LSTM(x), h = Gather(y, 0)       reverse

TensorRT-RTX 1.7 fails to build an If in whose body a recurrent layer's last state is read, and its first output by
nobody ("Assertion tScope.getType() != ScopeType::kUNDEFINED"); with that one read, the same If builds.
"""

import numpy as np

from onnx_lathe.passes.graph import Node, Tensor, Variable
from onnx_lathe.passes.graph.bodies import Part
from onnx_lathe.passes.graph.layers import RECURRENT_OPS
from onnx_lathe.passes.lowering.engine_types.work import Work

_LAST = {"forward": -1, "reverse": 0}
"""Direction -> the step whose output is the last state."""
_LENGTHS = 4
"""Input that holds a length for each sample."""


def read_steps(work: Work, part: Part) -> None:
    """Of a body of If, or of one in such a body."""
    if not any(around.node is not None and around.node.op == "If" for around in part.around()):
        return
    ends = {id(tensor) for tensor in part.graph.outputs}
    for node in list(part.graph.nodes):
        if node.op not in RECURRENT_OPS or node.domain or len(node.outputs) < 2:
            continue
        steps, state = node.outputs[:2]
        if not _is_read(steps, ends) and _is_read(state, ends):
            _read_steps(work, node)


def _is_read(tensor: Tensor, ends: set[int]) -> bool:
    return bool(tensor.name) and (bool(tensor.outputs) or id(tensor) in ends)


def _read_steps(work: Work, node: Node) -> None:
    direction = node.attrs.get("direction", "forward")
    lengths = len(node.inputs) > _LENGTHS and node.inputs[_LENGTHS].name
    if direction not in _LAST or lengths or node.attrs.get("layout", 0):
        return  # the last state is no single step; the check says what comes of it
    steps, state = node.outputs[:2]
    if not steps.name:
        steps = node.outputs[0] = Variable(work.name(f"{node.name}_steps"), state.dtype)
    node.outputs[1] = Variable("")
    at = _LAST[direction]
    step = work.shared(f"recurrent_step_{at}", np.array(at, np.int64))
    work.node("Gather", f"{node.name}_last", [steps, step], state.dtype, result=state, axis=0)
    work.report.edit(
        node.name, "its last state is read from its steps: in a branch, TensorRT fails on it alone"
    )
