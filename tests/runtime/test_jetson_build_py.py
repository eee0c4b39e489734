"""build.py of a bundle, run by itself: with stand-ins for TensorRT 10.3 and 11.4, and with TensorRT-RTX for real."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_lathe.runtime.targets.jetson.device import checksums
from onnx_lathe.runtime.targets.tensorrt import process
from tests.support import quantized
from tests.support.jetson import QUIET, build_py, library, made, names, one_line, write

rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
WITHOUT_TENSORRT = importlib.util.find_spec("tensorrt") is None


@pytest.mark.parametrize(("version", "strong"), [("10.3.0", 2), ("11.4.1", 1)])
def test_the_same_calls_with_10_and_11(tmp_path: Path, version: str, strong: int) -> None:
    _, bundle = write(tmp_path, batch="1:2:4", device="orin-nano-8gb", level=3)
    before = names(bundle)
    done = build_py(bundle, library(tmp_path / "site", version))
    assert done.returncode == 0, done.stderr
    assert json.loads((bundle / "model.engine").read_bytes()) == [
        ["create_network", strong],
        ["parse_from_file", str(bundle / "model.onnx")],
        ["workspace", 2048 << 20],
        ["builder_optimization_level", "3"],
        ["set_shape", ["image", [1, 1, 28, 28], [2, 1, 28, 28], [4, 1, 28, 28]]],
    ]
    assert made(bundle, before) == {"model.engine", "model.engine.json"}
    assert json.loads((bundle / "model.engine.json").read_text())["version"] == version
    assert "TensorRT: a warning of two lines" in done.stderr


@pytest.mark.parametrize(("version", "strong"), [("10.3.0", 0), ("11.4.1", 1)])
def test_dla_is_weakly_typed_in_10_alone(tmp_path: Path, version: str, strong: int) -> None:
    _, bundle = write(tmp_path, dla=1)
    site = library(tmp_path / "site", version)
    done = build_py(bundle, site)
    assert done.returncode == 0, done.stderr
    calls = json.loads((bundle / "model.engine").read_bytes())
    assert calls[0] == ["create_network", strong]
    for wanted in (
        ["default_device_type", "DeviceType.DLA"],
        ["DLA_core", "1"],
        ["set_flag", "GPU_FALLBACK"],
    ):
        assert calls.count(wanted) == 1
    assert (["set_flag", "FP16"] in calls) == (["set_flag", "INT8"] in calls) == (strong == 0)
    assert "layers on the GPU, not on DLA: pool" in done.stdout
    assert json.loads((bundle / "model.engine.json").read_text())["on_gpu"] == ["pool"]
    done = build_py(bundle, site, "--gpu")
    assert done.returncode == 0, done.stderr
    assert not any(
        "DLA" in str(call) or "FALLBACK" in str(call)
        for call in json.loads((bundle / "model.engine").read_bytes())
    )


def test_a_device_without_that_core(tmp_path: Path) -> None:
    _, bundle = write(tmp_path, dla=1)
    said = one_line(build_py(bundle, library(tmp_path / "site", "11.4.1", cores=0)), 4)
    assert "has no DLA" in said


@pytest.mark.parametrize(
    ("version", "options", "message"),
    [
        ("8.6.1", {}, "TensorRT 8.6.1 is too old; install 10.3 or later"),
        ("10.1.0", {}, "TensorRT 10.1.0 is too old: the network needs 10.3"),
        ("11.2.0", {"dla": 0}, "TensorRT 11.2.0 does not build for DLA"),
        ("11.4.0.106", {"dla": 0}, "does not build for DLA"),
        ("10.13.3", {"dla": 0}, "TensorRT 10.13.3 does not build for DLA"),
    ],
)
def test_versions_that_do_not_do(tmp_path: Path, version: str, options: dict, message: str) -> None:
    _, bundle = write(tmp_path, **options)
    assert message in one_line(build_py(bundle, library(tmp_path / "site", version)), 4)


@pytest.mark.skipif(not WITHOUT_TENSORRT, reason="tensorrt is installed")
def test_no_tensorrt(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    said = one_line(build_py(bundle, None), 4)
    assert said.startswith("build.py: tensorrt is not installed for ")
    assert "python3-libnvinfer" in said


def test_a_library_that_does_not_load(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    (tmp_path / "site" / "tensorrt").mkdir(parents=True)
    (tmp_path / "site" / "tensorrt" / "__init__.py").write_text(
        "raise ImportError('libnvinfer.so.10: no such file')"
    )
    said = one_line(build_py(bundle, tmp_path / "site"), 4)
    assert "tensorrt is installed but cannot be loaded: libnvinfer.so.10" in said


def test_no_gpu(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    site = library(
        tmp_path / "site", BUILDER="raise TypeError('pybind11::init(): factory function returned nullptr')"
    )
    assert "no NVIDIA GPU or driver was found" in one_line(build_py(bundle, site), 4)


def test_damaged_and_missing_files_are_all_named(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    (bundle / "model.onnx").write_bytes(b"other")
    (bundle / "README.md").unlink()
    said = one_line(build_py(bundle, library(tmp_path / "site")), 2)
    assert (
        "README.md cannot be read (No such file or directory), model.onnx is not as it was written; copy"
        in said
    )
    (bundle / "SHA256SUMS").write_text("")
    assert "lists no file" in one_line(build_py(bundle, None), 2)
    (bundle / "SHA256SUMS").unlink()
    assert "SHA256SUMS: No such file" in one_line(build_py(bundle, None), 2)


def test_damaged_parts_are_found_before_they_run(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    (bundle / "parts" / "command.py").write_text("raise SystemExit(0)")
    assert "parts/command.py is not as it was written" in one_line(build_py(bundle, None), 2)
    (bundle / "parts" / "command.py").unlink()
    assert "parts/command.py cannot be read" in one_line(build_py(bundle, None), 2)
    (bundle / "SHA256SUMS").write_text(checksums.sums(bundle))
    assert "No module named 'parts.command'; copy" in one_line(build_py(bundle, None), 2)
    shutil.rmtree(bundle / "parts")
    assert "parts: No such file or directory; copy" in one_line(build_py(bundle, None), 2)


@pytest.mark.parametrize(
    "name", ["bundle.json", "model.onnx", "build.py", "build.sh", "parts/worker.py", "parts/new.py"]
)
def test_a_file_that_is_used_has_to_be_listed(tmp_path: Path, name: str) -> None:
    _, bundle = write(tmp_path)
    (bundle / "parts" / "new.py").write_text("")
    lines = checksums.sums(bundle).splitlines(keepends=True)
    (bundle / "SHA256SUMS").write_text("".join(line for line in lines if not line.endswith(f"  {name}\n")))
    assert f"SHA256SUMS: does not list {name}; copy" in one_line(build_py(bundle, None, "--explicit"), 2)


def test_sums_and_descriptions_that_are_no_text(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    listed = (bundle / "SHA256SUMS").read_bytes()
    (bundle / "SHA256SUMS").write_bytes(b"\xff\xfe" + listed)
    assert "SHA256SUMS: is not text; copy" in one_line(build_py(bundle, None, "--explicit"), 2)
    (bundle / "SHA256SUMS").write_bytes(b"0" * 64 + b"  a\0b\n" + listed)
    assert "cannot be a file's name; copy" in one_line(build_py(bundle, None, "--explicit"), 2)
    for text in (b"\xff", b"[", b"{}", b"[]", b"3"):
        (bundle / "bundle.json").write_bytes(text)
        (bundle / "SHA256SUMS").write_text(checksums.sums(bundle))
        said = one_line(build_py(bundle, None, "--explicit"), 2)
        assert "bundle.json: is not the description that Lathe writes" in said


def test_a_build_without_a_plan_leaves_nothing_but_the_old_engine(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    (bundle / "model.engine").write_bytes(b"old")
    before = names(bundle)
    broken = "self.logger.log(Severity.ERROR, 'no kernel for conv2'); return None"
    said = one_line(build_py(bundle, library(tmp_path / "site", BUILD=broken)), 4)
    assert said == "build.py: model.onnx was not built: no kernel for conv2"
    assert made(bundle, before) == set()
    assert (bundle / "model.engine").read_bytes() == b"old"


def test_a_crash_is_one_line(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    said = one_line(build_py(bundle, library(tmp_path / "site", BUILD="import os; os.abort()")), 4)
    assert "was not built: the process ended with signal SIGABRT" in said


def test_the_log_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    site = library(tmp_path / "site", BUILD="self.logger.log(Severity.VERBOSE, 'step one'); return None")
    assert "--log shows how far" not in one_line(build_py(bundle, site), 4)
    assert not (bundle / "model.engine.log").exists()
    one_line(build_py(bundle, site, "--log"), 4)
    assert "VERBOSE: step one" in (bundle / "model.engine.log").read_text()


def test_the_time_limit_ends_a_build(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    site = library(tmp_path / "site", BUILD="import time; time.sleep(60)")
    said = one_line(build_py(bundle, site, "--time-limit", "0.5"), 4)
    assert "not done within 0.5 s; give more with --time-limit" in said


def test_it_is_found_through_a_link_and_without_the_folder_on_the_path(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    (tmp_path / "link").symlink_to(bundle)
    done = build_py(tmp_path / "link", library(tmp_path / "site"), PYTHONSAFEPATH="1")
    assert done.returncode == 0, done.stderr
    assert (bundle / "model.engine").exists()


@posix
def test_a_folder_with_a_colon_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    _, bundle = write(tmp_path / "a:b")
    done = build_py(bundle, library(tmp_path / "site"))
    assert done.returncode == 0, done.stderr


def test_help_and_wrong_options(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    assert build_py(bundle, None, "--help").returncode == 0
    said = one_line(build_py(bundle, None, "--verfy"), 2)
    assert said == "build.py: unrecognized arguments: --verfy; python3 build.py --help lists the options"
    said = one_line(build_py(bundle, library(tmp_path / "site"), "--verify"), 2)
    assert "no inputs are stored in this bundle" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--least-sqnr", "nan"), "argument --least-sqnr: takes a number of dB, not nan"),
        (("--least-sqnr=-inf",), "argument --least-sqnr: takes a number of dB, not -inf"),
        (("--least-sqnr", "much"), "argument --least-sqnr: takes a number, not 'much'"),
        (("--seconds", "0"), "argument --seconds: takes seconds, above 0 and up to 1e+07, not 0"),
        (("--seconds", "inf"), "above 0 and up to 1e+07, not inf"),
        (("--time-limit", "0"), "argument --time-limit: takes seconds, above 0"),
        (("--time-limit", "-5"), "above 0 and up to 1e+07, not -5"),
        (("--time-limit", "nan"), "above 0 and up to 1e+07, not nan"),
        (("--time-limit", "inf"), "above 0 and up to 1e+07, not inf"),
        (("--library", "tensorflow"), "argument --library: invalid choice"),
    ],
)
def test_options_that_say_nothing(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    """A least SQNR that is no number is a gate that cannot fail."""
    _, bundle = write(tmp_path)
    said = one_line(build_py(bundle, None, *arguments), 2)
    assert said.startswith("build.py: ")
    assert message in said


def test_memory_is_told_for_every_device(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    before = names(bundle)
    said = build_py(bundle, None, "--explicit").stdout
    for words in (
        "orin-nano-4gb       4 GB",
        "1024 MiB",
        "thor-128gb        128 GB",
        "no limit but the memory",
        "this machine:",
    ):
        assert words in said
    assert made(bundle, before) == set()


def test_no_numpy(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "numpy.py").write_text("raise ImportError('none')")
    said = one_line(build_py(bundle, tmp_path / "site"), 4)
    assert said.startswith("build.py: numpy is not installed for ")


def test_an_old_python_is_told_so(tmp_path: Path) -> None:
    """The file itself has to be readable for it: nothing in it is newer than Python 3.6."""
    import ast

    _, bundle = write(tmp_path)
    text = (bundle / "build.py").read_text()
    ast.parse(text, feature_version=(3, 7))
    assert text.index("Python 3.10 or newer is needed") < text.index("from pathlib")


@rtx
def test_the_engine_is_the_one_that_is_built_here(tmp_path: Path) -> None:
    """TensorRT-RTX stands in: the copied worker and Lathe's own build the same."""
    _, bundle = write(tmp_path, batch="1:2:4")
    before = names(bundle)
    done = build_py(bundle, None, "--library", "tensorrt_rtx", "--log")
    assert done.returncode == 0, done.stderr
    assert made(bundle, before) == {"model.engine", "model.engine.json"} | {"model.engine.log"}
    request = json.loads((bundle / "bundle.json").read_text())["request"]
    asked = {"library": "tensorrt_rtx", "model": str(bundle / "model.onnx"), "engine": str(tmp_path / "here"), "log": str(tmp_path / "log")}  # fmt: skip
    process.ask(request | asked, tmp_path, QUIET)
    engines = [np.fromfile(path, np.uint8) for path in (bundle / "model.engine", tmp_path / "here")]
    assert len(engines[0]) == len(engines[1])
    assert np.count_nonzero(engines[0] != engines[1]) < 1000  # some differ between any two builds


