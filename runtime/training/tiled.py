"""What convolutions by tiles in float16 cost the network: measured before training and after."""

import math
from collections.abc import Mapping

import torch

from onnx_lathe.protocols import TileTransform
from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.torch_bridge.arrays import to_torch

SAMPLES = 64


class Tiled:
    """Has `module` compute by `transforms` from now on; without any, all of this does nothing."""

    def __init__(
        self, module: GraphModule, transforms: Mapping[str, TileTransform], data: DataSource
    ) -> None:
        self.module, self.transforms, self.data = module, transforms, data
        module.tile(transforms)

    def metrics(self, when: str) -> dict[str, float]:
        """winograd_sqnr_before or _after, in dB: of the worst output by tiles, to the same weights' without,
        on the first SAMPLES samples. Left out where no output is a float.
        """
        if not self.transforms:
            return {}
        batch = next(iter(self.data.batches(SAMPLES)))
        device = next(self.module.parameters(), torch.empty(0)).device
        feeds = {name: to_torch(array).to(device) for name, array in batch.inputs.items()}
        was = self.module.training
        with torch.no_grad():
            by_tiles = self._outputs(feeds)
            self.module.tile({})
            exact = self._outputs(feeds)
        self.module.tile(self.transforms)
        self.module.train(was)
        found = [
            _sqnr(one.double(), other.double())
            for one, other in zip(exact, by_tiles, strict=True)
            if one.is_floating_point()
        ]
        return {f"winograd_sqnr_{when}": min(found)} if found else {}

    def _outputs(self, feeds: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        outputs = self.module.eval()(**feeds)
        return outputs if isinstance(outputs, tuple) else (outputs,)


def _sqnr(exact: torch.Tensor, found: torch.Tensor) -> float:
    """-inf if something found is not finite."""
    noise, signal = float((found - exact).square().sum()), float(exact.square().sum())
    if not math.isfinite(noise):
        return -math.inf
    return 10 * math.log10(signal / noise) if noise and signal else math.inf if not noise else -math.inf
