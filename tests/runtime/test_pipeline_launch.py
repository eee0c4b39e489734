"""A pipeline from the command line."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_lathe.optimizer.cli import main
from tests.support.distributed import digits
from tests.support.models import MODELS

LENET = str(MODELS / "lenet5-mnist" / "model.onnx")


def weights(out: Path) -> dict[str, np.ndarray]:
    model = onnx.load(out / "model.onnx")
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    batch = next(digits(75).batches(75))
    np.savez(tmp_path / "digits.npz", image=batch.inputs["image"], labels=batch.labels)
    return ["--train", str(tmp_path / "digits.npz"), "--target", "onnx"]


def test_two_stages_train_from_the_command_line(tmp_path: Path, data: list[str]) -> None:
    # the last batch is smaller, and pruning reads all weights while they are trained
    # by labels and with sgd: a network that imitates itself has hardly a gradient, and adamw makes steps of its rounding
    passes = "prune(sparsity=0.5, training={epochs: 2, batch: 16, rate: 0.05, distill: 0, optimizer: sgd})"
    launch = ["--launch", "--nproc-per-node=2", "--parallel", "pipeline=2,micro=4"]
    assert main([LENET, "--passes", passes, *data, *launch, "--out", str(tmp_path / "two")]) == 0
    assert main([LENET, "--passes", passes, *data, "--out", str(tmp_path / "one")]) == 0
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=0, atol=2e-5 * np.abs(value).max(), err_msg=name)
    report = (tmp_path / "two" / "report.json").read_text()
    assert all(name in report for name in ("idle_share", "weight_bytes[stage 1]", "crossing_bytes["))
    assert json.loads(report)


def test_a_batch_that_cannot_be_divided_is_one_line(
    tmp_path: Path, data: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    launch = ["--launch", "--nproc-per-node=2", "--parallel", "pipeline=2,micro=4"]
    assert main([LENET, "--passes", "retrain(batch=30)", *data, *launch, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "batch=30 cannot be divided into 4 micro-batches; give batch=32" in told
    assert "Traceback" not in told
