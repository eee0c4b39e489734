"""The folder that the target `jetson` writes: what is in it, whole or not at all, and what its options do."""

import ast
import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_lathe.errors import TargetError, UsageError
from onnx_lathe.runtime.targets.core.registry import find
from onnx_lathe.runtime.targets.jetson import reference, shipping
from onnx_lathe.runtime.targets.jetson.device.memory import notes, scarce
from onnx_lathe.runtime.targets.jetson.device.versions import on_jetson, refusal
from onnx_lathe.runtime.targets.jetson.devices import DEVICES
from onnx_lathe.runtime.targets.jetson.jetson import Jetson
from onnx_lathe.runtime.targets.tensorrt.options import BuildConfig
from tests.support import quantized
from tests.support.jetson import QUIET, write

FEEDS = {"image": np.random.default_rng(0).random((8, 1, 28, 28), np.float32)}


def test_it_is_available_anywhere() -> None:
    assert find("jetson") is Jetson
    assert Jetson().available() is None
    assert Jetson.lowering == "tensorrt"
    assert not Jetson.opens
    assert Jetson.suffixes == ()


def test_what_is_in_the_folder(tmp_path: Path) -> None:
    artifact, bundle = write(tmp_path)
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert files >= {
        "model.onnx",
        "build.sh",
        "build.py",
        "bundle.json",
        "README.md",
        "SHA256SUMS",
        "parts/worker.py",
    }
    assert {path.relative_to(bundle).as_posix() for path in artifact.paths} == files
    assert artifact.paths[0].name == "model.onnx"
    assert artifact.size_bytes == sum(path.stat().st_size for path in artifact.paths)
    assert onnx.load(bundle / "model.onnx") == quantized.lenet(codebook=False)
    sums = dict(line.split("  ")[::-1] for line in (bundle / "SHA256SUMS").read_text().splitlines())
    assert sums == {
        name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in files - {"SHA256SUMS"}
    }
    for name in ("build.sh", "build.py"):
        assert (bundle / name).stat().st_mode & 0o111 == 0o111
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.jetson"]


