"""One training: modules are built and checked, the hook runs seeded on the chosen device, and its weights
are checked.
"""

import hashlib
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch

from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.protocols import Shaping
from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training import agreement
from onnx_lathe.runtime.training.hooks import guarded, hook_place, load_hook
from onnx_lathe.runtime.training.job import RetrainJob
from onnx_lathe.runtime.training.loop.builtin import retrain
from onnx_lathe.runtime.training.loop.holdout import held_out
from onnx_lathe.runtime.training.memory import budget
from onnx_lathe.runtime.training.parallel.strategy import Strategy
from onnx_lathe.runtime.training.setup import TrainingSetup
from onnx_lathe.runtime.training.state import JobState
from onnx_lathe.runtime.training.tiled import Tiled
from onnx_lathe.tiles import Tiles


def train(
    setup: TrainingSetup,
    model: onnx.ModelProto,
    settings: Mapping[str, Any],
    shaping: Shaping | None = None,
    workers: Strategy | None = None,
    tiles: Mapping[str, Tiles] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """(values of the trained initializers, metrics). See TorchTrainer.train."""
    hook = None if setup.hook is None else load_hook(setup.hook, setup.log)
    workers = Strategy() if workers is None else workers
    device = _device(workers.group.device(setup.device))
    setup.progress("comparing PyTorch with ONNX Runtime")
    module = _module(
        model,
        setup,
        learn_scales=settings["learn_scales"],
        train_normalization=settings["normalization"] == "train",
    )
    teacher = None if setup.teacher is None else _module(setup.teacher, setup).requires_grad_(False).eval()
    tried = Tiled(module, tiles or {}, teacher, setup.data)
    shape = Shape(module, shaping, workers)
    data, validation = _hold_out(setup, settings)
    workers.begin(model, settings, data.count, list(module.parameters()))
    broken = {name for name, value in module.values().items() if not _is_finite(value)}
    state = None if setup.state is None else JobState(setup.state, _identity(setup, model, settings), shape)
    job = RetrainJob(
        data=workers.share(data),
        validation=validation,
        teacher=None if teacher is None else teacher.to(device),
        epochs=settings["epochs"],
        device=device,
        step=setup.step,
        settings=settings,
        seed=settings["seed"],
        progress=setup.progress,
        shaped=shaping is not None,
        shape=shape,
        workers=workers,
        memory=setup.memory,
        state=None if state is None else workers.state(state),
    )
    before, started = tried.metrics("before"), time.perf_counter()
    with _reproducible(job.seed, device):
        if hook is None or setup.hook is None:
            retrain(module.to(device), job)
        else:
            folder = hook_place(setup.hook)[0].parent
            with guarded(f"retraining hook '{setup.hook}' failed", setup.log, folder):
                hook(module.to(device), job)
        shape(1.0)
        after = tried.metrics("after")
    values = workers.agreed(module.values())
    _check_finite(values, broken)
    seconds = time.perf_counter() - started
    metrics = {"epochs": float(job.epochs), "seconds": seconds} | _numbers(job) | workers.metrics()
    return values, metrics | before | after | budget.job_peak(device)


def _check_finite(values: Mapping[str, np.ndarray], broken: Container[str]) -> None:
    """Raises PassError for a weight that is NaN or infinite and was not before, as those in `broken` were."""
    for name, value in values.items():
        if name not in broken and not _is_finite(value):
            raise PassError(
                f"training made weight '{name}' NaN or infinite; "
                "the model is left as it was; give a smaller rate="
            )


def _numbers(job: RetrainJob) -> dict[str, float]:
    """The job's metrics, whatever type of number a hook gave. What is no number is left out, and said: a
    training is not lost for it.
    """
    numbers = {}
    for name, value in job.metrics.items():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError):
            job.progress(f"job.metrics['{name}'] is no number, so the report is without it")
    return numbers


def _is_finite(value: np.ndarray) -> bool:
    return bool(np.isfinite(value.astype(np.float64)).all())


class Shape:
    """`RetrainJob.shape`: lets every so many calls through to the pass, the first and one with 1.0 always."""

    def __init__(self, module: GraphModule, shaping: Shaping | None, workers: Strategy) -> None:
        self.module, self.shaping, self.workers, self.calls = module, shaping, workers, 0

    def __call__(self, done: float) -> None:
        if self.shaping is None:
            return
        if done >= 1 or self.calls % self.shaping.every == 0:
            self.workers.gather()
            self.module.impose(self.shaping(done, self.module.trained()))
        self.calls += 1

    def state(self) -> dict[str, Any]:
        """For JobState: what the pass has chosen, and what the module reads by now."""
        if self.shaping is None:
            return {}
        return {
            "calls": self.calls,
            "chosen": _tensors(self.shaping.state()),
            "imposed": _tensors(self.module.imposed()),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        if self.shaping is not None:
            self.calls = state["calls"]
            self.shaping.restore({name: tensor.numpy() for name, tensor in state["chosen"].items()})
            self.module.impose({name: tensor.numpy() for name, tensor in state["imposed"].items()})


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in arrays.items()}


def _module(model: onnx.ModelProto, setup: TrainingSetup, **choices: bool) -> GraphModule:
    module = GraphModule(model, freeze=True, **{name: choice for name, choice in choices.items() if choice})
    agreement.check(model, module.eval(), setup.data)
    return module.train()


def _hold_out(setup: TrainingSetup, settings: Mapping[str, Any]) -> tuple[DataSource, DataSource | None]:
    """(data to train on, data to choose the epoch by)."""
    if not settings["holdout"]:
        return setup.data, setup.validation
    return held_out(setup.data, settings["holdout"], settings["seed"])


def _identity(setup: TrainingSetup, model: onnx.ModelProto, settings: Mapping[str, Any]) -> str:
    """A hash of all that the result depends on."""
    digest = hashlib.blake2b(digest_size=16)
    for network in (model, setup.teacher):
        if network is not None:
            for tensor in network.graph.initializer:
                digest.update(tensor.SerializeToString(deterministic=True))
            for part in [*network.graph.node, *network.metadata_props]:
                digest.update(part.SerializeToString(deterministic=True))
    digest.update(f"{sorted(settings.items())} {setup.data.fingerprint} {setup.hook} {setup.device}".encode())
    return digest.hexdigest()


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
