"""Engines that run: on a GPU that is made up, by stand-ins of TensorRT 10.3 to 11.4 and TensorRT-RTX that compute."""

import gc
import json
import os
import shutil
import signal
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from onnx_lathe.errors import ModelError, TargetError
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.core.registry import find
from onnx_lathe.runtime.targets.tensorrt.cuda import Cuda, CudaError
from onnx_lathe.runtime.targets.tensorrt.reopen import open_engine, reopen
from tests.support import gpu, quantized
from tests.support.engines import becomes_one_for_dla, build, network

pytestmark = pytest.mark.skipif(bool(gpu.missing()), reason=gpu.missing())
QUIET = lambda text: None  # noqa: E731
X = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu.Machine:
    return gpu.Machine(tmp_path, monkeypatch)


def described(engine: Path) -> dict:
    return json.loads(engine.with_name(f"{engine.name}.json").read_text())


def describe(engine: Path, **changes: object) -> None:
    engine.with_name(f"{engine.name}.json").write_text(json.dumps(described(engine) | changes))


@pytest.mark.parametrize("version", gpu.VERSIONS)
def test_it_computes_what_the_model_does(machine: gpu.Machine, version: str) -> None:
    model = quantized.lenet(codebook=False)
    opened = reopen(build(machine, model, version))
    session = opened.session
    wanted = ort.run(ort.session(model), quantized.IMAGES)
    found = ort.run(session, quantized.IMAGES)
    assert found.keys() == wanted.keys()
    assert np.array_equal(found["logits"], wanted["logits"])
    assert [(value.name, value.shape, value.type) for value in session.get_inputs()] == [
        ("image", ["image_0", 1, 28, 28], "tensor(float)")
    ]
    assert [(value.name, value.shape[1:], value.type) for value in session.get_outputs()] == [
        ("logits", [10], "tensor(float)")
    ]
    name = "TensorRT-RTX" if version.startswith("1.7") else "TensorRT"
    assert (opened.library, opened.device) == (f"{name} {version}", "Stand-in GPU (sm86)")
    assert opened.size_bytes == (machine.folder.parent / "out").glob("*.engine").__next__().stat().st_size


def test_the_gpu_of_a_build_is_written_down(machine: gpu.Machine) -> None:
    assert described(build(machine, network()))["gpu"] == {"name": "Stand-in GPU", "compute": "sm86"}


@pytest.mark.parametrize("way", ["call", "cuda_graph", "gpu_alone"])
def test_times(machine: gpu.Machine, way: str) -> None:
    session = reopen(build(machine, network())).session
    ms = session.ways_ms({"x": X}, 0.01)[way]
    assert ms.shape == (len(ms),)
    assert len(ms) >= 10
    assert (ms > 0).all()
    if way == "gpu_alone":  # by the GPU's clock
        assert np.allclose(ms, 0.01)
    assert np.array_equal(ort.run(session, {"x": X})["y"], X @ np.arange(6, dtype=np.float32).reshape(3, 2))


def test_a_call_is_timed_without_the_pipe(machine: gpu.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    session = reopen(build(machine, network())).session
    slow = session.process.ask

    def late(*arguments):
        time.sleep(0.05)
        return slow(*arguments)

    monkeypatch.setattr(session.process, "ask", late)
    assert ort.times([session], {"x": X}, most=1).max() < 20


@pytest.mark.parametrize(
    "kind, dtype",
    [
        (TensorProto.FLOAT16, np.float16),
        (TensorProto.INT32, np.int32),
        (TensorProto.INT64, np.int64),
        (TensorProto.BOOL, np.bool_),
        (TensorProto.INT8, np.int8),
    ],
)
def test_types_of_tensors(machine: gpu.Machine, kind: int, dtype: type) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"], "same")]
    session = reopen(build(machine, network(nodes, (["n", 3], kind), (["n", 3], kind)))).session
    values = np.array([[1, 0, 1], [0, 1, 0]], dtype)
    found = ort.run(session, {"x": values})["y"]
    assert found.dtype == dtype
    assert np.array_equal(found, values)
    assert ort.DTYPES[session.get_inputs()[0].type] == dtype


def test_bfloat16_comes_out_as_float32(machine: gpu.Machine) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["y"], "cast", to=TensorProto.BFLOAT16)]
    session = reopen(build(machine, network(nodes, y=(["n", 3], TensorProto.BFLOAT16)))).session
    found = ort.run(session, {"x": X})["y"]
    assert found.dtype == np.float32
    assert np.array_equal(found, X.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_bfloat16_goes_in_as_float32(machine: gpu.Machine) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["y"], "cast", to=TensorProto.FLOAT)]
    session = reopen(build(machine, network(nodes, (["n", 3], TensorProto.BFLOAT16), ["n", 3]))).session
    assert session.get_inputs()[0].type == "tensor(float)"
    assert np.array_equal(ort.run(session, {"x": X})["y"], X.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_a_single_number(machine: gpu.Machine) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["y"], "neg")]
    session = reopen(build(machine, network(nodes, ([], TensorProto.FLOAT), []))).session
    found = session.run(None, {"x": np.array(3, np.float32)})[0]
    assert (found.shape, float(found)) == ((), -3.0)


