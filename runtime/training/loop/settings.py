"""The options of a training pass (passes/core/training_options.py) as the built-in hook reads them. Their
defaults and bounds are the pass's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from onnx_lathe.errors import UsageError

RATES = {"adamw": 2e-3, "sgd": 5e-2}
"""Learning rate where the option is none."""

MOMENTUM = 0.9
"""Where the option is none."""


@dataclass(frozen=True)
class Settings:
    epochs: int
    rate: float | None
    optimizer: str
    batch: int
    weight_decay: float
    momentum: float
    distill: float
    temperature: float
    label_smoothing: float
    decay: str
    warmup: float | None
    clip: float
    shift: int
    flip: bool
    precision: str
    holdout: float
    patience: int
    learn_scales: bool
    normalization: str
    gradients: str
    gradient_rank: int
    gradient_threshold: float
    seed: int

    @property
    def peak_rate(self) -> float:
        return RATES[self.optimizer] if self.rate is None else self.rate

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> "Settings":
        """Raises UsageError naming an option that is missing."""
        missing = [field.name for field in fields(cls) if field.name not in options]
        if missing:
            raise UsageError(
                f"retraining needs the options {', '.join(missing)}; see: optimize passes retrain"
            )
        given = {field.name: options[field.name] for field in fields(cls)}
        return cls(**given | ({"momentum": MOMENTUM} if given["momentum"] is None else {}))
