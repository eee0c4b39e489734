"""Whether a written file computes what the lowered model does in ONNX Runtime.

In float every output is compared, in LiteRT's plain kernels and in XNNPACK's, which applications get. Where tensors are
stored in integers, single steps multiply on the way to the output; so each operator is compared by itself, too: ONNX
Runtime computes it from what LiteRT's own kernels handed it (stepwise.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import TargetError, first_few
from onnx_lathe.metadata import read_channels_last
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.bundle.examples import Examples
from onnx_lathe.runtime.targets.core.distances import (
    CHANGE,
    CHANGE_QUANTIZED,
    CHANGES,
    floors,
    largest,
    moved_by,
    relative,
    with_changed_weights,
    with_half_weights,
)
from onnx_lathe.runtime.targets.litert.package import version
from onnx_lathe.runtime.targets.litert.process import survive
from onnx_lathe.runtime.targets.litert.running import BUILTIN, REFERENCE, XNNPACK, Opened, as_float
from onnx_lathe.runtime.targets.litert.samples import samples_of
from onnx_lathe.runtime.targets.litert.session import content_of
from onnx_lathe.runtime.targets.litert.sizing import Fitted
from onnx_lathe.runtime.targets.litert.stepwise import check_steps, compare_tensors, steps_by_operator
from onnx_lathe.runtime.targets.litert.work import WEIGHTS, longest_sum, multiplications

FLOAT, HALF, QUANTIZED = 1e-4, 2e-2, 2e-2
"""Largest difference of a value relative to the output's largest; with weights in float16; and the relative distance (L2) of
an output of an INT8 network. Where rounding alone moves more in ONNX Runtime, TIMES_ROUNDING as much is allowed.
"""
MOST, MOST_QUANTIZED = 1e-2, 0.5
TIMES_ROUNDING = 3.0
EACH_TERM = 2.0**-24
"""LiteRT's plain float kernels add products one after the other: each may add half a unit in the last place (Higham, Accuracy
and Stability of Numerical Algorithms, 2002, section 4.2). XNNPACK's, as ONNX Runtime's, add many sums side by side.
"""
MOST_PLAIN = 2e9
"""Multiplications of a call above which LiteRT's plain kernels, which do 5e8 a second, are left out."""
NAMES = {XNNPACK: "XNNPACK", BUILTIN: "LiteRT's own kernels", REFERENCE: "reference kernels"}


@dataclass(frozen=True)
class Agreement:
    """By output: how far LiteRT is from ONNX Runtime, and how far it may be."""

    kernels: str
    found: Mapping[str, float]
    allowed: Mapping[str, float]

    def worst(self) -> str:
        return max(self.found, key=lambda name: self.found[name] / self.allowed[name])

    def share(self) -> float:
        """Of what is allowed, in the worst output."""
        return self.found[self.worst()] / self.allowed[self.worst()]


def verified(
    model: onnx.ModelProto, fitted: Fitted, path: Path, feeds: Mapping[str, np.ndarray], options: Any
) -> tuple[dict[str, Any], Examples]:
    """(details for the report, what was compared, in the layout of the file). Raises TargetError where the file does not
    compute what the model does.
    """
    trial = _Trial(model, fitted, path, options)
    work = multiplications(fitted.conversion.network)
    first, *others = samples_of(fitted, feeds, read_channels_last(model.metadata_props), work)
    kernels = trial.kernels(first, work)
    results = [result for sample in (first, *others) for result in trial.compare(sample, kernels)]
    found = _report(max(results, key=Agreement.share), trial.outside)
    if trial.tables:
        found["verified"]["steps" if trial.stored else "tensors"] = trial.tables
    notes = [f"LiteRT's reference kernels were left out: {trial.reason}"] if REFERENCE not in kernels else []
    if slow := [one for one in trial.outside if one.split(" ")[0] in WEIGHTS]:
        notes.append(
            f"XNNPACK does not take {', '.join(slow)}: they take several times as long in LiteRT's other kernels"
        )
    if notes:
        found["notes"] = notes
    return found, trial.examples()


