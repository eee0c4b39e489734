"""A node of the model as builders see it: with what LiteRT has in one operator, and ONNX in several nodes."""

from dataclasses import dataclass

from onnx_lathe.runtime.targets.core import node as core

Unsupported = core.Unsupported


@dataclass(frozen=True)
class Node(core.Node):
    """`inputs` and `outputs` are the tensors outside of what was folded into the node (grouping.py): of a node in
    integers those that are stored, of a spatial one in a sandwich those with channels last.

    activation: as the schema calls it, of a Relu or Clip behind the node.
    channels_last: whether the node stood between two Transposes, so that its first input and its output have their
    channels last. Weights have ONNX's layout all the same.
    on_integers: whether it computes on integers: all that it reads and writes of floats is quantized.
    covers: names of all nodes that it stands for.
    """

    activation: str = "NONE"
    channels_last: bool = False
    on_integers: bool = False
    covers: tuple[str, ...] = ()
