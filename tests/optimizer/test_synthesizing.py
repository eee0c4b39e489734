"""--calibration synthetic: a network is calibrated without data, on the scale that its batch normalizations tell, and says so."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.data.preprocess import Preprocess
from onnx_lathe.runtime.data.synthetic import SyntheticSource, open_synthetic
from onnx_lathe.runtime.files.signature import model_inputs
from onnx_lathe.runtime.running.normalizations import Remembered

CHANNELS = 12


def network(pixels: Preprocess | None, size: int | None = 32) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, mean, Gemm, whose statistics are those of pixels on this scale; without, no
    normalization.
    """
    generator = np.random.default_rng(5)
    weight = (generator.normal(size=(CHANNELS, 3, 3, 3)) / 5).astype(np.float32)
    head = generator.normal(size=(10, CHANNELS)).astype(np.float32)
    ones, zeros = np.ones(CHANNELS, np.float32), np.zeros(CHANNELS, np.float32)
    stored = {"w": weight, "h": head, "one": ones, "shift": zeros, "mean": zeros, "variance": ones}
    normal = helper.make_node(
        "BatchNormalization", ["c", "one", "shift", "mean", "variance"], ["n"], name="norm"
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        *([] if pixels is None else [normal]),
        helper.make_node("Relu", ["c" if pixels is None else "n"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "h"], ["y"], name="head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if pixels is not None:
        _trained(model, open_synthetic("synthetic:40", model_inputs(model), pixels))
    return model


def _trained(model: onnx.ModelProto, source: SyntheticSource) -> None:
    """Stores the mean and variance that the convolution's answers have on these samples."""
    values = source.read(np.arange(40)).inputs["x"]
    session = Remembered(model)._session
    (answers,) = session.run(["c"], {"x": values})
    for name, array in (("mean", answers.mean((0, 2, 3))), ("variance", answers.var((0, 2, 3)))):
        (place,) = [i for i, one in enumerate(model.graph.initializer) if one.name == name]
        model.graph.initializer[place].CopyFrom(numpy_helper.from_array(array, name))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(network(Preprocess((127.5,), (127.5,))), "normal.onnx")
    onnx.save(network(None), "folded.onnx")
    return tmp_path


def compiled(model: str, *options: str) -> dict[str, Any]:
    command = [
        model,
        "--passes",
        "fold, int8",
        "--calibration",
        "synthetic:24",
        "--out",
        "build",
        "--force",
        "--no-latency",
    ]
    assert main([*command, *options]) == 0
    report: dict[str, Any] = json.loads(Path("build/report.json").read_text())
    return report


def scale_of_input(path: Path) -> tuple[float, float]:
    """What INT8 takes the input's range for: that of 127 steps on either side."""
    model = onnx.load(path)
    (pair,) = [node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x"]
    (scale,) = [numpy_helper.to_array(one) for one in model.graph.initializer if one.name == pair.input[1]]
    return -127 * float(scale), 127 * float(scale)


def test_the_scale_is_what_the_batch_normalizations_tell(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = compiled("normal.onnx")
    said = capsys.readouterr().err
    assert "warning: calibration on 24 made-up samples" in said
    assert "pixels -1..1" in said
    assert "In 1 batch normalizations" in said
    assert "Judge the result on real samples" in said
    assert any("made-up samples" in one for one in report["warnings"])
    low, high = scale_of_input(Path("build/model.onnx"))
    assert -1.1 < low < -0.8
    assert 0.8 < high < 1.1


def test_preprocess_gives_the_scale(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiled("normal.onnx", "--preprocess", "scale=1/255")
    said = capsys.readouterr().err
    assert "--preprocess gives the scale" in said
    shift = float(said.partition("differ from the training data's by ")[2].split()[0])
    assert shift > 0.3  # 0..1 is not what it was trained on


def test_a_file_without_statistics_says_that_the_scale_is_a_guess(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled("folded.onnx")
    said = capsys.readouterr().err
    assert "the scale is a guess, mean 0 and deviation 1; give --preprocess" in said
    assert "no statistics of the training data" in said


@pytest.mark.parametrize("option", ["data", "train", "eval"])
def test_made_up_samples_do_not_judge_or_train(
    folder: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["folded.onnx", "--passes", "fold", f"--{option}", "synthetic"]) == 2
    assert capsys.readouterr().err == (
        f"optimize: --{option} synthetic: made-up samples calibrate, they cannot train or judge a network; "
        "give --calibration synthetic\n"
    )
    assert not Path("build").exists()


def test_sizes_that_the_network_does_not_take_are_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = network(None, None)
    shape = helper.make_tensor("s", TensorProto.INT64, [4], [-1, CHANNELS, 48, 48])
    model.graph.initializer.append(shape)
    model.graph.node.insert(1, helper.make_node("Reshape", ["c", "s"], ["fixed"]))
    model.graph.node[2].input[0] = "fixed"
    onnx.save(model, "open.onnx")
    command = ["open.onnx", "--passes", "fold, int8", "--calibration", "synthetic:24"]
    capsys.readouterr()
    assert main([*command[:4], "synthetic:5"]) == 2
    said = capsys.readouterr().err
    assert "made-up samples ('x' 3x224x224)" in said
    assert '--preprocess "resize=HxW"' in said
    assert said.count("\n") == 1
    assert main([*command, "--preprocess", "resize=48x48; scale=1/255", "--no-latency"]) == 0


def test_evaluation_on_real_samples_goes_with_it(folder: Path) -> None:
    values = open_synthetic("synthetic:40", model_inputs(network(None)), Preprocess((0.0,), (1.0,)))
    np.savez("real.npz", x=values.read(np.arange(40)).inputs["x"].astype(np.uint8))
    report = compiled(
        "folded.onnx", "--preprocess", "scale=1/255", "--eval", "real.npz", "--gate", "agreement >= 60%"
    )
    assert report["steps"][-1]["quality"]["agreement"] >= 0.6


def test_a_scale_at_which_the_network_overflows_is_not_taken(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = network(Preprocess((127.5,), (127.5,)))
    loud = helper.make_node("Mul", ["x", "k"], ["loud"])
    back = helper.make_node("Div", ["loud", "k"], ["calm"])
    model.graph.node.insert(0, back)
    model.graph.node.insert(0, loud)
    model.graph.node[2].input[0] = "calm"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1e37), "k"))
    onnx.save(model, "loud.onnx")
    compiled("loud.onnx")
    assert "pixels -1..1" in capsys.readouterr().err


def test_a_fixed_batch_is_filled(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = network(Preprocess((127.5,), (127.5,)))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 5
    onnx.save(model, "five.onnx")
    compiled("five.onnx")
    assert "In 1 batch normalizations" in capsys.readouterr().err


def test_a_network_without_inputs_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "() => (float[3] y) { y = Constant <value = float[3] {1, 2, 3}> () }"
    graph = onnx.parser.parse_graph("g " + text)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "none.onnx"
    )
    assert main(["none.onnx", "--passes", "int8", "--calibration", "synthetic"]) == 2
    assert "no inputs" in capsys.readouterr().err
    assert main(["folded.onnx", "--passes", "int8", "--calibration", "synthetic:" + "9" * 400]) == 2
    assert "behind the colon stands how many" in capsys.readouterr().err
