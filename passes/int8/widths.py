"""How many bits the activations and the weights of each layer have: options of int8."""

from collections.abc import Mapping, Sequence

from onnx_lathe.errors import UsageError
from onnx_lathe.passes.core.report import Skip
from onnx_lathe.passes.graph.layers import Weight
from onnx_lathe.passes.graph.patterns import by_weight
from onnx_lathe.passes.numerics.quantization.affine import WIDE_BITS

WIDTHS = (8, WIDE_BITS)
WEIGHT_WIDTHS = range(2, 9)


def refuse_widths(activation_bits: int, layer_bits: Mapping[str, int], activations: bool) -> None:
    """Raises UsageError for other numbers of bits, and where activations are not quantized."""
    for option, bits in [
        ("activation_bits", activation_bits),
        *(("layer_bits", one) for one in layer_bits.values()),
    ]:
        if bits not in WIDTHS:
            raise UsageError(f"int8({option}=...) must be 8 or 16, not {bits}")
    if not activations and (activation_bits != WIDTHS[0] or layer_bits):
        raise UsageError(
            "int8(activations=false) quantizes no activations, so activation_bits= and layer_bits= say nothing; leave them out"
        )


def wide_weights(
    chosen: Sequence[Weight], skips: Sequence[Skip], activation_bits: int, layer_bits: Mapping[str, int]
) -> frozenset[str]:
    """Names of the weights whose layers read 16 bits. Raises UsageError for a pattern that matches nothing."""
    named = by_weight(layer_bits, chosen, [skip.node for skip in skips], "int8(layer_bits=...)")
    return frozenset(weight.name for weight in chosen if named.get(weight.name, activation_bits) == WIDE_BITS)


def refuse_weight_widths(weight_bits: int, layer_weight_bits: Mapping[str, int]) -> None:
    """Raises UsageError for other numbers of bits."""
    for option, bits in [
        ("weight_bits", weight_bits),
        *(("layer_weight_bits", one) for one in layer_weight_bits.values()),
    ]:
        if bits not in WEIGHT_WIDTHS:
            raise UsageError(f"int8({option}=...) must be 2 to 8, not {bits}")


def largest_levels(
    chosen: Sequence[Weight], skips: Sequence[Skip], weight_bits: int, layer_weight_bits: Mapping[str, int]
) -> dict[str, int]:
    """The largest level of each weight of fewer than 8 bits, by name. Raises UsageError for a pattern that matches
    nothing.
    """
    named = by_weight(layer_weight_bits, chosen, [skip.node for skip in skips], "int8(layer_weight_bits=...)")
    bits = {weight.name: named.get(weight.name, weight_bits) for weight in chosen}
    return {name: 2 ** (one - 1) - 1 for name, one in bits.items() if one < WEIGHT_WIDTHS[-1]}
