"""Gemm and MatMul behind a flattened image: the rows of the weight move, not the image."""

from collections.abc import Mapping

from onnx_lathe.passes.graph import Constant, Tensor
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.lowering.litert_layout.rules import Rule, Site, rule
from onnx_lathe.passes.lowering.litert_layout.storage import Frame, Storage


@rule("Gemm", "MatMul")
class Layer(Rule):
    """Its weight is an initializer, or dequantized from one."""

    def takes_any(self, site: Site, tensor: Tensor, frame: Frame) -> bool:
        source, weight = site.node.inputs[0], site.node.inputs[1]
        if tensor is not source or tensor is weight or not frame[1].flat or site.node.attrs.get("transA", 0):
            return False
        if len(site.node.inputs) > 2 and site.node.inputs[2] is tensor:
            return False
        return _is_stored(weight) and site.rank(weight) == 2 and frame[0].is_plain

    def rewrite(self, site: Site, seen: Mapping[int, Storage]) -> None:
        storage = seen[id(site.node.inputs[0])]
        axis = 1 if site.node.attrs.get("transB", 0) else 0
        site.node.inputs[1] = _reordered(site, site.node.inputs[1], axis, storage)


def _is_stored(weight: Tensor) -> bool:
    if isinstance(weight, Constant):
        return True
    node = weight.inputs[0] if weight.inputs else None
    if node is None or node.op != "DequantizeLinear" or node.domain or node.attrs.get("block_size", 0):
        return False
    return all(isinstance(one, Constant) for one in node.inputs)


def _reordered(site: Site, weight: Tensor, axis: int, storage: Storage) -> Tensor:
    """The weight with the places along the axis in this order, under its own name where nobody else reads it."""
    work = site.work
    if isinstance(weight, Constant):
        if len(weight.outputs) == 1:
            weight.values = storage.flattened(read(weight), axis)
            return weight
        return work.constant(f"{weight.name}_nhwc", storage.flattened(read(weight), axis))
    node = weight.inputs[0]
    inputs = [_reordered_codes(site, node.inputs[0], axis, storage)]
    for parameter in node.inputs[1:]:
        along = parameter.values.size > 1 and node.attrs.get("axis", 1) % 2 == axis
        inputs.append(_reordered_codes(site, parameter, 0, storage) if along else parameter)
    made = work.variable(f"{weight.name}_nhwc", weight, weight.shape)
    made.dtype = inputs[1].dtype
    work.node("DequantizeLinear", f"{node.name}_nhwc", inputs, [made], **node.attrs)
    return made


def _reordered_codes(site: Site, codes: Constant, axis: int, storage: Storage) -> Constant:
    return site.work.constant(f"{codes.name}_nhwc", storage.flattened(read(codes), axis))