class _Trial:
    """`tables`: kernels -> what the first sample says of each operator. `outside`: what XNNPACK does not take."""

    def __init__(self, model: onnx.ModelProto, fitted: Fitted, path: Path, options: Any) -> None:
        self.model, self.fitted, self.path = model, fitted, path
        self.half, self.by_tensor = options.storage == "float16", options.verify == "tensors"
        self.stored = bool(fitted.conversion.network.stored.activations)
        self.plain = EACH_TERM * longest_sum(fitted.conversion.network)
        self.content = content_of(path)
        self.tables: dict[str, Any] = {}
        self.outside: list[str] = []
        self.reason = ""
        self.references: list[Reference] = []
        self.allowed: dict[str, float] = {}

    def kernels(self, sample: Mapping[str, np.ndarray], work: float) -> list[str]:
        """XNNPACK's, and the plainest that have all operators; each has run in a process of its own, which it might end.
        Raises TargetError where XNNPACK cannot run the file.
        """
        plain = [REFERENCE, BUILTIN] if work <= MOST_PLAIN else [BUILTIN]
        reasons = survive(self.path, sample, (XNNPACK, *plain))
        if reasons[XNNPACK]:
            raise TargetError(f"{reasons[XNNPACK]}; nothing is written")
        self.reason = reasons.get(REFERENCE, f"a call takes {work:.1e} multiplications")
        return [XNNPACK, *[one for one in plain if not reasons[one]][:1]]

    def compare(self, sample: Mapping[str, np.ndarray], kernels: Sequence[str]) -> list[Agreement]:
        reference = Reference(self.model, sample, self.stored, self.half, self.plain)
        results = []
        for one in kernels:
            opened = Opened(self.content, str(self.path), kernels=one, keep=self.stored or self.by_tensor)
            results.append(reference.compare(opened, one))
            if one == XNNPACK and NAMES[one] not in self.tables:
                self.outside = outside_delegate(opened, self.fitted)
            if NAMES[one] not in self.tables and (self.stored or self.by_tensor):
                self.tables[NAMES[one]] = self._table(opened, one, sample)
            check(results[-1])
            for name, allowed in self._elsewhere(results[-1]).items():
                self.allowed[name] = max(self.allowed.get(name, 0.0), allowed)
        self.references.append(reference)
        return results

    def _elsewhere(self, result: Agreement) -> Mapping[str, float]:
        """What outputs may be off by where the stored examples are run again. Single steps of LiteRT's plain kernels
        were counted here; there nobody counts them, and what they added up to is the measure.
        """
        if result.kernels == XNNPACK or not self.stored:
            return result.allowed
        return {
            name: min(result.allowed[name], max(QUANTIZED, TIMES_ROUNDING * found))
            for name, found in result.found.items()
        }

    def examples(self) -> Examples:
        """What was compared; an output may err as far as in the comparison that allows most."""
        calls = [(one.sample, one.wanted) for one in self.references]
        measure = "length" if self.stored else "largest"
        return Examples(calls, measure, self.allowed, self.references[-1].floors)

    def _table(self, opened: Opened, kernels: str, sample: Mapping[str, np.ndarray]) -> dict[str, Any]:
        if not self.stored:
            return compare_tensors(self.model, self.fitted, opened, sample)
        tables = steps_by_operator(self.model, self.fitted, opened, sample)
        check_steps(tables, kernels)
        return {code: table.as_record() for code, table in sorted(tables.items())}


