"""Which operations, number types and weight forms a package may hold: it follows from the oldest system it is for."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_lathe.runtime.targets.coreml.package import library

DEPLOYMENTS = {"iOS16": 16, "iOS17": 17, "iOS18": 18}
PRECISIONS = ("float32", "float16")
LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Form:
    """`deployment`: the oldest system, as DEPLOYMENTS has it; `precision`: in which the program computes."""

    deployment: str = "iOS17"
    precision: str = "float32"

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.precision)

    @property
    def cast(self) -> str:
        """As MIL names the type."""
        return {"float32": "fp32", "float16": "fp16"}[self.precision]

    @property
    def quantizes(self) -> bool:
        """Whether activations may be integers: `quantize` and `dequantize` came with iOS 17."""
        return DEPLOYMENTS[self.deployment] >= 17

    @property
    def blocks(self) -> bool:
        """Whether weights may have 4 bits and scales for blocks, and be sparse and a codebook at once: iOS 18."""
        return DEPLOYMENTS[self.deployment] >= 18

    def target(self) -> Any:
        return getattr(library().target, self.deployment)