def test_the_description_says_what_tensorrt_is_asked_for(tmp_path: Path) -> None:
    _, bundle = write(tmp_path, batch="1:2:4", device="agx-orin-32gb", level=2, time_limit=60.0)
    found = json.loads((bundle / "bundle.json").read_text())
    assert found["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 28, 28]}]
    assert found["outputs"][0]["name"] == "logits"
    request = found["request"]
    assert request["profiles"] == [{"image": [[n, 1, 28, 28] for n in (1, 2, 4)]}]
    assert (request["workspace_bytes"], request["level"], request["dla"]) == (8192 << 20, 2, None)
    assert (found["time_limit_s"], found["device"], found["format"]) == (60.0, "agx-orin-32gb", 1)
    assert found["memory"]["inputs_bytes"] == 4 * 28 * 28 * 4
    assert found["memory"]["model_bytes"] == (bundle / "model.onnx").stat().st_size


def test_parts_need_nothing_of_lathe() -> None:
    """Only each other, Python and NumPy: what a module of TensorRT's worker imports comes along, or this fails."""
    files = shipping.parts()
    assert {"build.py", "parts/worker.py", "parts/command.py", "parts/execution.py", "parts/cuda.py"} <= set(
        files
    )
    for name, text in files.items():
        assert "onnx_lathe" not in text, name
        for node in ast.walk(ast.parse(text)):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
                if node.module == "parts":
                    modules = [f"parts.{alias.name}" for alias in node.names]
            for module in modules:
                top = module.partition(".")[0]
                if top == "parts":
                    assert f"{module.replace('.', '/')}.py" in files, (name, module)
                else:
                    assert top in sys.stdlib_module_names or top == "numpy", (name, module)


def test_modules_are_found_in_every_form_of_an_import() -> None:
    home = "onnx_lathe.runtime.targets.tensorrt"
    source = f"from {home} import dla, wire\nfrom {home}.cuda import (\n    Cuda,\n)\nfrom onnx_lathe.errors import x\n"
    assert list(shipping.imported(source)) == [f"{home}.dla", f"{home}.wire", f"{home}.cuda"]


def test_every_option_of_tensorrt_is_heeded() -> None:
    """An option that the other targets get has to reach the scripts, or to be refused: say here which it is."""
    known = {"batch", "shapes", "level", "workspace_mb", "time_limit", "log", "speed", "prefer", "strip"}
    known |= {"sparse", "refit", "compatible", "lean_runtime", "weight_streaming"}  # flags of the builder
    assert {field.name for field in dataclasses.fields(BuildConfig)} <= known


def test_a_folder_that_is_there_stays(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    (bundle / "model.engine").write_bytes(b"mine")
    with pytest.raises(TargetError, match=r"model\.jetson: is there already"):
        write(tmp_path)
    assert (bundle / "model.engine").read_bytes() == b"mine"


def test_nothing_is_left_of_a_bundle_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnx_lathe.runtime.targets.jetson.writing.readme", full)
    with pytest.raises(TargetError, match=r"out: cannot be written \(No space left"):
        write(tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_that_tensorrt_would_take_wrongly_is_refused(tmp_path: Path) -> None:
    model = quantized.lenet(codebook=False)
    for tensor in model.graph.initializer:
        if tensor.name == "p1_zero":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(0, np.uint8), "p1_zero"))
    with pytest.raises(TargetError, match=r"TensorRT would not take lowered\.onnx: p1_Q, p1_DQ: it is UINT8"):
        write(tmp_path, model)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "orin-nanno-4gb"}, "there is no 'orin-nanno-4gb'; did you mean 'orin-nano-4gb'"),
        ({"device": "xyz"}, "it takes orin-nano-4gb, "),
        ({"dla": 2}, "option dla takes a core, 0 or 1, not 2"),
        (
            {"dla": 1, "device": "orin-nx-8gb"},
            "Jetson Orin NX 8GB has no DLA core 1; these have: orin-nx-16gb",
        ),
        ({"dla": 0, "device": "thor-128gb"}, "Thor 128GB has no DLA core 0"),
        ({"dla": 0, "batch": "1:2:4"}, "DLA takes one size, not a range, and batch is 1:2:4; give batch=1"),
        ({"dla": 0, "shapes": {"x": "1x3:1x4:1x5"}}, "give one shape for 'x'"),
        ({"batch": "1|8"}, "option batch: a bundle has one profile"),
        ({"shapes": {"x": "1x3|1x4"}}, "option shapes: a bundle has one profile"),
        ({"reference": "all"}, "option reference takes data, random or nothing, not 'all'"),
        ({"strip": True}, "the engine is built where it runs and keeps its weights"),
        ({"workspace_mb": 0}, "workspace_mb must be at least 1"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Jetson.Config(**options)


def test_dla_takes_a_batch_of_one_by_itself() -> None:
    assert Jetson.Config(dla=0).batch == 1
    assert Jetson.Config(dla=0, batch=4).batch == 4
    assert Jetson.Config().batch is None


def test_scratch_memory() -> None:
    assert Jetson.Config().scratch_mb is None
    assert Jetson.Config(device="orin-nano-4gb").scratch_mb == 1024
    assert Jetson.Config(device="orin-nano-4gb", workspace_mb=300).scratch_mb == 300


def test_without_data_the_inputs_are_random_and_that_is_said(tmp_path: Path) -> None:
    model = quantized.lenet(codebook=False)
    options, said = Jetson().fitted(model, Jetson.Config(), {})
    assert options.reference == "random"
    assert said == ["no data is given: the stored inputs are random values"]
    kept, said = Jetson().fitted(model, Jetson.Config(), {"image": (8, 1, 28, 28)})
    assert (kept.reference, said) == ("data", [])
    artifact, bundle = write(tmp_path)
    details = Jetson().verify(tmp_path / "lowered.onnx", artifact, options, FEEDS, QUIET)
    assert details == {"reference": "random"}
    assert json.loads((bundle / "bundle.json").read_text())["reference"]["made_up"] is True
    assert "**random values**" in (bundle / "README.md").read_text()
    with np.load(bundle / "reference.npz") as stored:
        assert not np.isin(stored["0.in0"], FEEDS["image"]).any()


def test_no_inputs_are_stored_where_none_are_wanted(tmp_path: Path) -> None:
    artifact, bundle = write(tmp_path)
    options = Jetson.Config(reference="nothing")
    assert Jetson().verify(tmp_path / "lowered.onnx", artifact, options, FEEDS, QUIET) == {}
    assert not (bundle / "reference.npz").exists()
    assert "No inputs are stored" in (bundle / "README.md").read_text()


def sizes(least: list[int], tuned: list[int], greatest: list[int]) -> dict:
    return {"x": [least, tuned, greatest]}


@pytest.mark.parametrize(
    ("shape", "profiles", "shapes"),
    [
        ((8, 3), sizes([1, 3], [2, 3], [4, 3]), [(2, 3)] * 4),
        ((8, 3), sizes([8, 3], [8, 3], [8, 3]), [(8, 3)]),
        ((3, 3), sizes([1, 3], [2, 3], [4, 3]), [(2, 3)]),
        ((2, 3), sizes([1, 3], [4, 3], [8, 3]), [(4, 3)]),
        ((8, 5), sizes([1, 3], [2, 4], [8, 6]), [(8, 5)]),
        ((9, 5), sizes([1, 3], [2, 4], [8, 6]), []),
        ((8, 3), {}, [(8, 3)]),
    ],
)
def test_samples_become_calls_of_the_tuned_size(shape: tuple, profiles: dict, shapes: list) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    found = [call["x"] for call in reference.calls({"x": values}, profiles)]
    assert [call.shape for call in found] == shapes
    if found and profiles:
        rows = {tuple(row) for call in found for row in call}
        assert rows <= {tuple(row) for row in values}


def test_data_of_other_sizes_is_said(tmp_path: Path) -> None:
    artifact, _ = write(tmp_path, batch="1:2:4", shapes={"image": "1x1x28x28"})
    feeds = {"image": np.zeros((1, 1, 32, 32), np.float32)}
    details = Jetson().verify(tmp_path / "lowered.onnx", artifact, Jetson.Config(), feeds, QUIET)
    assert details["reference"] == "random"
    assert "not those that the engine takes" in details["notes"][0]


def test_few_megabytes_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "MOST_BYTES", 3 * (28 * 28 + 10) * 4)
    artifact, bundle = write(tmp_path)
    Jetson().verify(tmp_path / "lowered.onnx", artifact, Jetson.Config(), FEEDS, QUIET)
    with np.load(bundle / "reference.npz") as stored:
        assert sorted(stored.files) == [f"{call}.{port}" for call in range(3) for port in ("in0", "out0")]


