"""Hidden units between two layers, as slices of the layers' weights: which of them nothing writes, and
which nothing reads.

    first weight [.., unit, ..] -> unit -> second weight [.., block of inputs per unit, ..]

A unit whose outgoing weights are all zero still costs its incoming ones, and one without incoming weights
is a constant.
"""

from dataclasses import dataclass

import numpy as np

_INCOMING, _OUTGOING = np.float32(1e-42), np.float32(1e-45)
"""What the weights of units that go first compete as: less than any other weight does. Outgoing ones are
least: if an incoming one became zero in place of one of them, the unit would be read again.
"""


@dataclass(frozen=True)
class Link:
    """Layers of which the second alone reads what the first writes, unit by unit; see passes/prune/chains.py.

    `output_axis` of the first weight counts units. `input_axis` of the second weight counts its inputs,
    `block` neighbours per unit. That of a grouped convolution counts the inputs of one group, and its axis
    0 the outputs of all groups.
    """

    first: str
    second: str
    bias: str | None
    """Of the first layer, one element per unit, if nothing else reads it."""
    units: int
    output_axis: int
    input_axis: int
    block: int = 1
    groups: int = 1

    def written(self, first: np.ndarray) -> np.ndarray:
        """Units with an incoming weight: bool [units]. `first` is shaped like the first weight; anything
        but zero is a weight.
        """
        return _any_behind(np.moveaxis(first, self.output_axis, 0), 1)

    def read(self, second: np.ndarray) -> np.ndarray:
        """Units with an outgoing weight: bool [units]."""
        return _any_behind(_any_behind(self._inputs(second), 2).reshape(self.units, self.block), 1)

    def fade_incoming(self, first: np.ndarray, units: np.ndarray) -> np.ndarray:
        """A copy of the first weight in which those into `units`, bool [units], go before all others, what
        is 0 excepted.
        """
        changed = np.array(first, order="C")
        _fade(np.moveaxis(changed, self.output_axis, 0), units, _INCOMING)
        return changed

    def fade_outgoing(self, second: np.ndarray, units: np.ndarray) -> np.ndarray:
        """The same of the second weight, with those that read `units`; they go before incoming ones."""
        changed = np.array(second, order="C")
        _fade(self._inputs(changed), np.repeat(units, self.block).reshape(self.groups, -1), _OUTGOING)
        return changed

    def _inputs(self, second: np.ndarray) -> np.ndarray:
        """A view [groups, inputs of one group, ...]."""
        if self.groups == 1:
            return np.moveaxis(second, self.input_axis, 0)[np.newaxis]
        return np.moveaxis(second.reshape(self.groups, -1, *second.shape[1:]), self.input_axis + 1, 1)


def _any_behind(array: np.ndarray, axes: int) -> np.ndarray:
    """Whether anything is not zero behind the first `axes` axes."""
    return np.asarray(array.any(tuple(range(axes, array.ndim))))


def _fade(weights: np.ndarray, which: np.ndarray, magnitude: np.float32) -> None:
    """`which`: bool, over the first axes of `weights`."""
    weights[which] = np.where(weights[which] == 0, np.float32(0), magnitude)
