"""A module that stands in for TensorRT: what both its families share, and what each version has."""

import textwrap
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.support import quantized

STAND_IN = '''
import enum, json

__version__ = "@VERSION@"
FLAGS = @FLAGS@
CALLS = []


class Strict:
    """Only what is assigned in `allowed` exists: TensorRT objects refuse unknown attributes too."""
    allowed = ()
    def __setattr__(self, name, value):
        if name not in self.allowed:
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        CALLS.append([name, str(value)])


class ILogger:
    def __init__(self): pass

class IProgressMonitor:
    def __init__(self): pass

BuilderFlag = enum.Enum("BuilderFlag", FLAGS["BuilderFlag"])
NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", FLAGS["NetworkDefinitionCreationFlag"])
MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
HardwareCompatibilityLevel = enum.Enum("HardwareCompatibilityLevel", FLAGS["HardwareCompatibilityLevel"])
DeviceType = enum.Enum("DeviceType", ["GPU", "DLA"])
ProfilingVerbosity = enum.Enum("ProfilingVerbosity", ["DETAILED"])
Severity = enum.Enum("Severity", ["ERROR", "WARNING", "VERBOSE"])
DataType = enum.Enum("DataType", ["FLOAT"])
LayerInformationFormat = enum.Enum("LayerInformationFormat", ["JSON"])


class Tensor:
    dtype = DataType.FLOAT
    is_shape_tensor = False
    def __init__(self, name, shape): self.name, self.shape = name, shape

class Network:
    num_inputs = num_outputs = 1
    num_layers = 0
    def get_input(self, index): return Tensor("image", (-1, 1, 28, 28))
    def get_output(self, index): return Tensor("logits", (-1, 10))

class OnnxParser:
    num_errors = 0
    def __init__(self, network, logger): pass
    def parse_from_file(self, path): CALLS.append(["parse_from_file", path]); return True

class Profile:
    def set_shape(self, name, low, opt, high): CALLS.append(["set_shape", [name, low, opt, high]])

class TimingCache:
    def __init__(self, content): self.content = content
    def serialize(self): return b"times " + self.content

class Config(Strict):
    allowed = (
        "progress_monitor", "builder_optimization_level", "hardware_compatibility_level", "profiling_verbosity",
        "default_device_type", "DLA_core",
    )
    cache = None
    def create_timing_cache(self, content):
        CALLS.append(["create_timing_cache", content.decode("latin1")])
        return None if content.startswith(b"garbage") else TimingCache(content)
    def set_timing_cache(self, cache, ignore_mismatch):
        Config.cache = cache
        return not cache.content.startswith(b"other")
    def get_timing_cache(self): return Config.cache
    def set_flag(self, flag): CALLS.append(["set_flag", flag.name])
    def set_memory_pool_limit(self, pool, size): CALLS.append(["workspace", size])
    def add_optimization_profile(self, profile): return 0

class Engine:
    def __init__(self, text): self.text = text
    def create_engine_inspector(self): return self
    def get_engine_information(self, form): return self.text if form is LayerInformationFormat.JSON else None

class Runtime:
    def __init__(self, logger): pass
    def deserialize_cuda_engine(self, plan):
        assert json.loads(plan)
        @INSPECT@

class Builder:
    num_DLA_cores = FLAGS.get("cores", 0)
    def __init__(self, logger):
        self.logger = logger
        @BUILDER@
    def create_network(self, flags=0): CALLS.append(["create_network", flags]); return Network()
    def create_builder_config(self): return Config()
    def create_optimization_profile(self): return Profile()
    def build_serialized_network(self, network, config):
        self.logger.log(Severity.WARNING, "a warning\\nof two lines")
        @BUILD@
        return json.dumps([call for call in CALLS if call[0] != "progress_monitor"]).encode()
'''
_ALL = [
    *("SPARSE_WEIGHTS", "REFIT", "STRIP_PLAN", "REFIT_IDENTICAL", "WEIGHT_STREAMING", "VERSION_COMPATIBLE"),
    *("EXCLUDE_LEAN_RUNTIME", "GPU_FALLBACK"),
]
TEN: dict[str, Any] = {
    "BuilderFlag": ["FP16", "INT8", *_ALL],
    "NetworkDefinitionCreationFlag": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
    "HardwareCompatibilityLevel": ["NONE", "AMPERE_PLUS"],
}
ELEVEN: dict[str, Any] = {
    "BuilderFlag": _ALL,
    "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED": 0},
    "HardwareCompatibilityLevel": ["NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"],
}


def filled(source: str = STAND_IN, **marks: str) -> str:
    """The stand-in's text with its marks replaced, by these or by what does nothing."""
    nothing = {
        "VERSION": "10.3.0",
        "FLAGS": repr(TEN),
        "BUILDER": "pass",
        "BUILD": "pass",
        "INSPECT": "return None",
    }
    for mark, value in (nothing | marks).items():
        source = source.replace(f"@{mark}@", value)
    return source


def put_stand_in(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str = "10.3.0",
    flags: object = TEN,
    builder: str = "pass",
    build: str = "pass",
    text: str | None = None,
    inspect: str = "return None",
) -> Path:
    """Puts a module `tensorrt` where this process, and so the worker, imports from, and a model.onnx beside an empty
    folder out. builder, build, inspect: statements of the stand-in; text: another module in its place.
    """
    folder = tmp_path / "site" / "tensorrt"
    folder.mkdir(parents=True)
    source = STAND_IN if text is None else textwrap.dedent(text)
    marks = {"VERSION": version, "FLAGS": repr(flags), "BUILDER": builder, "BUILD": build, "INSPECT": inspect}
    (folder / "__init__.py").write_text(filled(source, **marks))
    monkeypatch.syspath_prepend(tmp_path / "site")
    onnx.save(quantized.lenet(codebook=False), tmp_path / "model.onnx")
    (tmp_path / "out").mkdir()
    return tmp_path
