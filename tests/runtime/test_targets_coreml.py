"""The target coreml as a whole: what it writes, what it refuses, and what it says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import TargetError, UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.coreml import coreml, writing
from onnx_lathe.runtime.targets.coreml import package as packages
from onnx_lathe.runtime.targets.coreml.coreml import CoreML
from onnx_lathe.runtime.targets.coreml.sizes import from_data, parse_shapes, sizes_of
from tests.support.builders import build, random
from tests.support.mil import evaluate

pytest.importorskip("coremltools")

TEXT = """(float[N, 3, 8, 8] x) => (float[N, 5] y, float[N, 4, 8, 8] m) {
    [conv] m = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu (m)
    g = GlobalAveragePool (r)
    f = Flatten (g)
    [fc] y = Gemm <transB = 1> (f, v)
}"""
BESIDE = {f"model.coreml.{end}" for end in ("json", "swift", "README.md", "examples.npz", "verify.py")}
INSIDE = {
    f"model.coreml.mlpackage/{end}"
    for end in (
        "Manifest.json",
        "Data/com.apple.CoreML/model.mlmodel",
        "Data/com.apple.CoreML/weights/weight.bin",
    )
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(build(TEXT, w=random(4, 3, 3, 3), b=random(4), v=random(5, 4)), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype(np.float32))
    return path


def report_of(out: Path) -> dict:  # type: ignore[type-arg]
    found: dict = json.loads((out / "report.json").read_text())["targets"][0]  # type: ignore[type-arg]
    return found


def compile_it(model: Path, data: Path, out: Path, target: str = "coreml", *more: str) -> int:
    arguments = [str(model), "--passes", "fold", "--eval", str(data), "--target", target, "--out", str(out)]
    return main([*arguments, "--no-latency", "--quiet", *more])


def test_it_writes_a_package_and_says_that_it_was_not_run(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compile_it(model, data, out) == 0
    found = report_of(out)
    assert set(found["files"]) == BESIDE | INSIDE
    assert found["details"]["verified"] == {"weights": 3, "run": False}
    assert "not run here" in found["facts"][0]
    assert found["size_bytes"] == sum((out / name).stat().st_size for name in INSIDE)
    assert not list(out.glob(".*"))


def test_the_same_program_has_the_same_bytes(model: Path, data: Path, tmp_path: Path) -> None:
    """protobuf leaves the order of a map's entries to chance unless it is told to sort them."""
    out = tmp_path / "out"
    assert compile_it(model, data, out, "coreml(bundle=false)") == 0
    content = (out / "model.coreml.mlpackage" / "Data" / "com.apple.CoreML" / "model.mlmodel").read_bytes()
    spec = packages.library().proto.Model_pb2.Model.FromString(content)
    assert content == spec.SerializeToString(deterministic=True)


def test_the_package_computes_what_the_stored_outputs_say(model: Path, data: Path, tmp_path: Path) -> None:
    """As the script does on a Mac: inputs and outputs by the names that the description has."""
    out = tmp_path / "out"
    assert compile_it(model, data, out) == 0
    described = json.loads((out / "model.coreml.json").read_text())
    program = writing.read_back(out / described["file"])
    with np.load(out / described["examples"]["file"]) as stored:
        feeds = {port["name"]: stored[f"input_0_{place}"] for place, port in enumerate(described["inputs"])}
        got = evaluate(program, feeds)
        for place, port in enumerate(described["outputs"]):
            np.testing.assert_allclose(got[port["name"]], stored[f"output_0_{place}"], rtol=0, atol=1e-5)
            assert described["examples"]["outputs"][port["tensor"]]["allowed"] == 1e-3
    assert described["inputs"][0]["least"] == [1, 3, 8, 8]
    assert described["inputs"][0]["greatest"] == [32, 3, 8, 8]


