"""What the steps of the lowering share: one graph or body, names, constants and new nodes."""

from typing import Any

import ml_dtypes
import numpy as np

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.bodies import parts
from onnx_lathe.passes.graph.model import FOUR_BIT_IR_VERSION, free_name
from onnx_lathe.passes.graph.rewire import captured_names, disconnect


class Work:
    """One graph, or body, of the model `root`; `shared` are constants of this lowering for all their readers."""

    def __init__(self, root: Graph, graph: Graph, report: PassReport, shared: dict[str, Constant]) -> None:
        self.root, self.graph, self.report, self._shared = root, graph, report, shared
        self.captured = captured_names(graph)
        self.opset = root.opset

    def name(self, wanted: str) -> str:
        return free_name(self.root, wanted)

    def constant(self, name: str, values: np.ndarray) -> Constant:
        return Constant(self.name(name), values)

    def shared(self, name: str, values: np.ndarray) -> Constant:
        if name not in self._shared:
            self._shared[name] = self.constant(name, values)
        return self._shared[name]

    def node(
        self,
        op: str,
        named: str,
        inputs: list[Tensor],
        dtype: Any,
        result: Tensor | None = None,
        shape: Any = None,
        **attributes: int,
    ) -> Tensor:
        """The output of a new node: `result`, or a new tensor. `named`: what both are named after."""
        made = Variable(self.name(f"{named}_{op.lower()}"), dtype, shape) if result is None else result
        self.graph.nodes.append(Node(op, self.name(f"{named}_{op}"), attributes, inputs, [made]))
        return made

    def int4(self, values: np.ndarray) -> np.ndarray:
        self.root.ir_version = max(self.root.ir_version or 0, FOUR_BIT_IR_VERSION)
        return values.astype(ml_dtypes.int4)

    def sweep(self) -> None:
        """Removes nodes of a body that nobody reads any more."""
        ends = {id(tensor) for part in parts(self.root) for tensor in part.graph.outputs}
        while idle := [node for node in self.graph.nodes if not _is_read(node, ends)]:
            for node in idle:
                disconnect(node)
                self.graph.nodes.remove(node)


def _is_read(node: Node, ends: set[int]) -> bool:
    return any(tensor.outputs or id(tensor) in ends for tensor in node.outputs)
