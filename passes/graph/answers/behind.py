"""What follows a layer's answer: the addition of what another branch gives, and an activation that stops part of it.

x -> Conv -> Add(s) -> Relu -> y        the layer makes up for what s lost too, and only behind the Relu errors count
"""

from collections.abc import Collection
from dataclasses import replace

from onnx_lathe.passes.graph import Graph, Node, Tensor
from onnx_lathe.passes.graph.answers.aligned import Layer
from onnx_lathe.passes.graph.keeping import is_optional_input
from onnx_lathe.passes.graph.layers import is_constant
from onnx_lathe.passes.graph.quantization.placement import floor_range
from onnx_lathe.passes.graph.rewire import captured_names, is_output
from onnx_lathe.passes.graph.shapes import TensorType, infer_types
from onnx_lathe.passes.numerics.second_order.kept_rows import Activation


def with_what_follows(graph: Graph, layers: Collection[Layer], known: Collection[str]) -> list[Layer]:
    """The layers, each held to what is behind it. `known`: tensors of the network that gives the answers."""
    captured, types = captured_names(graph), infer_types(graph)
    order = {id(node): place for place, node in enumerate(graph.nodes)}

    def alone(tensor: Tensor) -> bool:
        return not is_output(graph, tensor) and tensor.name not in captured

    def sum_of(layer: Layer) -> Node | None:
        """The addition that alone reads the layer, of what is there before the layer is."""
        answer = layer.adder.outputs[0]
        if len(answer.outputs) != 1 or not alone(answer):
            return None
        node = answer.outputs[0]
        name = node.outputs[0].name
        if node.op != "Add" or node.domain or name not in known:
            return None
        if fits(types.get(answer.name), types.get(name)) is False:
            return None
        other = next((one for one in node.inputs if one is not answer), None)
        if other is None or is_constant(other) or not other.name or is_optional_input(other):
            return None  # data may leave an optional input out
        return node if all(order[id(one)] < order[id(layer.node)] for one in other.inputs) else None

    def activation_of(tensor: Tensor) -> Activation | None:
        readers = list(tensor.outputs)
        if (
            not readers
            or not alone(tensor)
            or any(one.op not in ("Relu", "Clip") or one.domain for one in readers)
        ):
            return None
        ranges = {floor_range(one) for one in readers if one.inputs[0] is tensor}
        if len(ranges) != 1:
            return None
        low, high = ranges.pop()
        return None if low is None or high is None else Activation(low, high)

    found = []
    for layer in layers:
        total = sum_of(layer)
        own = layer.adder.outputs[0]
        tensor = own if total is None else total.outputs[0]
        sure = total is None or fits(types.get(own.name), types.get(tensor.name))
        doubtful = not sure and own.name in known
        found.append(replace(layer, total=total, doubtful=doubtful, activation=activation_of(tensor)))
    return found


def fits(answer: TensorType | None, total: TensorType | None) -> bool | None:
    """Whether the sum that an answer is part of has the answer's shape; None where only running it tells."""
    if answer is None or total is None or answer.shape is None or total.shape is None:
        return None
    if len(answer.shape) != len(total.shape):
        return False
    known = [_same(*sizes) for sizes in zip(answer.shape, total.shape, strict=True)]
    return False if False in known else None if None in known else True


def _same(part: int | str | None, whole: int | str | None) -> bool | None:
    """Of one dimension; an addition changes those of 1 alone."""
    if isinstance(part, int):
        return part == whole or (part != 1 and not isinstance(whole, int))
    return True if part is not None and part == whole else None
