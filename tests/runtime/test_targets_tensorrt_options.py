"""What the options of the TensorRT targets set, by stand-ins of its versions, and what is refused where a version or
a machine cannot do it: nothing is left out in silence.
"""

import importlib.util
import json
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import TargetError, UsageError
from onnx_lathe.optimizer.build import configured_targets
from onnx_lathe.optimizer.recipe import parse_calls
from onnx_lathe.passes.core.registry import find
from onnx_lathe.runtime.targets.tensorrt import messages
from onnx_lathe.runtime.targets.tensorrt import tensorrt as targets
from onnx_lathe.runtime.targets.tensorrt.cuda import has_gpu
from onnx_lathe.runtime.targets.tensorrt.tensorrt import TensorRT, TensorRTRTX
from tests.support import quantized
from tests.support.command import refused
from tests.support.tensorrt_bindings import ELEVEN, TEN, put_stand_in

QUIET = lambda text: None  # noqa: E731
ENGINE = "model.tensorrt.engine"
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)
needs_no_gpu = pytest.mark.skipif(has_gpu(), reason="there is a GPU here")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    return partial(put_stand_in, tmp_path, monkeypatch)


def artifact(folder: Path, **options):
    return TensorRT().build(folder / "model.onnx", folder / "out", TensorRT.Config(**options), QUIET)


def calls(folder: Path, **options) -> list:
    return json.loads(artifact(folder, **options).paths[0].read_bytes())


def flags(folder: Path, **options) -> list[str]:
    return [call[1] for call in calls(folder, **options) if call[0] == "set_flag"]


def left(folder: Path) -> set[str]:
    return {path.name for path in (folder / "out").iterdir()}


@pytest.mark.parametrize("version, surface", [("10.3.0", TEN), ("11.4.0.106", ELEVEN)])
@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, []),
        ({"sparse": "yes"}, ["SPARSE_WEIGHTS"]),
        ({"refit": "any"}, ["REFIT"]),
        ({"refit": "same"}, ["REFIT_IDENTICAL"]),
        ({"strip": True}, ["STRIP_PLAN", "REFIT_IDENTICAL"]),
        ({"strip": True, "refit": "any"}, ["STRIP_PLAN", "REFIT"]),
        ({"compatible": True}, ["VERSION_COMPATIBLE"]),
        ({"compatible": True, "lean_runtime": False}, ["VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"]),
        ({"weight_streaming": True}, ["WEIGHT_STREAMING"]),
    ],
)
def test_flags(stand_in, version: str, surface: object, options: dict, expected: list[str]) -> None:
    assert flags(stand_in(version, surface), **options) == expected


@pytest.mark.parametrize("sparse, expected", [("auto", ["SPARSE_WEIGHTS"]), ("no", [])])
def test_sparse_kernels_can_be_denied(stand_in, sparse: str, expected: list[str]) -> None:
    folder = stand_in()
    model = onnx.load(folder / "model.onnx")
    model.metadata_props.add(key="lathe.sparse", value='{"w2": "2:4"}')
    onnx.save(model, folder / "model.onnx")
    assert flags(folder, sparse=sparse) == expected


@pytest.mark.parametrize("option", ["refit", "strip", "compatible", "weight_streaming"])
def test_a_flag_that_a_version_has_not(stand_in, option: str) -> None:
    folder = stand_in("10.0.1", TEN | {"BuilderFlag": ["SPARSE_WEIGHTS"]})
    with pytest.raises(TargetError, match=rf"option .*{option}.*: TensorRT 10\.0\.1 has no [A-Z_]+; leave"):
        artifact(folder, **{option: "any" if option == "refit" else True})
    assert left(folder) == set()


def test_a_flag_that_is_taken_back_while_it_builds(stand_in) -> None:
    said = "kWEIGHT_STREAMING is not supported on this platform"
    folder = stand_in(build=f"self.logger.log(Severity.ERROR, '{said}')")
    with pytest.raises(TargetError, match=f"option weight_streaming: {said}"):
        artifact(folder, weight_streaming=True)
    assert left(folder) == set()


