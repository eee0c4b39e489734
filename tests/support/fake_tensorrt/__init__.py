"""A module that stands in for TensorRT as far as Lathe uses it, and computes: a plan holds the ONNX model, and a run
hands memory of the stand-in of CUDA's driver (cuda_driver.c) to ONNX Runtime.

`settings.json` beside it says which version it is, and what layers cost. Names that a version does not have are not
there. Copied into a folder as the package `tensorrt` or `tensorrt_rtx` by tests/support/gpu.py.
"""

import base64
import ctypes
import enum
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

from .layers import costs, information

_SETTINGS = json.loads(Path(__file__).with_name("settings.json").read_text())
__version__ = _SETTINGS["version"]
_MAJOR = 11 if _SETTINGS["rtx"] else int(__version__.split(".")[0])
_CUDA = ctypes.CDLL("libcuda.so.1")
_CUDA.fake_launch.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
_CUDA.fake_holds.argtypes = (ctypes.c_ulonglong, ctypes.c_size_t)
_CUDA.fake_spend.argtypes = (ctypes.c_double,)
_CUDA.cuStreamSynchronize.argtypes = (ctypes.c_void_p,)
_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

DataType = enum.Enum(
    "DataType",
    ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8", "BF16", "INT64", "INT4"]
    + ([] if __version__.startswith("10.3") else ["FP4"]),
)
TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
LayerInformationFormat = enum.Enum("LayerInformationFormat", ["ONELINE", "JSON"])
BuilderFlag = enum.Enum("BuilderFlag", ["SPARSE_WEIGHTS"] + (["FP16", "INT8"] if _MAJOR == 10 else []))
NetworkDefinitionCreationFlag = enum.IntEnum(
    "NetworkDefinitionCreationFlag",
    {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1} if _MAJOR == 10 else {"STRONGLY_TYPED": 0},
)
MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
HardwareCompatibilityLevel = enum.Enum("HardwareCompatibilityLevel", ["NONE", "AMPERE_PLUS"])
ProfilingVerbosity = enum.Enum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "NONE", "DETAILED"])
Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])
if _SETTINGS["rtx"]:
    ComputeCapability = enum.Enum(
        "ComputeCapability", ["NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120"]
    )

_TYPES = {
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.BFLOAT16: DataType.BF16,
    onnx.TensorProto.INT8: DataType.INT8,
    onnx.TensorProto.INT32: DataType.INT32,
    onnx.TensorProto.INT64: DataType.INT64,
    onnx.TensorProto.UINT8: DataType.UINT8,
    onnx.TensorProto.BOOL: DataType.BOOL,
    onnx.TensorProto.FLOAT8E4M3FN: DataType.FP8,
}


class ILogger:
    def __init__(self):
        pass


class IProgressMonitor:
    def __init__(self):
        pass


class IProfiler:
    def __init__(self):
        pass


class IOutputAllocator:
    def __init__(self):
        pass


def _need_gpu():
    if _CUDA.cuInit(0):
        raise TypeError("pybind11::init(): factory function returned nullptr")


def _compute():
    major, minor = ctypes.c_int(), ctypes.c_int()
    _CUDA.cuDeviceGetAttribute(ctypes.byref(major), 75, 0)
    _CUDA.cuDeviceGetAttribute(ctypes.byref(minor), 76, 0)
    return f"SM{major.value}{minor.value}"


class _Tensor:
    is_shape_tensor = False

    def __init__(self, value):
        self.name, self.dtype = value.name, _TYPES[value.type.tensor_type.elem_type]
        self.shape = tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)


class _Network:
    def __init__(self):
        self.model = None

    def _inputs(self):
        stored = {tensor.name for tensor in self.model.graph.initializer}
        return [value for value in self.model.graph.input if value.name not in stored]

    num_inputs = property(lambda self: len(self._inputs()))
    num_outputs = property(lambda self: len(self.model.graph.output))

    def get_input(self, index):
        return _Tensor(self._inputs()[index])

    def get_output(self, index):
        return _Tensor(self.model.graph.output[index])


