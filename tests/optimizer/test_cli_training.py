"""Commands that train: an interrupted one goes on, and leaves nothing behind when it ends."""

import json
from pathlib import Path

import numpy as np
import pytest

from onnx_lathe.optimizer.cli import main
from tests.optimizer.test_cli import compile_lenet, refused

pytest.importorskip("torch")
from onnx_lathe.runtime.training.loop import builtin


@pytest.mark.parametrize(
    "passes",
    [
        "fold, prune(sparsity=0.8), retrain(epochs=3, batch=100, holdout=0.2)",
        "fold, prune(sparsity=0.9, training={epochs: 3, batch: 100}, rounds=5)",
        "fold, codebook(bits=3, training={epochs: 3, batch: 100}, every=2)",
    ],
)
def test_an_interrupted_training_goes_on_after_its_last_epoch(
    passes: str,
    lenet5: Path,
    small_mnist: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(loop: builtin._Loop, epoch: int, *more: object) -> None:
        if epoch == 2:
            raise KeyboardInterrupt
        whole(loop, epoch, *more)

    assert compile_lenet(lenet5, small_mnist, tmp_path / "whole", passes=passes) == 0
    whole = builtin._Loop._epoch
    with monkeypatch.context() as patched:
        patched.setattr(builtin._Loop, "_epoch", interrupted)
        assert compile_lenet(lenet5, small_mnist, tmp_path / "cut", passes=passes) == 130
    assert "finished steps and epochs are kept" in capsys.readouterr().err
    state = tmp_path / "cut" / "steps" / "training.state"
    assert state.is_file()
    assert compile_lenet(lenet5, small_mnist, tmp_path / "cut", "--resume", passes=passes) == 0
    assert not state.exists()
    record = json.loads((tmp_path / "cut" / "report.json").read_text(encoding="utf-8"))
    assert record["steps"][-1]["metrics"]["resumed_after"] == 2
    models = [(tmp_path / name / "model.onnx").read_bytes() for name in ("whole", "cut")]
    assert models[0] == models[1]


def test_a_new_run_does_not_go_on(
    lenet5: Path, small_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(loop: builtin._Loop, epoch: int, *more: object) -> None:
        if epoch == 1:
            raise KeyboardInterrupt
        whole(loop, epoch, *more)

    whole, passes = builtin._Loop._epoch, "retrain(epochs=2, batch=100)"
    with monkeypatch.context() as patched:
        patched.setattr(builtin._Loop, "_epoch", interrupted)
        assert compile_lenet(lenet5, small_mnist, tmp_path, passes=passes) == 130
    cut_off = tmp_path / "steps" / ".training.state.0123abcd.tmp"
    cut_off.write_bytes(b"of a worker that was killed")
    assert compile_lenet(lenet5, small_mnist, tmp_path, passes=passes) == 0
    assert not cut_off.exists()
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert "resumed_after" not in record["steps"][-1]["metrics"]


def test_a_failing_hook_leaves_the_steps_before_it(
    lenet5: Path, small_mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = tmp_path / "mine.py"
    hook.write_text("def retrain(module, job):\n    raise ValueError('no luck')\n", encoding="utf-8")
    data = [
        "--train",
        f"{small_mnist}:train",
        "--eval",
        f"{small_mnist}:test",
        "--preprocess",
        "scale=1/255",
        "--quiet",
        "--no-latency",
    ]
    arguments = [
        str(lenet5),
        "--passes",
        "prune(sparsity=0.5), retrain",
        *data,
        "--retrain",
        f"{hook}:retrain",
        "--out",
        str(tmp_path / "out"),
    ]
    line = refused(capsys, arguments)
    assert "step 2, retrain: retraining hook" in line
    assert "ValueError: no luck" in line
    assert "mine.py" in (tmp_path / "out" / "retrain.log").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "out" / "steps").glob("*.onnx")] == ["01-prune.onnx"]
    assert not (tmp_path / "out" / "model.onnx").exists()


@pytest.mark.parametrize(
    "passes, message",
    [
        ("retrain(patience=2)", "give holdout too"),
        ("prune(sparsity=0.5, training={epochs: 2, holdout: 0.1})", "leave holdout to a retrain step"),
        ("codebook(training={epochs: 2, holdout: 0.1})", "leave holdout to a retrain step"),
        ("retrain(decay=linear)", "must be one of cosine, onecycle, constant"),
        ("retrain(holdout=0.001)", "too few different samples for holdout=0.001"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    passes: str,
    message: str,
    lenet5: Path,
    small_mnist: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = ["--train", f"{small_mnist}:train", "--preprocess", "scale=1/255", "--quiet", "--no-latency"]
    assert message in refused(capsys, [str(lenet5), "--passes", passes, *data, "--out", str(tmp_path)])


def test_gradients_are_not_measured_by_a_hook(
    lenet5: Path, small_mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = tmp_path / "mine.py"
    hook.write_text("def retrain(module, job):\n    pass\n", encoding="utf-8")
    data = [
        "--train",
        f"{small_mnist}:train",
        "--preprocess",
        "scale=1/255",
        "--quiet",
        "--out",
        str(tmp_path / "out"),
    ]
    passes = "prune_channels(importance=taylor)"
    line = refused(capsys, [str(lenet5), "--passes", passes, *data, "--retrain", f"{hook}:retrain"])
    assert "pass 'prune_channels' measures gradients by the built-in training" in line
    assert not (tmp_path / "out").exists()


def test_a_dense_sparse_dense_recipe(lenet5: Path, small_mnist: Path, tmp_path: Path) -> None:
    passes = "fold, prune(sparsity=0.5), retrain(epochs=1), retrain(dense=true, epochs=1, rate=0.0003)"
    assert compile_lenet(lenet5, small_mnist, tmp_path, passes=passes) == 0
    record = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    zeros = [step["quality"]["sparsity"] for step in record["steps"]]
    np.testing.assert_allclose(zeros[1:3], 0.5, atol=0.001)
    assert zeros[3] < 0.25
    assert main(["inspect", str(tmp_path / "model.onnx")]) == 0
