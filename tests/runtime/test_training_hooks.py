"""A user's retraining hook: what it is given, and how its mistakes are told."""

from pathlib import Path

import numpy as np
import pytest

from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup
from onnx_lathe.runtime.training.hooks import load_hook
from tests.support.training import Points, model, options

torch = pytest.importorskip("torch")


def write(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(text, encoding="utf-8")
    return f"{path}:retrain"


def test_a_hook_trains_the_module(tmp_path: Path) -> None:
    (tmp_path / "beside_the_hook.py").write_text("FACTOR = 2.0\n", encoding="utf-8")
    hook = write(tmp_path, """
import torch
from beside_the_hook import FACTOR

def retrain(module, job):
    with torch.no_grad():
        module.weights()["w"].mul_(FACTOR)
    batch = next(job.data.batches(3))
    inputs = {name: torch.from_numpy(array).to(job.device) for name, array in batch.inputs.items()}
    assert module(**inputs).shape == job.teacher(**inputs).shape == (3, 4)
    assert not any(parameter.requires_grad for parameter in job.teacher.parameters())
    job.metrics.update(epochs_asked=job.epochs, seed=job.seed, batch=job.settings["batch"], noise=float(torch.rand(())))
    job.progress(f"from the hook: {job.step}")
""")  # fmt: skip
    lines: list[str] = []
    start = model()
    setup = TrainingSetup(Points(), start, hook=hook, progress=lines.append, step="3/6 retrain")
    trainer = TorchTrainer(setup)
    results = []
    for _ in range(2):
        torch.rand(1)  # what the caller's generator is at does not matter
        results.append(trainer.train(start, options(epochs=3, seed=9)))
    np.testing.assert_array_equal(
        results[0].values["w"], 2 * np.frombuffer(_raw(start, "w"), np.float32).reshape(6, 8)
    )
    assert results[0].metrics.items() >= {"epochs_asked": 3, "seed": 9, "batch": options()["batch"]}.items()
    assert results[0].metrics["noise"] == results[1].metrics["noise"]
    assert "from the hook: 3/6 retrain" in lines


def test_any_type_of_number_is_a_metric(tmp_path: Path) -> None:
    text = "import numpy, torch\ndef retrain(module, job):\n"
    text += "    job.metrics.update(a=numpy.float32(1.5), b=torch.tensor([2.5]), c=3, d='high', e=torch.ones(2))\n"
    lines: list[str] = []
    metrics = (
        TorchTrainer(TrainingSetup(Points(), hook=write(tmp_path, text), progress=lines.append))
        .train(model(), options())
        .metrics
    )
    assert [(metrics[name], type(metrics[name])) for name in "abc"] == [
        (1.5, float),
        (2.5, float),
        (3.0, float),
    ]
    assert not {"d", "e"} & metrics.keys()
    assert [line for line in lines if "is no number" in line] == [
        f"job.metrics['{name}'] is no number, so the report is without it" for name in "de"
    ]


def _raw(proto, name: str) -> bytes:
    return next(tensor.raw_data for tensor in proto.graph.initializer if tensor.name == name)


def test_what_a_hook_raises_is_one_line_and_a_log(tmp_path: Path) -> None:
    hook = write(tmp_path, "def retrain(module, job):\n    raise ValueError('bad\\nluck')\n")
    log = tmp_path / "out" / "retrain.log"
    with pytest.raises(PassError) as caught:
        TorchTrainer(TrainingSetup(Points(), hook=hook, log=log)).train(model(), options())
    assert (
        str(caught.value)
        == f"retraining hook '{hook}' failed: ValueError: bad luck; the traceback is in {log}"
    )
    assert "mine.py" in log.read_text(encoding="utf-8")
    assert "in retrain" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize("body", ["import sys; sys.exit(3)", "job.nothing", "module(1, 2, 3)"])
def test_any_mistake_in_a_hook_is_caught(tmp_path: Path, body: str) -> None:
    hook = write(tmp_path, f"def retrain(module, job):\n    {body}\n")
    with pytest.raises(
        PassError, match=r"retraining hook .* failed: (SystemExit|AttributeError|TypeError): "
    ):
        TorchTrainer(TrainingSetup(Points(), hook=hook)).train(model(), options())


def test_a_hook_that_ruins_the_weights_is_refused(tmp_path: Path) -> None:
    hook = write(tmp_path, "def retrain(module, job):\n    module.weights()['w'].data.fill_(float('nan'))\n")
    with pytest.raises(
        PassError, match="training made weight 'w' NaN or infinite; the model is left as it was"
    ):
        TorchTrainer(TrainingSetup(Points(), hook=hook)).train(model(), options())


@pytest.mark.parametrize(
    "spec, message",
    [
        ("train.py", "give it as file.py:function"),
        ("train.txt:retrain", "give it as file.py:function"),
        ("train.py:not a name", "give it as file.py:function"),
        ("nowhere/train.py:retrain", "there is no file nowhere/train.py"),
    ],
)
def test_a_wrong_place_is_told_at_once(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TorchTrainer(TrainingSetup(Points(), hook=spec))


@pytest.mark.parametrize(
    "text, error, message",
    [
        (
            "def retrian(module, job): pass\n",
            UsageError,
            "has no function 'retrain'; did you mean 'retrian'.; it has retrian",
        ),
        ("retrain = 3\n", UsageError, "'retrain' is a int, not a function"),
        ("def retrain(module, job)\n", PassError, "cannot be imported: SyntaxError"),
        (
            "import no_such_module\n",
            PassError,
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'",
        ),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_hook(write(tmp_path, text))


def test_a_changed_file_is_loaded_anew(tmp_path: Path) -> None:
    assert load_hook(write(tmp_path, "def retrain(module, job): return 1\n"))(None, None) == 1
    assert load_hook(write(tmp_path, "def retrain(module, job): return 22\n"))(None, None) == 22
