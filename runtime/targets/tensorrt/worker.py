"""The process that TensorRT runs in: `python -m onnx_lathe.runtime.targets.tensorrt.worker`, started by
runtime/targets/tensorrt/process.py.

One JSON request on standard input; progress lines and one answer on standard output; what TensorRT says
goes to standard error as well, so that something is left if it crashes. A process per build because after a
failed build TensorRT-RTX 1.7 compiles the next one with leftovers of it, and because some models crash the
builder without an exception.

The API used is the part that TensorRT 10.x, 11.x and TensorRT-RTX share. No precision flags are set:
precision is in the graph, which is strongly typed; but for DLA in TensorRT 10 (dla.py). A bundle for a Jetson carries this file and what it
imports, none of which needs more than Python, NumPy and TensorRT.
"""

import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx_lathe.runtime.targets.tensorrt import dla, settings
from onnx_lathe.runtime.targets.tensorrt.cuda import Cuda, CudaError
from onnx_lathe.runtime.targets.tensorrt.engine_layers import LAYER
from onnx_lathe.runtime.targets.tensorrt.inspecting import inspected, weights_bytes
from onnx_lathe.runtime.targets.tensorrt.messages import (
    NOISE,
    explained,
    one_line,
    parse_refusal,
    tidy_error,
)
from onnx_lathe.runtime.targets.tensorrt.settings import RefusedError, named


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # native code prints to standard output too

    def send(message: Mapping[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    # Ctrl-C reaches the whole group; the parent decides, and kills this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.path[:] = request.get("path", sys.path)  # the library that the parent found
    try:
        trt = load(request["library"])
        logger = make_logger(trt, request.get("log"))
        builder = make_builder(trt, logger)
        answer = {"version": trt.__version__}
        if "asked" in request:
            check_served(trt, logger, builder, request["asked"])
        if "model" in request:
            answer |= build(trt, logger, builder, request, lambda text: send({"progress": text}))
        if "inspect" in request:
            answer["layers"] = inspected(
                trt, logger, Path(request["inspect"]).read_bytes(), request.get("dla")
            )
    except RefusedError as refusal:
        send({"refusal": str(refusal)})
    else:
        send({"answer": answer})
    os._exit(0)  # native destructors have nothing to add but a crash


def _end_with_parent() -> None:
    """The parent holds the other end of standard input; when that closes, nobody waits for an answer."""
    while os.read(0, 1):
        pass
    os._exit(1)


def load(library: str) -> Any:
    """The module `tensorrt` or `tensorrt_rtx`. Raises RefusedError if it cannot be used."""
    try:
        trt = importlib.import_module(library)
    except (ImportError, OSError) as error:
        raise RefusedError(f"{library} is installed but cannot be loaded: {one_line(error)}") from error
    if not hasattr(trt, "Builder"):  # the package tensorrt-stubs makes an empty namespace of that name
        raise RefusedError(f"the module {library} is not TensorRT; uninstall tensorrt-stubs if it is there")
    if library == "tensorrt" and int(trt.__version__.split(".")[0]) < 10:
        raise RefusedError(f"TensorRT {trt.__version__} is too old; install 10.3 or later")
    return trt


def make_logger(trt: Any, verbose_log: str | None) -> Any:
    class Logger(trt.ILogger):
        """Keeps warnings and errors as (severity, text), and what describes the engine; writes everything to the log
        file if there is one.
        """

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.records: list[tuple[str, str]] = []
            self.layers: list[str] = []
            self.weights_bytes: int | None = None
            self.file = open(verbose_log, "w", encoding="utf-8") if verbose_log else None  # noqa: SIM115

        def log(self, severity: Any, text: str) -> None:
            if self.file is not None:
                print(f"{severity.name}: {text}", file=self.file, flush=True)
            if LAYER in text:
                self.layers.append(text)
            elif (size := weights_bytes(text)) is not None:
                self.weights_bytes = size
            if severity.name in ("INTERNAL_ERROR", "ERROR", "WARNING") and NOISE not in text:
                self.records.append((severity.name, one_line(text)))
                print(one_line(text), file=sys.stderr, flush=True)

        def described(self) -> str:
            """The records of kernels, apart by an empty line: what a record begins with belongs to none before it."""
            return "\n\n".join(self.layers)

        def errors(self, since: int = 0) -> list[str]:
            return list(
                dict.fromkeys(text for severity, text in self.records[since:] if severity != "WARNING")
            )

        def warnings(self) -> list[str]:
            return list(dict.fromkeys(text for severity, text in self.records if severity == "WARNING"))

    return Logger()


def make_builder(trt: Any, logger: Any) -> Any:
    try:
        return trt.Builder(logger)
    except TypeError as error:
        if "nullptr" not in str(error):
            raise
        raise RefusedError(
            "no NVIDIA GPU or driver was found; TensorRT builds only on the device that will run the engine"
        ) from error


def build(
    trt: Any, logger: Any, builder: Any, request: Mapping[str, Any], progress: Callable[[str], None]
) -> dict[str, Any]:
    """Writes the engine to request["engine"] and tells about it. Raises RefusedError with TensorRT's
    reasons.
    """
    started = time.perf_counter()
    core = request.get("dla")
    network = builder.create_network(dla.creation_flags(trt, core))
    parser = trt.OnnxParser(network, logger)  # keeps no reference to the network; this function does
    if not parser.parse_from_file(request["model"]) or parser.num_errors:
        raise RefusedError(parse_refusal(parser, logger))
    if network.num_outputs == 0:
        raise RefusedError("TensorRT found no output in the model")
    config = make_config(trt, builder, request)
    cache = settings.apply(trt, logger, builder, config, request)  # must outlive the build
    apply_profiles(builder, network, config, request["profiles"], logger)
    left = {} if core is None else {"on_gpu": dla.on_gpu(network, config)}
    monitor = make_monitor(trt, progress)  # must outlive the build
    config.progress_monitor = monitor
    before = len(logger.records)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reasons = logger.errors(before) or ["TensorRT gives no reason"]
        raise RefusedError(explained("; ".join(map(tidy_error, reasons))))
    settings.dropped(logger, before, request["flags"])
    try:
        Path(request["engine"]).write_bytes(memoryview(plan))
    except OSError as error:
        raise RefusedError(f"the engine cannot be written: {error.strerror}") from error
    if cache is not None:
        settings.write_cache(config, request["timing_cache_written"])
    return {
        "build_seconds": round(time.perf_counter() - started, 3),
        "inputs": [describe(network.get_input(index)) for index in range(network.num_inputs)],
        "outputs": [describe(network.get_output(index)) for index in range(network.num_outputs)],
        "warnings": logger.warnings(),
        "weights_bytes": logger.weights_bytes,
        "layers": logger.described(),
        "gpu": gpu(),
        **left,
    }


def check_served(trt: Any, logger: Any, builder: Any, asked: Mapping[str, Any]) -> None:
    """Raises RefusedError for options that a build would be refused for, whatever its model."""
    config = make_config(trt, builder, asked)
    settings.apply(trt, logger, builder, config, asked)


def gpu() -> dict[str, str] | None:
    """Name and architecture of the GPU here, which an engine of TensorRT is for; None if there is none."""
    try:
        found = Cuda()
    except CudaError:
        return None
    return {"name": found.name, "compute": found.compute}


def make_config(trt: Any, builder: Any, request: Mapping[str, Any]) -> Any:
    config = builder.create_builder_config()
    if request["workspace_bytes"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_bytes"])
    if request["level"] is not None:
        config.builder_optimization_level = request["level"]
    if request.get("log") or request.get("prove"):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request["compute"]:
        config.num_compute_capabilities = len(request["compute"])
        for index, name in enumerate(request["compute"]):
            config.set_compute_capability(named(trt, "ComputeCapability", name), index)
    return config


def apply_profiles(
    builder: Any, network: Any, config: Any, wanted: Sequence[Mapping[str, Any]], logger: Any
) -> None:
    """One optimization profile for each of `wanted`, which cover every dynamic input
    (runtime/targets/tensorrt/shapes.py). Raises RefusedError if TensorRT does not accept the shapes.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    for tensor in inputs:
        if getattr(tensor, "is_shape_tensor", False):
            raise RefusedError(
                f"input '{tensor.name}' decides the shape of a tensor; make it a constant of the model"
            )
    dynamic = [tensor.name for tensor in inputs if any(size < 0 for size in tensor.shape)]
    for shapes in wanted if dynamic else ():
        profile = builder.create_optimization_profile()
        before = len(logger.records)
        for name in dynamic:
            profile.set_shape(name, *shapes[name])
        if config.add_optimization_profile(profile) < 0:
            raise RefusedError(
                "; ".join(logger.errors(before)) or "TensorRT refuses the shapes of the dynamic inputs"
            )


def make_monitor(trt: Any, progress: Callable[[str], None]) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.next = 0.0

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            if time.monotonic() >= self.next:
                self.next = time.monotonic() + 0.5
                progress(f"{phase} {step + 1}/{self.steps.get(phase, step + 1)}")
            return True

    return Monitor()


def describe(tensor: Any) -> dict[str, Any]:
    dtype = {"FLOAT": "float32", "HALF": "float16"}.get(tensor.dtype.name, tensor.dtype.name.lower())
    return {"name": tensor.name, "dtype": dtype, "shape": list(tensor.shape)}


if __name__ == "__main__":
    main()