@rtx
def test_every_node_that_is_refused_is_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["a"], "first"),
        helper.make_node("Det", ["x"], ["b"], "second"),
        helper.make_node("Unique", ["a"], ["u"], "third"),
        helper.make_node("Add", ["b", "u"], ["y"], "fine"),
    ]
    _, bundle = write(tmp_path, quantized.model(nodes, {"x": [2, 3, 3]}, {"y": [None]}, {}))
    before = names(bundle)
    said = one_line(build_py(bundle, None, "--library", "tensorrt_rtx"), 4)
    assert (
        "model.onnx was not built: first (Det), second (Det): operator Det is not supported; export the model without it; "
        "third (Unique)" in said
    )
    assert made(bundle, before) == set()


@rtx
def test_external_data_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_lathe.runtime.files.model_file.INLINE_LIMIT_BYTES", 1000)
    artifact, bundle = write(tmp_path, quantized.lenet(codebook=False, int8=False))
    assert (bundle / "model.onnx.data").is_file()
    assert bundle / "model.onnx.data" in artifact.paths
    moved = bundle.rename(tmp_path / "moved")
    done = build_py(moved, None, "--library", "tensorrt_rtx")
    assert done.returncode == 0, done.stderr
    located = {entry.value for tensor in onnx.load(moved / "model.onnx", load_external_data=False).graph.initializer for entry in tensor.external_data if entry.key == "location"}  # fmt: skip
    assert located == {"model.onnx.data"}
