"""Options of svd, by what they are about."""

from dataclasses import dataclass

from onnx_lathe.passes.core.options import option

MACS = 0.5
"""Share of the network's MACs that is kept when no option says how much is."""


@dataclass(frozen=True)
class RankOptions:
    """How the rank of each layer is chosen."""

    rank: int | None = option(None, "rank of every layer", low=1)
    energy: float | None = option(None, "share of its energy that every layer keeps", low=0.0, high=1.0)
    macs: float | None = option(
        None, f"share of the network's MACs that is kept; {MACS} if nothing else is given", low=0.0, high=1.0
    )
    layers: dict[str, int] = option(
        {}, "rank of weights or layers by name pattern; 0 leaves one as it is", low=0
    )
    # Convolution kernels of runtimes work on blocks of 8 or 16 channels, and pad what is left over with
    # zeros.
    multiple: int = option(8, "energy= and macs= choose ranks that are multiples of this", low=1)
    least: float = option(
        0.1, "macs= chooses no rank below this share of a layer's full rank", low=0.0, high=1.0
    )
    always: bool = option(False, "split even where that saves no MACs; to see what splitting alone does")
    timed: bool = option(
        False,
        "time each layer alone in ONNX Runtime, whole and split, and leave it whole where that is faster",
    )

    @property
    def by_budget(self) -> bool:
        return self.rank is None and self.energy is None

    @property
    def share(self) -> float:
        """Share of the network's MACs that is kept."""
        return MACS if self.macs is None else float(self.macs)


@dataclass(frozen=True)
class FittingOptions:
    """How method=response fits the two layers to what one answered."""

    asymmetric: bool = option(
        True, "fit layers to the original's responses, from the input that they get behind earlier splits"
    )
    rounds: int = option(
        24,
        "asymmetric: at most so many groups of layers are fitted one after the other; each runs the data",
        low=1,
    )
    nonlinear: bool = option(True, "where a ReLU follows, make the error behind it small")
    positions: int = option(3000, "responses that are sampled for nonlinear", low=10)
