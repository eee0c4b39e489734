"""Which setting each layer gets: by its own option, by energy, or within the network's budget of MACs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.core.rank_options import MET, NONE_SAVES, RankOptions
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph.answers.aligned import Layer
from onnx_lathe.passes.numerics.rank.rank_choice import allocated
from onnx_lathe.passes.tucker.settings import Setting, Sizes, cheapest_of


@dataclass
class LayerPlan:
    """A layer, what may become of it, and what does. `given`: its one setting was asked for."""

    layer: Layer
    sizes: Sizes
    settings: list[Setting]
    given: bool
    setting: Setting | None = None
    latencies: tuple[float, float] | None = None
    """Milliseconds whole and split, if they were timed."""

    @property
    def name(self) -> str:
        return str(self.layer.node.name)

    @property
    def chosen(self) -> tuple[int, ...]:
        """The ranks of a layer that is split."""
        return () if self.setting is None else self.setting.ranks

    @property
    def saved(self) -> float:
        return 0.0 if self.setting is None else self.sizes.whole - self.setting.macs

    def ranks(self) -> str:
        if len(self.chosen) == 1:
            return f"{self.chosen[0]} terms"
        first, last = self.chosen
        return f"ranks {first} of {self.sizes.inputs} and {last} of {self.sizes.outputs}"

    def summary(self) -> str:
        whole = self.sizes.whole
        text = (
            f"{self.ranks()}, {self.saved:,.0f} of {whole:,.0f} MACs saved ({100 * self.saved / whole:.3g} %)"
        )
        if self.latencies is not None:
            text += f", {self.latencies[0]:.3g} ms became {self.latencies[1]:.3g} ms"
        return text


def choose(
    plans: Sequence[LayerPlan], options: RankOptions, now: int, whole: int, report: PassReport
) -> list[LayerPlan]:
    """The plans that get a setting, in order; each other gets a skip. `now` and `whole` are the network's MACs, as it is
    and without earlier splits.
    """
    free = []
    for plan in plans:
        plan.setting = None
        if plan.given:
            (plan.setting,) = plan.settings
            if plan.saved <= 0 and not options.always:
                report.skip(plan.name, f"{plan.ranks()} save no MACs")
                plan.setting = None
        elif options.energy is not None:
            plan.setting = cheapest_of(plan.settings, options.energy)
            if plan.setting is None:
                report.skip(
                    plan.name,
                    f"no ranks that are allowed save MACs and keep {100 * options.energy:.4g} % of energy",
                )
        else:
            free.append(plan)
    budget = options.share * whole - (now - sum(plan.saved for plan in plans))
    budget += sum(plan.sizes.whole for plan in free)
    macs = [np.array([plan.sizes.whole, *(one.macs for one in plan.settings)]) for plan in free]
    errors = [np.array([0.0, *(one.lost for one in plan.settings)]) for plan in free]
    for plan, place in zip(free, allocated(errors, macs, budget), strict=True):
        plan.setting = plan.settings[place - 1] if place else None
        if plan.setting is None:
            report.skip(plan.name, MET if plan.settings else NONE_SAVES)
    return [plan for plan in plans if plan.setting is not None]
