"""How near a network computed by tiles in float16 is to the original: before training and after."""

import math
from collections.abc import Mapping

import torch

from onnx_lathe.errors import PassError
from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.torch_bridge.arrays import to_torch
from onnx_lathe.tiles import Tiles

SAMPLES = 64


class Tiled:
    """Has `module` compute by `transforms` from now on. Without any, all of this does nothing.

    `teacher` is the original; without one, it is the module as it is now, without tiles.
    """

    def __init__(
        self,
        module: GraphModule,
        transforms: Mapping[str, Tiles],
        teacher: GraphModule | None,
        data: DataSource,
    ) -> None:
        self.module, self.active = module, bool(transforms)
        if self.active:
            batch = next(iter(data.batches(SAMPLES)))
            self.feeds = {name: to_torch(array) for name, array in batch.inputs.items()}
            self.original = _outputs(module if teacher is None else teacher, self.feeds)
            module.tile(transforms)

    def metrics(self, when: str) -> dict[str, float]:
        """winograd_sqnr_before or _after, in dB: of the module's worst output, to the original's, on the first
        SAMPLES samples. Left out where no output is a float.

        Raises PassError if one is not finite where the original's is: nothing could be learned from it.
        """
        if not self.active:
            return {}
        pairs = zip(self.original, _outputs(self.module, self.feeds), strict=True)
        found = [_sqnr(one.double(), other.double()) for one, other in pairs if one.is_floating_point()]
        if -math.inf in found:
            raise PassError(
                "convolutions as lathe.conv_algorithm says go beyond float16 on the training data; choose others by "
                "winograd(by=error, profile=arm64-fp16), or leave winograd= out of retrain"
            )
        return {f"winograd_sqnr_{when}": min(found)} if found else {}


def _outputs(module: GraphModule, feeds: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    device = next(module.parameters(), torch.empty(0)).device
    was = module.training
    with torch.no_grad():
        outputs = module.eval()(**{name: feed.to(device) for name, feed in feeds.items()})
    module.train(was)
    return [output.cpu() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _sqnr(exact: torch.Tensor, found: torch.Tensor) -> float:
    """Of what is finite in `exact`; -inf if something found is not."""
    finite = exact.isfinite()
    noise = float((found - exact)[finite].square().sum())
    if not math.isfinite(noise):
        return -math.inf
    return 10 * math.log10(max(float(exact[finite].square().sum()), 1e-300) / noise) if noise else math.inf
