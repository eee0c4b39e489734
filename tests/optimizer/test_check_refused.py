"""`optimize check --target ncnn`: every node that ncnn cannot compute is listed, and nothing is written."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe import check
from onnx_lathe.optimizer.cli import main
from tests.support.builders import build, random

pytest.importorskip("ncnn")


def saved(folder: Path, model: onnx.ModelProto) -> str:
    onnx.save(model, folder / "model.onnx")
    return str(folder / "model.onnx")


@pytest.fixture
def strange(tmp_path: Path) -> str:
    """Two nodes that ncnn has no layers for, the second behind the first, and others that it has."""
    text = """(float[1, 3, 8, 8] x) => (float[1, 4] y)
    { h = Conv(x, w)  d = Det(h)  u = Unsqueeze(d, axes)  s = Add(h, u)  e = Det(s)  y = Relu(e) }"""
    return saved(tmp_path, build(text, w=random(4, 3, 3, 3), axes=np.array([2, 3])))


@pytest.fixture
def growing(tmp_path: Path) -> str:
    """What it picks depends on the height of its input, so that it is written for one height alone."""
    text = """(float[1, 3, H, 8] x) => (float[1, 3, ?, 8] y)
    { s = Shape <start = 2, end = 3> (x)  i = Div(s, two)  y = Gather <axis = 2> (x, i) }"""
    return saved(tmp_path, build(text, two=np.array([2])))


def test_every_refused_node_is_listed(strange: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", strange, "--target", "ncnn"]) == 4
    shown = capsys.readouterr().out
    assert "Det_1" in shown
    assert "Det_4" in shown
    assert "ncnn: refuses 2 nodes: a build fails" in shown
    assert [path.name for path in Path(strange).parent.iterdir()] == ["model.onnx"]


def test_json_and_the_python_api_have_node_operator_and_reason(
    strange: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", strange, "--target", "ncnn,ort", "--json"]) == 4
    ncnn, ort = json.loads(capsys.readouterr().out)
    assert [(one["node"], one["op"]) for one in ncnn["refused"]] == [("Det_1", "Det"), ("Det_4", "Det")]
    assert all(one["reason"] for one in ncnn["refused"])
    assert ort["refused"] == []
    (found,) = check(strange, "ncnn")
    assert [node for node, _, _ in found.refused] == ["Det_1", "Det_4"]


def test_a_model_that_the_target_takes_ends_with_0(lenet5: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(lenet5), "--target", "ncnn"]) == 0
    assert "refuse" not in capsys.readouterr().out


def test_open_sizes_refuse_and_fixed_ones_do_not(growing: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", growing, "--target", "ncnn"]) == 4
    assert "fix it, such as with shapes={x: 1x3x224x8}" in " ".join(capsys.readouterr().out.split())
    assert main(["check", growing, "--target", "ncnn(shapes={x: 1x3x12x8:1x3x20x8})"]) == 4
    assert main(["check", growing, "--target", "ncnn(shapes={x: 1x3x12x8})"]) == 0


@pytest.mark.parametrize(
    "target, message",
    [
        ("ncnn(shapes={z: 1x3x12x8})", "the model has no input 'z'"),
        ("ncnn(shapes={x: 1x3x8})", "input 'x' has 4 dimensions, not 3"),
        ("ncnn(profil=x86)", "did you mean 'profile'"),
    ],
)
def test_wrong_options_are_one_line(
    growing: str, target: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", growing, "--target", target]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not said.out
