"""The hooks in docs/hooks do what their texts say."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup
from tests.support.training import Points, accuracy, disagreement, model, options, updated

pytest.importorskip("torch")
HOOKS = Path(__file__).parents[2] / "docs" / "hooks"


def trained(hook: Path, **more):
    start, teacher = (
        model(),
        TorchTrainer(TrainingSetup(Points()))
        .train(model(seed=3), options(epochs=15, rate=0.02, batch=32))
        .values,
    )
    original = updated(model(seed=3), teacher)
    lines: list[str] = []
    result = TorchTrainer(
        TrainingSetup(Points(), original, hook=f"{hook}:retrain", progress=lines.append)
    ).train(start, options(**{"batch": 32} | more))
    return start, original, updated(start, result.values), result.metrics, lines


def test_a_plain_loop_learns_from_labels() -> None:
    start, _, after, metrics, lines = trained(HOOKS / "plain.py", epochs=6)
    assert accuracy(start) < 0.6
    assert accuracy(after) > 0.9
    assert metrics["my_loss"] < 0.6
    assert [line.partition(":")[0] for line in lines[-6:]] == [f"epoch {number}/6" for number in range(1, 7)]


@pytest.mark.filterwarnings("ignore")
def test_lightning_imitates_the_original() -> None:
    pytest.importorskip("pytorch_lightning")
    start, original, after, _, _ = trained(HOOKS / "with_lightning.py", epochs=40)
    assert disagreement(after, original) < 0.5 * disagreement(start, original)


def test_a_data_set_of_ones_own(tmp_path: Path) -> None:
    hook = tmp_path / "own_data.py"
    shutil.copy(HOOKS / "own_data.py", hook)
    points = Points(400, seed=8)
    np.save(tmp_path / "images.npy", points.points.astype(np.float32))
    np.save(tmp_path / "labels.npy", points.labels)
    start, _, after, _, _ = trained(hook, epochs=40, batch=8)
    assert accuracy(start) < 0.6
    assert accuracy(after) > 0.85
