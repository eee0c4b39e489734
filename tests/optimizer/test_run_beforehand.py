"""`optimize run` and `optimize gate`: what is refused before a model runs, and what is said of outputs that were not compared."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.errors import ModelError, UsageError
from onnx_lathe.optimizer.cli import main
from tests.support.builders import build, random

TWO = "(float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { y = Relu(x) z = Neg(x) }"
FEEDS = {"x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}


def saved(folder: Path, name: str, text: str) -> Path:
    onnx.save(build(text), folder / f"{name}.onnx")
    return folder / f"{name}.onnx"


@pytest.mark.parametrize(
    "text, reason",
    [
        ("(float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }", "has no such output"),
        (
            "(float[N, 4] x) => (float[N, 4] y, float[M] z) { y = Relu(x) n = Neg(x)"
            " s = Constant <value_ints = [-1]> () z = Reshape(n, s) }",
            "its shape depends on its values",
        ),
    ],
)
def test_an_output_that_could_not_be_compared_is_said(
    text: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, other = saved(tmp_path, "one", text), saved(tmp_path, "two", TWO)
    found = onnx_lathe.run(model, FEEDS, against=other)
    (note,) = (note for note in found.notes if "could not be compared" in note)
    assert note.startswith("warning: output 'z'")
    assert reason in note
    assert found.metrics["sqnr[y]"] == np.inf
    assert "sqnr" not in found.metrics
    np.savez(tmp_path / "data.npz", **FEEDS)  # type: ignore[arg-type]
    assert main(["run", str(model), "--data", str(tmp_path / "data.npz"), "--against", str(other)]) == 0
    said = capsys.readouterr()
    assert reason in said.err
    rows = {line.split()[0]: line.split()[1] for line in said.out.splitlines() if line.startswith("sqnr")}
    assert rows == {"sqnr[y]": "equal"}


def test_a_batch_that_is_judged_one_by_one_is_said(tmp_path: Path) -> None:
    text = "(float[N, 4] x) => (float[N, 4] y) { m = ReduceMax <axes = [0]> (x) y = Sub(x, m) }"
    model = saved(tmp_path, "mixed", text)
    for against in (None, model):
        assert any(
            "judged one by one" in note for note in onnx_lathe.run(model, FEEDS, against=against).notes
        )


@pytest.mark.parametrize("save", ["model.npz", "against.npz", "data.npz", "linked.npz"])
def test_a_file_that_is_read_is_not_saved_to(save: str, tmp_path: Path) -> None:
    model = saved(tmp_path, "net", TWO).rename(tmp_path / "model.npz")
    against = tmp_path / "against.npz"
    against.write_bytes(model.read_bytes())
    (tmp_path / "linked.npz").hardlink_to(model)
    np.savez(tmp_path / "data.npz", **FEEDS)  # type: ignore[arg-type]
    before = (tmp_path / save).read_bytes()
    data = str(tmp_path / "data.npz")
    with pytest.raises(UsageError, match="save the outputs to another file"):
        onnx_lathe.run(model, data, against=against, save=tmp_path / "." / save)
    assert (tmp_path / save).read_bytes() == before


@pytest.mark.parametrize(
    "save, reason",
    [("net.onnx", "ends so"), ("missing/out.npz", "make it first"), ("folder.npz", "is a folder")],
)
def test_what_cannot_be_saved_to_is_refused_before_the_model_is_opened(
    save: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.npz").mkdir()
    assert main(["run", str(tmp_path / "absent.onnx"), "--save", str(tmp_path / save)]) == 2
    assert reason in capsys.readouterr().err


OPEN = "(float[N, 3, H, W] x) => (float[N, 3, P, Q] y) { y = Relu(x) }"
FIXED = "(float[N, 3, 6, 7] x) => (float[N, 3, 6, 7] y) { y = Relu(x) }"


@pytest.mark.parametrize("turned", [False, True])
def test_a_model_of_open_sizes_is_compared_with_one_of_fixed_ones_without_data(
    turned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [saved(tmp_path, "open", OPEN), saved(tmp_path, "fixed", FIXED)]
    one, other = models[::-1] if turned else models
    assert list(onnx_lathe.run(one, against=other).outputs[0].shape) == [1, 3, 6, 7]
    gate = ["gate", str(one), str(other), "--gate", "latency ratio >= 0.001", "--json"]
    assert main(gate) == 0
    assert json.loads(capsys.readouterr().out)["gates"][0]["passed"]


def test_two_models_of_different_sizes_need_data(tmp_path: Path) -> None:
    fixed, other = saved(tmp_path, "fixed", FIXED), saved(tmp_path, "other", FIXED.replace("6, 7", "8, 9"))
    with pytest.raises(ModelError, match="give --data of sizes that both take"):
        onnx_lathe.run(fixed, against=other)


def test_a_file_of_onnx_runtimes_own_format_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder.ort").mkdir()
    (tmp_path / "cut.ort").write_bytes(b"\x28\x00\x00\x00ORTM" + bytes(20))
    for name, reason in (
        ("absent", "no such file; check the name"),
        ("folder", "is a folder; name the .ort file in it"),
        ("cut", "is no ORT-format model, or truncated; copy or build it again"),
    ):
        with pytest.raises(ModelError, match=rf"{name}\.ort: {reason}"):
            onnx_lathe.run(tmp_path / f"{name}.ort")


@pytest.mark.parametrize(
    "changed",
    [
        {"tensor": 3},
        {"name": None},
        {"tensor_type": "complex64"},
        {"type": [1]},
        {"type": "int8"},
        {"scale": 0.1},
        {"shape": [4.0], "tensor_shape": [1, 4.0]},
        {"shape": [-4], "tensor_shape": [1, -4]},
        {"tensor_shape": [True, 4]},
        {"shape": [5]},
        {"axes": [1, [0]]},
        {"declared": [None, "4"]},
        {"shape": [1 << 50], "tensor_shape": [1, 1 << 50]},
        {"shape": [1 << 40], "tensor_shape": [1 << 40, 1 << 40]},
        {},
    ],
)
def test_a_damaged_description_is_one_line(
    changed: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ncnn")
    text = "(float[N, 4] x) => (float[N, 5] y) { y = MatMul(x, w) }"
    onnx.save(build(text, w=random(4, 5)), tmp_path / "net.onnx")
    assert onnx_lathe.build(tmp_path / "net.onnx", "ncnn(bundle=false)", tmp_path / "out").exit_code == 0
    path = tmp_path / "out" / "model.ncnn.json"
    table = json.loads(path.read_text())
    table["inputs"] = [table["inputs"][0] | changed] if changed else []
    path.write_text(json.dumps(table))
    capsys.readouterr()
    assert main(["run", str(path.with_suffix(".param"))]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "model.ncnn.json: " in line
