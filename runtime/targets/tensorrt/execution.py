"""One engine on the GPU: its tensors, its memory, what it computes, and how long that takes.

`trt` is the module tensorrt or tensorrt_rtx; what is used of it is the same from TensorRT 10.3 to 11.4 and in
TensorRT-RTX. Runs in a process of its own (engine_worker.py).
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnx_lathe.runtime.targets.tensorrt import dla
from onnx_lathe.runtime.targets.tensorrt.cuda import Cuda, CudaError

DTYPES: Mapping[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": np.uint16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}
"""TensorRT's name of a type -> what holds it; bfloat16 by its bits."""
WARM_UPS = 3
LEAST_CALLS, MOST_CALLS = 10, 2000


class EngineError(Exception):
    """What the engine or its caller cannot do; the message is for the user."""


@dataclass(frozen=True)
class Port:
    """An input or output; a size of -1 is open. bfloat16 goes in and out as float32."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32 if self.kind == "BF16" else DTYPES[self.kind])


@dataclass
class _Buffer:
    """Memory of one tensor on both sides, `size` bytes of it in use."""

    device: int
    host: np.ndarray
    size: int = 0


@dataclass
class _Grown:
    """Memory of an output whose shape the engine finds as it runs."""

    address: int = 0
    room: int = 0
    shape: tuple[int, ...] = ()


@dataclass
class Profile:
    """Sizes that the engine takes: by input, the least and the greatest shape, and the one that it is tuned for."""

    least: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tuned: dict[str, tuple[int, ...]] = field(default_factory=dict)
    greatest: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def takes(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return all(
            len(shape) == len(self.least[name])
            and all(
                low <= size <= high
                for low, size, high in zip(self.least[name], shape, self.greatest[name], strict=True)
            )
            for name, shape in shapes.items()
        )


class Engine:
    """Raises EngineError if TensorRT does not load the plan, or the engine is none that can be run here. `core`: of the
    DLA that it was built for.
    """

    def __init__(self, trt: Any, logger: Any, cuda: Cuda, plan: bytes, core: int | None = None) -> None:
        self._trt, self._cuda, self._logger = trt, cuda, logger
        self._runtime = make_runtime(trt, logger, core)
        before = len(logger.records)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError("; ".join(logger.errors(before)) or "TensorRT gives no reason")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            reasons = "; ".join(logger.errors(before)) or "TensorRT gives no reason"
            raise EngineError(f"it cannot be made ready to run, perhaps for want of GPU memory: {reasons}")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = trt.TensorIOMode.INPUT
        ports = [(self._port(name), self._engine.get_tensor_mode(name) == inputs) for name in names]
        self.inputs = [port for port, is_input in ports if is_input]
        self.outputs = [port for port, is_input in ports if not is_input]
        self.profiles = [self._profile(index) for index in range(self._engine.num_optimization_profiles)]
        self._buffers: dict[str, _Buffer] = {}
        self._allocators: dict[str, Any] = {}
        """Of outputs whose shape the engine finds as it runs, in the call that is bound."""
        self._grown: dict[str, _Grown] = {}
        self._selected = 0

    def _port(self, name: str) -> Port:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in DTYPES:
            raise EngineError(f"its tensor '{name}' is {kind}, which cannot be fed or read here")
        if self._engine.is_shape_inference_io(name):
            raise EngineError(
                f"its tensor '{name}' decides a shape; make it a constant of the model and build again"
            )
        return Port(name, kind, tuple(self._engine.get_tensor_shape(name)))

    def _profile(self, index: int) -> Profile:
        found = Profile()
        for port in self.inputs:
            shapes = [port.shape] * 3
            if any(size < 0 for size in port.shape):
                shapes = [tuple(shape) for shape in self._engine.get_tensor_profile_shape(port.name, index)]
            found.least[port.name], found.tuned[port.name], found.greatest[port.name] = shapes
        return found

    def run(self, feeds: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], float]:
        """(outputs by name, milliseconds with the copies to the GPU and back).

        Raises EngineError for feeds that it does not take, CudaError where the GPU fails.
        """
        self._bind(feeds)
        started = time.perf_counter()
        self._enqueue()
        self._cuda.synchronize()
        ms = 1e3 * (time.perf_counter() - started)
        return {port.name: self._read(port) for port in self.outputs}, ms

    @property
    def found(self) -> list[str]:
        """Outputs of the last run whose shape depends on the values that went in."""
        return list(self._allocators)

    def times(self, feeds: Mapping[str, np.ndarray], how: str, budget_s: float) -> np.ndarray:
        """Milliseconds of each call [calls]. `how`: `call` as `run` counts them, `cuda_graph` the same launched as
        one graph, `gpu_alone` on the GPU between the copies.
        """
        self._bind(feeds)
        with_graph = self._as_graph() if how == "cuda_graph" else None
        work = {"call": self._enqueue, "gpu_alone": self._execute}.get(how) or (
            with_graph and with_graph.launch
        )
        if not callable(work):
            raise EngineError(f"there is no way '{how}' to time an engine")
        clock = self._cuda.timed if how == "gpu_alone" else self._timed
        try:
            for _ in range(WARM_UPS):
                clock(work)
            return np.array(list(_calls(lambda: clock(work), budget_s)))
        finally:
            if with_graph is not None:
                with_graph.close()

    def bind(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], float]:
        """A call that runs the engine on the feeds once more and returns milliseconds on the GPU."""
        self._bind(feeds)
        for port in self.inputs:
            self._cuda.to_device(
                self._buffers[port.name].device, self._buffers[port.name].host, self._buffers[port.name].size
            )
        return lambda: self._cuda.timed(self._execute)

    def layer_times(self, feeds: Mapping[str, np.ndarray], budget_s: float) -> dict[str, float]:
        """Least milliseconds of each layer, by TensorRT's own names."""
        self._bind(feeds)
        profiler = make_profiler(self._trt)
        self._enqueue()
        self._cuda.synchronize()
        self._context.profiler = profiler
        for _ in _calls(lambda: self._timed(self._enqueue), budget_s):
            pass
        return {name: float(np.min(values)) for name, values in profiler.found.items()}

    def information(self) -> str:
        """What TensorRT's inspector says of the layers, as JSON."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = self._context
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def _timed(self, work: Callable[[], None]) -> float:
        started = time.perf_counter()
        work()
        self._cuda.synchronize()
        return 1e3 * (time.perf_counter() - started)

    def _as_graph(self) -> Any:
        if self._allocators:
            names = ", ".join(f"'{name}'" for name in self._allocators)
            raise EngineError(f"the shape of its output {names} depends on the values that go in")
        self._timed(self._enqueue)  # TensorRT settles on sizes in the first call, which cannot be captured
        try:
            return self._cuda.capture(self._enqueue)
        except CudaError as error:
            raise EngineError(f"it cannot be captured: {error}") from error

    def _bind(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Copies the feeds where the GPU reads them, and gives every tensor its memory."""
        for port in self.inputs:
            if port.name not in feeds:
                raise EngineError(f"input '{port.name}' is not fed")
        self._select({port.name: feeds[port.name].shape for port in self.inputs})
        for port in self.inputs:
            values = _to_bits(feeds[port.name]) if port.kind == "BF16" else feeds[port.name]
            if values.dtype != DTYPES[port.kind]:
                raise EngineError(f"input '{port.name}' takes {port.dtype}, not {values.dtype}")
            buffer = self._room(port.name, values.nbytes)
            buffer.host[: values.nbytes] = np.frombuffer(values.tobytes(), np.uint8)
            self._accept(
                self._context.set_input_shape(port.name, tuple(values.shape)), f"shape of '{port.name}'"
            )
            self._accept(
                self._context.set_tensor_address(port.name, buffer.device), f"memory of '{port.name}'"
            )
        if missing := self._context.infer_shapes():
            raise EngineError(f"TensorRT misses the values or shapes of {', '.join(missing)}")
        self._allocators = {}
        for port in self.outputs:
            shape = tuple(self._context.get_tensor_shape(port.name))
            if any(size < 0 for size in shape):
                grown = self._grown.setdefault(port.name, _Grown())
                allocator = make_allocator(self._trt, self._cuda, grown)
                self._allocators[port.name] = allocator
                self._accept(
                    self._context.set_output_allocator(port.name, allocator), f"memory of '{port.name}'"
                )
            else:
                buffer = self._room(port.name, int(np.prod(shape, dtype=np.int64)) * _itemsize(port))
                self._accept(
                    self._context.set_tensor_address(port.name, buffer.device), f"memory of '{port.name}'"
                )

    def _select(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """The first profile that takes the shapes."""
        taking = [index for index, profile in enumerate(self.profiles) if profile.takes(shapes)]
        if not taking:
            raise EngineError(
                "; ".join(
                    f"input '{name}' takes {self.sizes(name)}, not {list(shape)}"
                    for name, shape in shapes.items()
                )
            )
        if self._selected not in taking:
            done = self._context.set_optimization_profile_async(taking[0], self._cuda.stream)
            self._accept(done, f"profile {taking[0]}")
            self._cuda.synchronize()
            self._selected = taking[0]

    def sizes(self, name: str) -> str:
        """[1..8, 3, 224, 224], once for each profile."""
        found = [
            ", ".join(
                str(low) if low == high else f"{low}..{high}"
                for low, high in zip(profile.least[name], profile.greatest[name], strict=True)
            )
            for profile in self.profiles
        ]
        return " or ".join(f"[{text}]" for text in dict.fromkeys(found))

    def _accept(self, done: bool, what: str) -> None:
        if not done:
            reason = (self._logger.errors() or ["it gives no reason"])[-1]
            raise EngineError(f"TensorRT refuses the {what}: {reason}")

    def _room(self, name: str, size: int) -> _Buffer:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.host.size < size:
            if buffer is not None:
                del self._buffers[name]  # also if there is no room for the larger one
                self._cuda.free(buffer.device)
                self._cuda.unpin(buffer.host)
            self._buffers[name] = buffer = _Buffer(self._cuda.allocate(size), self._cuda.pinned(size))
        buffer.size = size
        return buffer

    def _enqueue(self) -> None:
        for port in self.inputs:
            buffer = self._buffers[port.name]
            self._cuda.to_device(buffer.device, buffer.host, buffer.size)
        self._execute()
        for port in self.outputs:
            if port.name not in self._allocators:
                buffer = self._buffers[port.name]
                self._cuda.to_host(buffer.host, buffer.device, buffer.size)

    def _execute(self) -> None:
        self._accept(self._context.execute_async_v3(self._cuda.stream), "run")

    def _read(self, port: Port) -> np.ndarray:
        """Of a finished run, a copy."""
        allocator = self._allocators.get(port.name)
        if allocator is None:
            buffer, shape = self._buffers[port.name], tuple(self._context.get_tensor_shape(port.name))
        else:
            shape = allocator.grown.shape
            buffer = self._room(port.name, int(np.prod(shape, dtype=np.int64)) * _itemsize(port))
            self._cuda.to_host(buffer.host, allocator.grown.address, buffer.size)
            self._cuda.synchronize()
        values = np.frombuffer(buffer.host[: buffer.size].tobytes(), DTYPES[port.kind]).reshape(shape)
        return _from_bits(values) if port.kind == "BF16" else values


def make_runtime(trt: Any, logger: Any, core: int | None) -> Any:
    try:
        runtime = trt.Runtime(logger)
    except TypeError as error:
        raise EngineError("TensorRT finds no NVIDIA GPU or driver") from error
    if core is not None and (reason := dla.load_for(runtime, core)):
        raise EngineError(reason)
    return runtime


def make_profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.found: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.found.setdefault(layer_name, []).append(ms)

    return Profiler()


def make_allocator(trt: Any, cuda: Cuda, grown: _Grown) -> Any:
    class Allocator(trt.IOutputAllocator):
        """Gives an output as much memory as the engine asks for while it runs."""

        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.grown = grown

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            if size > grown.room or not grown.address:
                if grown.address:
                    cuda.free(grown.address)
                    grown.address = 0  # also if there is no room for the larger one
                grown.address, grown.room = cuda.allocate(size), size
            return grown.address

        def reallocate_output_async(
            self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            grown.shape = tuple(shape)

    return Allocator()


def _calls(call: Callable[[], float], budget_s: float) -> Iterator[float]:
    started, count = time.perf_counter(), 0
    while count < MOST_CALLS and (count < LEAST_CALLS or time.perf_counter() - started < budget_s):
        yield call()
        count += 1


def _itemsize(port: Port) -> int:
    return int(np.dtype(DTYPES[port.kind]).itemsize)


def _to_bits(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16, rounded to the nearest even."""
    bits = np.array(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _from_bits(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.uint32) << 16).view(np.float32)
