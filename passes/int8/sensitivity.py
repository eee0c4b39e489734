"""What INT8 costs layer by layer: the network's outputs when one weight's layers alone are quantized, and
the fewest to leave in float.

The layers to leave are the most sensitive ones, as many as the goal needs: the count is bisected, then each
of them that turns out not to be needed is quantized after all.
Source: Wu et al., "Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation",
2020, section 6.2 (partial quantization by sensitivity).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx

from onnx_lathe.errors import PassError
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.int8.quantization import Quantization

Quality = Mapping[str, float]


@dataclass(frozen=True)
class Goal:
    """`max_drop`: points of agreement that may be lost; `min_sqnr`: dB that the outputs keep. None is no
    demand.
    """

    max_drop: float | None
    min_sqnr: float | None

    def __bool__(self) -> bool:
        return (self.max_drop, self.min_sqnr) != (None, None)

    def __str__(self) -> str:
        given = {"max_drop": self.max_drop, "min_sqnr": self.min_sqnr}
        return ", ".join(f"{name}={value:g}" for name, value in given.items() if value is not None)

    def is_met(self, quality: Quality) -> bool:
        """Raises PassError if the goal is about agreement and the model is no classifier."""
        if self.max_drop is not None and "agreement" not in quality:
            raise PassError(
                "int8(max_drop=...) counts points of agreement between classes, and no output of the model is [samples, classes]; "
                "give min_sqnr=, in dB, instead"
            )
        agrees = self.max_drop is None or _lost_points(quality) <= self.max_drop + 1e-9
        return agrees and (self.min_sqnr is None or quality["sqnr"] >= self.min_sqnr)


class Sensitivity:
    """Measures copies of the network in which the layers of some of the weights `names` are quantized."""

    def __init__(self, quantization: Quantization, names: Sequence[str], context: Context) -> None:
        self.quantization = quantization
        self.names = names
        self.runner = context.need_runner()
        self.progress = context.progress

    @cached_property
    def alone(self) -> dict[str, Quality]:
        """The quality with each weight quantized alone, without bias correction; the most sensitive first."""
        found = {}
        for index, name in enumerate(self.names, 1):
            self.progress(f"measuring {name} in INT8 alone, {index} of {len(self.names)}")
            found[name] = self._compare(self.quantization.copy([name], corrected=False))
        return dict(sorted(found.items(), key=lambda item: item[1]["sqnr"]))

    def record(self, report: PassReport) -> dict[str, str]:
        """A phrase for each weight; the metrics list the most sensitive first, in dB."""
        phrases = {}
        for rank, (name, quality) in enumerate(self.alone.items(), 1):
            if math.isfinite(quality["sqnr"]):
                report.metrics[f"sensitivity/{name}"] = quality["sqnr"]
            phrases[name] = f"; alone {quality['sqnr']:.1f} dB, sensitivity rank {rank} of {len(self.names)}"
        return phrases

    def to_leave(self, goal: Goal) -> dict[str, str]:
        """The fewest of the weights to leave in float for the goal to be met, each with the reason.

        Raises PassError if the goal says nothing about this model.
        """

        def met_without(left: Collection[str]) -> bool:
            self.progress(f"measuring with {len(left)} of {len(self.names)} in float")
            return goal.is_met(
                self._compare(self.quantization.copy([name for name in self.names if name not in left]))
            )

        if met_without(()):
            return {}
        if not goal.is_met(self._compare(self.quantization.base)):
            raise PassError(
                f"int8({goal}): an output of the model holds NaN or infinity, or nothing but zeros, on the calibration data, so that its "
                "signal to noise cannot be measured; check the scale of the data and the model's weights"
            )
        ranked = list(self.alone)
        too_few, enough = 0, len(ranked)
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            too_few, enough = (too_few, middle) if met_without(ranked[:middle]) else (middle, enough)
        left = ranked[:enough]
        for name in reversed(ranked[: enough - 1]):
            fewer = [other for other in left if other != name]
            left = fewer if met_without(fewer) else left
        return {name: f"left in float: alone it costs {_costs(self.alone[name])} ({goal})" for name in left}

    def _compare(self, candidate: onnx.ModelProto) -> Quality:
        return self.runner.compare(self.quantization.base, candidate)


def _lost_points(quality: Quality) -> float:
    return 100 * (1 - quality["agreement"])


def _costs(quality: Quality) -> str:
    noise = f"{quality['sqnr']:.1f} dB signal to noise"
    return (
        f"{_lost_points(quality):.2g} points of agreement, {noise}"
        if "agreement" in quality
        else f"all but {noise}"
    )
