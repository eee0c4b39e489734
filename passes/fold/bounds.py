"""The larger or smaller of a tensor and one number, written as a Clip.

    Max(x, c)  becomes  Clip(x, c)        Min(x, c)  becomes  Clip(x, , c)

Exporters of TensorFlow spell ReLU6 and other bounds so. A Clip is what passes, runtimes and quantizers know
as the end of a range.
"""

from collections.abc import Callable

import numpy as np

from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.model import free_name

LOWEST_OPSET = 11
"""The first whose Clip has its ends as inputs."""


def write_clip(graph: Graph, node: Node, rank: Callable[[Tensor], int | None]) -> bool:
    """Writes a float32 Max or Min of one tensor and one number as a Clip. `rank` is that of a tensor, if it
    is known.
    """
    if node.op not in ("Max", "Min") or node.domain or graph.opset < LOWEST_OPSET or len(node.inputs) != 2:
        return False
    number = next((tensor for tensor in node.inputs if isinstance(tensor, Constant)), None)
    data = next((tensor for tensor in node.inputs if not isinstance(tensor, Constant)), None)
    if number is None or data is None or number.values.size != 1 or number.dtype != np.float32:
        return False
    dimensions = rank(data)
    if number.values.ndim and (dimensions is None or number.values.ndim > dimensions):
        return False
    if np.isnan(number.values).any():
        return False
    end = Constant(free_name(graph, f"{number.name}_end"), number.values.reshape(()))
    node.inputs = [data, end] if node.op == "Max" else [data, Variable.empty(), end]
    node.op = "Clip"
    return True
