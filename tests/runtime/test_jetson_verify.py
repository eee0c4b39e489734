"""`build.py --verify` on a machine with a GPU that is made up, and the figures it gives."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_lathe.runtime.targets.jetson.device import checksums, figures, showing
from onnx_lathe.runtime.targets.jetson.device.verifying import calls, compare
from onnx_lathe.runtime.targets.jetson.jetson import Jetson
from onnx_lathe.runtime.targets.tensorrt.reopen import reopen
from tests.support import gpu, quantized
from tests.support.engines import becomes_one_for_dla
from tests.support.jetson import QUIET, build_py, library, one_line, write

computed = pytest.mark.skipif(bool(gpu.missing()), reason=gpu.missing())
FEEDS = {"image": np.random.default_rng(0).random((8, 1, 28, 28), np.float32)}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu.Machine:
    return gpu.Machine(tmp_path, monkeypatch)


def stored(folder: Path, model: onnx.ModelProto | None = None, feeds=FEEDS, **options) -> Path:
    """The folder of a bundle with stored inputs."""
    artifact, bundle = write(folder, model, **options)
    Jetson().verify(folder / "lowered.onnx", artifact, Jetson.Config(**options), feeds, QUIET)
    return bundle


@computed
@pytest.mark.parametrize("version", ["10.3.0", "11.4.0.106"])
def test_an_engine_is_built_and_compared(tmp_path: Path, machine: gpu.Machine, version: str) -> None:
    machine.install(version)
    bundle = stored(tmp_path, batch="1:2:4")
    done = build_py(bundle, machine.folder, "--verify", "--seconds", "0.05")
    assert done.returncode == 0, done.stderr
    said = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert any(
        line.startswith(
            f"TensorRT {version}, engine for the GPU, 4 stored calls (samples of the data), against ONNX Runtime"
        )
        for line in said
    )
    assert any(line.startswith("logits ") and line.endswith("100.00 % of 8") for line in said)
    assert "latency of image 2x1x28x28" in said
    for way in ("a call with its copies", "the same as a CUDA graph", "the GPU alone"):
        line = next(line for line in said if line.startswith(way))
        median, p99 = (float(word) for word in line.removeprefix(way).replace("ms", "").split()[:2])
        assert 0 < median <= p99


@computed
def test_an_engine_that_is_there_is_taken(tmp_path: Path, machine: gpu.Machine) -> None:
    machine.install("10.3.0")
    bundle = stored(tmp_path)
    assert build_py(bundle, machine.folder).returncode == 0
    built = (bundle / "model.engine").stat().st_mtime_ns
    done = build_py(bundle, machine.folder, "--verify", "--seconds", "0.05")
    assert done.returncode == 0, done.stderr
    assert "building" not in done.stdout
    assert (bundle / "model.engine").stat().st_mtime_ns == built


@computed
def test_an_engine_of_another_version_is_told_so(tmp_path: Path, machine: gpu.Machine) -> None:
    machine.install("10.3.0")
    bundle = stored(tmp_path)
    assert build_py(bundle, machine.folder).returncode == 0
    machine.install("10.13.3.9")
    said = one_line(build_py(bundle, machine.folder, "--verify"), 4)
    assert "model.engine cannot be loaded (" in said
    assert "Version tag does not match" in said
    assert "remove it and build again" in said


@computed
def test_an_engine_of_another_network_is_not_compared(tmp_path: Path, machine: gpu.Machine) -> None:
    """As where another bundle is copied over the one whose engine is there."""
    machine.install("10.3.0")
    (tmp_path / "float").mkdir()
    bundle = stored(tmp_path / "float", quantized.lenet(codebook=False, int8=False))
    assert build_py(bundle, machine.folder).returncode == 0
    shutil.copytree(stored(tmp_path), bundle, dirs_exist_ok=True)
    old = (bundle / "model.engine").read_bytes()
    said = one_line(build_py(bundle, machine.folder, "--verify"), 2)
    assert "model.engine was built of another network than the one here; build it again" in said
    assert (bundle / "model.engine").read_bytes() == old
    assert build_py(bundle, machine.folder).returncode == 0
    assert build_py(bundle, machine.folder, "--verify", "--seconds", "0.05").returncode == 0


@computed
def test_an_engine_for_the_other_processor_is_not_compared(tmp_path: Path, machine: gpu.Machine) -> None:
    machine.install("10.3.0")
    bundle = stored(tmp_path, dla=0)
    site = library(tmp_path / "site", "10.3.0")
    built = build_py(bundle, site)
    assert "built for DLA core 0 in" in built.stdout
    said = one_line(build_py(bundle, site, "--verify", "--gpu"), 2)
    assert "was built for DLA core 0, and asked for is one for the GPU" in said
    assert "(python3 build.py --gpu)" in said
    assert build_py(bundle, machine.folder, "--gpu").returncode == 0
    done = build_py(bundle, machine.folder, "--verify", "--gpu", "--seconds", "0.05")
    assert done.stdout.startswith("TensorRT 10.3.0, engine for the GPU, ")
    assert "was built for the GPU, and asked" in one_line(build_py(bundle, site, "--verify"), 2)


@computed
def test_an_engine_for_dla_is_verified_on_its_core(tmp_path: Path, machine: gpu.Machine) -> None:
    machine.install("10.3.0")
    bundle = stored(tmp_path, dla=1)
    assert build_py(bundle, machine.folder, "--gpu").returncode == 0
    becomes_one_for_dla(bundle / "model.engine", 1)
    done = build_py(bundle, machine.folder, "--verify", "--seconds", "0.05")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("TensorRT 10.3.0, engine for DLA core 1, ")


@computed
def test_an_engine_that_is_damaged_or_of_no_description(tmp_path: Path, machine: gpu.Machine) -> None:
    machine.install("10.3.0")
    bundle = stored(tmp_path)
    assert build_py(bundle, machine.folder).returncode == 0
    (bundle / "model.engine").write_bytes(b"{}")
    said = one_line(build_py(bundle, machine.folder, "--verify"), 2)
    assert "model.engine is not the one that model.engine.json is of; build it again" in said
    (bundle / "model.engine.json").write_text("{}")
    assert "does not say of what model.engine was built" in one_line(
        build_py(bundle, machine.folder, "--verify"), 2
    )
    (bundle / "model.engine.json").unlink()
    assert "cannot be read (No such file" in one_line(build_py(bundle, machine.folder, "--verify"), 2)


@computed
def test_lathe_opens_what_was_built(tmp_path: Path, machine: gpu.Machine) -> None:
    machine.install("10.3.0")
    bundle = stored(tmp_path)
    assert build_py(bundle, machine.folder).returncode == 0
    opened = reopen(bundle / "model.engine")
    assert opened.session.run(None, {"image": FEEDS["image"][:1]})[0].shape == (1, 10)


@computed
def test_an_engine_that_computes_something_else_fails(tmp_path: Path, machine: gpu.Machine) -> None:
    machine.install("10.3.0")
    bundle = stored(tmp_path)
    with np.load(bundle / "reference.npz") as kept:
        arrays = {name: kept[name] + np.float32("out" in name) * kept[name][:, ::-1] for name in kept.files}
    np.savez(bundle / "reference.npz", **arrays)
    (bundle / "SHA256SUMS").write_text(checksums.sums(bundle))
    done = build_py(bundle, machine.folder, "--verify", "--seconds", "0.05")
    assert done.returncode == 3
    assert "build.py: output 'logits' has " in done.stderr
    assert "below 20 dB: the engine does not compute what the model does" in done.stderr
    assert (
        build_py(bundle, machine.folder, "--verify", "--seconds", "0.05", "--least-sqnr", "-40").returncode
        == 0
    )


@computed
def test_no_gpu(tmp_path: Path, machine: gpu.Machine) -> None:
    machine.install("10.3.0")
    bundle = stored(tmp_path)
    assert build_py(bundle, machine.folder).returncode == 0
    machine.has_gpu("")
    assert "no NVIDIA GPU or driver was found" in one_line(build_py(bundle, machine.folder, "--verify"), 4)


@computed
def test_integers_and_any_name(tmp_path: Path, machine: gpu.Machine) -> None:
    """Names that no file may have, and outputs that are counted, not measured."""
    machine.install("10.3.0")
    name = "../x, 'y'"
    nodes = [
        helper.make_node("ArgMax", [name], ["best"], "best", axis=1, keepdims=0),
        helper.make_node("Relu", [name], ["0.in0"], "relu"),
    ]
    outputs = {"best": (["n"], TensorProto.INT64), "0.in0": ["n", 5]}
    model = quantized.model(nodes, {name: ["n", 5]}, outputs, {})
    bundle = stored(tmp_path, model, {name: np.random.default_rng(0).standard_normal((8, 5), np.float32)})
    done = build_py(bundle, machine.folder, "--verify", "--seconds", "0.05")
    assert done.returncode == 0, done.stderr
    said = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "best 0.00 % differ" in said
    assert "0.in0 equal 100.00 % of 8" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lowered.onnx", "machine", "out"]


@computed
def test_what_cannot_be_a_graph_says_why(tmp_path: Path, machine: gpu.Machine) -> None:
    machine.install("10.3.0")
    nodes = [helper.make_node("NonZero", ["x"], ["found"], "nonzero")]
    model = quantized.model(nodes, {"x": ["n", 5]}, {"found": ([2, None], TensorProto.INT64)}, {})
    bundle = stored(tmp_path, model, {"x": np.eye(8, 5, dtype=np.float32)})
    done = build_py(bundle, machine.folder, "--verify", "--seconds", "0.05")
    assert done.returncode == 0, done.stderr
    graph = next(line for line in done.stdout.splitlines() if line.startswith("the same as a CUDA graph"))
    assert "none: the shape of its output 'found' depends on the values that go in" in graph


def test_what_is_stored_is_no_pickle_and_read_back(tmp_path: Path) -> None:
    bundle = stored(tmp_path, batch="1:2:4")
    described = json.loads((bundle / "bundle.json").read_text())["reference"]
    assert described["made_up"] is False
    found = calls(bundle / "reference.npz", described["inputs"], described["outputs"])
    assert [one[0]["image"].shape for one in found] == [(2, 1, 28, 28)] * 4
    np.testing.assert_array_equal(np.concatenate([one[0]["image"] for one in found]), FEEDS["image"])
    assert [one[1]["logits"].shape for one in found] == [(2, 10)] * 4


def test_nothing_but_arrays_is_given_to_be_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy before 2.2 takes every keyword for an array, and the device does not read one without a number."""
    seen = []
    monkeypatch.setattr(np, "savez", lambda file, **arrays: seen.append(sorted(arrays)))
    stored(tmp_path, feeds={"image": FEEDS["image"][:1]})
    assert seen == [["0.in0", "0.out0"]]