def test_a_type_that_nothing_here_holds(machine: gpu.Machine) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["y"], "cast", to=TensorProto.FLOAT8E4M3FN)]
    engine = build(machine, network(nodes, y=(["n", 3], TensorProto.FLOAT8E4M3FN)))
    with pytest.raises(TargetError, match="its tensor 'y' is FP8, which cannot be fed or read here"):
        reopen(engine)


def test_other_sizes_and_no_values_at_all(machine: gpu.Machine) -> None:
    session = reopen(build(machine, network(), batch="1:4:8")).session
    for count in (1, 8, 3):
        assert ort.run(session, {"x": np.ones((count, 3), np.float32)})["y"].tolist() == [[6, 9]] * count


def test_a_batch_of_one_size_is_told(machine: gpu.Machine) -> None:
    session = reopen(build(machine, network(), batch=4)).session
    assert session.get_inputs()[0].shape == [4, 3]


def test_fixed_sizes(machine: gpu.Machine) -> None:
    session = reopen(build(machine, network(x=[4, 3], y=[4, 2]))).session
    assert session.get_inputs()[0].shape == [4, 3]
    assert session.run(None, {"x": X[:4]})[0].shape == (4, 2)
    with pytest.raises(ModelError, match=r"input 'x' takes \[4, 3\], not \[5, 3\]"):
        session.run(None, {"x": X})


@pytest.mark.parametrize(
    "feeds, words",
    [
        ({"x": np.ones((2, 4), np.float32)}, r"input 'x' takes \[1\.\.8, 3\], not \[2, 4\]"),
        ({"x": np.ones((3,), np.float32)}, r"input 'x' takes \[1\.\.8, 3\], not \[3\]"),
        ({}, "input 'x' is not fed"),
        ({"x": np.ones((2, 3), np.float64)}, "input 'x' takes float32, not float64"),
    ],
)
def test_feeds_that_it_does_not_take(machine: gpu.Machine, feeds: dict, words: str) -> None:
    session = reopen(build(machine, network(), batch="1:4:8")).session
    with pytest.raises(ModelError, match=words):
        session.run(None, feeds)
    assert session.run(None, {"x": X})[0].shape == (5, 2)  # it goes on


def test_an_engine_for_dla_is_loaded_for_its_core(machine: gpu.Machine) -> None:
    engine = build(machine, network(), "10.3.0")
    becomes_one_for_dla(engine, 1)
    opened = reopen(engine)
    assert opened.session.run(None, {"x": X})[0].shape == (5, 2)
    assert opened.session.process.ask({"do": "open", "engine": str(engine), "dla": 1})[0]["number"] == 1
    with pytest.raises(ModelError, match="the runtime is for DLA core 0"):
        opened.session.process.ask({"do": "open", "engine": str(engine), "dla": 0})
    becomes_one_for_dla(engine, 2)
    with pytest.raises(
        TargetError, match="built for DLA core 2, and this machine has 2 DLA cores, 0 to 1, that"
    ):
        reopen(engine)


