"""What each layer of the candidate adds to the error by itself: it is fed with what the base computed before it.

    base        x ----> Conv ----> a ----> Relu ----> b
    candidate   x -> Conv' -> a'   a -> Relu' -> b'      b' is compared with b: an error of Conv' is no error of Relu'

A part is what lies between tensors that have counterparts, so it may be several nodes: a quantizer and its
dequantizer, the layers that replace one, the operators that a codebook is read by.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnx_lathe.errors import ModelError
from onnx_lathe.optimizer.diffing.diff import Look
from onnx_lathe.optimizer.diffing.groups import UNKNOWN_BYTES, grouped, one_by_one, tensor_bytes
from onnx_lathe.optimizer.diffing.pairing import Pair
from onnx_lathe.optimizer.diffing.sides import Calls, Feeds
from onnx_lathe.optimizer.ui import Ui
from onnx_lathe.passes.extraction.submodel import Part, submodel
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.differences import Difference
from onnx_lathe.runtime.running.taps import tapped

WEIGHTED = frozenset(
    (
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "Einsum",
        "LSTM",
        "GRU",
        "RNN",
        "QuantizeLinear",
        "DequantizeLinear",
    )
)
"""Operators of parts that a compressed model computes otherwise; the others are exact on the same values."""


@dataclass
class LocalError:
    """Of one part, which ends at the tensor of `pair`: over all calls, in the `worst` call (its number), and as the
    whole candidate has it, with the errors before it (`accumulated`). `refusal`: why the part does not run so.
    """

    pair: Pair
    accumulated: Difference
    parts: "Parts" = field(repr=False)
    own: Difference = field(default_factory=Difference)
    worst: int = 0
    worst_closeness: float = math.inf
    refusal: str = ""

    @property
    def closeness(self) -> float:
        return -math.inf if self.refusal else self.own.closeness

    def operators(self) -> set[str]:
        nodes = self.parts.look.other.nodes
        return {nodes[place].op_type for place in self.parts.nodes(self.pair.name)}

    def add(self, call: int, original: np.ndarray, other: np.ndarray) -> None:
        found = self.own.add(original, other)
        if found < self.worst_closeness:
            self.worst, self.worst_closeness = call, found


class Parts:
    """The candidate cut at the tensors that can be fed with the base's values."""

    def __init__(
        self,
        look: Look,
        accumulated: Sequence[tuple[Pair, Difference]],
        dropped: Collection[str] = frozenset(),
    ) -> None:
        """`dropped`: tensors at which it is not cut."""
        self.look, self.accumulated = look, accumulated
        self.cuts = {
            pair.name: pair
            for pair, found in accumulated
            if found.shapes is None and pair.name not in dropped
        }
        self.types = {pair.name: found.dtype for pair, found in accumulated}
        self.found = {pair.name: (pair, found) for pair, found in accumulated}

    def targets(self) -> list[LocalError]:
        """The ends of all parts, in the order of execution: tensors that can be compared, and those of another shape
        that reach none of them.
        """
        kept = [name for name in self.found if name in self.cuts]
        inside = {place for name in kept for place in self.nodes(name)}
        changed = [name for name in self.found if name not in self.cuts]
        for name in changed:
            within = self.look.other.needed([name], {*self.cuts, *changed})[1]
            if self.found[name][0].place not in inside and not set(within) & set(changed):
                kept.append(name)
        order = list(self.found)
        return [LocalError(*self.found[name], self) for name in sorted(kept, key=order.index)]

    def without(self, dropped: Collection[str]) -> "Parts":
        """Longer ones, which go on over these tensors."""
        return Parts(self.look, self.accumulated, {*dropped, *(self.found.keys() - self.cuts.keys())})

    def needs(self, name: str) -> list[str]:
        """What the part that ends at the tensor is fed with."""
        return self.look.other.needed([name], self.cuts)[1]

    def nodes(self, name: str) -> list[int]:
        return self.look.other.needed([name], self.cuts)[0]

    def part(self, names: Sequence[str]) -> Part:
        return submodel(self.look.candidate, self.look.other, names, self._given())

    def _given(self) -> dict[str, np.dtype]:
        return {name: self.types[name] for name in self.cuts}

    def fed(self, part: Part, feeds: Feeds, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the part reads: the base's values in the candidate's types."""
        found = {}
        for name in part.inputs:
            pair = self.cuts.get(name)
            found[name] = (
                feeds[name] if pair is None else values[pair.base].astype(self.types[name], copy=False)
            )
        return found

    def base_session(self, part: Part) -> Any:
        """Of the base, with all that the part is fed with or compared to as outputs."""
        ends = [self.found[name][0].base for name in part.outputs.values()]
        names = [*ends, *(self.cuts[name].base for name in part.inputs if name in self.cuts)]
        return tapped(self.look.base, [name for name in names if name in self.look.flow.makers])


def local_errors(parts: Parts, calls: Calls, ui: Ui, ends: Sequence[str] | None = None) -> list[LocalError]:
    """Of every part, or of those that end at these tensors, over all calls, group by group."""
    found = parts.targets() if ends is None else [LocalError(*parts.found[name], parts) for name in ends]
    sizes = tensor_bytes(parts.look.base, calls.first())
    done: list[LocalError] = []

    def held(one: LocalError) -> int:
        """The end and what is fed: most parts read a tensor or two of about that size."""
        return 3 * sizes.get(one.pair.base, UNKNOWN_BYTES)

    def observe(group: list[LocalError]) -> None:
        part = parts.part([one.pair.name for one in group])
        base, session = parts.base_session(part), ort.session(part.model, integer=False)
        fresh = {one.pair.name: LocalError(one.pair, one.accumulated, parts) for one in group}
        for number, feeds in enumerate(calls):
            values = {**feeds, **ort.run(base, feeds)}
            computed = ort.run(session, parts.fed(part, feeds, values))
            for name, whole in part.outputs.items():
                fresh[whole].add(number, values[fresh[whole].pair.base], computed[name])
            ui.status(f"layer by layer: call {number + 1} on {len(done) + len(group)} of {len(found)} layers")
        done.extend(fresh.values())

    def failed(one: LocalError, error: ModelError) -> None:
        one.refusal = str(error)
        done.append(one)

    for group in grouped(found, held):
        one_by_one(group, observe, failed)
    return done


def typical(errors: Sequence[LocalError]) -> float:
    """The median closeness of parts with weights or quantizers, infinite if most change nothing."""
    finite = sorted(one.closeness for one in errors if not one.refusal and one.operators() & WEIGHTED)
    return finite[len(finite) // 2] if finite else math.inf
