"""Options of passes that split layers into thinner ones: how the rank of each layer is chosen."""

from dataclasses import dataclass

from onnx_lathe.errors import UsageError
from onnx_lathe.passes.core.options import option

MACS = 0.5
"""Share of the network's MACs that is kept when no option says how much is."""
ROUNDING = 1e-9
"""Of the budget: it is a sum of floats."""
AUTO = "auto"
MET = "the budget of MACs is met without it"
NONE_SAVES = "no rank that is allowed saves MACs"


@dataclass(frozen=True)
class RankOptions:
    """How the rank of each layer is chosen."""

    rank: int | str | None = option(
        None,
        "rank of every layer; auto: the ranks with which layers together lose least of their answers, as measured on "
        "held-back calibration data, within macs=",
        low=1,
        choices=(AUTO,),
    )
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
        return self.rank in (None, AUTO) and self.energy is None

    @property
    def fixed(self) -> int | None:
        """The rank of every layer, if it is given."""
        return self.rank if isinstance(self.rank, int) else None

    def check(self, name: str) -> None:
        """Raises UsageError for options of the pass `name` that do not go together."""
        given = [
            one for one in ("rank", "energy", "macs") if getattr(self, one) is not None and self.rank != AUTO
        ]
        if self.rank == AUTO and self.energy is not None:
            given = ["rank", "energy"]
        if len(given) > 1:
            raise UsageError(f"{name}: {' and '.join(given)} both choose ranks; give one of them")
        if self.energy == 0 or self.macs == 0:
            raise UsageError(f"{name}: {'energy' if self.energy == 0 else 'macs'} must be above 0")
        if self.always and not (self.fixed or self.energy or self.layers):
            raise UsageError(
                f"{name}: always splits what rank=, energy= or layers= choose, "
                "and macs= chooses only what saves MACs"
            )
        if self.always and self.timed:
            raise UsageError(
                f"{name}: always splits whatever that costs, "
                "and timed only what gets faster; give one of them"
            )

    @property
    def share(self) -> float:
        """Share of the network's MACs that is kept."""
        return MACS if self.macs is None else float(self.macs)

    def over_budget(self, name: str, kept: float) -> list[str]:
        """A warning of the pass `name` if ranks were to meet the budget, and this share of the MACs is left. Ranks that
        layers= gives are there to be kept, not to meet a budget that nobody asked for.
        """
        asked = self.macs is not None or not self.layers
        if not self.by_budget or not asked or kept <= self.share * (1 + ROUNDING):
            return []
        return [
            f"{name} leaves {100 * kept:.3g} % of the network's MACs, and macs={self.share:g} asks for less: a smaller "
            f"multiple= ({self.multiple}) or least= ({self.least:g}) allows lower ranks; layers that stay whole are listed "
            "with the reason"
        ]