@pytest.mark.parametrize(
    ("version", "core", "jetson", "words"),
    [
        ("10.3.0", None, True, ""),
        ("10.3.0.30", 0, True, ""),
        ("10.7.0", 0, True, ""),
        ("10.8.0", 0, True, "does not build for DLA"),
        ("10.13.3.9", None, True, ""),
        ("11.0.0", None, True, "does not support Jetson"),
        ("11.4.0.106", None, True, "does not support Jetson"),
        ("11.4.0.106", None, False, ""),
        ("11.4.1", 0, True, ""),
        ("11.5.0", 0, True, ""),
        ("8.5.2", None, True, "too old"),
    ],
)
def test_which_tensorrt_builds_for_what(version: str, core: int | None, jetson: bool, words: str) -> None:
    said = refusal(version, core, jetson)
    assert words in said
    assert bool(words) == bool(said)


def test_a_jetson_is_known_by_its_files(tmp_path: Path) -> None:
    release, model = tmp_path / "nv_tegra_release", tmp_path / "model"
    assert not on_jetson((release, model))
    model.write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    assert on_jetson((release, model))
    model.write_bytes(b"Raspberry Pi\0")
    assert not on_jetson((release, model))
    release.write_text("# R36")
    assert on_jetson((release, model))


def test_little_memory_is_warned_of(tmp_path: Path) -> None:
    described = {
        "memory": {"model_bytes": 3_000_000_000, "inputs_bytes": 600_000, "devices": [{"name": "orin-nano-4gb", "memory_gb": 4, "workspace_mb": 1024}]},
        "request": {"workspace_bytes": 1 << 30},
    }  # fmt: skip
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(
        "MemTotal:        3900000 kB\nMemAvailable:    2000000 kB\nHugepagesize:       2048 kB\n"
    )
    assert scarce(described, meminfo).startswith(
        "2.05 GB of memory are free, and the builder needs at least 6 GB"
    )
    assert "75.0 %" in notes(described, meminfo)
    assert "this machine: in all 3.99 GB, free 2.05 GB" in notes(described, meminfo)
    meminfo.write_text("MemAvailable:    8000000 kB\nMemTotal: 9000000 kB\n")
    assert scarce(described, meminfo) == ""
    assert scarce(described, tmp_path / "absent") == ""