def test_the_script_says_that_it_runs_on_a_mac(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert compile_it(model, data, out) == 0
    ran = subprocess.run(
        [sys.executable, out / "model.coreml.verify.py"], capture_output=True, text=True, check=False
    )
    if sys.platform != "darwin":
        assert (ran.returncode, ran.stderr) == (2, "Core ML runs on a Mac alone\n")


def test_results_of_an_earlier_run_are_replaced_and_a_users_folder_is_not(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert compile_it(model, data, out) == 0
    assert compile_it(model, data, out, "coreml(precision=float16, bundle=false)") == 0
    assert set(report_of(out)["files"]) == {"model.coreml.json"} | INSIDE
    assert not (out / "model.coreml.README.md").exists()
    mine = tmp_path / "mine" / "model.coreml.mlpackage"
    mine.mkdir(parents=True)
    (mine / "Manifest.json").write_text("mine")
    assert compile_it(model, data, mine.parent) == 2
    assert "not from an earlier run" in capsys.readouterr().err
    assert (mine / "Manifest.json").read_text() == "mine"


def test_another_run_that_was_done_first_is_replaced(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two builds into one folder at a time."""
    out, build_one = tmp_path / "out", CoreML.build

    def late(self: CoreML, *given: Any) -> Any:
        (out / coreml.PACKAGE / "Data").mkdir(parents=True)
        (out / coreml.PACKAGE / "Data" / "of the other").touch()
        return build_one(self, *given)

    monkeypatch.setattr(CoreML, "build", late)
    assert compile_it(model, data, out) == 0
    assert sorted(path.name for path in (out / coreml.PACKAGE / "Data").iterdir()) == ["com.apple.CoreML"]
    assert not list(out.glob(".*"))


def test_a_build_that_fails_leaves_nothing(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise TargetError("the package holds another weight 'w' than was written; nothing is written")

    monkeypatch.setattr(writing, "check", fail)
    out = tmp_path / "out"
    assert compile_it(model, data, out) == 4
    assert "another weight" in report_of(out)["error"]
    assert not list(out.glob("*coreml*"))


def test_a_node_that_core_ml_lacks_fails_by_name_before_anything_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "net.onnx", tmp_path / "out"
    onnx.save(build("(float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { [odd] y = Hardmax(x) }"), path)
    assert main(["check", str(path), "--target", "coreml"]) == 4
    shown = capsys.readouterr()
    assert "odd" in shown.out + shown.err
    assert "has no Hardmax" in shown.out + shown.err
    assert compile_it(path, data, out) == 4
    error = report_of(out)["error"]
    assert "odd" in error
    assert "optimize check MODEL --target coreml" in error
    assert not list(out.glob("*coreml*"))


def test_without_the_package_one_line_says_what_to_install(
    model: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    assert compile_it(model, data, tmp_path / "out") == 4
    assert "pip install 'onnx-lathe[coreml]'" in capsys.readouterr().err


@pytest.mark.slow
def test_coremltools_is_imported_late_and_says_nothing(model: Path, tmp_path: Path) -> None:
    """It warns of scikit-learn, torch and libraries of macOS on import; it takes seconds."""
    late = "import sys, onnx_lathe.runtime.targets.core.registry as r; r.targets(); print('coremltools' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", late], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
    command = [
        sys.executable,
        "-m",
        "onnx_lathe",
        "build",
        model,
        "--target",
        "coreml",
        "--out",
        tmp_path / "out",
        "--quiet",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "sklearn" not in ran.stderr.lower()
    assert "Proxy" not in ran.stderr
    assert "MIL" not in ran.stderr


@pytest.mark.parametrize(
    "option, said",
    [
        ("deployment=iOS14", "iOS16, iOS17, iOS18"),
        ("precision=int8", "float32, float16"),
        ("batch=0", "1:32"),
        ("batch=8:2", "8 is more than 2"),
        ("shapes={x: 1x3x8x8~2x3x8x8}", "bounds"),
        ("shapes={z: 1x3x8x8}", "no input 'z'"),
        ("shapes={x: 1x4x8x8}", "dimension 1 of input 'x' is fixed at 3"),
        ("image=yuv", "rgb"),
        ("image=gray", "[N, 1, H, W]"),
        ("image=rgb, batch=4", "one picture, not batch=4"),
        ("image=rgb, shapes={x: 2x3x8x8}, preprocess='scale=1/255'", "'x' has a batch of 2"),
    ],
)
def test_a_wrong_option_is_one_line(
    option: str, said: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compile_it(model, data, tmp_path / "out", f"coreml({option})") == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown
    assert "Traceback" not in shown


def test_a_picture_without_its_scale_is_named(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compile_it(model, data, tmp_path / "out", "coreml(image=rgb)") == 2
    assert "preprocess does not say how 3 channels are scaled" in capsys.readouterr().out


@pytest.mark.parametrize("batch, shape", [("1", [1, 3, 8, 8]), ("4", [4, 3, 8, 8]), ("2:8", [None, 3, 8, 8])])
def test_the_batch_is_what_is_asked_for(
    batch: str, shape: list[int], model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert compile_it(model, data, out, f"coreml(batch={batch})") == 0
    described = json.loads((out / "model.coreml.json").read_text())
    assert described["inputs"][0]["shape"] == shape
    spec = _spec(out / "model.coreml.mlpackage").description.input[0].type.multiArrayType
    ranges = [(one.lowerBound, one.upperBound) for one in spec.shapeRange.sizeRanges]
    assert ranges[:1] == ([(2, 8)] if batch == "2:8" else [])
    assert list(spec.shape) == [2 if size is None else size for size in shape]


def test_sizes_of_one_name_are_one_size() -> None:
    """What is said of one input holds for others that the model gives the same name."""
    model = build("(float[N, 3, L] a, float[N, L] b, float[N, K] c) => (float y) { y = Sum(a, b, c) }")
    found = sizes_of(model, parse_shapes({"a": "4x3x8:6x3x16"}), (1, 32))
    assert (found.least["b"], found.greatest["b"]) == ((4, 8), (6, 16))
    assert (found.least["c"], found.greatest["c"], found.assumed) == ((4, 64), (6, 64), ("c",))
    data = from_data(model, parse_shapes({"a": "4x3x8"}), {"c": (9, 5)}, (1, 32))
    assert data == {"c": ((4, 5), (4, 5))}


def _spec(package: Path) -> object:
    import coremltools

    with packages.quiet():
        return coremltools.models.MLModel(str(package), skip_model_load=True).get_spec()


def test_a_batch_that_cannot_stay_open_is_fixed_and_said(data: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "net.onnx", tmp_path / "out"
    text = """(float[N, 3, 8, 8] x) => (float[M, 3, 8, 8] y) {
        s = Shape(x) n = Gather(s, zero) t = Add(n, one) h = Div(t, two) k = Unsqueeze(h, first) y = Slice(x, first, k, first)
    }"""
    ints = {"zero": np.int64(0), "one": np.int64(1), "two": np.int64(2), "first": np.array([0])}
    model = build(text, **ints)
    onnx.save(model, path)
    assert compile_it(path, data, out) == 0
    warnings = json.loads((out / "report.json").read_text())["warnings"]
    assert any("one sample at a time" in one and "Slice" in one for one in warnings)


def test_sizes_that_the_data_does_not_leave_open_are_said(tmp_path: Path, data: Path) -> None:
    path, out = tmp_path / "net.onnx", tmp_path / "out"
    text = "(float[N, 3, H, W] x) => (float[N, 4, H, W] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w) }"
    onnx.save(build(text, w=random(4, 3, 3, 3)), path)
    assert compile_it(path, data, out) == 0
    assert json.loads((out / "model.coreml.json").read_text())["inputs"][0]["shape"] == [None, 3, 8, 8]
    warnings = json.loads((out / "report.json").read_text())["warnings"]
    assert any("as the data has it" in one and "shapes={x: ...}" in one for one in warnings)


def test_activations_beyond_float16_are_warned_of(data: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "net.onnx", tmp_path / "out"
    text = "(float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { [large] a = Mul(x, c) y = Div(a, c) }"
    onnx.save(build(text, c=np.full((1, 3, 8, 8), 3e4, np.float32)), path)
    assert compile_it(path, data, out, "coreml(precision=float16)") == 0
    warnings = json.loads((out / "report.json").read_text())["warnings"]
    assert any("large" in one and "precision=float32" in one for one in warnings)


def test_an_input_that_takes_a_picture(model: Path, data: Path, tmp_path: Path) -> None:
    """Its values are scaled in the program; Core ML's own scale is one for all channels."""
    asked = "mean=10,20,30 std=50,60,70"
    target = CoreML()
    options = CoreML.Config(image="rgb", preprocess=asked)
    (tmp_path / "out").mkdir()
    artifact = target.build(model, tmp_path / "out", options, lambda text: None)
    package = tmp_path / "out" / "model.coreml.mlpackage"
    spec = _spec(package)
    assert spec.description.input[0].type.WhichOneof("Type") == "imageType"  # type: ignore[attr-defined]
    (one,) = spec.mlProgram.functions["main"].inputs  # type: ignore[attr-defined]
    assert [dim.constant.size for dim in one.type.tensorType.dimensions] == [1, 3, 8, 8]
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8)).astype(np.float32)
    got = evaluate(writing.read_back(package), {"x": pixels})
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in ((10, 20, 30), (50, 60, 70)))
    wanted = ort.run(ort.session(model), {"x": (pixels - mean) / std})
    np.testing.assert_allclose(got["y"], wanted["y"], rtol=0, atol=1e-5 * np.abs(wanted["y"]).max())
    assert sorted(path.name for path in artifact.paths if path.parent == tmp_path / "out") == [
        "model.coreml.json"
    ]
    assert json.loads((tmp_path / "out" / "model.coreml.json").read_text())["preprocessing"] is None
    assert target.verify(model, artifact, options, {"x": pixels}, lambda text: None, onnx.load(model)) == {}


def test_names_of_classes_are_in_the_description_and_in_swift(
    model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert compile_it(model, data, out, 'coreml(classes="cat|dog")') == 0
    assert json.loads((out / "model.coreml.json").read_text())["classes"] == ["cat", "dog"]
    assert '"dog",' in (out / "model.coreml.swift").read_text()


def test_layers_say_where_activations_are_integers(model: Path) -> None:
    verdicts = CoreML().layers(onnx.load(model))
    assert [(one.node, one.int8) for one in verdicts] == [("conv", False), ("fc", False)]


def test_shapes_of_options_are_checked_when_they_are_made() -> None:
    with pytest.raises(UsageError, match="bounds"):
        CoreML.Config(shapes={"x": "1x3~2x3"})