def test_errors_of_other_things_do_not_fail_a_build(stand_in) -> None:
    folder = stand_in(build="self.logger.log(Severity.ERROR, 'kREFIT_LATER is not ours')")
    assert flags(folder, refit="any") == ["REFIT"]


def test_a_stripped_engine_has_its_weights_beside_it(stand_in) -> None:
    folder = stand_in()
    made = artifact(folder, strip=True)
    assert left(folder) == {ENGINE, f"{ENGINE}.json", f"{ENGINE}.onnx"}
    assert [path.name for path in made.paths] == [ENGINE, f"{ENGINE}.json", f"{ENGINE}.onnx"]
    assert onnx.load(made.paths[2]) == onnx.load(folder / "model.onnx")
    assert "refitted from model.tensorrt.engine.onnx" in made.notes[0]
    assert json.loads(made.paths[1].read_text())["strip"] is True


def test_a_version_whose_refit_is_known_to_be_wrong(stand_in) -> None:
    made = artifact(stand_in("11.3.0.5", ELEVEN), refit="any")
    assert "TensorRT 11.3 may drop the bias" in made.notes[0]


@pytest.mark.parametrize(
    "options, level",
    [({"portable": True}, "AMPERE_PLUS"), ({"same_compute": True}, "SAME_COMPUTE_CAPABILITY")],
)
def test_engines_for_other_gpus(stand_in, options: dict, level: str) -> None:
    expected = ["hardware_compatibility_level", f"HardwareCompatibilityLevel.{level}"]
    assert expected in calls(stand_in("11.4.0.106", ELEVEN), **options)


def test_a_level_that_a_version_has_not(stand_in) -> None:
    message = r"option same_compute: TensorRT 10\.7\.0 has no SAME_COMPUTE_CAPABILITY"
    with pytest.raises(TargetError, match=message):
        artifact(stand_in("10.7.0"), same_compute=True)


