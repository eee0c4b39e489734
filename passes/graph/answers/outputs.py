"""What an error inside a network is worth: how far its outputs move by it.

The same error of two layers' answers is not the same for what comes out at the end. So each one's losses are multiplied
with what its first ones do to the outputs, for a share of the losses that is alike.
Source: Frantar and Alistarh, "SPDY", ICML 2022, section 3.3, whose coefficients are searched for; here they are measured.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx

from onnx_lathe.passes.core.services import Calibrator
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.model import export_model, import_model

PROBED = 0.05
"""What is lost, about, where the outputs are looked at."""
LEAST = 0.01
"""Of the largest worth: nothing is for nothing."""


class Outputs:
    """Of a network, on its first `samples` calibration samples, or a few more. `left_out`: outputs by which nothing can be
    told, and why.
    """

    def __init__(self, graph: Graph, calibrator: Calibrator, samples: int) -> None:
        self.model, self.calibrator, self.samples = export_model(graph), calibrator, samples
        self.names = [str(one.name) for one in graph.outputs if one.inputs and one.dtype == np.float32]
        self.left_out: dict[str, str] = {}
        self.wanted = self._observed(self.model) if self.names else []
        for name in self.names:
            reason = _useless([one[name] for one in self.wanted])
            if reason is not None:
                self.left_out[name] = reason
        self.names = [name for name in self.names if name not in self.left_out]

    def worth(self, edit: Callable[[Graph], None], loss: float) -> float:
        """By what a loss is multiplied that `edit` makes: the outputs' error over it. All are worth the same, 1, without
        outputs that can be compared, and nothing if there is no loss.
        """
        if loss <= 0:
            return 0.0
        return self.error(edit) / loss if self.names else 1.0

    def error(self, edit: Callable[[Graph], None]) -> float:
        """Mean squared error over the variance, of all outputs together, of the network that `edit` changes. An output that
        is of another size then, or no number, counts 1.
        """
        graph = import_model(self.model)
        edit(graph)
        found = self._observed(export_model(graph))
        return float(np.mean([_relative(*_joined(name, self.wanted, found)) for name in self.names]))

    def warnings(self, what: str) -> list[str]:
        """What a report says of outputs that were left out."""
        return [
            f"{what} does not see what the output {name} loses: {reason} on calibration data"
            for name, reason in self.left_out.items()
        ]

    def _observed(self, model: onnx.ModelProto) -> list[Mapping[str, np.ndarray]]:
        found, samples = list[Mapping[str, np.ndarray]](), 0
        for batch in self.calibrator.observe(model, self.names):
            found.append({name: batch[name].reshape(-1) for name in self.names})
            samples += batch.samples
            if samples >= self.samples:
                break
        return found


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
