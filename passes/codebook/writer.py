"""The codebook form of a weight: what writes it, and what it costs in the file.

    W f32[shape]   becomes   Gather(codebook f32[K], Cast(indices UINT4 or UINT8 [shape] -> INT32)) -> W

A weight whose output channels are in groups with a codebook each is the Concat of as many Gathers. Several
weights may read one codebook.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx

from onnx_lathe.passes.graph import Constant, Graph, Node, Variable
from onnx_lathe.passes.graph.model import FOUR_BIT_IR_VERSION, FOUR_BIT_OPSET, taken_names, unused_name

FOUR_BIT_VALUES = 16
_DECODER_BYTES = 220
_DECODER_NAMES = 9
"""What a codebook adds to the file besides its numbers: two nodes and an initializer, in which the weight's
name appears nine times.
"""
_GROUP_BYTES = 60
_CONCAT_BYTES = 90
"""What numbers in the names of a group, its place among the inputs of Concat, and Concat itself add."""


@dataclass(frozen=True)
class Part:
    """The values of a weight, or of one group of its output channels, as a codebook [K] and uint8 indices."""

    codebook: Constant
    indices: np.ndarray


def index_bits(graph: Graph, values: int) -> int:
    """Bits per index in the file for so many shared values."""
    return 4 if values <= FOUR_BIT_VALUES and graph.opset >= FOUR_BIT_OPSET else 8


def stored_bytes(graph: Graph, name: str, parts: Sequence[Part]) -> int:
    """What the codebook form of the weight `name` takes in the file: indices and nodes, but no codebooks."""
    indices = sum(-(-part.indices.size * index_bits(graph, part.codebook.shape[0]) // 8) for part in parts)
    nodes = len(parts) * (_DECODER_BYTES + _DECODER_NAMES * len(name))
    if len(parts) > 1:
        nodes += _CONCAT_BYTES + 3 * len(name) + len(parts) * (_GROUP_BYTES + len(name))
    return indices + nodes


class CodebookWriter:
    """Writes the form into one graph. Names are looked up once: asking the graph for each would take longer
    than all else.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.taken = taken_names(graph)

    def codebook(self, name: str, centroids: np.ndarray) -> Constant:
        """An initializer for the parts that decode with it."""
        return Constant(self._name(name), centroids)

    def replace(self, tensor: Constant, parts: Sequence[Part], axis: int) -> None:
        """Makes the initializer a variable of the same name that is decoded from the parts, which meet
        along `axis`.

        Its readers stay connected.
        """
        shape, name = tuple(tensor.shape), tensor.name
        tensor.to_variable(np.float32, shape)
        tensor.type = "tensor_type"  # onnx-graphsurgeon 0.6 forgets it, and cannot export the tensor without
        if len(parts) == 1:
            self._gather(name, "", parts[0], tensor)
            return
        decoded = []
        for number, part in enumerate(parts):
            decoded.append(Variable(self._name(f"{name}_part_{number}"), np.float32, part.indices.shape))
            self._gather(name, f"_{number}", part, decoded[-1])
        self.graph.nodes.append(
            Node("Concat", self._name(f"{name}_concat"), {"axis": axis}, decoded, [tensor])
        )

    def _gather(self, name: str, number: str, part: Part, result: Variable) -> None:
        narrow = index_bits(self.graph, part.codebook.shape[0]) == 4
        if narrow:
            self.graph.ir_version = max(self.graph.ir_version or 0, FOUR_BIT_IR_VERSION)
        values = part.indices.view(ml_dtypes.uint4) if narrow else part.indices
        stored, wide = (
            Constant(self._name(f"{name}_indices{number}"), values),
            Variable(self._name(f"{name}_indices{number}_int32")),
        )
        cast = Node(
            "Cast", self._name(f"{name}_cast{number}"), {"to": onnx.TensorProto.INT32}, [stored], [wide]
        )
        gather = Node(
            "Gather", self._name(f"{name}_gather{number}"), {"axis": 0}, [part.codebook, wide], [result]
        )
        self.graph.nodes.extend([cast, gather])

    def _name(self, wanted: str) -> str:
        name = unused_name(wanted, self.taken)
        self.taken.add(name)
        return name
