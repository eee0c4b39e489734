"""How near what the simulator computes is to what ONNX Runtime does of the same model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_lathe.errors import TargetError
from onnx_lathe.runtime.targets.bundle.ports import Port
from onnx_lathe.runtime.targets.qnn.session import is_batched

ALLOWED = {True: 0.3, False: 0.1}
"""Of an output's length, of quantized models and of others. Steps of INT8 multiply through a network (a ResNet-20 differs
by 0.02, a MobileNetV2 by 0.08); what is wrong, such as 4-bit weights without a zero-point, is off by its whole size.
"""


@dataclass(frozen=True)
class Agreement:
    """By output its distance relative to its length; of integers and bools, how many differ."""

    found: Mapping[str, float]
    allowed: float
    library: str

    @classmethod
    def of(
        cls, wanted: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], quantized: bool, library: str
    ) -> "Agreement":
        found = {name: _distance(value, got[name]) for name, value in wanted.items()}
        return cls(found, ALLOWED[quantized], library)

    @property
    def worst(self) -> str:
        return max(self.found, key=lambda name: self.found[name])

    def check(self) -> None:
        """Raises TargetError for an output that is another."""
        if not self.found[self.worst] <= self.allowed:
            raise TargetError(
                f"the chip's simulator computes another output '{self.worst}' than ONNX Runtime: it is off by "
                f"{self.found[self.worst]:.2g} of its size, {self.allowed:g} is allowed; nothing is written"
            )

    def as_json(self) -> dict[str, Any]:
        return {
            "in": f"the simulator of {self.library}",
            "worst_output": self.worst,
            "relative_error": self.found[self.worst],
            "allowed": self.allowed,
        }


def first_sample(inputs: Sequence[Port], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """As many samples as a program takes; None for feeds of other sizes than it is for."""
    found = {}
    for port in inputs:
        values = np.asarray(feeds[port.tensor])
        if is_batched(port) and values.ndim and len(values):
            values = np.resize(values, (port.tensor_shape[0], *values.shape[1:]))
        if values.shape != port.tensor_shape:
            return None
        found[port.tensor] = values
    return found


def _distance(wanted: np.ndarray, got: np.ndarray) -> float:
    if wanted.shape != got.shape:
        return float("inf")
    if not np.issubdtype(wanted.dtype, np.floating):
        return float(np.mean(wanted != got)) if wanted.size else 0.0
    one, other = wanted.astype(np.float64), got.astype(np.float64)
    length = float(np.linalg.norm(one)) or 1.0
    found = float(np.linalg.norm(one - other)) / length
    return found if np.isfinite(found) else float("inf")