def test_no_engine_of_a_jetson_is_for_others(stand_in, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stand_in()
    monkeypatch.setattr(targets, "JETSON", folder / "model.onnx")
    with pytest.raises(TargetError, match="built on a Jetson runs on that kind alone"):
        artifact(folder, portable=True)


def test_times_are_read_and_written(stand_in) -> None:
    folder = stand_in()
    cache = folder / "kernels.cache"
    assert ["create_timing_cache", ""] in calls(folder, timing_cache=str(cache))
    assert cache.read_bytes() == b"times "
    assert ["create_timing_cache", "times "] in calls(folder, timing_cache=str(cache))
    assert cache.read_bytes() == b"times times "
    assert left(folder) == {ENGINE, f"{ENGINE}.json"}


@pytest.mark.parametrize(
    "content, message", [(b"garbage", "is no timing cache of TensorRT"), (b"other", "is of another GPU")]
)
def test_a_file_that_is_no_cache_stays_as_it_is(stand_in, content: bytes, message: str) -> None:
    folder = stand_in()
    (folder / "mine").write_bytes(content)
    with pytest.raises(TargetError, match=rf"option timing_cache: .*mine {message}"):
        artifact(folder, timing_cache=str(folder / "mine"))
    assert (folder / "mine").read_bytes() == content
    assert left(folder) == set()


def test_a_failed_build_writes_no_times(stand_in) -> None:
    folder = stand_in(build="return None")
    with pytest.raises(TargetError, match="gives no reason"):
        artifact(folder, timing_cache=str(folder / "kernels.cache"))
    assert not (folder / "kernels.cache").exists()


def test_a_folder_that_is_not_there_for_times(stand_in) -> None:
    folder = stand_in()
    with pytest.raises(TargetError, match=r"option timing_cache: .*its folder does not exist"):
        artifact(folder, timing_cache=str(folder / "absent" / "kernels.cache"))
    assert left(folder) == set()


def test_a_folder_that_is_not_there_for_times_is_said_before_the_build(stand_in) -> None:
    folder = stand_in(build="return None")
    times = str(folder / "absent" / "kernels.cache")
    with pytest.raises(TargetError, match=r"option timing_cache: .*its folder does not exist"):
        artifact(folder, timing_cache=times)
    assert "its folder does not exist" in str(TensorRT().unserved(TensorRT.Config(timing_cache=times)))


def test_nothing_is_left_of_an_engine_whose_times_cannot_be_kept(
    stand_in, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise TargetError("option timing_cache: the disk is full")

    monkeypatch.setattr(targets, "keep_times", full)
    folder = stand_in()
    with pytest.raises(TargetError, match="the disk is full"):
        artifact(folder, strip=True, timing_cache=str(folder / "kernels.cache"))
    assert left(folder) == set()


def test_a_dla_core(stand_in) -> None:
    folder = stand_in(flags=TEN | {"cores": 2})
    made = calls(folder, dla=1, batch="1")
    assert ["default_device_type", "DeviceType.DLA"] in made
    assert ["DLA_core", "1"] in made
    assert ["set_flag", "GPU_FALLBACK"] in made
    assert flags(folder, dla=0, batch="1", dla_fallback=False) == [
        "FP16",
        "INT8",
    ]  # as DLA needs it in TensorRT 10
    onnx.save(quantized.lenet(codebook=False, int8=False), folder / "model.onnx")
    assert flags(folder, dla=0, batch="1", dla_fallback=False) == ["FP16"]


@pytest.mark.parametrize(
    "cores, options, message",
    [
        (0, {"dla": 0, "batch": "1"}, "this machine has no DLA that TensorRT 10.3.0 can use"),
        (2, {"dla": 2, "batch": "1"}, "has 2 DLA cores, 0 to 1"),
        (2, {"dla": 0, "batch": "1:1:32"}, "DLA takes no dynamic sizes, and input 'image' has some"),
    ],
)
def test_dla_where_it_cannot_be(stand_in, cores: int, options: dict, message: str) -> None:
    folder = stand_in(flags=TEN | {"cores": cores})
    with pytest.raises(TargetError, match=f"option dla: .*{message}"):
        artifact(folder, **options)
    assert left(folder) == set()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sparse": "maybe"}, "option sparse takes auto, yes or no, not"),
        ({"refit": "all"}, "option refit takes no, any or same, not"),
        ({"lean_runtime": False}, "needs compatible=true"),
        ({"dla_fallback": False}, "needs dla=CORE"),
        ({"portable": True, "same_compute": True}, "an engine has one of them"),
        ({"portable": True, "dla": 0}, "an engine for DLA"),
    ],
)
def test_options_that_contradict_each_other(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TensorRT.Config(**options)


@pytest.mark.parametrize(
    "target, message",
    [
        ("tensorrt-rtx(timing_cache=times)", "no option 'timing_cache'; TensorRT-RTX times no kernels"),
        ("tensorrt-rtx(dla=0)", "no option 'dla'; TensorRT-RTX runs on GPUs alone"),
        ("tensorrt-rtx(portable=true)", "no option 'portable'; name the GPUs"),
        (
            "tensorrt-rtx(compatible=true)",
            "has no lean runtime to put into the engine; add lean_runtime=false",
        ),
        ("tensorrt(compute=sm86)", "no option 'compute'; TensorRT builds for the GPU that it runs on"),
        ("tensorrt(dla=-1)", r"tensorrt\(dla=...\) must be at least 0"),
        ("tensorrt(refit=yes)", "must be one of no, any, same"),
        ("tensorrt(timing_cach=x)", "did you mean 'timing_cache'"),
    ],
)
def test_what_a_target_has_not_is_said_with_the_reason(target: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        configured_targets(parse_calls(target, "--target"))


def rtx(folder: Path, **options):
    onnx.save(quantized.lenet(codebook=False), folder / "model.onnx")
    (folder / "out").mkdir()
    return TensorRTRTX().build(folder / "model.onnx", folder / "out", TensorRTRTX.Config(**options), QUIET)


@needs_rtx
@needs_no_gpu
@pytest.mark.parametrize(
    "options, named",
    [({"refit": "any"}, "refit=any"), ({"refit": "same"}, "refit=same"), ({"strip": True}, "strip")],
)
def test_rtx_refits_only_where_a_gpu_is(options: dict, named: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=rf"option {named}: .* only where a GPU and its driver are"):
        rtx(tmp_path, **options)
    assert left(tmp_path) == set()


@needs_rtx
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("compute=sm99", "this version has no ComputeCapability SM99"),
        pytest.param("strip=true", "option strip: TensorRT-RTX builds such engines only", marks=needs_no_gpu),
    ],
)
def test_what_cannot_be_served_here_is_said_before_the_first_pass(
    option: str,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Training for hours is not for nothing."""
    onnx.save(quantized.lenet(codebook=False, int8=False), tmp_path / "model.onnx")
    monkeypatch.setattr(find("prune"), "apply", lambda self, graph, context: pytest.fail("a pass ran"))
    out = tmp_path / "out"
    arguments = [str(tmp_path / "model.onnx"), "--passes", "prune", "--target", f"tensorrt-rtx({option})"]
    line = refused(capsys, [*arguments, "--out", str(out), "--quiet"], code=4)
    assert line.startswith("optimize: target 'tensorrt-rtx': ")
    assert words in line
    assert not list(tmp_path.glob("out/model*"))


def test_what_the_stand_in_cannot_serve_is_said_without_a_model(stand_in) -> None:
    stand_in("10.3.0", TEN)
    assert TensorRT().unserved(TensorRT.Config()) is None
    assert TensorRT().unserved(TensorRT.Config(portable=True)) is None
    assert "SAME_COMPUTE_CAPABILITY" in str(TensorRT().unserved(TensorRT.Config(same_compute=True)))


@needs_rtx
@pytest.mark.parametrize(
    "options", [{"compatible": True, "lean_runtime": False}, {"weight_streaming": True}, {"sparse": "yes"}]
)
def test_what_rtx_takes(options: dict, tmp_path: Path) -> None:
    assert rtx(tmp_path, **options).size_bytes > 1000


@needs_rtx
def test_a_wrong_option_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(quantized.lenet(codebook=False), tmp_path / "model.onnx")
    target = "tensorrt-rtx(timing_cache=times)"
    line = refused(capsys, ["build", str(tmp_path / "model.onnx"), "--target", target])
    assert "there is nothing to keep" in line


@pytest.mark.parametrize(
    "said, expected",
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (choose: Must have inputs with equal ranks "
            "when condition is not a build-time constant. In lowerShapes at /_src/a.cpp:144 In analyze at /_src/b.cpp:2825)",
            "choose: Must have inputs with equal ranks when condition is not a build-time constant",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:1500: run_passes] Cannot compile for "
            "target(s) sm86. In compileGraph at /_src/x.cpp:2012)",
            "Cannot compile for target(s) sm86",
        ),
        ("no kernel for conv2", "no kernel for conv2"),
    ],
)
def test_errors_without_their_place_in_the_source(said: str, expected: str) -> None:
    assert messages.tidy_error(said) == expected


def test_what_to_do_is_added_where_it_is_known() -> None:
    said = messages.explained("Unable to load library: libnvinfer_lean.so.10")
    assert said.endswith("; install TensorRT's lean runtime of the same version, or give lean_runtime=false")
    assert messages.explained("something else") == "something else"


def test_the_noise_of_a_machine_without_gpu_is_left_out() -> None:
    said = (
        "w (DequantizeLinear): no blocks [checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In "
        "catchCudaError at /_src/x.cpp:250 (cudaError 35: CUDA driver version is insufficient))"
    )
    assert messages.tidy(said) == "w (DequantizeLinear): no blocks"
    assert np.all([messages.NOISE not in text for text in (messages.tidy(said), messages.tidy_error(said))])
