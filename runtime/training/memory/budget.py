"""Makes a training fit a memory budget: measures what the backward pass needs of each step of the graph,
then chooses what is kept.

What is counted are activations: all tensors made between the begin of the forward and the end of the
backward pass. Weights, their gradients, the optimizer and the samples themselves come on top; so does, for
the whole process, what `job_peak` reports.
"""

import math
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from onnx_lathe.errors import PassError
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training.memory.recompute import Activation, Costs, Profile, choose, smallest

ATTEMPTS = 4
"""Plans that are tried: what a step needs while it runs shows only then, and the next plan allows for it."""


Most = Callable[..., list[float]]
"""The largest of each number over all workers."""


def _alone(*values: float) -> list[float]:
    return list(values)


def fit(
    module: GraphModule, run: Callable[[], Tensor], budget: int | None, most: Most = _alone
) -> dict[str, float]:
    """Has `module` keep so little in training that its activations fit `budget` bytes, and compute the rest
    again.

    `run` does the forward pass of one full batch, and returns the loss; it is called a few times, and
    leaves weights, statistics and random numbers as they were. As little as possible is computed again. On
    a GPU, what is kept goes to host memory if nothing else helps. None as budget only measures. Several
    workers call it together, with `Strategy.most`, before DistributedDataParallel gets the module: they have
    to choose alike, because batch normalization makes them wait for each other whenever one runs.

    Returns activation_bytes (what they would take if all were kept), activation_peak_bytes (what they take,
    as measured in the end) and recomputed (share of the time of the forward pass). Raises PassError naming
    the least possible budget if that is larger.
    """
    with _undisturbed(module):
        module.checkpoint()
        profile = _agreed(measure(module, run), most)
        cuts, peak = _fitted(module, run, profile, math.inf if budget is None else budget, most)
    costs = Costs(profile)
    return {
        "activation_bytes": float(costs.rest(0)),
        "activation_peak_bytes": float(peak),
        "recomputed": costs.recomputed(cuts) / max(sum(profile.seconds), 1e-9),
    }


def _agreed(profile: Profile, most: Most) -> Profile:
    """The same for all workers: their processors do not take equally long, and their samples need not be
    equally many.
    """
    until = [-1.0 if seconds is None else seconds for seconds in profile.until]
    sizes = [float(activation.size) for activation in profile.activations]
    numbers = iter(most(*profile.seconds, *until, *sizes))
    seconds = list(islice(numbers, len(until)))
    until_agreed = [None if number < 0 else number for number in islice(numbers, len(until))]
    activations = [
        replace(activation, size=int(size))
        for activation, size in zip(profile.activations, numbers, strict=True)
    ]
    return replace(profile, seconds=seconds, until=until_agreed, activations=activations)


def _fitted(
    module: GraphModule, run: Callable[[], Tensor], profile: Profile, budget: float, most: Most
) -> tuple[Sequence[int], int]:
    """(cuts, measured peak in bytes) that the module is left with."""
    room = budget
    for _ in range(ATTEMPTS):
        cuts = choose(profile, room)
        if cuts is None:
            break
        module.checkpoint(cuts)
        peak = int(*most(peak_bytes(module, run)))
        if peak <= budget:
            return cuts, peak
        room -= max(peak - budget, budget / 100)
    least = smallest(profile)
    offers = (
        [(least, False), (least, True), ((), True)] if _device(module).type == "cuda" else [(least, False)]
    )
    peaks = []
    for cuts, offload in offers:
        module.checkpoint(cuts, offload)
        peaks.append(int(*most(peak_bytes(module, run))))
        if peaks[-1] <= budget:
            return cuts, peaks[-1]
    module.checkpoint()
    raise PassError(
        f"the memory budget of {_written(budget, math.floor)} is too small: activations of one batch need at least "
        f"{_written(min(peaks), math.ceil)}, "
        f"however much is computed again; allow more, or give a smaller batch="
    )


def measure(module: GraphModule, run: Callable[[], Tensor]) -> Profile:
    """Profile of `run` without segments; its memory stays small, as nothing is really saved. The faster of
    two times counts.
    """
    first, second = _Recorder(module).record(run), _Recorder(module).record(run)
    until = [
        None if a is None or b is None else min(a, b) for a, b in zip(first.until, second.until, strict=True)
    ]
    return Profile(
        second.steps, second.activations, list(map(min, first.seconds, second.seconds)), until, second.weights
    )


