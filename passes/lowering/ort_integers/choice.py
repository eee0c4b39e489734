"""What the lowering leaves in float and which biases it moves, by what is measured: time, and nearness to the
original on calibration data.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx

from onnx_lathe.passes.core.services import Context, Fidelity, Profiler
from onnx_lathe.passes.lowering.ort_integers.biases import Shifts
from onnx_lathe.passes.lowering.ort_integers.exactness import LOSS_DB, inexact_nodes
from onnx_lathe.passes.lowering.ort_integers.speed import pays, slow_nodes

Lower = Callable[[Collection[str], Shifts], onnx.ModelProto]
"""The model lowered, with the named nodes in float and biases moved."""
Shift = Callable[[Collection[str]], Shifts]
"""What biases are to be moved by, with the named nodes in float."""

UNTIMED = "whether its layers pay on integers was not measured: it is too large"


@dataclass(frozen=True)
class Choice:
    """`floats`: layers and operators to leave in float, with the reason."""

    floats: Mapping[str, str] = field(default_factory=dict)
    shifts: Shifts = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class _Measured:
    """How near the outputs are to the original's with some nodes in float, each set measured once."""

    def __init__(self, lower: Lower, shift: Shift, fidelity: Fidelity) -> None:
        self.lower, self.shift, self.fidelity = lower, shift, fidelity
        self.known: dict[frozenset[str], tuple[float, Shifts]] = {}

    def best(self, floats: Collection[str]) -> tuple[float, Shifts]:
        """(dB, what biases are moved by), of biases as they are and as this form wants them the better."""
        key = frozenset(floats)
        if key not in self.known:
            shifts, asis = self.shift(floats), self._sqnr(floats, {})
            moved = self._sqnr(floats, shifts) if shifts else -math.inf
            self.known[key] = (moved, shifts) if moved > asis else (asis, {})
        return self.known[key]

    def _sqnr(self, floats: Collection[str], shifts: Shifts) -> float:
        found = self.fidelity.sqnr(self.lower(floats, shifts), plain=True)
        return -math.inf if found is None else found


def choose(
    model: onnx.ModelProto, names: Sequence[str], lower: Lower, shift: Shift, context: Context
) -> Choice:
    """Of the quantized layers and operators `names` of `model`, which is in canonical form."""
    choice = Choice()
    if context.profiler is not None:
        context.progress("timing layers on integers and in float")
        slow = slow_nodes(model, names, lambda floats: lower(floats, {}), context.profiler)
        choice = Choice(slow or {}, warnings=[] if slow is not None else [UNTIMED])
    if context.fidelity is None:
        return choice
    context.progress("comparing with the original")
    wanted = context.fidelity.sqnr(model)
    if wanted is None:
        return choice
    measured = _Measured(lower, shift, context.fidelity)
    now, shifts = measured.best(choice.floats)
    choice = replace(choice, shifts=shifts)
    if now >= wanted - LOSS_DB:
        return choice
    ordered = [node.name for node in model.graph.node if node.name in {*names} - choice.floats.keys()]
    return _nearer(choice, ordered, wanted, measured, context.profiler)


def _nearer(
    choice: Choice, names: Sequence[str], wanted: float, measured: _Measured, profiler: Profiler | None
) -> Choice:
    """With more of the nodes `names` in float, if that brings the outputs to `wanted` dB within LOSS_DB, and
    leaves the model no slower than it is in float.
    """
    now = measured.best(choice.floats)[0]
    loss = f"on integers its outputs are at {now:.1f} dB on calibration data, those of the model at {wanted:.1f} dB"
    left, reached = inexact_nodes(
        names, wanted - LOSS_DB, lambda some: measured.best({*choice.floats, *some})[0]
    )
    if not left:
        return _warned(choice, f"{loss}, and layers in float do not mend that")
    reason = f"on integers the outputs are at {now:.1f} dB, with it in float at {reached:.1f} dB"
    floats = {**choice.floats, **dict.fromkeys(left, reason)}
    if profiler is not None:
        in_float = measured.lower({*names, *choice.floats}, {})
        if not pays(profiler, in_float, measured.lower(floats, {})):
            return _warned(choice, f"{loss}; what mends that takes longer than all in float")
    shifts = measured.best(floats)[1]
    return _warned(Choice(floats, shifts, choice.warnings), f"{loss}; left in float for that: {len(left)}")


def _warned(choice: Choice, warning: str) -> Choice:
    return replace(choice, warnings=[*choice.warnings, warning])