def test_several_profiles(machine: gpu.Machine) -> None:
    engine = build(
        machine,
        network(x=["n", "m"], y=["n", "m"], nodes=[helper.make_node("Relu", ["x"], ["y"], "relu")]),
        shapes={"x": "1x4:1x4:2x8"},
    )
    plan = json.loads(engine.read_bytes())
    plan["profiles"].append({"x": [[1, 100], [1, 100], [1, 200]]})
    engine.write_bytes(json.dumps(plan).encode())
    session = open_engine(engine, described(engine))
    for shape in ((2, 6), (1, 150), (1, 4)):
        assert session.run(None, {"x": np.ones(shape, np.float32)})[0].shape == shape
    with pytest.raises(ModelError, match=r"takes \[1\.\.2, 4\.\.8\] or \[1, 100\.\.200\], not \[1, 50\]"):
        session.run(None, {"x": np.ones((1, 50), np.float32)})
    assert session.run(None, {"x": np.ones((3, 8), np.float32)})[0].shape == (3, 8)  # as 1 and 2
    assert session.get_inputs()[0].shape == ["x_0", "x_1"]


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0.106"])
def test_a_shape_that_depends_on_values(machine: gpu.Machine, version: str) -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["found"], "nonzero")]
    model = quantized.model(nodes, {"x": ["n", 3]}, {"found": ([2, "k"], TensorProto.INT64)}, {})
    session = reopen(build(machine, model, version)).session
    for values in (np.zeros((2, 3)), np.eye(3), np.ones((5, 3))):
        found = session.run(None, {"x": values.astype(np.float32)})[0]
        assert np.array_equal(found, np.nonzero(values))
    ways = session.ways_ms({"x": X}, 0.01)
    assert ways["cuda_graph"] == "the shape of its output 'found' depends on the values that go in"
    assert len(ways["call"]) >= 10


@pytest.mark.parametrize("damage, words", [(b"", "has 0 bytes, not"), (None, "holds other bytes")])
def test_a_damaged_file(machine: gpu.Machine, damage: bytes | None, words: str) -> None:
    engine = build(machine, network())
    whole = engine.read_bytes()
    engine.write_bytes(whole[:-1] + b"?" if damage is None else damage)
    with pytest.raises(ModelError, match=f"{engine.name}: {words}.*copy both again, or build it again"):
        reopen(engine)


def test_no_gpu(machine: gpu.Machine) -> None:
    engine = build(machine, network(), "1.7.1.116")
    machine.has_gpu("")
    with pytest.raises(TargetError, match="cannot be run here: no NVIDIA GPU or driver was found") as caught:
        reopen(engine)
    assert caught.value.exit_code == 4
    assert not find("tensorrt-rtx")().runs_here(find("tensorrt-rtx").Config())


def test_no_driver(machine: gpu.Machine) -> None:
    engine = build(machine, network())
    (machine.folder / "libcuda.so.1").unlink()
    if Path("/usr/lib/x86_64-linux-gnu/libcuda.so.1").exists():
        pytest.skip("this machine has a driver of its own")
    with pytest.raises(TargetError, match="no NVIDIA GPU or driver was found"):
        reopen(engine)


def test_another_gpu(machine: gpu.Machine) -> None:
    engine = build(machine, network(), "1.7.1.116", compute="sm86")
    machine.has_gpu("89")
    with pytest.raises(
        TargetError,
        match=r"does not load it on Stand-in GPU \(sm89\): .*; it was built for sm86: build it again",
    ):
        reopen(engine)
    target = find("tensorrt-rtx")()
    assert not target.runs_here(target.Config(compute="sm86"))
    assert target.runs_here(target.Config(compute="sm86+sm89"))


def test_another_version(machine: gpu.Machine) -> None:
    engine = build(machine, network(), "10.3.0")
    machine.install("10.13.3.9")
    with pytest.raises(
        TargetError, match=r"TensorRT 10\.13\.3\.9 does not load it .*built by TensorRT 10\.3\.0"
    ):
        reopen(engine)