@pytest.mark.parametrize(
    ("expected", "found", "db"),
    [
        ([3.0, 4.0], [3.0, 4.0], math.inf),
        ([3.0, 4.0], [3.3, 4.4], 20.0),
        ([0.0, 0.0], [0.0, 1.0], -96.9897),
        ([0.0, 0.0], [1e-7, -1e-7], 40.0),
        ([0.0, 0.0], [0.0, 0.0], math.inf),
        ([1.0, math.nan], [1.0, math.nan], math.inf),
        ([1.0, math.inf], [1.0, math.inf], math.inf),
        ([1.0, math.inf], [1.0, 7.0], -math.inf),
        ([1.0, 2.0], [1.0, math.nan], -math.inf),
    ],
)
def test_signal_to_noise(expected: list[float], found: list[float], db: float) -> None:
    arrays = (np.array(values, np.float32) for values in (expected, found))
    assert figures.sqnr_db(*arrays) == pytest.approx(db, abs=1e-4)


def test_other_figures() -> None:
    expected, found = np.array([[1.0, 2.0], [3.0, 1.0]]), np.array([[1.0, 2.0], [0.0, 1.0]])
    assert figures.top1(expected, found) == 0.5
    assert figures.top1(expected[0], found[0]) is None
    unknown = np.array([[math.nan, 2.0], [3.0, 1.0]])
    assert figures.top1(unknown, unknown) == figures.top1(np.array([[2.0, 1.0], [3.0, 1.0]]), unknown) == 0.5
    said = compare("y", [{"y": expected}], [{"y": unknown}])
    assert (said["top1"], said["rows_with_nan"]) == (0.5, 1)
    assert showing._top1(said) == "50.00 % of 2, 1 with NaN"
    assert "rows_with_nan" not in compare("y", [{"y": expected}], [{"y": found}])
    assert figures.differing(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 0.25
    times = list(range(1, 101))
    assert (figures.quantile(times, 0.5), figures.quantile(times, 0.99), figures.quantile([7.0], 0.99)) == (
        50,
        99,
        7.0,
    )


@pytest.mark.parametrize(("core", "where"), [(None, "for the GPU"), (1, "for DLA core 1")])
def test_where_it_is_for_is_said(core: int | None, where: str) -> None:
    latency = {way: {"reason": "not timed"} for way in showing.WAYS}
    found = {"version": "10.3.0", "calls": 1, "outputs": [], "shapes": {}, "latency": latency}
    said = showing.verified(found, {"made_up": True, "by": "ONNX Runtime"}, core)
    assert said.startswith(
        f"TensorRT 10.3.0, engine {where}, 1 stored calls (random values), against ONNX Runtime"
    )


def test_another_shape_is_a_difference() -> None:
    found = compare("y", [{"y": np.zeros((2, 3), np.float32)}], [{"y": np.zeros((2, 4), np.float32)}])
    assert showing.too_different({"outputs": [found]}, 0.0) == "output 'y' is [2, 4], not [2, 3]"
    many = {"name": "i", "differ": 0.5}
    assert "50.00 % of output 'i' are other values" in showing.too_different({"outputs": [many]}, 0.0)
