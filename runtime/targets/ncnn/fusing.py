"""Small layers that ncnn has one layer for: biases, gated activations, GELU, layer normalization.

Each rule (patterns.py) looks at a layer and at what it reads, and says which layers one new layer replaces. That is
done only if nothing else reads what is in between. At last activations become part of the convolutions and inner
products before them.
"""

from collections.abc import Sequence
from dataclasses import replace

from onnx_lathe.runtime.targets.ncnn.dialect import Layer, Value
from onnx_lathe.runtime.targets.ncnn.links import Links
from onnx_lathe.runtime.targets.ncnn.patterns import RULES

FUSING = (
    "Convolution",
    "ConvolutionDepthWise",
    "Convolution1D",
    "ConvolutionDepthWise1D",
    "Convolution3D",
    "ConvolutionDepthWise3D",
    "Deconvolution",
    "DeconvolutionDepthWise",
    "Deconvolution1D",
    "DeconvolutionDepthWise1D",
    "Deconvolution3D",
    "DeconvolutionDepthWise3D",
    "InnerProduct",
)
"""Layers with activation_type (9) and activation_params (10)."""


def fuse(layers: Sequence[Layer], outputs: set[str]) -> list[Layer]:
    """Fewer layers that compute the same. `outputs`: blobs that are read from outside. Layers that nobody reads any
    more stay in the list.
    """
    links = Links(layers, outputs)
    found = True
    while found:
        done = [_apply(links, layer) for layer in links.layers()]  # one makes room for the next
        found = any(done)
    return _with_activations(links)


def _apply(links: Links, layer: Layer) -> bool:
    """Replaces what ends in this layer by the first rule that fits."""
    if layer not in links:
        return False
    for rule in RULES:
        fused = rule(links, layer)
        if fused is not None and links.is_closed(fused.removed, layer):
            nodes = [name for one in (*fused.removed, layer) for name in one.nodes]
            for one in fused.layers:
                one.nodes = tuple(dict.fromkeys(nodes))
            links.put(fused.layers, layer, fused.removed)
            return True
    return False


def _with_activations(links: Links) -> list[Layer]:
    for layer in links.layers():
        activation = _activation(layer)
        if activation is None or len(layer.bottoms) != 1:
            continue
        before = links.writer(layer.bottoms[0])
        if (
            before is not None
            and before.type in FUSING
            and 9 not in before.params
            and links.is_closed([before], layer)
        ):
            fused = replace(before, tops=list(layer.tops), params=before.params | activation)
            fused.nodes = (*before.nodes, *layer.nodes)
            links.put([fused], layer, [before])
    return links.layers()


def _activation(layer: Layer) -> dict[int, Value] | None:
    """Parameters that make the layer before compute this one. Numbers as src/layer/fused_activation.h has them."""
    params = {key: value for key, value in layer.params.items() if isinstance(value, int | float)}
    if layer.type == "ReLU":
        slope = params.get(0, 0.0)
        return {9: 2, 10: [slope]} if slope else {9: 1}
    if layer.type == "Clip":
        return {9: 3, 10: [params[0], params[1]]}
    if layer.type in ("Sigmoid", "Mish"):
        return {9: 4 if layer.type == "Sigmoid" else 5}
    if layer.type == "HardSwish":
        return {9: 6, 10: [params[0], params[1]]}
    return None
