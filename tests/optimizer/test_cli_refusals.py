"""The command as a user types it: what it refuses, in one line, and that nothing of the user's is overwritten then."""

from pathlib import Path

import onnx
import pytest

from onnx_lathe.optimizer.cli import main
from tests.support.command import compile_lenet, data_arguments, refused


def test_resume_refuses_another_recipe(
    lenet5: Path, small_mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compile_lenet(lenet5, small_mnist, tmp_path, passes="prune(sparsity=0.5)") == 0
    capsys.readouterr()
    arguments = [
        str(lenet5),
        "--passes",
        "prune(sparsity=0.6)",
        *data_arguments(small_mnist),
        "--out",
        str(tmp_path),
        "--resume",
    ]
    assert "cannot resume, the recipe changed since" in refused(capsys, arguments)


def test_resume_without_an_earlier_run(
    lenet5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(
        capsys, [str(lenet5), "--passes", "fold", "--out", str(tmp_path / "new"), "--resume", "--quiet"]
    )
    assert "no earlier run to resume" in line
    assert not (tmp_path / "new" / "model.onnx").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.onnx", "--passes", "fold"], "nowhere.onnx"),
        (["{lenet}", "--passes", "prnue"], "there is no pass 'prnue'; did you mean 'prune'?"),
        (["{lenet}", "--passes", "prune(sparsty=0.9)"], "did you mean 'sparsity'?"),
        (["{lenet}", "--passes", "int8"], "pass 'int8' needs calibration data"),
        (["{lenet}", "--passes", "retrain"], "pass 'retrain' needs training data"),
        (
            ["{lenet}", "--passes", "fold", "--target", "onxx"],
            "there is no target 'onxx'; did you mean 'onnx'?",
        ),
        (["{lenet}", "--passes", "fold", "--gate", "top1 drop <= 1%"], "top1"),
        (["{lenet}", "--passes", "fold", "--gate", "topp1 >= 1%"], "topp1"),
        (
            ["{lenet}", "--passes", "fold", "--traget", "onnx"],
            "unknown argument '--traget'; did you mean '--target'?",
        ),
        (["{lenet}"], "nothing to do"),
        ([], "required"),
        (["{lenet}", "--recipe", "none.toml"], "none.toml: cannot read the recipe"),
        (["{lenet}", "--passes", "fold", "--eval", "none.npz"], "none.npz"),
        (["passes", "prnue"], "did you mean 'prune'?"),
        (["inspect", "nowhere.onnx"], "nowhere.onnx"),
        (["inspct", "{lenet}"], "inspct: there is no such file or command; did you mean 'inspect'?"),
        (["gate", "{lenet}", "nowhere.onnx", "--gate", "size ratio >= 1"], "nowhere.onnx"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str],
    message: str,
    lenet5: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, [text.format(lenet=lenet5) for text in arguments])
    assert not (tmp_path / "build" / "model.onnx").exists()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "changed, message",
    [
        (["--passes", "prune(sparsity=0.6)", "--resume"], "cannot resume, the recipe changed since"),
        (["--passes", "fold", "--gate", "agreement >= 99%"], "agreement needs"),
        (["--passes", "fold", "--retrain", "hook.py:train"], "there is no file hook.py"),
        (["--passes", "fold", "--target", "onnx,onnx"], "named twice"),
        (["--passes", "fold", "--target", ""], "no target is named"),
        (["--passes", "fold", "--seed", "-1"], "give 0 or more"),
    ],
)
def test_a_refused_request_leaves_the_earlier_result(
    changed: list[str], message: str, lenet5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [str(lenet5), "--out", str(tmp_path), "--no-latency", "--quiet", "--force"]
    assert main([*common, "--passes", "prune(sparsity=0.5)"]) == 0
    capsys.readouterr()
    before = snapshot(tmp_path)
    assert message in refused(capsys, [*common, *changed])
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("place", [".", "steps"])
def test_the_model_itself_is_never_overwritten(
    place: str, lenet5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    model = tmp_path / place / "model.onnx"
    model.write_bytes(lenet5.read_bytes())
    assert "lies in the output folder" in refused(
        capsys, [str(model), "--passes", "fold", "--out", str(tmp_path)]
    )
    assert model.read_bytes() == lenet5.read_bytes()


def test_files_of_the_user_are_never_overwritten(
    lenet5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.onnx").write_text("mine")
    assert "not from an earlier run" in refused(
        capsys, [str(lenet5), "--passes", "fold", "--out", str(tmp_path)]
    )
    assert (tmp_path / "model.onnx").read_text() == "mine"


def test_calibrating_with_evaluation_data_is_refused(
    lenet5: Path, small_mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = [
        "--calibration",
        f"{small_mnist}:test",
        "--eval",
        f"{small_mnist}:test",
        "--preprocess",
        "scale=1/255",
    ]
    line = refused(capsys, [str(lenet5), "--passes", "fold", *same, "--out", str(tmp_path)])
    assert "400 evaluation samples are in the calibration data too" in line


def test_unwritable_output_folder(lenet5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    line = refused(capsys, [str(lenet5), "--passes", "fold", "--out", str(tmp_path / "file" / "out")])
    assert "cannot write there" in line


def test_the_same_data_for_training_and_evaluation_is_refused(
    lenet5: Path, small_mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = ["--train", f"{small_mnist}:test", "--eval", f"{small_mnist}:test", "--preprocess", "scale=1/255"]
    line = refused(capsys, [str(lenet5), "--passes", "fold", *same, "--out", str(tmp_path)])
    assert "400 evaluation samples are in the training data too" in line


def test_an_operator_that_onnx_runtime_lacks_is_told_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Frobnicate", ["x"], ["y"], domain="com.acme")
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, ["n", 4])], [value("y", 1, ["n", 4])])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.acme", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "model.onnx")
    line = refused(
        capsys, [str(tmp_path / "model.onnx"), "--passes", "fold", "--quiet", "--out", str(tmp_path / "out")]
    )
    assert "com.acme.Frobnicate" in line
    assert line.endswith("export the model with operators of the ONNX standard")
