"""What the report says of shared values: how many they are, how near to the weights, how long their code."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.codebook.sharing import ClusterJob
from onnx_lathe.passes.numerics.clustering.codebook_pools import CodebookGroup
from onnx_lathe.passes.numerics.clustering.entropy_constrained import entropy_bits
from onnx_lathe.passes.numerics.clustering.kmeans import Encoded


@dataclass
class Total:
    """What all the weights that became codebooks add up to."""

    elements: int = 0
    signal: float = 0.0
    noise: float = 0.0
    bits: float = 0.0
    nearest_bits: float = 0.0

    def add(self, elements: int, signal: float, noise: float, entropy: tuple[float, float]) -> None:
        self.elements += elements
        self.signal, self.noise = self.signal + signal, self.noise + noise
        self.bits, self.nearest_bits = (
            self.bits + elements * entropy[0],
            self.nearest_bits + elements * entropy[1],
        )

    def metrics(self, entropy: bool, nearest: bool) -> dict[str, float]:
        found = {"weight_sqnr_db": 10 * math.log10(self.signal / self.noise)} if self.noise else {}
        if entropy and self.elements:
            found["entropy_bits"] = float(self.bits / self.elements)
        if nearest and self.elements:
            found["nearest_entropy_bits"] = float(self.nearest_bits / self.elements)
        return found


def entropy_of(outcome: Sequence[tuple[CodebookGroup, Encoded]]) -> tuple[float, float]:
    """Mean bits per weight of an ideal code for where zeros are and which value the others have; and so by
    nearest value.
    """
    bits = nearest = elements = 0.0
    for group, encoded in outcome:
        counts = encoded.counts()
        by_value = counts
        if encoded.nearest_counts.size:
            by_value = np.append(
                encoded.nearest_counts, counts[encoded.centroids == 0] if group.keep_zero else []
            )
        bits, nearest = (
            bits + counts.sum() * entropy_bits(counts),
            nearest + counts.sum() * entropy_bits(by_value),
        )
        elements += counts.sum()
    return bits / elements, nearest / elements


def how_many(job: ClusterJob, outcome: Sequence[tuple[CodebookGroup, Encoded]]) -> str:
    most = max(encoded.centroids.size for _, encoded in outcome)
    if len(job.weights) > 1:
        return f"{most} values shared by {len(job.weights)} weights"
    return (
        f"{len(outcome)} groups of up to {most} shared values"
        if len(outcome) > 1
        else f"{most} shared values"
    )


def quality(signal: float, noise: float) -> str:
    if noise == 0:
        return "exact"
    return f"{10 * math.log10(signal / noise):.1f} dB signal to noise" if signal else "its zeros have changed"
