"""What fusing.py looks for. A rule gets the last layer of a pattern, and goes up from there.

    x * sigmoid(x)                                  Swish
    clip(x + 3, 0, 6) / 6                           HardSigmoid
    x * hardsigmoid(x),  x * clip(x + 3, 0, 6) / 6  HardSwish
    x * (1 + erf(x / sqrt 2)) / 2                   GELU
    x * (1 + tanh(0.798 (x + 0.0447 x^3))) / 2      GELU's estimate by tanh
    (x - mean) / sqrt(var + eps) * weight + bias    LayerNorm
    x @ weight, + bias                              InnerProduct or Gemm with a bias

Numbers are those that exporters write, so a constant may differ from ours by what float32 rounds.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from onnx_lathe.runtime.targets.ncnn.arithmetic import (
    ADD,
    DIV,
    MUL,
    R_MEAN,
    RECIPROCAL,
    SQRT,
    SQUARE,
    SUB,
)
from onnx_lathe.runtime.targets.ncnn.dialect import Layer, Stored, Value, Weight
from onnx_lathe.runtime.targets.ncnn.linear import BIAS_PER_COLUMN, NO_BIAS
from onnx_lathe.runtime.targets.ncnn.links import Links

CUBE_WEIGHT, TANH_SCALE = 0.044715, math.sqrt(2 / math.pi)


@dataclass(frozen=True)
class Fused:
    """Layers for the one that was asked about and for those that are `removed`."""

    layers: list[Layer]
    removed: list[Layer]


Rule = Callable[[Links, Layer], Fused | None]


def swish(links: Links, last: Layer) -> Fused | None:
    """x * sigmoid(x), and x * sigmoid(1 * x) as PaddlePaddle writes it."""
    for value, gate in _orders(last, MUL):
        made = links.made_by(gate, "Sigmoid")
        if made is None:
            continue
        scaled = links.made_by(made.bottoms[0], "BinaryOp")
        if made.bottoms == [value]:
            return _one("Swish", last, value, {}, [made])
        if scaled is not None and scaled.bottoms == [value] and _factor(scaled) == 1.0:
            return _one("Swish", last, value, {}, [scaled, made])
    return None


def hard_sigmoid(links: Links, last: Layer) -> Fused | None:
    """clip(x + a, 0, c) / c."""
    factor = _factor(last)
    clip = links.made_by(last.bottoms[0], "Clip") if factor is not None else None
    plus = links.made_by(clip.bottoms[0], "BinaryOp") if clip is not None else None
    added = _scalar(plus, ADD)
    if factor is None or clip is None or plus is None or added is None:
        return None
    if _number(clip, 0) != 0.0 or not _is_near(_number(clip, 1) * factor, 1.0):
        return None
    return _one("HardSigmoid", last, plus.bottoms[0], {0: factor, 1: added * factor}, [plus, clip])


def hard_swish(links: Links, last: Layer) -> Fused | None:
    """x * hardsigmoid(x)."""
    for value, gate in _orders(last, MUL):
        made = links.made_by(gate, "HardSigmoid")
        if made is not None and made.bottoms == [value]:
            return _one("HardSwish", last, value, dict(made.params), [made])
    return None


def hard_swish_divided_last(links: Links, last: Layer) -> Fused | None:
    """(x * clip(x + a, 0, c)) / c."""
    product = links.made_by(last.bottoms[0], "BinaryOp") if _factor(last) is not None else None
    if product is None:
        return None
    for value, gate in _orders(product, MUL):
        clipped = replace(last, bottoms=[gate])
        found = hard_sigmoid(links, clipped)
        if found is not None and found.layers[0].bottoms == [value]:
            return _one("HardSwish", last, value, dict(found.layers[0].params), [*found.removed, product])
    return None


def gelu(links: Links, last: Layer) -> Fused | None:
    """The product of x, 1 + erf(x / sqrt 2) and a half, in any order."""
    for value, gate, between in _halved(links, last):
        plus = links.made_by(gate, "BinaryOp")
        if plus is None or _scalar(plus, ADD) != 1.0:
            continue
        bend = links.writer(plus.bottoms[0])
        if bend is None or bend.type not in ("Erf", "TanH"):
            continue
        inner = (_erf_argument if bend.type == "Erf" else _tanh_argument)(links, bend.bottoms[0], value)
        if inner is not None:
            params: dict[int, Value] = {0: int(bend.type == "TanH")}
            return _one("GELU", last, value, params, [*inner, bend, plus, *between])
    return None


def _halved(links: Links, last: Layer) -> Iterator[tuple[str, str, list[Layer]]]:
    """(x, gate, layers between) of x * gate / 2."""
    if _is_near(_factor(last), 0.5):
        product = links.made_by(last.bottoms[0], "BinaryOp")
        if product is not None:
            yield from ((value, gate, [product]) for value, gate in _orders(product, MUL))
    for first, second in _orders(last, MUL):
        half = links.made_by(first, "BinaryOp")
        if half is not None and _is_near(_factor(half), 0.5):
            yield half.bottoms[0], second, [half]
            yield second, half.bottoms[0], [half]


def _erf_argument(links: Links, blob: str, value: str) -> list[Layer] | None:
    """The layer of x / sqrt 2."""
    scaled = links.made_by(blob, "BinaryOp")
    if scaled is None or scaled.bottoms != [value] or not _is_near(_factor(scaled), math.sqrt(0.5)):
        return None
    return [scaled]


def _tanh_argument(links: Links, blob: str, value: str) -> list[Layer] | None:
    """The layers of sqrt(2 / pi) * (x + 0.044715 x^3)."""
    scaled = links.made_by(blob, "BinaryOp")
    if scaled is None or not _is_near(_factor(scaled), TANH_SCALE):
        return None
    total = links.made_by(scaled.bottoms[0], "BinaryOp")
    for first, second in _orders(total, ADD):
        weighted = links.made_by(second, "BinaryOp")
        if first != value or weighted is None or not _is_near(_factor(weighted), CUBE_WEIGHT):
            continue
        cube = _cube(links, weighted.bottoms[0], value)
        if cube is not None and total is not None:
            return [*cube, weighted, total, scaled]
    return None


def _cube(links: Links, blob: str, value: str) -> list[Layer] | None:
    product = links.made_by(blob, "BinaryOp")
    for first, second in _orders(product, MUL):
        square = links.writer(second)
        if first == value and product is not None and square is not None and _is_square(square, value):
            return [square, product]
    return None


def _is_square(layer: Layer, value: str) -> bool:
    if layer.type == "UnaryOp":
        return layer.params.get(0) == SQUARE and layer.bottoms == [value]
    return (value, value) in _orders(layer, MUL)


def layer_norm(links: Links, last: Layer) -> Fused | None:
    """(x - mean) / sqrt(var + eps) * weight + bias, over the innermost dimension."""
    for scaled, bias in _orders(last, ADD):
        product = links.writer(scaled)
        for normal, weight in _orders(product, MUL):
            gamma, beta = links.constant(weight), links.constant(bias)
            if product is None or gamma is None or beta is None:
                continue
            if gamma.shape != beta.shape or gamma.shape[-1] != gamma.size:
                continue
            found = _normalized(links, normal, gamma.ndim - 1)
            if found is not None:
                value, epsilon, removed = found
                weights = [Weight(Stored(each.reshape(-1))) for each in (gamma, beta)]
                params: dict[int, Value] = {0: gamma.size, 1: epsilon, 2: 1}
                return _one("LayerNorm", last, value, params, [*removed, product], weights)
    return None


def _normalized(links: Links, blob: str, inner: int) -> tuple[str, float, list[Layer]] | None:
    """(x, eps, layers) of (x - mean) / sqrt(var + eps), both taken over the dimension `inner`."""
    quotient = links.writer(blob)
    for centered, below in _orders(quotient, DIV) or _orders(quotient, MUL):
        removed = [quotient] if quotient is not None else []
        if quotient is not None and quotient.params[0] == MUL:
            inverse = links.writer(below)
            if not _is_unary(inverse, RECIPROCAL) or inverse is None:
                continue
            removed.append(inverse)
            below = inverse.bottoms[0]
        root, minus = links.writer(below), links.writer(centered)
        plus = links.made_by(root.bottoms[0], "BinaryOp") if root is not None and root.bottoms else None
        epsilon = _scalar(plus, ADD)
        if root is None or plus is None or epsilon is None or not _is_unary(root, SQRT):
            continue
        variance = _mean(links, plus.bottoms[0], inner)
        square = links.writer(variance.bottoms[0]) if variance is not None else None
        if minus is None or variance is None or square is None or not _is_square(square, centered):
            continue
        for value, mean in _orders(minus, SUB):
            middle = _mean(links, mean, inner)
            if middle is not None and middle.bottoms == [value]:
                return value, epsilon, [*removed, root, plus, variance, square, minus, middle]
    return None


def _mean(links: Links, blob: str, inner: int) -> Layer | None:
    """The layer of a mean over this dimension, which is kept with one value."""
    layer = links.made_by(blob, "Reduction")
    if layer is None or layer.params.get(0) != R_MEAN or layer.params.get(1) or not layer.params.get(4):
        return None
    places = layer.params.get(3)
    return layer if isinstance(places, list) and places in ([inner], [-1]) else None


def bias(links: Links, last: Layer) -> Fused | None:
    """A constant for each output of a matrix, added to its product or to the product reshaped."""
    for value, added in _orders(last, ADD):
        values, product = links.constant(added), links.writer(value)
        if values is None or product is None or values.shape[-1] != values.size:
            continue
        shape = product if product.type == "Reshape" and product.params.get(0) == values.size else None
        matrix = links.writer(shape.bottoms[0]) if shape is not None else product
        found = None if matrix is None else _with_bias(matrix, values.reshape(-1))
        if matrix is None or found is None:
            continue
        if shape is None:
            return Fused([replace(found, tops=list(last.tops))], [matrix])
        return Fused([found, replace(shape, tops=list(last.tops))], [matrix, shape])
    return None


def _with_bias(layer: Layer, values: np.ndarray) -> Layer | None:
    """A copy of a layer that has a matrix of constants and no bias."""
    weight = Weight(Stored(values), tagged=layer.type == "Gemm")
    weights = [*layer.weights[:1], weight, *layer.weights[1:]]
    if layer.type == "InnerProduct" and not layer.params[1] and layer.params[0] == values.size:
        return replace(layer, params=layer.params | {1: 1}, weights=weights)
    plain = all(layer.params.get(key, 1.0) == 1.0 for key in (0, 1, 5, 6)) and 5 in layer.params
    if layer.type == "Gemm" and plain and layer.params.get(10) == NO_BIAS and layer.params[8] == values.size:
        return replace(layer, params=layer.params | {10: BIAS_PER_COLUMN}, weights=weights)
    return None


RULES: tuple[Rule, ...] = (
    swish,
    hard_swish,
    hard_swish_divided_last,
    hard_sigmoid,
    gelu,
    layer_norm,
    bias,
)


def _one(
    type: str,
    last: Layer,
    bottom: str,
    params: dict[int, Value],
    removed: list[Layer],
    weights: list[Weight] | None = None,
) -> Fused:
    """One layer of one operand in the place of `last`."""
    return Fused([Layer(type, last.name, [bottom], list(last.tops), params, weights or [])], removed)


def _orders(layer: Layer | None, operation: int) -> list[tuple[str, str]]:
    """The operands of a BinaryOp of two blobs, in both orders where it commutes; nothing for another layer."""
    if (
        layer is None
        or layer.type != "BinaryOp"
        or len(layer.bottoms) != 2
        or layer.params.get(0) != operation
    ):
        return []
    first, second = layer.bottoms
    return [(first, second), (second, first)] if operation in (ADD, MUL) else [(first, second)]


def _scalar(layer: Layer | None, operation: int) -> float | None:
    """The number of a BinaryOp with one blob and a number."""
    if layer is None or layer.type != "BinaryOp" or not layer.params.get(1) or layer.params[0] != operation:
        return None
    return _number(layer, 2)


def _factor(layer: Layer) -> float | None:
    """What a layer multiplies each value with."""
    divisor = _scalar(layer, DIV)
    return 1 / divisor if divisor else _scalar(layer, MUL)


def _is_unary(layer: Layer | None, operation: int) -> bool:
    return layer is not None and layer.type == "UnaryOp" and layer.params.get(0) == operation


def _number(layer: Layer, key: int) -> float:
    value = layer.params.get(key, 0.0)
    return float(value) if isinstance(value, int | float) else math.nan


def _is_near(value: float | None, wanted: float) -> bool:
    """Whether two numbers are the same but for rounding: exporters write some of them with seven digits."""
    return value is not None and math.isclose(value, wanted, rel_tol=1e-6)
