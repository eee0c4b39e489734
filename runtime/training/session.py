"""One training: modules are built and checked, the hook runs seeded on the chosen device, and its weights are checked."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch

from lathe import PassError, UsageError
from runtime.torch_bridge import GraphModule
from runtime.training import agreement
from runtime.training.builtin import retrain
from runtime.training.hooks import guarded, load_hook
from runtime.training.job import RetrainJob, Shaping

if TYPE_CHECKING:
    from runtime.training.trainer import TorchTrainer


def train(
    trainer: "TorchTrainer", model: onnx.ModelProto, settings: Mapping[str, Any], shaping: Shaping | None = None
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """(values of the trained initializers, metrics). See TorchTrainer.train."""
    hook = None if trainer.hook is None else load_hook(trainer.hook, trainer.log)
    device = _device(trainer.device)
    trainer.progress("comparing PyTorch with ONNX Runtime")
    module = _module(model, trainer)
    teacher = None if trainer.teacher is None else _module(trainer.teacher, trainer).requires_grad_(False)
    shape = _Shape(module, shaping)
    broken = {name for name, weight in module.weights().items() if not torch.isfinite(weight).all()}
    job = RetrainJob(
        data=trainer.data,
        validation=trainer.validation,
        teacher=None if teacher is None else teacher.to(device),
        epochs=settings["epochs"],
        device=device,
        step=trainer.step,
        settings=settings,
        seed=settings["seed"],
        progress=trainer.progress,
        shaped=shaping is not None,
        shape=shape,
    )
    started = time.perf_counter()
    with _reproducible(job.seed, device):
        if hook is None:
            retrain(module.to(device), job)
        else:
            with guarded(f"retraining hook '{trainer.hook}' failed", trainer.log):
                hook(module.to(device), job)
        shape(1.0)
    values = module.values()
    for name, value in values.items():
        if name not in broken and not np.isfinite(value.astype(np.float64)).all():
            raise PassError(f"training made weight '{name}' NaN or infinite; the model is left as it was; give a smaller rate=")
    return values, {"epochs": float(job.epochs), "seconds": time.perf_counter() - started} | job.metrics


class _Shape:
    """`RetrainJob.shape`: lets every so many calls through to the pass, the first and one with 1.0 always."""

    def __init__(self, module: GraphModule, shaping: Shaping | None) -> None:
        self.module, self.shaping, self.calls = module, shaping, 0

    def __call__(self, done: float) -> None:
        if self.shaping is None:
            return
        if done >= 1 or self.calls % self.shaping.every == 0:
            self.module.impose(self.shaping(done, self.module.trained()))
        self.calls += 1


def _module(model: onnx.ModelProto, trainer: "TorchTrainer") -> GraphModule:
    module = GraphModule(model)
    agreement.check(model, module, trainer.data)
    return module


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"there is no device '{name}'; give cpu, cuda or cuda:1") from error


@contextmanager
def _reproducible(seed: int, device: torch.device) -> Iterator[None]:
    """The same seed gives the same weights on a CPU; the caller's random state comes back afterwards.

    On CUDA the gradient of a codebook is summed in any order, so that the last bits may differ.
    """
    cudnn = torch.backends.cudnn
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True),
    ):
        torch.manual_seed(seed)
        yield
