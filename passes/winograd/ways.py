"""The ways in which a processor's runtime can compute a layer: an algorithm, and the type of its sums; what each costs."""

from typing import NamedTuple

import numpy as np

from onnx_lathe.kernels import DIRECT, NAMES, Profile
from onnx_lathe.passes.numerics import winograd as numerics
from onnx_lathe.passes.numerics.tile_arithmetic import matrices
from onnx_lathe.passes.winograd.layers import Layer
from onnx_lathe.tiles import NCNN, TAPS


class Way(NamedTuple):
    """m of F(m, 3), in the arithmetic of a profile; `sums`: the wider type that the layer is told to sum in."""

    m: int
    profile: Profile
    sums: str | None = None

    @property
    def name(self) -> str:
        return NAMES[self.m] if self.sums is None else f"{NAMES[self.m]} with sums in {self.sums}"

    @property
    def lanes(self) -> int:
        """Numbers of the sums' type in a register."""
        if self.sums is None:
            return self.profile.lanes
        return self.profile.lanes * np.dtype(self.profile.arithmetic).itemsize // np.dtype(self.sums).itemsize

    def weight_bytes(self, layer: Layer) -> float:
        """Of the transformed weights; integers are transformed to 16 bits."""
        kind = "int16" if layer.int8 else self.profile.arithmetic
        stored = np.dtype(kind).itemsize * layer.weight.size
        return stored * numerics.memory_factor(self.m, TAPS) if self.m > DIRECT else 0.0

    def cost(self, layer: Layer) -> float:
        """In nanoseconds where the profile's times were measured: products, additions of the transforms and weights
        read once. Else arithmetic alone, in operations on whole registers.
        """
        products, additions = layer.products(self.m), _additions(layer, self.m)
        speeds = self.profile.speeds
        if speeds is None:
            return (products + additions) / self.lanes
        factor = numerics.memory_factor(self.m, TAPS) if self.m > DIRECT else 1.0
        weights = layer.weight.nbytes * factor
        return products / speeds.products + additions / speeds.additions + weights / speeds.weight_bytes


def ways_of(layer: Layer, profile: Profile, told: bool = False) -> list[Way]:
    """What the runtime takes by itself first, then what it can be made to take; if `told`, also with wider sums."""
    found = [Way(m, profile) for m in layer.able(profile)]
    return [*found, Way(DIRECT, profile, profile.sums)] if told and profile.sums is not None else found


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
