"""What the lowering leaves in float and which biases it moves, by what is measured: time, and nearness to the
original on calibration data.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx

from onnx_lathe.passes.core.services import Context, Fidelity, Profiler
from onnx_lathe.passes.lowering.biases import Shifts
from onnx_lathe.passes.lowering.exactness import LOSS_DB, inexact_nodes
from onnx_lathe.passes.lowering.speed import pays, slow_nodes

Lower = Callable[[Collection[str], Shifts], onnx.ModelProto]
"""The model lowered, with the named nodes in float and biases moved."""
Shift = Callable[[Collection[str]], Shifts]
"""What biases are to be moved by, with the named nodes in float."""

UNTIMED = "whether its layers pay on integers was not measured: it is too large"
UNCOMPARED = (
    "how near its outputs are to the original's was not compared: none of them can be, or the calibration data "
    "differs from one reading to the next"
)


@dataclass(frozen=True)
class Choice:
    """`floats`: layers and operators to leave in float, with the reason."""

    floats: Mapping[str, str] = field(default_factory=dict)
    shifts: Shifts = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Lowerable:
    """A `model` in canonical form, its quantized `layers` and `operators` by name, and what lowers it."""

    model: onnx.ModelProto
    layers: Sequence[str]
    operators: Sequence[str]
    lower: Lower
    shift: Shift
    reduced: onnx.ModelProto | None = None
    """The model with weights of 7 bits, where the user wants those: what they cost sends nothing to float."""

    @property
    def names(self) -> list[str]:
        return [*self.layers, *self.operators]


class _Measured:
    """How near the outputs are to the original's with some nodes in float, each set measured once."""

    def __init__(self, form: Lowerable, fidelity: Fidelity) -> None:
        self.form, self.fidelity = form, fidelity
        self.known: dict[frozenset[str], tuple[float, Shifts]] = {}

    def best(self, floats: Collection[str]) -> tuple[float, Shifts]:
        """(dB, what biases are moved by), of biases as they are and as this form wants them the better."""
        key = frozenset(floats)
        if key not in self.known:
            shifts, asis = self.form.shift(floats), self._sqnr(floats, {})
            moved = self._sqnr(floats, shifts) if shifts else -math.inf
            self.known[key] = (moved, shifts) if moved > asis else (asis, {})
        return self.known[key]

    def _sqnr(self, floats: Collection[str], shifts: Shifts) -> float:
        found = self.fidelity.sqnr(self.form.lower(floats, shifts), plain=True)
        return -math.inf if found is None else found


def choose(form: Lowerable, context: Context) -> Choice:
    """Of the quantized layers and operators of `form`."""
    choice = Choice()
    if context.profiler is not None:
        context.progress("timing layers on integers and in float")
        slow = slow_nodes(form.model, form.names, lambda floats: form.lower(floats, {}), context.profiler)
        choice = Choice(slow or {}, warnings=[] if slow is not None else [UNTIMED])
    if context.fidelity is None:
        return choice
    context.progress("comparing with the original")
    wanted = context.fidelity.sqnr(form.reduced or form.model)
    if wanted is None:
        return _warned(choice, UNCOMPARED)
    measured = _Measured(form, context.fidelity)
    now, shifts = measured.best(choice.floats)
    choice = replace(choice, shifts=shifts)
    if now >= wanted - LOSS_DB:
        return choice
    return _nearer(choice, wanted, measured, context.profiler)


def _nearer(choice: Choice, wanted: float, measured: _Measured, profiler: Profiler | None) -> Choice:
    """With more of the nodes in float, if that brings the outputs to `wanted` dB within LOSS_DB. A form that
    runs stays where most of its layers would go back, or the model would become slower than it is in float.
    """
    form, now = measured.form, measured.best(choice.floats)[0]
    model = "model" if form.reduced is None else "model with weights of 7 bits"
    loss = f"on integers its outputs are at {now:.1f} dB on calibration data, those of the {model} at {wanted:.1f} dB"
    there = {*form.names} - choice.floats.keys()
    left, reached = inexact_nodes(
        [node.name for node in form.model.graph.node if node.name in there],
        wanted - LOSS_DB,
        lambda some: measured.best({*choice.floats, *some})[0],
    )
    if not left:
        return _warned(choice, f"{loss}, and layers in float do not mend that")
    these = f"these {len(left)}" if len(left) > 1 else "it"
    reason = f"on integers the outputs are at {now:.1f} dB, with {these} in float at {reached:.1f} dB"
    floats = {**choice.floats, **dict.fromkeys(left, reason)}
    cost = ""
    if math.isfinite(now):
        layers = there.intersection(form.layers)
        back = layers.intersection(left)
        if 2 * len(back) > len(layers):
            return _warned(
                choice,
                f"{loss}; with {len(back)} of {len(layers)} layers in float they would be at {reached:.1f} dB, and all "
                "stay on integers; int8(min_sqnr=...) leaves layers in float",
            )
        if profiler is not None:
            mended = form.lower(floats, {})
            if not pays(profiler, form.lower(form.names, {}), mended):
                return _warned(choice, f"{loss}; what mends that takes longer than all in float")
            before, after = profiler.latencies(form.lower(choice.floats, {}), mended)
            cost = f", with which it takes {after:.3g} ms instead of {before:.3g} ms"
    shifts = measured.best(floats)[1]
    return _warned(
        Choice(floats, shifts, choice.warnings), f"{loss}; left in float for that: {len(left)}{cost}"
    )


def _warned(choice: Choice, warning: str) -> Choice:
    return replace(choice, warnings=[*choice.warnings, warning])
