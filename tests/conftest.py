"""Fixtures: models and data that several tests use."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import hypothesis
import numpy as np
import onnx
import onnxruntime
import pytest

from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.fold.fold import Fold
from onnx_lathe.passes.graph.model import export_model, import_model
from tests.support import seeds
from tests.support.models import MODELS, load_foreign

# the suite runs on two workers; more threads than cores slow both down
os.environ.setdefault("OMP_NUM_THREADS", "1")

# the same examples each time, however long a busy machine takes; `--hypothesis-profile=default` looks for new ones
hypothesis.settings.register_profile("seeded", derandomize=True, deadline=None)
hypothesis.settings.load_profile("seeded")


OLD_RUNTIME = tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 24)
"""The last ONNX Runtime for Python 3.10 is 1.23: it knows opset 23, and fails on models that newer ones run."""
BEYOND_IT = (
    "test_other_passes_and_the_bridge_understand_shared_codebooks",  # a lowered model ends its process
    "test_an_int4_weight_meets_int8_activations_as_int8",  # it fuses a QGemm that it then refuses
    "test_agrees_with_onnx_runtime[ReduceSum-81]",  # no axes, and noop_with_empty_axes
    "test_operator_agrees_with_onnx_runtime[ReduceSum-21-2x3-noop_with_empty_axes=1]",
    "test_operator_agrees_with_onnx_runtime[AveragePool-21-2x4x9x8-kernel_shape=[3, 3]-pads=[0, 1, 2, 1]"
    "-count_include_pad=1]",  # it divides by another count
    "test_help_in_loading_is_warned_of",  # it needs no help there
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items if OLD_RUNTIME else ():
        parameters = getattr(item, "callspec", None)
        newest = parameters is not None and any(
            type(value) is int and value == 24 for name, value in parameters.params.items() if "opset" in name
        )
        if newest or item.name in BEYOND_IT or getattr(item, "originalname", "") in BEYOND_IT:
            item.add_marker(pytest.mark.skip(reason="ONNX Runtime before 1.24 cannot run this model"))


@pytest.hookimpl(tryfirst=True)
def pytest_collectstart() -> None:
    """A file is imported next: what it draws then does not depend on the files before."""
    seeds.reseed(seeds.FILE)


@pytest.fixture(autouse=True)
def _forgets_the_gpu() -> Iterator[None]:
    """Which GPU is here is asked once in a process: a test with a made-up one leaves none to the next."""
    yield
    if module := sys.modules.get("onnx_lathe.runtime.targets.tensorrt.engine_process"):
        module.compute_here.cache_clear()


_module: ModuleType | None = None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    """What the files before have left for good is not looked through again. Every pass ends with gc.collect(), and of
    all of PyTorch and of a thousand tests that takes ten times as long as a pass on a small network.
    """
    global _module
    if isinstance(item, pytest.Function) and item.module is not _module:
        _module = item.module
        gc.collect()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    seeds.reseed()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> Iterator[None]:
    """What several tests share is made in one of them, whichever is first: neither sees the other's draws."""
    if fixturedef.scope == "function":
        return (yield)
    seeds.reseed(seeds.FIXTURE)
    try:
        return (yield)
    finally:
        seeds.reseed()


@pytest.fixture(scope="module")
def unguarded() -> Iterator[None]:
    """Networks are loaded here alone, not in a child before, which costs as much again: a crash would end these tests,
    and be seen. What the child is for has its own, in tests/runtime/test_guard.py.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnx_lathe.runtime.running.guard.crash", lambda source, settings: None)
        yield


@pytest.fixture(scope="session")
def lenet5() -> Path:
    return MODELS / "lenet5-mnist" / "model.onnx"


@pytest.fixture(scope="session")
def mnist() -> Path:
    return MODELS / "mnist.npz"


@pytest.fixture
def light(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    """A `light_*` model (the parameter: its path) with all its weights stored, folded as a recipe would do
    it.

    Hidden layers of 4096, hundreds of megabytes, are of 256 here.
    """
    model = onnx.load(request.param)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64 and 4096 in (
            sizes := onnx.numpy_helper.to_array(tensor)
        ):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.where(sizes == 4096, 256, sizes), tensor.name))
    for value in model.graph.value_info:
        value.type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.setattr("tests.support.models.MATERIALIZED_PARAMETERS", 30_000_000)
    graph = import_model(load_foreign(tmp_path / "model.onnx"))
    Fold().apply(graph, Context())
    return export_model(graph)


@pytest.fixture(scope="session")
def small_mnist(tmp_path_factory: pytest.TempPathFactory, mnist: Path) -> Path:
    """300 training and 400 test images, so that a whole run takes seconds."""
    path = tmp_path_factory.mktemp("data") / "mnist.npz"
    with np.load(mnist) as arrays:
        train = {f"train/{key}": arrays[f"train/{key}"][:300] for key in ("image", "labels")}
        test = {f"test/{key}": arrays[f"test/{key}"][:400] for key in ("image", "labels")}
    np.savez(path, **train, **test)
    return path
