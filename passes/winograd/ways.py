"""The ways in which a processor's runtime can compute a layer: an algorithm, and an arithmetic; what each costs."""

from typing import NamedTuple

import numpy as np

from onnx_lathe.kernels import DIRECT, NAMES, PROFILES, Profile
from onnx_lathe.passes.graph import Node
from onnx_lathe.passes.numerics import winograd as numerics
from onnx_lathe.passes.numerics.tile_arithmetic import matrices
from onnx_lathe.tiles import NCNN, TAPS


class Layer(NamedTuple):
    """An eligible convolution: weight [outputs, inputs, 3, 3], and its result's batch, height and width."""

    node: Node
    weight: np.ndarray
    batch: int
    height: int
    width: int

    def tiles(self, m: int) -> int:
        return self.batch * -(-self.height // m) * -(-self.width // m)

    def products(self, m: int) -> int:
        return self.tiles(m) * (m + TAPS - 1) ** 2 * self.weight.shape[0] * self.weight.shape[1]

    def additions(self, m: int) -> int:
        """Of the transforms of data and results."""
        if m == DIRECT:
            return 0
        outputs, inputs = self.weight.shape[:2]
        output, _, data = matrices(NCNN[m])
        size = m + TAPS - 1
        of_data = 2 * size * int(np.count_nonzero(data))
        of_result = (m + size) * int(np.count_nonzero(output))
        return self.tiles(m) * (inputs * of_data + outputs * of_result)


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
        stored = np.dtype(self.profile.arithmetic or "int16").itemsize * layer.weight.size
        return stored * numerics.memory_factor(self.m, TAPS) if self.m > DIRECT else 0.0

    def cost(self, layer: Layer) -> float:
        """In nanoseconds where the profile's times were measured: products, additions of the transforms and weights
        read once. Else arithmetic alone, in operations on whole registers.
        """
        products, additions = layer.products(self.m), layer.additions(self.m)
        speeds = self.profile.speeds
        if speeds is None:
            return (products + additions) / self.profile.lanes
        factor = numerics.memory_factor(self.m, TAPS) if self.m > DIRECT else 1.0
        weights = layer.weight.nbytes * factor
        return products / speeds.products + additions / speeds.additions + weights / speeds.weight_bytes


def ways_of(layer: Layer, profile: Profile, told: bool = False) -> list[Way]:
    """What the runtime takes by itself first, then what it can be made to take; also in float32 if `told`."""
    outputs, inputs = layer.weight.shape[:2]
    size = inputs, outputs, layer.height, layer.width
    found = [Way(m, profile) for m in profile.able(*size)]
    if told and profile.exact is not None:
        exact = PROFILES[profile.exact]
        found += [Way(m, exact, told=True) for m in exact.able(*size)]
    return found