class Reference:
    """What ONNX Runtime computes of a sample, and how far rounding alone moves that."""

    def __init__(
        self,
        model: onnx.ModelProto,
        sample: Mapping[str, np.ndarray],
        stored: bool,
        half: bool,
        plain: float = 0.0,
    ) -> None:
        """`plain`: what plain float kernels may be off by, for the length of their sums."""
        self.model, self.sample, self.stored, self.half, self.plain = model, sample, stored, half, plain
        # of a MatMul with an INT8 weight alone ONNX Runtime's optimizers quantize the input too (MatMulNBits)
        self.session = ort.session(model, optimized=False)
        self.wanted = ort.run(self.session, sample)
        self.floors = floors(model)
        self._rounding: dict[str, float] = {}

    def compare(self, opened: Opened, kernels: str) -> Agreement:
        results = opened.run(self.sample)
        ports = {port.name: port for port in opened.outputs}
        found = {name: self._distance(name, as_float(results[name], ports[name])) for name in self.wanted}
        if (
            self.stored and kernels != XNNPACK
        ):  # what their operators round is counted by itself, and multiplies
            return Agreement(kernels, found, dict.fromkeys(found, MOST_QUANTIZED))
        least = QUANTIZED if self.stored else HALF if self.half else FLOAT
        if kernels != XNNPACK:
            least = max(least, self.plain)
        if max(found.values(), default=0.0) <= least:
            return Agreement(kernels, found, dict.fromkeys(found, least))
        return Agreement(kernels, found, self._moved(least))

    def _distance(self, name: str, value: np.ndarray) -> float:
        wanted = self.wanted[name]
        if wanted.dtype != value.dtype and np.issubdtype(wanted.dtype, np.floating):
            wanted = wanted.astype(np.float32)
        return (relative if self.stored else largest)(value, wanted, self.floors.get(name, 0.0))

    def _moved(self, least: float) -> dict[str, float]:
        if not self._rounding:
            change = CHANGE_QUANTIZED if self.stored else CHANGE
            moved = moved_by(self.session, self.sample, self.wanted, change, self._distance)
            others = []
            if not all(np.issubdtype(value.dtype, np.floating) for value in self.sample.values()):
                for seed in range(CHANGES):
                    near = with_changed_weights(self.model, change, seed)
                    others.append(ort.run(ort.session(near, optimized=False), self.sample))
            if self.half:
                others.append(ort.run(ort.session(with_half_weights(self.model)), self.sample))
            if (
                self.stored
            ):  # ONNX Runtime's own kernels on integers round some values otherwise than its Q/DQ graph does
                others.append(ort.run(ort.session(self.model), self.sample))
            for other in others:
                moved = {name: max(moved[name], self._distance(name, other[name])) for name in moved}
            most = MOST_QUANTIZED if self.stored or self.half else MOST
            self._rounding = {name: min(TIMES_ROUNDING * moved[name], most) for name in moved}
        return {name: max(least, rounding) for name, rounding in self._rounding.items()}


def check(result: Agreement) -> None:
    """Raises TargetError if an output is further from ONNX Runtime's than it may be."""
    name = result.worst()
    if not result.found[name] <= result.allowed[name]:
        raise TargetError(
            f"LiteRT {version()} ({NAMES[result.kernels]}) computes another output '{name}' than ONNX Runtime: it is off by "
            f"{result.found[name]:.1e} of its size, {result.allowed[name]:.1e} are allowed; nothing is written"
        )


def outside_delegate(opened: Opened, fitted: Fitted) -> list[str]:
    """`OPERATOR (nodes)` of what XNNPACK does not compute; the file's operators are those of the network that are read."""
    found: dict[str, list[str]] = {}
    names = {
        opened_name: one.nodes[:1]
        for one in fitted.conversion.network.operators
        for opened_name in (fitted.conversion.network.tensors[one.outputs[0]].name,)
    }
    for result, code in opened.outside_delegate():
        found.setdefault(code, []).extend(names.get(result, ()))
    return [f"{code} ({first_few(nodes)})" if nodes else code for code, nodes in found.items()]


def _report(result: Agreement, outside: Sequence[str]) -> dict[str, Any]:
    name = result.worst()
    return {
        "verified": {
            "in": f"LiteRT {version()}, {NAMES[result.kernels]}",
            "worst_output": name,
            "relative_error": result.found[name],
            "allowed": result.allowed[name],
        },
        "outside_xnnpack": list(outside),
    }