class OnnxParser:
    num_errors = 0

    def __init__(self, network, logger):
        self.network = network

    def parse_from_file(self, path):
        self.network.model = onnx.load(path)
        return True


class _Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, least, tuned, greatest):
        self.shapes[name] = [least, tuned, greatest]


class _Config:
    __slots__ = (
        "builder_optimization_level",
        "computes",
        "hardware_compatibility_level",
        "profiles",
        "profiling_verbosity",
        "progress_monitor",
    )

    def __init__(self):
        self.profiles, self.computes, self.profiling_verbosity = [], [], ProfilingVerbosity.LAYER_NAMES_ONLY

    def set_flag(self, flag):
        assert flag in BuilderFlag

    def set_memory_pool_limit(self, pool, size):
        pass

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1


if _SETTINGS["rtx"]:

    def _set_compute(self, capability, index):
        self.computes.append(capability.name)
        return True

    _Config.set_compute_capability = _set_compute
    _Config.num_compute_capabilities = property(lambda self: len(self.computes), lambda self, count: None)


class Builder:
    def __init__(self, logger):
        if not _SETTINGS["rtx"]:
            _need_gpu()

    def create_network(self, flags=0):
        assert flags == 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return _Network()

    def create_builder_config(self):
        return _Config()

    def create_optimization_profile(self):
        return _Profile()

    def build_serialized_network(self, network, config):
        plan = {
            "version": __version__,
            "compute": config.computes or [_compute()],
            "profiles": config.profiles,
            "detailed": config.profiling_verbosity == ProfilingVerbosity.DETAILED,
            "model": base64.b64encode(network.model.SerializeToString()).decode(),
        }
        return json.dumps(plan).encode()


