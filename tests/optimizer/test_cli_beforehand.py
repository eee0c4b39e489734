"""What a training would end with is told before the first pass runs; what it cannot train, it leaves."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.cli import main
from tests.support.builders import build, random
from tests.support.command import refused
from tests.support.recurrent import recurrent_network

pytest.importorskip("torch")

BRANCH = """
    s = ReduceSum <keepdims = 0> (h)  zero = Constant <value_float = 0.0> ()  c = Greater (s, zero)
    [choice] b = If (c) <then_branch = yes () => (float[N, 8] p) { p = Abs (h) },
                         else_branch = no () => (float[N, 8] q) { q = Relu (h) }>"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, x=random(64, 8), labels=np.arange(64) % 3)
    return path


def saved(model: onnx.ModelProto, folder: Path) -> str:
    onnx.save(model, folder / "network.onnx")
    return str(folder / "network.onnx")


def plain() -> onnx.ModelProto:
    return build(
        "(float[N, 8] x) => (float[N, 3] y) { h = MatMul (x, w) r = Relu (h) y = MatMul (r, v) }",
        w=random(8, 32),
        v=random(32, 3),
    )


def arguments(
    model: str, data: Path, out: Path, passes: str = "prune,retrain(epochs=1)", *more: str
) -> list[str]:
    return [
        model,
        "--passes",
        passes,
        "--data",
        str(data),
        "--quiet",
        "--no-latency",
        "--out",
        str(out),
        *more,
    ]


@pytest.mark.parametrize(
    "text, function, message",
    [
        ("def retrain(module, job): pass\n", "train", "the file has no function 'train'"),
        (
            "import no_such_module\n",
            "retrain",
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (
            "def retrain(module): pass\n",
            "retrain",
            "'retrain' is called with (module, job), and takes other arguments",
        ),
        ("retrain = 'later'\n", "retrain", "'retrain' is a str, not a function"),
    ],
)
def test_a_hook_that_cannot_run_ends_the_run_before_the_first_pass(
    text: str, function: str, message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hook, out = tmp_path / "mine.py", tmp_path / "out"
    hook.write_text(text, encoding="utf-8")
    command = arguments(
        saved(plain(), tmp_path), data, out, "prune,retrain", "--retrain", f"{hook}:{function}"
    )
    assert message in refused(capsys, command)
    assert not (out / "steps").exists()


def test_a_node_that_cannot_be_trained_around_ends_the_run_before_the_first_pass(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "(float[N, 8] x) => (float[N, 3] y) { h = MatMul (x, w) [noise] r = RandomNormalLike (h) s = Add (h, r) y = MatMul (s, v) }"
    model = saved(build(text, w=random(8, 32), v=random(32, 3)), tmp_path)
    line = refused(capsys, arguments(model, data, tmp_path / "out"))
    assert (
        "PyTorch cannot run 1 of the model's nodes: noise (RandomNormalLike, opset 17: random numbers" in line
    )
    assert not (tmp_path / "out" / "steps").exists()


def test_learning_from_labels_that_are_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "unlabelled.npz"
    np.savez(data, x=random(64, 8))
    for passes in ("prune,retrain(distill=0)", "prune(training={epochs: 1, distill: 0})"):
        line = refused(capsys, arguments(saved(plain(), tmp_path), data, tmp_path / "out", passes))
        assert "learns from labels alone (distill=0), and the training data has none" in line


def test_what_a_server_cannot_do_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = ["--launch", "--nproc-per-node=3", "--parallel", "server"]
    for passes, told in (
        ("prune,retrain(gradients=powersgd)", "gradients='powersgd' sums factors"),
        ("prune(training={epochs: 1, normalization: train})", "normalization='train' updates running"),
    ):
        out = tmp_path / "out"
        line = refused(capsys, [*arguments(saved(plain(), tmp_path), data, out, passes), *launch])
        assert f"--parallel 'server': {told}" in line
        assert not (out / "steps").exists()


def test_the_rest_of_a_network_with_control_flow_is_retrained(data: Path, tmp_path: Path) -> None:
    text = f"(float[N, 8] x) => (float[N, 3] y) {{ [first] h = MatMul (x, w) {BRANCH} [last] y = MatMul (b, v) }}"
    model = saved(build(text, 20, w=random(8, 8), v=random(8, 3)), tmp_path)
    assert main(arguments(model, data, tmp_path / "out", "retrain(epochs=2)")) == 0
    step = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["steps"][0]
    assert [edit["node"] for edit in step["edits"]] == ["last"]
    assert [(skip["node"], skip["reason"]) for skip in step["skips"]] == [
        ("choice", "If runs in ONNX Runtime, without a gradient"),
        ("first", "w is not trained: choice behind it has no gradient"),
    ]


@pytest.mark.parametrize(
    "passes",
    [
        "fold,prune(sparsity=0.5),retrain(epochs=1),codebook(bits=4),retrain(epochs=1)",
        "prune(sparsity=0.5, training={epochs: 2})",
    ],
)
def test_a_recurrent_network_is_pruned_shared_and_retrained(passes: str, tmp_path: Path) -> None:
    data = tmp_path / "sequences.npz"
    np.savez(data, x=random(64, 7, 16), labels=np.arange(64) % 5)
    assert (
        main(arguments(saved(recurrent_network("GRU", opset=21), tmp_path), data, tmp_path / "out", passes))
        == 0
    )
    steps = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["steps"]
    for step in steps[1:] or steps:
        assert any(edit["node"] == "recurrent" for edit in step["edits"])
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert {"recurrent.w", "recurrent.r"} <= {
        name
        for entry in model.metadata_props
        if entry.key == "lathe.sparse"
        for name in json.loads(entry.value)
    }