def test_the_readme_is_of_this_network(tmp_path: Path) -> None:
    _, bundle = write(tmp_path, batch="1:2:4", device="orin-nx-16gb")
    text = (bundle / "README.md").read_text()
    assert "| input | `image` | float32 | batchx1x28x28 | 1x1x28x28, 2x1x28x28, 4x1x28x28 |" in text
    assert "which is limited to 4096 MiB in this bundle" in text
    assert all(device.title in text for device in DEVICES.values())
    assert "This bundle is for the GPU" in text


def test_the_readme_says_what_the_scripts_give_trtexec(tmp_path: Path) -> None:
    def versions(name: str, **options: object) -> str:
        (tmp_path / name).mkdir()
        text = (write(tmp_path / name, **options)[1] / "README.md").read_text()
        assert "(python3-libnvinfer) and NumPy (python3-numpy)" in text
        assert "| 1 | a defect" in text
        return text.partition("## Which TensorRT")[2].partition("## When")[0]

    said = versions("gpu")
    assert "| 10.3 | `--stronglyTyped`: types" in said
    assert said.rstrip().endswith("precision flag is given.")
    said = versions("dla", dla=1)
    assert "| 10.3 | `--useDLACore=1 --allowGPUFallback --fp16 --int8`: weakly typed" in said
    assert "flag is given but for DLA with TensorRT 10." in said
    said = versions("float", dla=1, model=quantized.lenet(codebook=False, int8=False))
    assert "--allowGPUFallback --fp16`: weakly typed" in said


def test_a_name_breaks_no_table(tmp_path: Path) -> None:
    nodes = [helper.make_node("Erf", ["a|b`c"], ["`y\n| x"], "e|`r\nf")]
    ports = {"a|b`c": ["n\n|", 3]}, {"`y\n| x": ["n\n|", 3]}
    _, bundle = write(tmp_path, quantized.model(nodes, *ports, {}), dla=0)
    lines = (bundle / "README.md").read_text().splitlines()
    assert r"| input | ``a\|b`c`` | float32 | n \|x3 | 1x3, 1x3, 1x3 |" in lines
    assert r"| output | `` `y \| x `` | float32 | n \|x3 |  |" in lines
    assert r"| ``e\|`r f`` | DLA has no Erf |" in lines


def test_a_graphs_name_breaks_no_script(tmp_path: Path) -> None:
    model = quantized.model([helper.make_node("Relu", ["x"], ["y"], "relu")], {"x": [2]}, {"y": [2]}, {})
    model.graph.name = "a\nrm -rf `b`\r$c"
    _, bundle = write(tmp_path, model)
    assert (
        (bundle / "build.sh")
        .read_text()
        .splitlines()[1]
        .startswith("# a rm -rf b c for Jetson, written by Lathe ")
    )
