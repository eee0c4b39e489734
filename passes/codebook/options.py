"""The options of codebook, but for training."""

from dataclasses import dataclass

from onnx_lathe.errors import UsageError
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.numerics.clustering.kmeans import STARTS

HESSIAN = "hessian"


@dataclass(frozen=True)
class Sharing:
    """Options that say what shares values, how many there are, and how they are chosen."""

    bits: int = option(
        4,
        "2^bits values are shared; up to 4 bits the file has 4-bit indices, and its opset is raised to 21",
        low=1,
        high=8,
    )
    centroids: int | None = option(None, "number of shared values, instead of 2^bits", low=2, high=256)
    layers: dict[str, int] = option(
        {}, "bits for weights or layers by name pattern; 0 leaves one as it is", low=0, high=8
    )
    layer_centroids: dict[str, int] = option(
        {}, "number of shared values by name pattern, before layers", low=2, high=256
    )
    share: str = option("tensor", "what has one codebook", choices=("tensor", "network", "channel_group"))
    groups: int = option(4, "groups of output channels of a layer, with share=channel_group", low=2)
    init: str = option(
        "linear", "where centroids start: evenly, with equal counts, or far apart by chance", choices=STARTS
    )
    method: str = option(
        "lloyd", "k-means, or the optimum by dynamic programming", choices=("lloyd", "exact")
    )
    rounding: str = option(
        "nearest",
        "each weight takes the nearest shared value, or the one that keeps what its layer answers on calibration data",
        choices=("nearest", HESSIAN),
    )
    sequential: bool = option(
        False,
        "with rounding=hessian: each layer is fitted to what those before it, with shared values, give it, and makes up for "
        "what they lost; false: each by itself",
    )
    tradeoff: float = option(
        0.0,
        "squared error, relative to the square of the weights (rounding=hessian: of what layers answer), that is taken "
        "to save one bit of a weight's code",
        low=0.0,
    )
    layer_tradeoffs: dict[str, float] = option(
        {}, "tradeoff of weights or layers by name pattern; others have that of all", low=0.0
    )
    iterations: int = option(300, "most iterations of k-means", low=1)
    min_sqnr: float | None = option(
        None,
        "chooses bits per layer: the fewest that keep the outputs so near to the input model's",
        unit="dB",
        low=0.0,
        high=300.0,
    )
    mantissa: int | None = option(
        None, "bits of mantissa that shared values keep, 7 as bfloat16; none: 23", low=0, high=23
    )
    biases: int = option(
        0,
        "each bias has 2^bits distinct values too, in place; 0: they stay; use after the last training",
        low=0,
        high=8,
    )
    # With 256 weights, a codebook and the two nodes that decode it still cost half of what 4-bit indices
    # save.
    min_size: int = option(256, "smaller weights are left as they are", unit="elements", low=1)
    seed: int = option(0, "seed of init=kmeans++", low=0)

    def check_rounding(self, training: str | None) -> None:
        """Raises UsageError for options that rounding=hessian does not go with; `training` is the name of what trains."""
        if self.rounding != HESSIAN:
            if self.sequential:
                raise UsageError(
                    "codebook: sequential is about rounding=hessian; give that too, or leave it out"
                )
            return
        others = {
            training: training,
            "min_sqnr": self.min_sqnr is not None,
            "share=network": self.share == "network",
        }
        for name, given in others.items():
            if given:
                raise UsageError(f"codebook: rounding=hessian does not go with {name}; leave one of them out")


@dataclass(frozen=True)
class Meanwhile:
    """Options that say how values are shared while training runs."""

    every: int = option(
        1,
        "with training: steps between two clusterings, for which the network computes with old values",
        low=1,
    )
    freeze: float = option(
        0.8,
        "with training: share of it after which weights keep their centroids, which still train",
        low=0.0,
        high=1.0,
    )
