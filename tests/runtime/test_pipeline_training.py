"""A pipeline of workers trains what one process trains. Two or four processes that gloo connects, started once for all
that needs them.
"""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.distributed as dist

from onnx_lathe.errors import UsageError
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training.job import RetrainJob
from onnx_lathe.runtime.training.loop.builtin import retrain
from onnx_lathe.runtime.training.parallel.grid import Pipeline
from onnx_lathe.runtime.training.parallel.pipeline import PipelineParallel, pipeline_parallel
from onnx_lathe.runtime.training.parallel.strategy import Strategy
from onnx_lathe.runtime.training.parallel.workers import LaunchedGroup
from onnx_lathe.runtime.training.session import Shape
from onnx_lathe.runtime.training.state import JobState
from tests.support.pipelines import Pictures, moved, regression, residual
from tests.support.training import options
from tests.support.workers import together

SGD: dict[str, Any] = {"optimizer": "sgd", "rate": 0.02, "epochs": 1, "distill": 0.0}
ADAMW: dict[str, Any] = {
    "epochs": 2,
    "distill": 0.5,
    "clip": 0.05,
    "shift": 1,
    "flip": True,
    "weight_decay": 0.01,
}
CASES: dict[str, tuple[str, str, int, str, dict[str, Any]]] = {
    # network, type, samples (batches of 8), schedule, options
    "five steps": ("residual", "float64", 40, "1f1b", SGD),
    "five steps, gpipe": ("residual", "float64", 40, "gpipe", SGD),
    "five steps, float32": ("residual", "float32", 40, "1f1b", SGD),
    "five steps, float32, gpipe": ("residual", "float32", 40, "gpipe", SGD),
    # last batches of 7 and of 1
    "adamw": ("residual", "float64", 39, "1f1b", ADAMW),
    "a last sample": ("residual", "float64", 33, "1f1b", ADAMW),
    "no classes": ("regression", "float64", 38, "1f1b", SGD | {"epochs": 2}),
    "epochs chosen": (
        "residual",
        "float64",
        32,
        "1f1b",
        ADAMW | {"epochs": 6, "patience": 1, "holdout": 0.1, "rate": 0.5},
    ),
    "shaped": ("residual", "float64", 32, "1f1b", ADAMW),
    "resumed": ("residual", "float64", 32, "1f1b", ADAMW | {"epochs": 3}),
}
IN_HALF = {"bfloat16": "five steps, float32", "float16": "five steps, float32"}
NETWORKS = {"residual": residual, "regression": regression}
CHOSEN = "epochs chosen"
LIMIT_S = 300


class Half:
    """A Shaping: from the second call on, the last layer is multiplied by a mask of its larger weights."""

    every = 2

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, done: float, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        self.calls += 1
        sizes = {name: np.abs(array) for name, array in weights.items() if array.ndim > 1}
        middle = np.median(np.concatenate([size.ravel() for size in sizes.values()]))
        return {name: size > middle for name, size in sizes.items()} if self.calls > 1 else {}

    def state(self) -> dict[str, np.ndarray]:
        return {}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        pass


def train(case: str, workers: Strategy, folder: Path, batch: int = 8, **more: Any) -> tuple[Any, Any]:
    """(trained values, metrics)."""
    network, dtype, count, _, given = CASES[case]
    model: onnx.ModelProto = NETWORKS[network](dtype)
    settings = options(batch=batch, **given | more)
    module = GraphModule(moved(model))
    data = Pictures(count, dtype, fails_at=None)
    shape = Shape(module, Half() if case == "shaped" else None, workers)
    state = JobState(folder / f"{case}.state", f"{case} {more}", shape) if case == "resumed" else None
    torch.manual_seed(0)

    def job(source: Pictures) -> RetrainJob:
        return RetrainJob(
            data=workers.share(source),
            validation=Pictures(21, dtype) if case == CHOSEN else None,
            teacher=GraphModule(model).requires_grad_(False).eval(),
            epochs=settings["epochs"],
            device=torch.device("cpu"),
            step="retrain",
            settings=settings,
            seed=0,
            progress=lambda line: None,
            shaped=case == "shaped",
            shape=shape,
            workers=workers,
            state=None if state is None else workers.state(state),
        )

    if state is not None and workers.size > 1:
        with pytest.raises(InterruptedError):
            retrain(module, job(Pictures(count, dtype, fails_at=6)))
        assert state.path.exists() or workers.rank
        module = GraphModule(moved(model))
    made = job(data)
    retrain(module, made)
    shape(1.0)
    return module.values(), made.metrics | workers.metrics()


