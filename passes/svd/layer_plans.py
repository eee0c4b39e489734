"""Which rank each layer gets, by its own option, by energy or within the network's budget of MACs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.core.rank_options import AUTO, MET, NONE_SAVES, RankOptions
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.numerics.rank.rank_choice import Ladder, least_error, rank_for_energy, within_budget
from onnx_lathe.passes.svd.two_layers import Layer


@dataclass
class LayerPlan:
    """A layer, what may become of it, and its rank once that is chosen."""

    layer: Layer
    ladder: Ladder
    rank: int | None = None
    latencies: tuple[float, float] | None = None
    """Milliseconds whole and split, if they were timed."""
    vectors: np.ndarray | None = None
    """Singular vectors of the weight, if `principal` gave them and they are kept."""

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def chosen(self) -> int:
        """The rank of a layer that is split."""
        return len(self.ladder.energies) if self.rank is None else self.rank

    @property
    def saved(self) -> float:
        return self.ladder.whole - self.ladder.macs(self.rank)

    def summary(self) -> str:
        ladder = self.ladder
        timed = (
            ""
            if self.latencies is None
            else f", {self.latencies[0]:.3g} ms became {self.latencies[1]:.3g} ms"
        )
        return (
            f"rank {self.rank} of {len(ladder.energies)}, "
            f"{self.saved:,.0f} of {ladder.whole:,.0f} MACs saved ({100 * self.saved / ladder.whole:.3g} %), "
            f"{100 * ladder.kept(self.rank):.4g} % of energy kept{self._held_back()}{timed}"
        )

    def _held_back(self) -> str:
        """What the rank loses of samples that chose no directions."""
        measured = self.ladder.measured
        return "" if measured is None else f", {100 * measured[self.chosen]:.3g} % of held-back answers lost"


def choose(
    plans: Sequence[LayerPlan],
    options: RankOptions,
    own: Mapping[str, int],
    now: int,
    whole: int,
    report: PassReport,
) -> list[LayerPlan]:
    """The plans that get a rank, in order; each other gets a skip. `now` and `whole` are the network's MACs,
    as it is and without earlier splits; `own` are ranks by weight.
    """
    free = []
    for plan in plans:
        plan.rank = None
        energies, rank = plan.ladder.energies, own.get(plan.layer.weight.name, options.fixed)
        if rank is not None:
            rank = min(rank, len(energies))
        elif options.energy is not None:
            rank = rank_for_energy(energies, options.energy, options.multiple)
        else:
            free.append(plan)
            continue
        if options.always or plan.ladder.macs(rank) < plan.ladder.whole:
            plan.rank = rank
        else:
            report.skip(
                plan.layer.name,
                f"rank {rank} of {len(energies)} "
                f"({100 * plan.ladder.kept(rank):.4g} % of energy) saves no MACs",
            )
    rest = now - sum(plan.saved for plan in plans) - sum(plan.ladder.whole for plan in free)
    budget = options.share * whole - rest
    within = least_error if options.rank == AUTO else within_budget
    for plan, rank in zip(free, within([plan.ladder for plan in free], budget), strict=True):
        plan.rank = rank
        if rank is None:
            report.skip(plan.layer.name, MET if plan.ladder.ranks else NONE_SAVES)
    return [plan for plan in plans if plan.rank is not None]