def test_another_library(machine: gpu.Machine) -> None:
    engine = build(machine, network(), "10.3.0")
    shutil.rmtree(machine.folder / "tensorrt")
    with pytest.raises(TargetError, match=r"tensorrt is not installed, whose TensorRT 10\.3\.0 built it"):
        reopen(engine)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"library": "other", "version": "1", "engine_bytes": 1, "engine_sha256": ""}']
)
def test_a_description_that_is_none(machine: gpu.Machine, text: str) -> None:
    engine = build(machine, network())
    engine.with_name(f"{engine.name}.json").write_text(text)
    with pytest.raises(ModelError, match=r"engine\.json: is not the description that Lathe writes"):
        reopen(engine)


def test_an_engine_without_its_weights(machine: gpu.Machine) -> None:
    engine = build(machine, network())
    describe(engine, strip=True)
    with pytest.raises(TargetError, match="holds no weights, and computes nothing right"):
        reopen(engine)
    target = find("tensorrt")()
    assert target.runs_here(target.Config())
    assert not target.runs_here(target.Config(strip=True))


def test_files_that_are_missing(machine: gpu.Machine) -> None:
    engine = build(machine, network())
    engine.with_name(f"{engine.name}.json").unlink()
    with pytest.raises(ModelError, match=r"engine\.json: No such file or directory; it says which library"):
        reopen(engine)
    with pytest.raises(ModelError, match=r"absent\.engine: no such file"):
        reopen(engine.with_name("absent.engine"))
    with pytest.raises(ModelError, match="is no file"):
        reopen(engine.parent)


def test_an_engine_that_crashes_ends_its_own_process_alone(machine: gpu.Machine) -> None:
    session = reopen(build(machine, network())).session
    session.process._child.process.kill()
    with pytest.raises(TargetError, match="the process that runs the engine ended with signal SIGKILL"):
        session.run(None, {"x": X})


@pytest.mark.parametrize("count", [5, 60_000], ids=["an answer", "to read its feeds"])
def test_an_engine_that_hangs_is_ended(
    machine: gpu.Machine, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    session = reopen(build(machine, network(), batch="1:4:60000")).session
    monkeypatch.setattr("onnx_lathe.runtime.targets.tensorrt.engine_process.LIMIT_S", 0.5)
    os.kill(session.process._child.process.pid, signal.SIGSTOP)
    for _ in range(2):  # and it stays so
        with pytest.raises(TargetError, match=r"gave no answer within 0\.5 s, and was ended") as caught:
            session.run(None, {"x": np.ones((count, 3), np.float32)})
        assert caught.value.exit_code == 4
        assert session.process._child.process.poll() == -signal.SIGKILL


def test_the_time_limit_is_that_of_one_answer(machine: gpu.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    session = reopen(build(machine, network())).session
    monkeypatch.setattr("onnx_lathe.runtime.targets.tensorrt.engine_process.LIMIT_S", 3.0)
    session.run(None, {"x": X})
    time.sleep(3.2)
    assert session.run(None, {"x": X})[0].shape == (5, 2)


def test_the_process_ends_with_the_session(machine: gpu.Machine) -> None:
    session = reopen(build(machine, network())).session
    number = session.process._child.process.pid
    os.kill(number, 0)
    del session
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_memory_of_a_stand_in_is_checked(machine: gpu.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the driver refuses what is not on the GPU is what the other tests stand on."""
    monkeypatch.setattr(
        "onnx_lathe.runtime.targets.tensorrt.cuda.LIBRARY", str(machine.folder / "libcuda.so.1")
    )
    cuda = Cuda()
    address, host = cuda.allocate(8), cuda.pinned(8)
    host[:] = np.arange(8)
    cuda.to_device(address, host, 8)
    back = cuda.pinned(8)
    cuda.to_host(back, address, 8)
    assert not np.array_equal(back, host)  # nothing has waited for it
    cuda.synchronize()
    assert np.array_equal(back, host)
    for wrong in (
        lambda: cuda.to_device(address, np.zeros(8, np.uint8), 8),
        lambda: cuda.to_device(address, host, 9),
    ):
        with pytest.raises(CudaError, match="cuMemcpyHtoDAsync_v2: CUDA_ERROR_INVALID_VALUE"):
            wrong()
