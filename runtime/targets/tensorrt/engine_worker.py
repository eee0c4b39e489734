"""The process that engines run in: `python -m onnx_lathe.runtime.targets.tensorrt.engine_worker`, started by
engine_process.py.

Requests come on standard input and answers go to standard output (wire.py), until the parent closes the pipe. What
TensorRT says goes to standard error. An engine that crashes ends this process alone, and the parent ends it where a
GPU that hangs lets it wait too long for an answer.
"""

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lathe.runtime import wire
from onnx_lathe.runtime.targets.tensorrt.cuda import Cuda, CudaError
from onnx_lathe.runtime.targets.tensorrt.execution import WARM_UPS, Engine, EngineError, Port
from onnx_lathe.runtime.targets.tensorrt.messages import one_line
from onnx_lathe.runtime.targets.tensorrt.settings import RefusedError
from onnx_lathe.runtime.targets.tensorrt.worker import load, make_logger

LEAST_ROUNDS, MOST_ROUNDS = 10, 1000

Arrays = dict[str, np.ndarray]


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # native code prints to standard output too
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and ends this process
    worker = None
    while (received := wire.receive(sys.stdin.buffer)) is not None:
        request, arrays = received
        try:
            if worker is None:
                sys.path[:] = request.get("path", sys.path)  # the library that the parent found
                worker = _Worker(request)
            message, results = getattr(worker, f"do_{request['do']}")(request, arrays)
        except (RefusedError, EngineError) as refusal:
            wire.send(answers, {"refusal": one_line(refusal)})
        except CudaError as error:
            wire.send(answers, {"gpu": one_line(error)})
        else:
            wire.send(answers, message, results)
    os._exit(0)  # native destructors have nothing to add but a crash


class _Worker:
    def __init__(self, request: Mapping[str, Any]) -> None:
        self.cuda = Cuda()
        self.trt = load(request["library"])
        self.logger = make_logger(self.trt, None)
        self.engines: list[Engine] = []

    def do_hello(self, request: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """What there is: the GPU, and the library that runs engines on it."""
        return {"gpu_name": self.cuda.name, "compute": self.cuda.compute, "version": self.trt.__version__}, {}

    def do_open(self, request: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Loads an engine, after those that are loaded; its place among them is its number."""
        try:
            plan = Path(request["engine"]).read_bytes()
        except OSError as error:
            raise RefusedError(f"it cannot be read: {error.strerror}") from error
        engine = Engine(self.trt, self.logger, self.cuda, plan, request.get("dla"))
        self.engines.append(engine)
        profiles = [
            {
                port.name: [shapes[port.name] for shapes in (profile.least, profile.tuned, profile.greatest)]
                for port in engine.inputs
            }
            for profile in engine.profiles
        ]
        ports = {"inputs": _described(engine.inputs), "outputs": _described(engine.outputs)}
        return ports | {"number": len(self.engines) - 1, "profiles": profiles}, {}

    def do_run(self, request: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        engine = self.engines[request["number"]]
        outputs, ms = engine.run(arrays)
        return {"ms": ms, "found": engine.found}, outputs

    def do_times(self, request: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        engine = self.engines[request["number"]]
        return {}, {"ms": engine.times(arrays, request["how"], request["budget_s"])}

    def do_times_in_turn(self, request: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """Milliseconds on the GPU [rounds, engines], round by round, so that all see the same clock rates."""
        calls = [self.engines[number].bind(arrays) for number in request["numbers"]]
        for call in calls * WARM_UPS:
            call()
        rounds: list[list[float]] = []
        started = time.perf_counter()
        while len(rounds) < MOST_ROUNDS and (
            len(rounds) < LEAST_ROUNDS or time.perf_counter() - started < request["budget_s"]
        ):
            rounds.append([call() for call in calls])
        return {}, {"ms": np.array(rounds)}

    def do_profile(self, request: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        engine = self.engines[request["number"]]
        information = engine.information()
        return {"layers": engine.layer_times(arrays, request["budget_s"]), "information": information}, {}


def _described(ports: Sequence[Port]) -> list[dict[str, Any]]:
    return [{"name": port.name, "dtype": port.dtype.name, "shape": port.shape} for port in ports]


if __name__ == "__main__":
    main()
