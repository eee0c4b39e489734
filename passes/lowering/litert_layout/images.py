"""Operators on images, which LiteRT has with channels last and ONNX with channels first."""

from onnx_lathe.passes.graph import Node
from onnx_lathe.passes.graph.constants import value
from onnx_lathe.passes.lowering.litert_layout.rules import Rule, Site, rule

ACTIVATIONS = {(0.0, 6.0), (-1.0, 1.0)}
"""Bounds of the Clips that LiteRT has as part of a convolution, beside the ReLU."""


FUSING = frozenset(("AveragePool", "Conv", "ConvTranspose", "MaxPool"))
"""Operators that LiteRT has with an activation."""


@rule(*FUSING, "DepthToSpace", "GroupNormalization", "InstanceNormalization", "LRN", "SpaceToDepth")
class Image(Rule):
    is_image = True

    def seeds(self, site: Site) -> bool:
        node = site.node
        outputs = [one for one in node.outputs if not one.is_empty()]
        return len(outputs) == 1 and all(site.rank(one) in (3, 4) for one in (node.inputs[0], outputs[0]))


def fused_activation(site: Site) -> Node | None:
    """The activation behind the node that LiteRT computes as part of it, if nobody else reads what is between."""
    node, work = site.node, site.work
    between = node.outputs[0]
    if len(between.outputs) != 1 or between.name in work.captured:
        return None
    if any(between is output for output in work.graph.outputs):
        return None
    reader = between.outputs[0]
    if node.op not in FUSING or reader.domain:
        return None
    if reader.op == "Relu" or (reader.op == "Clip" and _bounds(reader) in ACTIVATIONS):
        return reader
    return None


def _bounds(clip: Node) -> tuple[float, float] | None:
    found = []
    for index, name in ((1, "min"), (2, "max")):
        known = clip.attrs.get(name)
        if known is None and len(clip.inputs) > index:
            array = value(clip.inputs[index])
            known = None if array is None or array.size != 1 else array.reshape(())
        if known is None:
            return None
        found.append(float(known))
    return found[0], found[1]
