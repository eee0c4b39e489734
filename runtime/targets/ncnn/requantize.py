"""INT8 from one layer straight to the next: where every reader of a layer's result is an INT8 convolution that
quantizes it by the same scale, the layer writes these integers itself.

Anything else that reads INT8 computes nonsense: an addition, a ReLU of its own, a pooling.
Source: ncnn, tools/quantize/ncnn2int8.cpp, fuse_requantize.
"""

from collections.abc import Collection, Sequence

from onnx_lathe.runtime.targets.ncnn.dialect import Layer, Weight

INT8_TERM = 8
REQUANTIZED = 100
"""What is added to int8_scale_term."""
QUANTIZED = ("Convolution", "ConvolutionDepthWise", "InnerProduct")
"""Layers that have int8_scale_term; with others the number is another parameter's."""
CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise")


def requantize(layers: Sequence[Layer], outputs: Collection[str]) -> int:
    """Lets layers write INT8 where that is the same. `outputs`: blobs that the model gives back. Returns how many."""
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        for name in layer.bottoms:
            readers.setdefault(name, []).append(layer)
    done = 0
    for layer in layers:
        (top,) = layer.tops if len(layer.tops) == 1 else ("",)
        behind = readers.get(top, [])
        if (
            not _is_convolution(layer)
            or top in outputs
            or not behind
            or not all(map(_is_convolution, behind))
        ):
            continue
        scales = {_bottom_scale(reader) for reader in behind}
        if len(scales) == 1:
            layer.params[INT8_TERM] = _term(layer) + REQUANTIZED
            layer.weights.append(_scale_weight(behind[0]))
            done += 1
    return done


def count_requantized(layers: Sequence[Layer]) -> int:
    return sum(is_int8(layer) and _term(layer) > REQUANTIZED for layer in layers)


def is_int8(layer: Layer) -> bool:
    """Whether the layer computes in INT8."""
    return layer.type in QUANTIZED and _term(layer) > 0


def _term(layer: Layer) -> int:
    value = layer.params.get(INT8_TERM, 0)
    return value if isinstance(value, int) else 0


def _is_convolution(layer: Layer) -> bool:
    return layer.type in CONVOLUTIONS and _term(layer) > 0


def _scale_weight(layer: Layer) -> Weight:
    """The scale of what the layer reads: behind the weight, the bias if there is one, and the weight's scales."""
    return layer.weights[2 + int(bool(layer.params.get(5)))]


def _bottom_scale(layer: Layer) -> float:
    return float(_scale_weight(layer).stored.values[0])