class Runtime:
    def __init__(self, logger):
        _need_gpu()
        self._logger = logger
        self.num_DLA_cores, self.DLA_core = 2, 0

    def deserialize_cuda_engine(self, plan):
        try:
            found = json.loads(bytes(plan))
        except ValueError:
            self._logger.log(Severity.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: Serialization")
            return None
        if found["version"] != __version__:
            self._logger.log(Severity.ERROR, "Error Code 1: Serialization (Version tag does not match.)")
            return None
        if _compute() not in found["compute"]:
            self._logger.log(
                Severity.ERROR, "Error Code 6: The engine plan file is generated on an incompatible device"
            )
            return None
        if self.DLA_core != found.get("dla", 0):
            self._logger.log(Severity.ERROR, f"the runtime is for DLA core {self.DLA_core}")
            return None
        return _Engine(found, self._logger)


class _Engine:
    def __init__(self, plan, logger):
        self._plan, self._logger = plan, logger
        self._network = _Network()
        self._network.model = onnx.load_from_string(base64.b64decode(plan["model"]))
        inputs = [self._network.get_input(index) for index in range(self._network.num_inputs)]
        outputs = [self._network.get_output(index) for index in range(self._network.num_outputs)]
        self._inputs = {tensor.name: tensor for tensor in inputs}
        self._outputs = {tensor.name: tensor for tensor in outputs}

    num_io_tensors = property(lambda self: len(self._inputs) + len(self._outputs))
    num_optimization_profiles = property(lambda self: max(1, len(self._plan["profiles"])))

    def _tensor(self, name):
        return self._inputs.get(name) or self._outputs[name]

    def get_tensor_name(self, index):
        return [*self._inputs, *self._outputs][index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return self._tensor(name).dtype

    def get_tensor_shape(self, name):
        return self._tensor(name).shape

    def is_shape_inference_io(self, name):
        return False

    def get_tensor_profile_shape(self, name, index):
        assert -1 in self._tensor(name).shape, "what it gives of fixed sizes is not documented"
        return self._limits(name, index)

    def _limits(self, name, index):
        shape = self._tensor(name).shape
        return self._plan["profiles"][index][name] if -1 in shape else [shape] * 3

    def create_execution_context(self):
        return _Context(self)

    def create_engine_inspector(self):
        return _Inspector(self)


class _Context:
    def __init__(self, engine):
        self._engine, self._shapes, self._addresses, self._allocators, self._chosen = engine, {}, {}, {}, 0
        model = engine._network.model
        kinds = {tensor.dtype for tensor in [*engine._inputs.values(), *engine._outputs.values()]}
        self._session = (
            ReferenceEvaluator(model)  # ONNX Runtime's Python has no bfloat16
            if DataType.BF16 in kinds
            else onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        )
        self._work = _WORK(self._compute)
        self.profiler = None

    def set_optimization_profile_async(self, index, stream):
        self._chosen = index
        return True

    def set_input_shape(self, name, shape):
        least, _, greatest = self._engine._limits(name, self._chosen)
        if len(shape) != len(least) or any(
            not a <= b <= c for a, b, c in zip(least, shape, greatest, strict=True)
        ):
            self._engine._logger.log(
                Severity.ERROR, "Error Code 3: the shape does not satisfy any optimization profile"
            )
            return False
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return True

    def set_output_allocator(self, name, allocator):
        self._allocators[name] = allocator
        return True

    def infer_shapes(self):
        return [name for name in self._engine._inputs if name not in self._shapes]

    def _run(self, feeds):
        return dict(
            zip(self._engine._outputs, self._session.run(list(self._engine._outputs), feeds), strict=True)
        )

    def _dtype(self, name):
        return onnx.helper.tensor_dtype_to_np_dtype(
            next(number for number, kind in _TYPES.items() if kind == self._engine._tensor(name).dtype)
        )

    def get_tensor_shape(self, name):
        if name in self._shapes:
            return self._shapes[name]
        if name.startswith("found"):
            return (-1,) * len(self._engine._tensor(name).shape)
        zeros = {one: np.zeros(shape, self._dtype(one)) for one, shape in self._shapes.items()}
        return self._run(zeros)[name].shape

    def execute_async_v3(self, stream):
        if self._allocators:
            if _CUDA.fake_is_capturing():
                self._engine._logger.log(Severity.ERROR, "the stream is capturing")
                return False
            _CUDA.cuStreamSynchronize(stream)
            self._compute(None)
            return True
        return _CUDA.fake_launch(stream, ctypes.cast(self._work, ctypes.c_void_p), None) == 0

    def _compute(self, argument):
        feeds = {}
        for name, shape in self._shapes.items():
            size = int(np.prod(shape)) * self._dtype(name).itemsize
            assert _CUDA.fake_holds(self._addresses[name], size), f"{name} is not on the GPU"
            feeds[name] = np.frombuffer(
                ctypes.string_at(self._addresses[name], size), self._dtype(name)
            ).reshape(shape)
        for name, value in self._run(feeds).items():
            address = self._addresses.get(name, 0)
            if allocator := self._allocators.get(name):
                arguments = name, address, value.nbytes, 256
                if _MAJOR == 10 and not hasattr(allocator, "reallocate_output_async"):
                    address = allocator.reallocate_output(*arguments)
                else:
                    address = allocator.reallocate_output_async(*arguments, 0)
                allocator.notify_shape(name, value.shape)
            assert _CUDA.fake_holds(address, value.nbytes), f"{name} is not on the GPU"
            if _SETTINGS["noise"]:
                # kernels are as inexact for a sample wherever it stands
                generator = np.random.default_rng(0)
                value += generator.normal(0, _SETTINGS["noise"], value.shape[1:]).astype(value.dtype)
            ctypes.memmove(address, value.tobytes(), value.nbytes)
        spent = costs(self._engine._network.model, _SETTINGS["costs"])
        _CUDA.fake_spend(sum(spent.values()))
        for name, ms in spent.items() if self.profiler is not None else ():
            self.profiler.report_layer_time(name, ms)


class _Inspector:
    execution_context = None

    def __init__(self, engine):
        self._engine = engine

    def get_engine_information(self, form):
        assert form == LayerInformationFormat.JSON
        return information(self._engine._network.model, self._engine._plan["detailed"], _MAJOR)
