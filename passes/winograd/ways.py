"""The ways in which a processor's runtime can compute a layer: an algorithm, and an arithmetic; what each costs."""

from typing import NamedTuple

import numpy as np

from onnx_lathe.kernels import DIRECT, NAMES, PROFILES, Profile
from onnx_lathe.passes.numerics import winograd as numerics
from onnx_lathe.passes.numerics.tile_arithmetic import matrices
from onnx_lathe.passes.winograd.layers import Layer
from onnx_lathe.tiles import NCNN, TAPS


class Way(NamedTuple):
    """m of F(m, 3), in the arithmetic of a profile; `told`: which is not the one that the layer has by itself."""

    m: int
    profile: Profile
    told: bool = False

    @property
    def name(self) -> str:
        return f"{NAMES[self.m]} in {self.profile.arithmetic}" if self.told else NAMES[self.m]

    @property
    def precision(self) -> str | None:
        """What `lathe.conv_precision` says."""
        return self.profile.arithmetic if self.told else None

    def weight_bytes(self, layer: Layer) -> float:
        """Of the transformed weights; integers are transformed to 16 bits."""
        kind = "int16" if layer.int8 or self.profile.arithmetic is None else self.profile.arithmetic
        stored = np.dtype(kind).itemsize * layer.weight.size
        return stored * numerics.memory_factor(self.m, TAPS) if self.m > DIRECT else 0.0

    def cost(self, layer: Layer) -> float:
        """In nanoseconds where the profile's times were measured: products, additions of the transforms and weights
        read once. Else arithmetic alone, in operations on whole registers.
        """
        products, additions = layer.products(self.m), _additions(layer, self.m)
        speeds = self.profile.speeds
        if speeds is None:
            return (products + additions) / self.profile.lanes
        factor = numerics.memory_factor(self.m, TAPS) if self.m > DIRECT else 1.0
        weights = layer.weight.nbytes * factor
        return products / speeds.products + additions / speeds.additions + weights / speeds.weight_bytes


def ways_of(layer: Layer, profile: Profile, told: bool = False) -> list[Way]:
    """What the runtime takes by itself first, then what it can be made to take; if `told`, also in float32, where that
    errs alike by any algorithm: storage in half is what is left of the error. The dearer ones are left out.
    """
    found = [Way(m, profile) for m in layer.able(profile)]
    if told and profile.exact is not None:
        exact = PROFILES[profile.exact]
        own, *others = (Way(m, exact, told=True) for m in layer.able(exact))
        found += [own, *(way for way in others if way.cost(layer) < own.cost(layer))]
    return found


def _additions(layer: Layer, m: int) -> int:
    """Of the transforms of data and results."""
    if m == DIRECT:
        return 0
    outputs, inputs = layer.weight.shape[:2]
    output, _, data = matrices(NCNN[m])
    size = m + TAPS - 1
    of_data = 2 * size * int(np.count_nonzero(data))
    of_result = (m + size) * int(np.count_nonzero(output))
    return layer.tiles(m) * (inputs * of_data + outputs * of_result)
