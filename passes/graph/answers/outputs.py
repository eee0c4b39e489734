"""What an error inside a network is worth: how far its outputs move by it.

The same error of two layers' answers is not the same for what comes out at the end. So each one's losses are multiplied
with what its first ones do to the outputs, for a share of the losses that is alike.
Source: Frantar and Alistarh, "SPDY", ICML 2022, section 3.3, whose coefficients are searched for; here they are measured.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx

from onnx_lathe.passes.core.services import Calibrator
from onnx_lathe.passes.extraction.submodel import Flow, flow, submodel
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.answers.walk import frontier
from onnx_lathe.passes.graph.model import export_model, import_model

PROBED = 0.05
"""What is lost, about, where the outputs are looked at."""
LEAST = 0.01
"""Of the largest worth: nothing is for nothing."""
POINTS = (32, 16, 8, 4, 2)
"""Into how many parts the network is divided, at whose beginnings values are held."""
MOST_BYTES = 192 << 20
"""Of these values."""


class Outputs:
    """Of a network, on its first `samples` calibration samples, or a few more. `left_out`: outputs by which nothing can be
    told, and why. A changed network is run from the last of some points before its first change on, where values are held.
    """

    def __init__(self, graph: Graph, calibrator: Calibrator, samples: int) -> None:
        self.model = export_model(graph)
        self.whole, self.held = flow(self.model), calibrator.held(self.model, samples)
        self.names = [str(one.name) for one in graph.outputs if one.inputs and one.dtype == np.float32]
        self.points: list[tuple[int, list[str]]] = []
        self.wanted = self._hold() if self.names else []
        self.left_out: dict[str, str] = {}
        for name in self.names:
            reason = _useless([one[name] for one in self.wanted])
            if reason is not None:
                self.left_out[name] = reason
        self.names = [name for name in self.names if name not in self.left_out]

    def _hold(self) -> list[Mapping[str, np.ndarray]]:
        """The outputs; what some places read of those before them is held, of fewer where it takes too much memory."""
        for count in POINTS:
            places = np.linspace(0, len(self.whole.nodes), count, endpoint=False).astype(int)[1:]
            self.points = [(place, frontier(self.whole, place)) for place in np.unique(places).tolist()]
            keep = list(dict.fromkeys(name for _, names in self.points for name in names))
            found = self._run(self.model, self.whole, self.names, (), keep)
            if not keep or self.held.types:
                return found
        self.points = []
        return found

    def worth(self, edit: Callable[[Graph], None], loss: float, since: Collection[str] = ()) -> float:
        """By what a loss is multiplied that `edit` makes: the outputs' error over it. All are worth the same, 1, without
        outputs that can be compared, and nothing if there is no loss. `since`: as in `error`.
        """
        if loss <= 0:
            return 0.0
        return self.error(edit, since) / loss if self.names else 1.0

    def error(self, edit: Callable[[Graph], None], since: Collection[str] = ()) -> float:
        """Mean squared error over the variance, of all outputs together, of the network that `edit` changes. An output that
        is of another size then, or no number, counts 1. `since`: tensors without which, and what follows from them,
        nothing changes; none: all may.
        """
        graph = import_model(self.model)
        edit(graph)
        model = export_model(graph)
        first = min((self.whole.makers.get(name, 0) for name in since), default=0)
        given = next((names for place, names in reversed(self.points) if place <= first), [])
        names = [name for name in self.names if self.whole.makers[name] >= first]
        found = self._run(model, flow(model), names, given) if names else []
        errors = [_relative(*_joined(name, self.wanted, found)) for name in names]
        return sum(errors) / len(self.names)

    def warnings(self, what: str) -> list[str]:
        """What a report says of outputs that were left out."""
        return [
            f"{what} does not see what the output {name} loses: {reason} on calibration data"
            for name, reason in self.left_out.items()
        ]

    def _run(
        self,
        model: onnx.ModelProto,
        whole: Flow,
        names: Sequence[str],
        given: Collection[str],
        keep: Sequence[str] = (),
    ) -> list[Mapping[str, np.ndarray]]:
        types = {name: self.held.types[name] for name in given}
        part = submodel(model, whole, list(dict.fromkeys([*names, *keep])), types).model
        batches = self.held.run(part, names, keep, MOST_BYTES)
        return [{name: batch[name].reshape(-1) for name in names} for batch in batches]


def _joined(name: str, *each: Sequence[Mapping[str, np.ndarray]]) -> Iterator[np.ndarray]:
    return (np.concatenate([batch[name] for batch in batches]) for batches in each)


def _useless(batches: Sequence[np.ndarray]) -> str | None:
    """Why an error of an output with these values tells nothing."""
    values = np.concatenate(batches)
    if not np.isfinite(values).all():
        return "it has NaN or infinite elements"
    return None if values.size and np.var(values, dtype=np.float64) > 0 else "it never varies"


def _relative(wanted: np.ndarray, found: np.ndarray) -> float:
    if wanted.size != found.size:
        return 1.0
    error = float(np.mean(np.square(wanted.astype(np.float64) - found)))
    return error / float(np.var(wanted, dtype=np.float64)) if np.isfinite(error) else 1.0


def probed(losses: np.ndarray) -> int:
    """The place of the first loss that is PROBED, or of the last."""
    return min(int(np.searchsorted(losses, PROBED)), losses.size - 1)
