"""What an error inside a network is worth: how far its outputs move by it.

The same error of two layers' answers is not the same for what comes out at the end. So each one's losses are multiplied
with what its first ones do to the outputs, for a share of the losses that is alike.
Source: Frantar and Alistarh, "SPDY", ICML 2022, section 3.3, whose coefficients are searched for; here they are measured.
"""

from collections.abc import Callable, Mapping

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
    """Of a network, on its first `samples` calibration samples, or a few more."""

    def __init__(self, graph: Graph, calibrator: Calibrator, samples: int) -> None:
        self.model, self.calibrator, self.samples = export_model(graph), calibrator, samples
        self.names = [str(one.name) for one in graph.outputs if one.inputs and one.dtype == np.float32]
        self.wanted = self._observed(self.model) if self.names else []

    def error(self, edit: Callable[[Graph], None]) -> float:
        """Mean squared error over the variance, of all outputs together, of the network that `edit` changes. 1 without
        outputs that can be compared.
        """
        if not self.names:
            return 1.0
        graph = import_model(self.model)
        edit(graph)
        found = self._observed(export_model(graph))
        errors = [
            _relative(
                np.concatenate([one[name] for one in self.wanted]),
                np.concatenate([one[name] for one in found]),
            )
            for name in self.names
        ]
        return float(np.mean(errors))

    def _observed(self, model: onnx.ModelProto) -> list[Mapping[str, np.ndarray]]:
        found, samples = list[Mapping[str, np.ndarray]](), 0
        for batch in self.calibrator.observe(model, self.names):
            found.append({name: batch[name].reshape(-1) for name in self.names})
            samples += batch.samples
            if samples >= self.samples:
                break
        return found


def _relative(wanted: np.ndarray, found: np.ndarray) -> float:
    variance = float(np.var(wanted, dtype=np.float64))
    error = float(np.mean(np.square(wanted.astype(np.float64) - found)))
    return error / variance if variance > 0 and np.isfinite(error) else 1.0


def probed(losses: np.ndarray) -> int:
    """The place of the first loss that is PROBED, or of the last."""
    return min(int(np.searchsorted(losses, PROBED)), losses.size - 1)