class _Recorder:
    def __init__(self, module: GraphModule) -> None:
        self.segments, self.device = module.segments, _device(module)
        count = len(self.segments.steps)
        self.seconds = [0.0] * count
        self.until: list[float | None] = [None] * count
        self.weights = [0] * count
        self.activations: list[Activation] = []
        self.known: Any = WeakIdKeyDictionary()
        """Storage -> its Activation; None for weights, constants and inputs."""
        self.number, self.began = 0, 0.0
        for tensor in (*module.parameters(), *module.buffers()):
            self.known[tensor.untyped_storage()] = None

    def record(self, run: Callable[[], Tensor]) -> Profile:
        self.segments.watch = self.watch
        try:
            with saved_tensors_hooks(self.pack, lambda nothing: nothing):
                run()
        finally:
            self.segments.watch = None
        return Profile(len(self.seconds), self.activations, self.seconds, self.until, self.weights)

    def watch(self, number: int, values: Sequence[Any]) -> None:
        """A graph at a fixed batch size runs several times; what its steps need is then added up."""
        now = self.clock()
        if number == 0:
            for value in values:
                if isinstance(value, Tensor):
                    self.known.setdefault(value.untyped_storage(), None)
        else:
            self.seconds[number - 1] += now - self.began
            self.made(self.segments.steps[number - 1].outputs, values)
        self.number = number
        if number < len(self.seconds):
            self.read(self.segments.steps[number].inputs, values)
        else:
            self.read([slot for slot, last in self.segments.last_read.items() if last == number], values)
        self.began = self.clock()

    def made(self, slots: Sequence[int], values: Sequence[Any]) -> None:
        for slot in slots:
            activation = self.activation(values[slot])
            if activation is not None:
                activation.has_gradient |= values[slot].requires_grad

    def read(self, slots: Sequence[int], values: Sequence[Any]) -> None:
        for slot in slots:
            activation = self.activation(values[slot])
            if activation is not None and self.number not in activation.reads:
                activation.reads.append(self.number)
            elif (
                activation is None
                and isinstance(values[slot], Tensor)
                and values[slot].requires_grad
                and self.number < len(self.weights)
            ):
                self.weights[self.number] += values[slot].nbytes

    def pack(self, tensor: Tensor) -> None:
        if self.number < len(self.until):
            self.until[self.number] = self.clock() - self.began
        activation = self.activation(tensor)
        if activation is not None and activation.saved is None:
            activation.saved = self.number

    def activation(self, value: Any) -> Activation | None:
        """None for a weight, a constant, an input, and for what is no tensor."""
        if not isinstance(value, Tensor):
            return None
        storage = value.untyped_storage()
        if storage not in self.known:
            self.known[storage] = Activation(self.number, storage.nbytes())
            self.activations.append(self.known[storage])
        activation: Activation | None = self.known[storage]
        return activation

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def peak_bytes(module: GraphModule, run: Callable[[], Tensor]) -> int:
    """Largest size of all tensors that `run` and its backward pass hold at once; gradients of weights are
    dropped when they are there.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    before = [parameter.grad for parameter in parameters]

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    hooks = [parameter.register_post_accumulate_grad_hook(drop) for parameter in parameters]
    device = _device(module)
    try:
        for parameter in parameters:
            parameter.grad = None
        if device.type != "cuda":
            with _Live() as live:
                run().backward()
            return live.peak
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        run().backward()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - start
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


class _Live(TorchDispatchMode):
    """Follows all tensors made within but for single numbers: `peak` is the largest number of bytes that
    they held at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self.known.setdefault(tensor.untyped_storage(), None)
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if (
                isinstance(tensor, Tensor)
                and tensor.numel() > 1
                and (storage := tensor.untyped_storage()) not in self.known
            ):
                self.known[storage] = None
                weakref.finalize(storage, self.freed, storage.nbytes())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return result

    def freed(self, size: int) -> None:
        self.now -= size


@contextmanager
def _undisturbed(module: GraphModule) -> Iterator[None]:
    """The module trains within; then its statistics, mode and the random numbers to come are what they
    were.
    """
    buffers, training, device = (
        [(buffer, buffer.clone()) for buffer in module.buffers()],
        module.training,
        _device(module),
    )
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        try:
            module.train()
            yield
        finally:
            module.train(training)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def job_peak(device: torch.device) -> dict[str, float]:
    """peak_memory_bytes: the most that this process ever had in memory, on a GPU that PyTorch allocated
    there; {} where nobody knows.
    """
    if device.type == "cuda":
        return {"peak_memory_bytes": float(torch.cuda.max_memory_allocated(device))}
    try:
        import resource
    except ImportError:  # Windows
        return {}
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_memory_bytes": float(largest if sys.platform == "darwin" else largest * 1024)}


def _device(module: GraphModule) -> torch.device:
    return next(module.parameters()).device


def _written(size: float, rounded: Callable[[float], int]) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{rounded(size / scale * 100) / 100:g} {unit}"
    return f"{rounded(size)} bytes"