# ---- in the processes
# --------------------------------------------------------------------------------------------------------------------


def child(rank: int, size: int, port: int, folder: str) -> None:
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    group = LaunchedGroup(cuda=False)
    place = Path(folder)

    def strategy(case: str, data: int, stages: int, micro: int) -> PipelineParallel:
        _, _, _, order, given = CASES[case]
        layout = Pipeline(data, stages, micro, order)
        return PipelineParallel(group, options(batch=8 // data, **given), layout)

    result: dict[str, Any] = {}
    if size == 2:
        for case in CASES:
            result[case] = train(case, strategy(case, 1, 2, 4), place)
        one_step = strategy("five steps", 1, 2, 4)
        result["one step"] = train("five steps", one_step, place, batch=40)
        for precision, case in IN_HALF.items():
            result[precision] = train(case, strategy(case, 1, 2, 4), place, precision=precision)
    else:
        for case in ("five steps", "a last sample", CHOSEN):
            result[case] = train(case, strategy(case, 2, 2, 2), place, batch=4)
        result["four stages"] = train("five steps", strategy("five steps", 1, 4, 4), place)
    dist.destroy_process_group()
    (place / f"{rank}of{size}.pickle").write_bytes(pickle.dumps(result))


def started(size: int, folder: Path) -> list[dict[str, Any]]:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    together(child, size, size, store.port, str(folder), limit_s=LIMIT_S)
    return [pickle.loads((folder / f"{rank}of{size}.pickle").read_bytes()) for rank in range(size)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return started(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return started(4, tmp_path_factory.mktemp("four"))


# ---- what they found
# --------------------------------------------------------------------------------------------------------------------


def alike(results: list[dict[str, Any]], found: str, case: str, folder: Path) -> None:
    one, metrics = train(case, Strategy(), folder)
    before, _ = train(case, Strategy(), folder, rate=0.0)
    closest = 1e-12 if CASES[case][1] == "float64" else 5e-6
    for result in results:
        values, told = result[found]
        for name, value in one.items():
            np.testing.assert_allclose(
                values[name], value, rtol=0, atol=closest * np.abs(value).max(), err_msg=name
            )
        assert metrics.keys() <= told.keys()
        for name in ("first_loss", "last_loss", "samples", "epochs", "best_epoch"):
            assert told.get(name, 0) == pytest.approx(metrics.get(name, 0), rel=1e-5)
    apart = max(np.abs(value - before[name]).max() / np.abs(value).max() for name, value in one.items())
    assert apart > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_two_stages_give_the_weights_of_one_process(
    two: list[dict[str, Any]], case: str, tmp_path: Path
) -> None:
    alike(two, case, case, tmp_path)


@pytest.mark.parametrize("case", ["five steps", "a last sample", CHOSEN])
def test_two_pipelines_share_the_samples(four: list[dict[str, Any]], case: str, tmp_path: Path) -> None:
    alike(four, case, case, tmp_path)


def test_four_stages_give_the_weights_of_one_process(four: list[dict[str, Any]], tmp_path: Path) -> None:
    alike(four, "four stages", "five steps", tmp_path)


def test_an_interrupted_pipeline_goes_on(two: list[dict[str, Any]]) -> None:
    assert [result["resumed"][1]["resumed_after"] for result in two] == [1.0, 1.0]
    assert two[0]["epochs chosen"][1]["epochs"] < 6


@pytest.mark.parametrize("precision", IN_HALF)
def test_stages_train_in_half_precision(two: list[dict[str, Any]], precision: str, tmp_path: Path) -> None:
    one, metrics = train(IN_HALF[precision], Strategy(), tmp_path, precision=precision)
    for result in two:
        values, told = result[precision]
        for name, value in one.items():
            np.testing.assert_allclose(values[name], value, rtol=0, atol=0.03 * np.abs(value).max())
        assert told.get("skipped_steps") == metrics.get("skipped_steps")


def test_a_pipeline_is_measured(two: list[dict[str, Any]], four: list[dict[str, Any]]) -> None:
    metrics = two[0]["five steps"][1]
    assert metrics == two[1]["five steps"][1]
    assert metrics["stages"] == metrics["workers"] == 2
    assert metrics["idle_share_least"] == 1 / 5
    assert 0 < metrics["idle_share"] < 1
    total = sum(value.nbytes for name, value in two[0]["five steps"][0].items())
    held = [metrics[f"weight_bytes[stage {stage}]"] for stage in (1, 2)]
    assert sum(held) == total
    assert min(held) > 0
    (crossing,) = [size for name, size in metrics.items() if name.startswith("crossing_bytes[")]
    # of 8 samples, in float64 forward and backward, and a comparison forward
    assert crossing % (2 * 8 * 8) in (0, 8 * 4 * 9 * 7 % (2 * 8 * 8))
    assert "bytes_per_step" not in metrics
    # of the first step, which is slower, nothing is said
    assert "idle_share" not in two[0]["one step"][1]
    assert two[0]["one step"][1]["idle_share_least"] == 1 / 5
    several = four[0]["five steps"][1]
    assert several["idle_share_least"] == 1 / 3
    # a ring of two sends all gradients once
    assert several["bytes_per_step"] == several["weight_bytes[stage 1]"]


# ---- what is refused
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "changes", "job", "told"),
    [
        (Pipeline(1, 2, 4), {}, {"hook": "own.py:train"}, "(--retrain) runs forward and backward pass by itself"),
        (Pipeline(1, 2, 4), {}, {"memory": 1}, "--memory computes again"),
        (Pipeline(1, 2, 4), {"normalization": "train"}, {}, "a stage sees a micro-batch"),
        (Pipeline(1, 2, 4), {"gradients": "half"}, {}, "gradients='half' compresses"),
        (Pipeline(1, 2, 4), {"batch": 30}, {}, "batch=30 cannot be divided into 4 micro-batches; give batch=32"),
        (Pipeline(2, 4, 2), {"batch": 8}, {}, "give micro=4 or more, or schedule=gpipe"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_a_pipeline_is_refused(
    layout: Pipeline, changes: dict[str, Any], job: dict[str, Any], told: str
) -> None:
    group: Any = None
    text = f"pipeline={layout.stages},micro={layout.micro}"
    settings = options(**{"batch": 32} | changes)
    with pytest.raises(UsageError) as refused:
        pipeline_parallel(
            group, {"settings": settings, "parallel": text, "hook": None, "memory": None} | job, layout
        )
    assert told in str(refused.value)
    assert str(refused.value).startswith(f"--parallel '{text}': ")
    assert "\n" not in str(refused.value)


def test_an_earlier_pytorch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.12.1+cu126"))
    group: Any = None
    job = {"settings": options(batch=32), "parallel": "pipeline=2,micro=4", "hook": None, "memory": None}
    with pytest.raises(UsageError) as refused:
        pipeline_parallel(group, job, Pipeline(1, 2, 4))
    assert (
        "--parallel 'pipeline=2,micro=4': a pipeline needs PyTorch 2.13 or later, and this is 2.12.1"
        in str(refused.value)
    )
