"""`optimize run` and `optimize gate` on finished files: ncnn's, ONNX files and .ort files; and what they refuse."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import onnx_lathe
from onnx_lathe.errors import DataError, ModelError
from onnx_lathe.optimizer.cli import main
from tests.support.builders import build, random

pytest.importorskip("ncnn")
PIXELS = ["--preprocess", "scale=1/255", "--quiet"]


@pytest.fixture(scope="module")
def built(lenet5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built")
    assert onnx_lathe.build(lenet5, "ncnn", out).exit_code == 0
    return out / "model.ncnn.param"


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """Files that a test may damage."""
    for path in built.parent.glob("model.ncnn.*"):
        shutil.copy(path, tmp_path)
    return tmp_path / built.name


def test_a_network_of_ncnn_beside_its_original(
    built: Path, lenet5: Path, small_mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "outputs.npz"
    arguments = ["--data", f"{small_mnist}:test", *PIXELS, "--against", str(lenet5), "--save", str(saved)]
    assert main(["run", str(built), *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["library"].startswith("ncnn ")
    assert found["threads"] == 1
    assert found["metrics"]["top1"] == found["against"]["metrics"]["top1"] > 0.9
    assert found["metrics"]["agreement"] == 1
    assert found["metrics"]["sqnr"] > 80
    low, median, high = (found["latency"][key] for key in ("low_ms", "median_ms", "high_ms"))
    assert 0 < low <= median <= high
    assert found["against"]["latency_ratio"] == pytest.approx(
        found["against"]["latency"]["median_ms"] / median
    )
    with np.load(saved) as outputs:
        values = outputs["logits"]
    (output,) = found["outputs"]
    assert output["shape"] == list(values.shape) == [found["samples"], 10]
    assert output["minimum"] == pytest.approx(float(values.min()))
    assert output["mean"] == pytest.approx(float(values.mean()), rel=1e-4)


def test_the_table_has_outputs_metrics_and_both_times(
    built: Path, lenet5: Path, small_mnist: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(built), "--data", f"{small_mnist}:test", *PIXELS, "--against", str(lenet5)]) == 0
    said = capsys.readouterr()
    for word in ("logits", "top1", "agreement", "sqnr", "latency", "8 of 10 calls", "run in turn"):
        assert word in said.out
    assert not said.err


def test_an_onnx_file_and_one_in_onnx_runtimes_format(lenet5: Path, tmp_path: Path) -> None:
    other = tmp_path / "model.ort"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(other)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(str(lenet5), options, providers=["CPUExecutionProvider"])
    image = np.zeros((3, 1, 28, 28), np.float32)
    found = onnx_lathe.run(other, {"image": image}, against=lenet5)
    assert found.samples == 3
    assert found.metrics["sqnr"] > 80
    assert found.library.startswith("ONNX Runtime ")


def test_without_data_it_runs_on_random_values_and_says_so(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(built)]) == 0
    said = capsys.readouterr()
    assert "random values" in said.err
    assert "1x10" in said.out


def test_two_threads(built: Path) -> None:
    assert onnx_lathe.run(built, threads=2).threads == 2


def test_a_gate_judges_what_was_built(
    built: Path, lenet5: Path, small_mnist: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["gate", str(lenet5), str(built), "--data", f"{small_mnist}:test", *PIXELS, "--threads", "1"]
    gates = [
        "top1 drop <= 0.1%",
        "agreement >= 99%",
        "sqnr >= 80",
        "size ratio >= 0.9",
        "latency ratio >= 0.01",
    ]
    assert main([*models, *(word for gate in gates for word in ("--gate", gate)), "--json"]) == 0
    verdicts = json.loads(capsys.readouterr().out)["gates"]
    size = sum(path.stat().st_size for path in (built, built.with_suffix(".bin")))
    assert verdicts[3]["measured"] == pytest.approx(lenet5.stat().st_size / size)
    assert main([*models, "--gate", "sqnr >= 300"]) == 3


@pytest.mark.parametrize(
    "gate", ["macs ratio >= 1", "sparsity >= 1%", "weights ratio >= 1", "packed ratio >= 1"]
)
def test_a_gate_on_what_only_a_graph_tells_is_refused(
    gate: str, built: Path, lenet5: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gate", str(lenet5), str(built), "--gate", gate]) == 2
    assert f"{built} is no ONNX model" in one_line(capsys)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def other_weights(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "ending, spoil, message",
    [
        (".json", Path.unlink, "model.ncnn.json: No such file or directory; it says what goes in and out"),
        (".json", cut, "is not the description that Lathe writes beside model.ncnn.param"),
        (".bin", Path.unlink, "model.ncnn.bin: No such file or directory; it holds the weights"),
        (".bin", cut, "model.ncnn.bin: has 862,"),
        (".bin", other_weights, "model.ncnn.bin: has other weights"),
        (".param", Path.unlink, "model.ncnn.param: No such file or directory"),
        (".param", lambda path: path.write_text("layers:\n"), "is no network of ncnn"),
        (".param", cut, "model.ncnn.param: "),
    ],
)
def test_files_that_do_not_belong_together_are_one_line(
    ending: str, spoil: object, message: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(copied.with_suffix(ending))  # type: ignore[operator]
    assert main(["run", str(copied)]) == 2
    assert message in one_line(capsys)


def test_a_layer_that_ncnn_does_not_know_is_found_before_it_runs_here(
    copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copied.write_text(copied.read_text().replace("InnerProduct ", "OuterProduct "))
    with pytest.raises(ModelError, match=r"model\.ncnn\.param: .*(does not load|OuterProduct)"):
        onnx_lathe.run(copied)
    assert not capfd.readouterr().err


def test_a_network_that_ends_the_process_which_runs_it_is_refused(copied: Path) -> None:
    """A Reshape to more values than there are: ncnn copies beyond their end."""
    text = copied.read_text()
    assert " 0=800\n" in text
    copied.write_text(text.replace(" 0=800\n", " 0=0 1=0 2=1000000 3=7 21=-1 22=-7\n"))
    with pytest.raises(ModelError, match=r"model\.ncnn\.param: ncnn ended with signal SIG"):
        onnx_lathe.run(copied)


def test_data_of_another_shape_is_one_line(built: Path) -> None:
    with pytest.raises(DataError, match=r"samples of shape \[1, 32, 32\], .* takes \[1, 28, 28\]"):
        onnx_lathe.run(built, {"image": np.zeros((2, 1, 32, 32), np.float32)})


def open_sizes(folder: Path) -> Path:
    text = """(float[N, 3, H, W] image) => (float[N, 8, P, Q] map)
    { a = Conv <pads = [1, 1, 1, 1]> (image, v)  map = Relu(a) }"""
    onnx.save(build(text, v=random(8, 3, 3, 3)), folder / "open.onnx")
    return folder / "open.onnx"


def test_open_sizes_run_at_each_and_fixed_ones_at_theirs_alone(tmp_path: Path) -> None:
    model = open_sizes(tmp_path)
    assert onnx_lathe.build(model, "ncnn", tmp_path / "out").exit_code == 0
    for size in (17, 40):
        image = {"image": random(2, 3, size, size + 3)}
        found = onnx_lathe.run(tmp_path / "out" / "model.ncnn.param", image, against=model)
        assert found.metrics["sqnr"] > 80
        assert list(found.outputs[0].shape) == [2, 8, size, size + 3]
    target = "ncnn(shapes={image: 1x3x24x24})"
    assert onnx_lathe.optimize(model, "fold", targets=target, out=tmp_path / "fixed").exit_code == 0
    with pytest.raises(DataError, match=r"samples of shape \[3, 30, 24\], .* takes \[3, 24, 24\]"):
        onnx_lathe.run(tmp_path / "fixed" / "model.ncnn.param", {"image": random(2, 3, 30, 24)})


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr()
    assert not said.out
    lines = said.err.strip().splitlines()
    assert lines[:-1] in ([], ["no data is given: these are random values"])
    return lines[-1]
