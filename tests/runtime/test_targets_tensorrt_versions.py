"""TensorRT 10 and 11 by stand-ins that have those versions' names and no others, and the ways in which a
library can be unusable.
"""

import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import onnx
import pytest

from onnx_lathe.errors import TargetError
from onnx_lathe.runtime.targets.tensorrt import tensorrt as targets
from onnx_lathe.runtime.targets.tensorrt.tensorrt import TensorRT
from tests.support.tensorrt_bindings import ELEVEN, TEN, put_stand_in

QUIET = lambda text: None  # noqa: E731


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    return partial(put_stand_in, tmp_path, monkeypatch)


def build(folder: Path, **options) -> list:
    artifact = TensorRT().build(folder / "model.onnx", folder / "out", TensorRT.Config(**options), QUIET)
    assert artifact.paths[0].name == "model.tensorrt.engine"
    return json.loads(artifact.paths[0].read_bytes())


@pytest.mark.parametrize(
    "version, flags, strong", [("10.3.0", TEN, 2), ("10.13.3.9", TEN, 2), ("11.4.0.106", ELEVEN, 1)]
)
def test_the_same_calls_for_10_and_11(stand_in, version: str, flags: object, strong: int) -> None:
    folder = stand_in(version, flags)
    assert TensorRT().available() is None
    calls = build(folder, batch="1:2:4")
    # and no precision flag
    assert calls == [
        ["create_network", strong],  # 1 << STRONGLY_TYPED, whose value differs
        ["parse_from_file", str(folder / "model.onnx")],
        ["profiling_verbosity", "ProfilingVerbosity.DETAILED"],  # the model is quantized
        ["set_shape", ["image", [1, 1, 28, 28], [2, 1, 28, 28], [4, 1, 28, 28]]],
    ]
    details = json.loads((folder / "out" / "model.tensorrt.engine.json").read_text())
    assert details["version"] == version
    assert details["compute"] == []
    assert details["warnings"] == ["a warning of two lines"]


def test_options_become_settings(stand_in) -> None:
    calls = build(stand_in(), level=2, workspace_mb=3, portable=True)
    assert ["builder_optimization_level", "2"] in calls
    assert ["workspace", 3 << 20] in calls
    assert ["hardware_compatibility_level", "HardwareCompatibilityLevel.AMPERE_PLUS"] in calls


def test_weights_of_2_zeros_in_4_allow_sparse_kernels(stand_in) -> None:
    folder = stand_in()
    model = onnx.load(folder / "model.onnx")
    model.metadata_props.add(key="lathe.sparse", value='{"w2": "2:4"}')
    onnx.save(model, folder / "model.onnx")
    assert ["set_flag", "SPARSE_WEIGHTS"] in build(folder)


def test_no_gpu(stand_in) -> None:
    folder = stand_in(builder="raise TypeError('pybind11::init(): factory function returned nullptr')")
    reason = TensorRT().available()
    assert reason is not None
    assert reason.startswith("no NVIDIA GPU or driver was found")
    with pytest.raises(
        TargetError, match=r"TensorRT did not build model\.onnx: no NVIDIA GPU or driver"
    ) as caught:
        build(folder)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "raise ImportError('libnvinfer.so.10: cannot open shared object file')",
            r"cannot be loaded: libnvinfer\.so\.10",
        ),
        ("", "is not TensorRT; uninstall tensorrt-stubs"),
        ("__version__ = '8.6.1'\nclass Builder: pass", "TensorRT 8.6.1 is too old; install 10.3 or later"),
        ("raise RuntimeError('surprise')", "ended with exit code 1; its last words: RuntimeError: surprise"),
        ("import os; os.abort()", "ended with (signal SIGABRT|exit code)"),
    ],
)
def test_a_library_that_is_of_no_use(stand_in, text: str, message: str) -> None:
    stand_in(text=text)
    reason = TensorRT().available()
    assert reason is not None
    assert re.search(message, reason)


def test_nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    for target, words in (
        (targets.TensorRT(), "onnx-lathe[gpu]"),
        (targets.TensorRTRTX(), "onnx-lathe[rtx]"),
    ):
        monkeypatch.setattr(targets.platform, "system", lambda: "Linux")
        monkeypatch.setattr(targets.platform, "machine", lambda: "x86_64")
        assert words in str(target.available())
        with pytest.raises(TargetError, match="is not installed"):
            target.build(tmp_path / "model.onnx", tmp_path, target.Config(), QUIET)
    monkeypatch.setattr(targets.platform, "machine", lambda: "aarch64")
    assert "exists only for Linux and Windows on x86-64" in str(targets.TensorRTRTX().available())


def test_a_build_without_a_plan_gives_the_logged_errors(stand_in) -> None:
    log = "self.logger.log(Severity.ERROR, 'no kernel for conv2'); self.logger.log(Severity.ERROR, 'catchCudaError 35'); return None"
    with pytest.raises(TargetError) as caught:
        build(stand_in(build=log))
    assert str(caught.value) == "TensorRT did not build model.onnx: no kernel for conv2"


def test_a_failed_build_leaves_its_log_alone(stand_in) -> None:
    folder = stand_in(build="self.logger.log(Severity.VERBOSE, 'step one'); return None")
    with pytest.raises(TargetError, match="gives no reason"):
        build(folder, log=True)
    assert [path.name for path in (folder / "out").iterdir()] == ["model.tensorrt.engine.log"]
    assert "VERBOSE: step one" in (folder / "out" / "model.tensorrt.engine.log").read_text()


def test_an_old_engine_stays_whole_when_a_build_fails(stand_in) -> None:
    folder = stand_in(build="import os; os.abort()")
    (folder / "out" / "model.tensorrt.engine").write_bytes(b"old")
    with pytest.raises(TargetError):
        build(folder)
    assert {path.name: path.read_bytes() for path in (folder / "out").iterdir()} == {
        "model.tensorrt.engine": b"old"
    }


def test_the_worker_ends_with_its_parent(stand_in) -> None:
    stand_in(builder="import time; time.sleep(60)")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path)}
    worker = subprocess.Popen(
        [sys.executable, "-m", "onnx_lathe.runtime.targets.tensorrt.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=environment,
    )
    worker.stdin.write(b'{"library": "tensorrt"}\n')
    worker.stdin.flush()
    time.sleep(0.3)
    assert worker.poll() is None
    worker.stdin.close()
    assert worker.wait(timeout=10) == 1
