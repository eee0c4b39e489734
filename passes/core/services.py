"""What the pipeline gives a pass: services that run, train and time models, gathered in a Context."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx

from onnx_lathe.errors import PassError
from onnx_lathe.passes.graph.evaluate import Evaluator
from onnx_lathe.placement import CANONICAL, Placement
from onnx_lathe.protocols import BlockTask, FittedBlock, Observed, Profile, Shaping, TrainResult
from onnx_lathe.tiles import Tiles

T = TypeVar("T")


class TensorStatistics(Protocol):
    """Streamed statistics of one activation tensor over the calibration data."""

    minimum: float
    maximum: float

    def percentile(self, percent: float) -> tuple[float, float]:
        """Range (low, high) that holds the central `percent` of the values, from a histogram; never outside
        minimum..maximum.
        """

    def distribution(self) -> tuple[np.ndarray, np.ndarray]:
        """(edges [B + 1], ascending, counts [B]) of a histogram; the bins differ in width, and zero has one
        to itself.
        """


class Held(Protocol):
    """Samples of the calibration data, and values of tensors inside a network on them, held between runs of its parts."""

    @property
    def types(self) -> Mapping[str, np.dtype]:
        """Of what is held, by name."""

    def run(
        self,
        part: onnx.ModelProto | None,
        show: Sequence[str],
        keep: Collection[str] = (),
        most_bytes: int = 0,
    ) -> Iterator[Observed]:
        """Runs the part batch by batch, fed with what is held and with the samples, and gives `show`; when all batches
        are through, what was held gives way to `keep`, if that takes at most `most_bytes`. No part: nothing is computed.
        """


class Calibrator(Protocol):
    """Runs a model over the calibration data once, in bounded memory."""

    def statistics(
        self, model: onnx.ModelProto, tensors: Sequence[str], optional: Collection[str] = ()
    ) -> Mapping[str, TensorStatistics]:
        """Statistics by tensor name. What was asked of the same model before is answered without another
        run. Of `optional` tensors, those that hold NaN or infinity are left out.
        """

    def observe(self, model: onnx.ModelProto, tensors: Sequence[str]) -> Iterator[Observed]:
        """The values of these tensors, batch by batch, the same samples in the same order at every call. First
        axes need not be a batch: each sample may be a call of its own.
        """

    def held(self, model: onnx.ModelProto, samples: int) -> Held:
        """The first samples, that many, for parts of the model."""

    def remembered(self, model: onnx.ModelProto, what: str, make: Callable[[], T], size_bytes: int) -> T:
        """What `make` gives, which follows from the model, the data and the name `what` alone, and takes so much memory;
        if little else was asked for since, without making it again. It is not to be changed.
        """


class Trainer(Protocol):
    """Retrains a model on the training data. `settings` are the options of passes/core/training_options.py."""

    def train(
        self,
        model: onnx.ModelProto,
        settings: Mapping[str, Any],
        shaping: Shaping | None = None,
        tiles: Mapping[str, Tiles] | None = None,
    ) -> TrainResult:
        """`tiles`: a Conv whose `lathe.conv_algorithm` is among these names is computed so, in float16."""


class Runner(Protocol):
    """Runs models on the calibration data."""

    def compare(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> Mapping[str, float]:
        """How near the candidate's outputs are to the base's: `sqnr` in dB (inf when equal) and, for
        classifiers, `agreement` 0 to 1.
        """


class Fitter(Protocol):
    """Fits a block of a quantized network to what it answers in float."""

    def fit(self, task: BlockTask, steps: int) -> FittedBlock:
        """Takes `steps` of an optimizer."""


class Timer(Protocol):
    """Times models whose inputs have known sizes."""

    def latencies(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> tuple[float, float]:
        """Median milliseconds of (base, candidate), run in turn on the same random input."""


class KernelTimer(Protocol):
    """Times a network in the runtime that follows `lathe.conv_algorithm`, on this machine. `variants`: by Conv node,
    the algorithm that it takes in each network; they run in turn, round by round. Each load puts the networks anew into
    memory: its rounds have in common what that makes slower or faster.
    """

    def layers(
        self, model: onnx.ModelProto, profile: str, variants: Sequence[Mapping[str, str]]
    ) -> Mapping[str, np.ndarray]:
        """Milliseconds of each layer [loads, rounds, variants], timed inside its network; of two loads or more."""

    def whole(
        self, model: onnx.ModelProto, profile: str, variants: Sequence[Mapping[str, str]]
    ) -> np.ndarray:
        """Milliseconds of the network [loads, rounds, variants]."""


class Profiler(Protocol):
    """Times whole models in the runtime that they are for, on a sample of the data."""

    def latencies(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> tuple[float, float]:
        """Milliseconds of (base, candidate), run in turn."""

    def profile(self, model: onnx.ModelProto) -> Profile | None:
        """Where the time goes; None if the model is too large to tell."""


class Fidelity(Protocol):
    """How near a model's outputs are to those of the original, on calibration data."""

    def sqnr(self, model: onnx.ModelProto, plain: bool = False) -> float | None:
        """Of the worst output or slice, in dB; None if nothing can be compared. `plain`: in the session that a
        user opens, instead of an exact one. -inf if the session cannot load or run the model.
        """


@dataclass(frozen=True)
class Context:
    """What the pipeline gives a pass. A service is None when the request has no data for it; the timers and
    the fitter need none.
    """

    calibrator: Calibrator | None = None
    trainer: Trainer | None = None
    runner: Runner | None = None
    timer: Timer | None = None
    fitter: Fitter | None = None
    kernel_timer: KernelTimer | None = None
    profiler: Profiler | None = None
    """Set where a model is lowered for a target that runs here, and times are asked for."""
    original: onnx.ModelProto | None = None
    """The network before the first step, for a pass that needs it; not to be changed."""
    fidelity: Fidelity | None = None
    """Set where a model is lowered for a target, and there is calibration data."""
    evaluator: Evaluator | None = None
    placement: Placement = CANONICAL
    """What the targets of the request run in INT8; for a lowering, what its own target does."""
    spared: frozenset[str] = frozenset()
    """Nodes that a lossless pass leaves as they are, because to change them moved an output."""
    progress: Callable[[str], None] = lambda message: None

    def need_calibrator(self) -> Calibrator:
        if self.calibrator is None:
            raise PassError("this pass needs calibration data; give --data or --calibration")
        return self.calibrator

    def need_original(self) -> onnx.ModelProto:
        if self.original is None:
            raise PassError("this pass needs the network before the first step, and there is none")
        return self.original

    def need_trainer(self) -> Trainer:
        if self.trainer is None:
            raise PassError("this pass needs training data; give --data or --train")
        return self.trainer

    def need_runner(self) -> Runner:
        if self.runner is None:
            raise PassError(
                "this pass needs calibration data to compare outputs on; give --data or --calibration"
            )
        return self.runner

    def need_fitter(self) -> Fitter:
        if self.fitter is None:
            raise PassError(
                "rounding=blocks needs PyTorch's fitter, and there is none; give rounding=adaptive"
            )
        return self.fitter

    def need_timer(self) -> Timer:
        if self.timer is None:
            raise PassError("this pass times layers, and there is nothing to time them with")
        return self.timer

    def need_kernel_timer(self) -> KernelTimer:
        if self.kernel_timer is None:
            raise PassError("by=time needs ncnn to time layers in, and there is none; take by=cost")
        return self.kernel_timer
