"""Which weights become zero: so many of each budget, of smallest magnitude or score, those of useless hidden
units first.

A unit that nothing reads, or nothing writes, has no use; its weights go before all others, so that the
number of zeros that was asked for is made of weights that would have done nothing anyway. Which units have
no use depends on the choice: it is made again until none is new.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnx_lathe.passes.numerics.sparsity.hidden_units import Link
from onnx_lathe.passes.numerics.sparsity.lamp import smallest_scores
from onnx_lathe.passes.numerics.sparsity.magnitude import Threshold, kept, smallest, with_zeros

SCORES: Mapping[str, Callable[[Iterable[np.ndarray], int], list[Threshold]]] = {
    "magnitude": smallest,
    "lamp": smallest_scores,
}

Read = Callable[[str], np.ndarray]
"""Float32 values of a weight by name; called again rather than kept: all together may be too large."""


@dataclass(frozen=True)
class Budget:
    """Weights that compete: `count` of all their elements become zero."""

    names: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class Choice:
    """A threshold for each weight, on its values as `scored` gives them."""

    links: Sequence[Link]
    thresholds: dict[str, Threshold]
    useless: list[np.ndarray]
    unread: list[np.ndarray]
    """Of each link: the units that go first, and those that nothing reads then; bool [units]."""

    @cached_property
    def _links_of(self) -> Mapping[str, Sequence[int]]:
        """Weight -> places of the links that it is part of."""
        found: dict[str, list[int]] = {}
        for place, link in enumerate(self.links):
            for name in dict.fromkeys((link.first, link.second)):
                found.setdefault(name, []).append(place)
        return found

    def scored(self, name: str, values: np.ndarray) -> np.ndarray:
        """The weight as it competes: what writes or reads useless units goes first, behind what is zero
        already.
        """
        near = self._links_of.get(name, ())
        dead = [(self.links[one], self.useless[one]) for one in near if self.useless[one].any()]
        for link, units in dead:
            if name == link.first:
                values = link.fade_incoming(values, units)
        for link, units in dead:  # afterwards: what is both counts as outgoing
            if name == link.second:
                values = link.fade_outgoing(values, units)
        return values

    def kept(self, name: str, values: np.ndarray) -> np.ndarray:
        """What does not become zero: bool, shaped like the weight."""
        return kept(self.scored(name, values), self.thresholds[name])

    def zeroed(self, name: str, values: np.ndarray) -> bytes:
        """The weight with its zeros, as `with_zeros` gives it."""
        scored = self.scored(name, values)
        if scored is values:
            return with_zeros(values, self.thresholds[name])
        return np.where(kept(scored, self.thresholds[name]), values, np.float32(0)).tobytes()

    def used(self, name: str, values: np.ndarray) -> np.ndarray:
        """What is not zero afterwards, of any weight: one without a threshold stays as it is."""
        threshold = self.thresholds.get(name)
        if threshold is not None and threshold.bits:  # selects every zero
            return self.kept(name, values)
        return values != 0 if threshold is None else (values != 0) & self.kept(name, values)


def choose(
    budgets: Sequence[Budget],
    read: Read,
    links: Sequence[Link] = (),
    score: str = "magnitude",
    constants: bool = False,
) -> Choice:
    """Exactly `count` zeros in each budget. With `constants`, units that nothing writes count as useless
    too: they change the output.
    """
    choice = Choice(
        links,
        {},
        [np.zeros(link.units, bool) for link in links],
        [np.zeros(link.units, bool) for link in links],
    )
    while True:
        for budget in budgets:
            arrays: Iterable[np.ndarray] = _Scored(budget.names, read, choice)
            if len(budget.names) == 1:
                arrays = list(arrays)
            choice.thresholds.update(zip(budget.names, SCORES[score](arrays, budget.count), strict=True))
            del arrays
        before = sum(int(units.sum()) for units in choice.useless)
        for number, link in reversed(list(enumerate(links))):  # what a layer loses shows in the one before it
            units = choice.useless[number]
            choice.unread[number] = ~link.read(choice.used(link.second, read(link.second)))
            found = units | choice.unread[number]
            if constants:
                found |= ~link.written(choice.used(link.first, read(link.first)))
            if (
                not found.all()
            ):  # else the network is cut in two, and every weight would be as good as any other
                units[:] = found
        if sum(int(units.sum()) for units in choice.useless) == before:
            return choice


@dataclass(frozen=True)
class _Scored:
    """The arrays of a budget, read one by one every time they are gone through."""

    names: Sequence[str]
    read: Read
    choice: Choice

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.choice.scored(name, self.read(name)) for name in self.names)
