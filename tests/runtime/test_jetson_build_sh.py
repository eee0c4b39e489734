"""build.sh of a bundle, with a program in trtexec's place that writes its arguments down, and under shellcheck."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from onnx import helper

from onnx_lathe.runtime.targets.jetson.device import built
from onnx_lathe.runtime.targets.jetson.device.refusal import RefusedError
from onnx_lathe.runtime.targets.jetson.shell import flags, impossible, unnamable
from onnx_lathe.runtime.targets.tensorrt.reopen import check_file, description
from tests.support import quantized
from tests.support.jetson import build_sh, heed_signals, one_line, trtexec, write

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("bash") is None, reason="a shell script for Linux"
)
SHAPES = [
    "--minShapes=image:1x1x28x28",
    "--optShapes=image:2x1x28x28",
    "--maxShapes=image:4x1x28x28",
]


def arguments(folder: Path) -> list[str]:
    """Of the build, after those of the question for the version."""
    given = (folder / "arguments").read_text().splitlines()
    assert given[0] == "--help"
    return [argument for argument in given[1:] if not argument.startswith("--saveEngine=.building-")]


@pytest.mark.parametrize(
    ("version", "typed"), [("100300", ["--stronglyTyped"]), ("101303", ["--stronglyTyped"]), ("110401", [])]
)
def test_the_flags_are_exactly_these(tmp_path: Path, version: str, typed: list[str]) -> None:
    _, bundle = write(tmp_path, batch="1:2:4", workspace_mb=512, level=4)
    done = build_sh(bundle, trtexec(tmp_path, version))
    assert done.returncode == 0, done.stderr
    assert arguments(tmp_path) == [
        "--onnx=model.onnx", "--skipInference", *SHAPES, "--memPoolSize=workspace:512", "--builderOptimizationLevel=4", *typed,
    ]  # fmt: skip
    assert (bundle / "model.engine").read_text() == "engine\n"
    assert sorted(path.name for path in bundle.glob(".*")) == []


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    ("version", "allowed"), [("100300", ["--fp16"]), ("100700", ["--fp16"]), ("110401", [])]
)
def test_dla_is_weakly_typed_in_10_alone(
    tmp_path: Path, version: str, allowed: list[str], int8: bool
) -> None:
    _, bundle = write(tmp_path, quantized.lenet(codebook=False, int8=int8), dla=1)
    if int8 and allowed:
        allowed = [*allowed, "--int8"]
    done = build_sh(bundle, trtexec(tmp_path, version))
    assert done.returncode == 0, done.stderr
    assert arguments(tmp_path)[-2 - len(allowed) :] == ["--useDLACore=1", "--allowGPUFallback", *allowed]
    assert "--stronglyTyped" not in arguments(tmp_path)
    (tmp_path / "arguments").unlink()
    assert build_sh(bundle, trtexec(tmp_path, version), "--gpu").returncode == 0
    assert not any("DLA" in argument for argument in arguments(tmp_path))


@pytest.mark.parametrize(("arguments", "core"), [((), 1), (("--gpu",), None)])
def test_the_engine_is_described_as_build_py_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], core: int | None
) -> None:
    monkeypatch.setattr("onnx_lathe.runtime.files.model_file.INLINE_LIMIT_BYTES", 1000)
    _, bundle = write(tmp_path, quantized.lenet(codebook=False, int8=False), dla=1)
    done = build_sh(bundle, trtexec(tmp_path), *arguments)
    assert f"built for {'the GPU' if core is None else 'DLA core 1'}" in done.stdout
    files = built.network(bundle, "model.onnx")
    assert sorted(files) == ["model.onnx", "model.onnx.data"]
    built.check(bundle, {"library": "tensorrt", "dla": core}, files)
    said = description(bundle / "model.engine")
    check_file(bundle / "model.engine", said)
    assert (said["version"], said["engine_bytes"]) == ("10.3.0", 7)
    with pytest.raises(RefusedError, match="was built for"):
        built.check(bundle, {"library": "tensorrt", "dla": 0}, files)


@pytest.mark.parametrize(
    ("version", "options", "message"),
    [
        ("8601", {}, "this TensorRT is too old (v8601)"),
        ("100100", {}, "too old (v100100): the network needs 10.3"),
        ("100800", {"dla": 0}, "TensorRT 10.8.0 does not build for DLA"),
        ("110200", {"dla": 0}, "TensorRT 11.2.0 does not build for DLA"),
        ("110400", {"dla": 0}, "TensorRT 11.4.0 does not build for DLA"),
        ("unknown", {}, "does not say its version"),
    ],
)
def test_versions_that_do_not_do(tmp_path: Path, version: str, options: dict, message: str) -> None:
    _, bundle = write(tmp_path, **options)
    assert message in one_line(build_sh(bundle, trtexec(tmp_path, version)), 4)
    assert not (bundle / "model.engine").exists()


def test_flags_are_trtexecs_own() -> None:
    request = {"profiles": [], "workspace_bytes": None, "level": None, "flags": ["REFIT", "SPARSE_WEIGHTS"]}
    assert flags(request) == ["--refit", "--sparsity=enable"]
    assert impossible(request) == ""
    assert impossible(request | {"flags": ["REFIT", "STRICT_NANS"]}) == "STRICT_NANS"


def test_sparse_weights_are_allowed(tmp_path: Path) -> None:
    model = quantized.lenet(codebook=False)
    model.metadata_props.add(key="lathe.sparse", value='{"w2": "2:4"}')
    _, bundle = write(tmp_path, model)
    assert build_sh(bundle, trtexec(tmp_path)).returncode == 0
    assert "--sparsity=enable" in arguments(tmp_path)


def test_damaged_and_missing_files_are_all_named(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    (bundle / "model.onnx").write_bytes(b"other")
    (bundle / "README.md").unlink()
    said = one_line(build_sh(bundle, trtexec(tmp_path)), 2)
    assert said == "build.sh: missing or not as written: README.md model.onnx; copy the folder again"
    (bundle / "SHA256SUMS").unlink()
    assert "SHA256SUMS is not there" in one_line(build_sh(bundle, trtexec(tmp_path)), 2)
    assert not (tmp_path / "arguments").exists()


def test_what_is_not_listed_is_not_taken(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    sums = bundle / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(line for line in lines if not line.endswith("  model.onnx\n")))
    said = one_line(build_sh(bundle, trtexec(tmp_path)), 2)
    assert said == "build.sh: SHA256SUMS does not list model.onnx; copy the folder again"
    sums.write_text("".join(lines) + "garbage\n")
    assert "SHA256SUMS itself; copy" in one_line(build_sh(bundle, trtexec(tmp_path)), 2)


def test_no_trtexec(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    said = one_line(build_sh(bundle, tmp_path / "absent"), 4)
    assert "trtexec is not there" in said
    assert "python3 build.py" in said


def test_a_failed_build_gives_trtexecs_first_error_and_leaves_nothing(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    (bundle / "model.engine").write_text("old")
    before = {path.name for path in bundle.iterdir()}
    errors = "echo '[11/29/2026-16:00:00] [E] Unknown embedded device'; echo '[E] Engine could not be created'; exit 1"
    program = trtexec(tmp_path, before=errors)
    said = one_line(build_sh(bundle, program), 4)
    assert said.startswith(
        "build.sh: trtexec did not build model.onnx (exit code 1): Unknown embedded device; ./build.sh --log"
    )
    assert {path.name for path in bundle.iterdir()} == before
    assert (bundle / "model.engine").read_text() == "old"
    one_line(build_sh(bundle, program, "--log"), 4)
    assert "could not be created" in (bundle / "model.engine.log").read_text()


def test_an_end_without_an_engine_is_a_failure(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    assert "gives no reason" in one_line(build_sh(bundle, trtexec(tmp_path, before="exit 0")), 4)


def test_a_crash_is_one_line(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    assert "(exit code 139)" in one_line(build_sh(bundle, trtexec(tmp_path, before="kill -SEGV $$")), 4)


def test_the_time_limit(tmp_path: Path) -> None:
    _, bundle = write(tmp_path, time_limit=1.0)
    said = one_line(build_sh(bundle, trtexec(tmp_path, before="exec sleep 30")), 4)
    assert "not built within 1 s" in said
    assert not list(bundle.glob(".*"))


def test_the_time_limit_of_what_heeds_no_signal(tmp_path: Path) -> None:
    _, bundle = write(tmp_path, time_limit=1.0)
    said = one_line(build_sh(bundle, trtexec(tmp_path, before="trap '' TERM; exec sleep 30")), 4)
    assert "not built within 1 s" in said


@pytest.mark.parametrize("limit", [None, 600.0])
def test_running_out_of_memory(tmp_path: Path, limit: float | None) -> None:
    _, bundle = write(tmp_path, time_limit=limit)
    said = one_line(build_sh(bundle, trtexec(tmp_path, before="kill -KILL $$")), 4)
    assert said.startswith("build.sh: trtexec was killed, as where memory runs out")


def test_trtexec_by_a_path_from_where_one_stands(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    trtexec(tmp_path)
    environment = {"PATH": os.environ["PATH"], "TRTEXEC": "./trtexec"}
    command = [str(bundle / "build.sh")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (bundle / "model.engine").unlink()
    environment = {"PATH": f"{os.environ['PATH']}:{tmp_path}"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_another_shell_is_told_so(tmp_path: Path) -> None:
    if shutil.which("dash") is None:
        pytest.skip("dash is not installed")
    _, bundle = write(tmp_path)
    command = ["dash", str(bundle / "build.sh")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert one_line(done, 2) == "build.sh: this shell is not bash; run ./build.sh, or bash build.sh"


def test_a_log_can_be_the_rule(tmp_path: Path) -> None:
    _, bundle = write(tmp_path, log=True)
    assert build_sh(bundle, trtexec(tmp_path)).returncode == 0
    assert "--verbose" in arguments(tmp_path)
    assert "RUNNING TensorRT.trtexec" in (bundle / "model.engine.log").read_text()


@pytest.mark.parametrize("limit", [None, 600.0])
@pytest.mark.parametrize(
    ("number", "by_terminal"),
    [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, False)],
)
def test_an_interruption_leaves_nothing(
    tmp_path: Path, number: signal.Signals, by_terminal: bool, limit: float | None
) -> None:
    _, bundle = write(tmp_path, time_limit=limit)
    before = {path.name for path in bundle.iterdir()}
    program = trtexec(tmp_path, before=f"echo $$ >{tmp_path}/begun; exec sleep 30")
    child = subprocess.Popen(
        [str(bundle / "build.sh")], env={"PATH": os.environ["PATH"], "TRTEXEC": str(program)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=heed_signals,
    )  # fmt: skip
    while not (tmp_path / "begun").exists() or not (tmp_path / "begun").read_text():
        assert child.poll() is None
        time.sleep(0.05)
    (os.killpg if by_terminal else os.kill)(child.pid, number)
    _, errors = child.communicate(timeout=20)
    assert child.returncode == 130
    assert errors.strip() == "build.sh: interrupted; nothing was written"
    assert {path.name for path in bundle.iterdir()} == before
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "begun").read_text()), 0)


def test_names_that_trtexec_cannot_take(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["a,b"], ["y"], "relu")]
    _, bundle = write(tmp_path, quantized.model(nodes, {"a,b": ["n", 3]}, {"y": ["n", 3]}, {}))
    said = one_line(build_sh(bundle, trtexec(tmp_path)), 2)
    assert said == "build.sh: trtexec cannot be given the name of input 'a,b'; python3 build.py can"
    assert [name for name in ("x", "x:0", "it's", " x", "a b") if unnamable([name])] == ["x:0", "it's", " x"]


def test_a_name_is_no_command(tmp_path: Path) -> None:
    name = f"$(touch {tmp_path}/ran);`touch {tmp_path}/ran`"
    nodes = [helper.make_node("Relu", [name], ["y"], "relu")]
    _, bundle = write(tmp_path, quantized.model(nodes, {name: ["n", 3]}, {"y": ["n", 3]}, {}))
    assert build_sh(bundle, trtexec(tmp_path)).returncode == 0
    assert f"--minShapes={name}:1x3" in arguments(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_wrong_options_and_help(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    assert "there is no option '--verify'" in one_line(build_sh(bundle, None, "--verify"), 2)
    said = build_sh(bundle, None, "--help")
    assert said.returncode == 0
    assert "./build.sh --gpu" in said.stdout
    assert said.stdout.rstrip().endswith("whole or not at all.")


@pytest.mark.parametrize("options", [{}, {"dla": 0, "log": True, "device": "agx-orin-64gb"}])
def test_shellcheck_finds_nothing(tmp_path: Path, options: dict) -> None:
    checker = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if checker is None:
        pytest.skip("shellcheck is not installed")
    _, bundle = write(tmp_path, **options)
    done = subprocess.run([checker, str(bundle / "build.sh")], capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout
