"""`inspect --parallel`: bytes and memory of VGG-16's layers by strategy, beside the formulas by hand."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnx_lathe.optimizer.cli import main
from tests.support import vgg16
from tests.support.builders import build, random
from tests.support.command import refused


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vgg16.saved(tmp_path_factory.mktemp("vgg16"), "N")


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed(capsys, *arguments, "--json"))
    return found


def test_bytes_of_each_layer_and_strategy(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, path, "--batch", 32, "--parallel", 4)
    rows = {row["layer"]: row for row in found["layers"]}
    assert len(rows) == 16
    weights, image = 512 * 256 * 9 + 512, 256 * 28 * 28 * 32
    assert rows["conv4_1"]["product"] == f"{32 * 28 * 28} x {256 * 9} x 512"
    assert rows["conv4_1"]["sent"] == {
        "data": 4 * 1.5 * weights,
        "height": 4 * 1.5 * weights + 4 * 4 * 28 * 256 * 32,
        "width": 4 * 1.5 * weights + 4 * 4 * 28 * 256 * 32,
        "filter": 4 * 1.5 * image,
        "channel": 4 * 3 * 512 * 28 * 28 * 32 + 4 * 1.5 * 512,
    }
    assert rows["conv4_1"]["memory"]["data"] == 12 * weights + 4 * image / 4
    assert rows["conv4_1"]["memory"]["filter"] == 12 * weights / 4 + 4 * image
    assert rows["fc6"]["refused"]["height"] == "it has no height"
    assert (rows["conv1_2"]["wins"], rows["fc7"]["wins"]) == ("data", "filter")
    # biases are summed where channels are cut, so filters alone send least
    held = 12 * (4096 * 4096 / 4 + 4096 / 4) + 4 * 32 * 4096
    assert rows["fc7"]["grid"] == {"m": 1, "n": 4, "k": 1, "sent": 4 * 1.5 * 32 * 4096, "memory": held}


def test_what_strategies_add_up_to(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For convolutions a spatial split exchanges the weights that data parallelism does; fully connected layers want filters."""
    found = as_json(capsys, path, "--batch", 32, "--parallel", "4")
    rows = {row["name"]: row for row in found["strategies"]}
    assert rows["data"]["exchanged"] == 4 * 1.5 * 138_357_544
    assert rows["data"]["moved"] == 0
    convolutions = 14_714_688
    assert rows["height"]["sent"]["conv"] > rows["data"]["sent"]["conv"] == 4 * 1.5 * convolutions
    assert rows["filter"]["exchanged"] == 0
    assert rows["filter"]["sent"]["fully connected"] < rows["data"]["sent"]["fully connected"] / 60
    assert rows["filter"]["sent"]["conv"] > 10 * rows["data"]["sent"]["conv"]
    assert rows["data"]["weights"] == 12 * 138_357_544
    assert rows["filter"]["weights"] == pytest.approx(rows["data"]["weights"] / 4)


def test_one_worker_sends_nothing(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, path, "--batch", 8, "--parallel", 1)
    assert {value for row in found["layers"] for value in row["sent"].values()} == {0}
    assert {row["arithmetic"] for row in found["strategies"]} == {1}


def test_a_grid_beside_data_alone(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, path, "--batch", 32, "--parallel", "data=2,height=2")
    assert (found["workers"], found["split"], found["parts"]) == (4, "height", 2)
    assert [row["name"] for row in found["strategies"]] == ["data", "height"]
    rows = {row["layer"]: row for row in found["layers"]}
    # half of the batch, one border, forward and backward; of the weights what four workers send
    assert rows["conv2_2"]["sent"]["height"] - rows["conv2_2"]["sent"]["data"] == 4 * 2 * 112 * 128 * 16


def test_the_tables(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, path, "--batch", 32, "--parallel", 4)
    lines = [line.split() for line in text.splitlines()]
    assert text.startswith("4 workers, a step of 32 samples")
    (fc6,) = [line for line in lines if line[:1] == ["fc6"]]
    assert fc6[1:12] == ["32", "x", "25088", "x", "4096", "617", "MB", "-", "-", "4.82", "MB"]
    assert "channel" in fc6
    assert [line[0] for line in lines if line and line[0] in ("data", "height", "width", "filter", "channel")] == [
        "data", "height", "width", "filter", "channel",
    ]  # fmt: skip


def test_weights_that_are_computed_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in files that leave random weights out."""
    text = """(float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y) {
        w = ConstantOfShape (shape)  a = Conv (x, w)  y = Relu (a) }"""
    import numpy as np

    onnx.save(build(text, shape=np.array([6, 4, 1, 1])), tmp_path / "model.onnx")
    found = as_json(capsys, tmp_path / "model.onnx", "--parallel", 2)
    assert found["strategies"][0]["exchanged"] == 4 * 24
    assert found["strategies"][0]["kept"] > 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--parallel", "0"], "--parallel '0': give a number of workers from 1 on"),
        (["--parallel", "hight=2"], "hight is nothing that it knows"),
        (["--parallel", "auto=4"], "auto shares no layer in one way"),
        (["--parallel", "server"], "server shares no layer in one way"),
        (["--parallel", "height=9999999"], "is no number of 1 or more"),
        (["--parallel", "2", "--time"], "--time does not go with --parallel"),
        (["--parallel", "2", "--columns", "all"], "--columns does not go with --parallel"),
        (["--parallel", "2", "--batch", "0"], "takes a number from 1 on"),
    ],
)
def test_refusals(path: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in refused(capsys, ["inspect", str(path), *arguments])


def test_what_cannot_be_says_why(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, path, "--parallel", "height=300")
    assert "no height: 224 of height are too few for 300" in text
    assert "no height: it has no height" in text


def test_a_model_without_products_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(build("(float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }"), tmp_path / "model.onnx")
    line = refused(capsys, ["inspect", str(tmp_path / "model.onnx"), "--parallel", "2"])
    assert "model.onnx: has no convolution or matrix product to share" in line


def test_open_sizes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "(float[N, 4, H, W] x) => (float[N, 4, H, W] y) { a = Conv (x, w) y = Relu (a) }"
    onnx.save(build(text, w=random(4, 4, 1, 1)), tmp_path / "model.onnx")
    line = refused(capsys, ["inspect", str(tmp_path / "model.onnx"), "--parallel", "2"])
    assert "a size is not known before the model runs" in line
    assert "--shape" in line
