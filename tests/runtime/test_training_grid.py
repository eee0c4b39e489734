"""Trainings whose layers several workers share: processes that gloo connects, against one process.

A worker that calls another collective than the rest aborts, so all of it runs in children with a time limit.
"""

import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.distributed as dist

from onnx_lathe.errors import PassError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training import TrainingSetup, session
from onnx_lathe.runtime.training.parallel.automatic import AutoParallel
from onnx_lathe.runtime.training.parallel.costs import Machine
from onnx_lathe.runtime.training.parallel.grid import Grid
from onnx_lathe.runtime.training.parallel.grid_parallel import GridParallel
from onnx_lathe.runtime.training.parallel.workers import LaunchedGroup
from tests.support.distributed import digits, lenet, moved
from tests.support.models import MODELS
from tests.support.parallel import images, residual, trained, worst
from tests.support.training import options
from tests.support.workers import together

LIMIT_S = 240.0
STEPS = 5
FLOORS = {"float64": 1e-12, "float32": 5e-6}

HOOK = """
from pathlib import Path
from onnx_lathe.runtime.training.loop.builtin import retrain

def stops_once(module, job):
    batches, mark = job.data.batches, Path(__file__).parent / f"stopped{job.workers.rank}"
    def counted(size, shuffle_seed=None):
        if shuffle_seed == 2 and not mark.exists():
            mark.write_text("")
            raise ValueError("in the middle")
        return batches(size, shuffle_seed)
    job.data.batches = counted
    retrain(module, job)
"""


class Half:
    """A Shaping: the last layer is multiplied by a mask."""

    every = 1

    def __init__(self) -> None:
        self.mask = np.arange(5000).reshape(10, 500) % 2 == 0

    def __call__(self, done: float, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return {"fc2.weight": self.mask & (np.abs(weights["fc2.weight"]) > 1e-6)}

    def state(self) -> dict[str, np.ndarray]:
        return {}

    def restore(self, state: Mapping[str, np.ndarray]) -> None: ...


SLOW = Machine(rate=1e12, latency=1e-6, bandwidth=1e6)
"""Links so slow that layers are better shared than their gradients sent."""
TIMES = {"alone": [1.0, 2.0], "together": [2.0, 1.0]}
"""Seconds of a step, by samples alone and as `auto` proposes."""


def unasked(*given: Any) -> Any:
    raise AssertionError("measured, though an earlier run has decided")


def automatic(group: LaunchedGroup, folder: str) -> dict[str, Any]:
    """What `auto` makes of times that are given, of a training that is taken up again, and of what it measures itself."""
    given, grid = options(optimizer="adamw", batch=16), Grid(1, "auto", 2)
    found: dict[str, Any] = {}
    for name, times in TIMES.items():
        workers = AutoParallel(group, given, grid, lambda *_: SLOW, lambda *_, times=times: times)
        found[name] = *train("auto", folder, workers), ()
    again = Path(folder) / "again"
    again.mkdir(exist_ok=True)
    (again / "hook.py").write_text(HOOK)
    with pytest.raises(PassError, match="in the middle"):
        train("resumed", str(again), AutoParallel(group, given, grid, lambda *_: SLOW, lambda *_: [2.0, 1.0]))
    found["again"] = *train("resumed", str(again), AutoParallel(group, given, grid, unasked, unasked)), ()
    said: list[str] = []
    found["measured"] = *train("auto", folder, AutoParallel(group, given, grid), said=said.append), said
    return found


JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "clipped": ("filter", {"epochs": 1, "clip": 0.1, "distill": 0.5, "shift": 2, "weight_decay": 0.01}),
    "rows": ("height", {"epochs": 1, "clip": 0.1, "distill": 0.5, "flip": True, "optimizer": "sgd"}),
    "shaped": ("filter", {"epochs": 1}),
    "patient": ("channel", {"epochs": 4, "holdout": 0.2, "patience": 1, "rate": 0.0}),
    "resumed": ("filter", {"epochs": 4}),
}


CLOSE = dict.fromkeys(JOBS, 2e-4) | {"resumed": 1e-3}
"""Largest difference of a weight, relative to the largest of its tensor; Adam makes much of small ones, the more the longer.
A step without the moments of those before it would be 0.02 off.
"""


def train(
    job: str,
    folder: str,
    workers: Any = None,
    memory: int | None = None,
    batch: int = 16,
    said: Callable[[str], None] = lambda message: None,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    given = {"epochs": 1} if job == "auto" else JOBS[job][1]
    hook = f"{folder}/hook.py:stops_once" if job == "resumed" and workers is not None else None
    state = Path(folder) / "training.state" if job == "resumed" and workers is not None else None
    setup = TrainingSetup(
        digits(50), lenet(), hook=hook, device="cpu", memory=memory, state=state, progress=said
    )
    shaping = Half() if job == "shaped" else None
    return session.train(setup, moved(lenet()), options(batch=batch, **given), shaping, workers)


class Samples(DataSource):
    labelled, fingerprint, description = True, "samples", "samples"

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.count = x, len(x)

    def batches(self, size: int, shuffle_seed: int | None = None) -> Any:
        yield Batch({"x": self.x[:size].numpy()})


def steps(workers: GridParallel, model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The weights after STEPS steps with DistributedDataParallel, or what stands in its place."""
    groups = workers.mesh.data
    batches = images(model, STEPS, 4 * groups.size)
    module = GraphModule(model, train_normalization=True)
    workers.place(module, Samples(batches[0][0]["x"]), False, lambda message: None)
    network = workers.parallel(module.train())
    optimizer = torch.optim.SGD(
        [one for one in module.parameters() if one.requires_grad], lr=0.01, momentum=0.9, nesterov=True
    )
    for inputs, labels in batches:
        x, y = inputs["x"].chunk(groups.size)[groups.rank], labels.chunk(groups.size)[groups.rank]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x=x), y).backward()
        optimizer.step()
    return module.values()


def work(rank: int, port: int, folder: str, size: int) -> None:
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    group = LaunchedGroup(cuda=False)

    def make(how: str, **given: Any) -> GridParallel:
        return GridParallel(group, options(**{"optimizer": "sgd"} | given), Grid(size // 2, how, 2))

    for how, dtype, flat in EQUAL[size]:
        workers = make(how)
        result[how, dtype, flat] = steps(workers, residual(dtype, flat)), workers.metrics()
    for job, (how, given) in JOBS.items() if size == 2 else ():
        if job == "resumed":
            with pytest.raises(PassError, match="in the middle"):
                train(job, folder, make(how))
        result[job] = train(job, folder, make(how, optimizer=given.get("optimizer", "adamw")))
    if size == 2:
        result["room"] = train("rows", folder, make("height"), memory=2**30)
        result["auto"] = automatic(group, folder)
        room = int(0.8 * result["room"][1]["activation_bytes"])
        result["memory"] = train("rows", folder, make("height"), memory=room)
    (Path(folder) / f"{rank}.pickle").write_bytes(pickle.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


EQUAL = {
    2: [
        *[(how, "float64", False) for how in ("height", "width", "filter", "channel")],
        ("height", "float32", True),
        ("filter", "float32", False),
    ],
    4: [("height", "float64", True), ("filter", "float64", False)],
}
"""(split, type, whether the network is flattened) by number of processes; with four they are two groups of two."""


def spawned(folder: Path, size: int) -> list[dict[Any, Any]]:
    (folder / "hook.py").write_text(HOOK)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    together(work, size, store.port, str(folder), size, limit_s=LIMIT_S)
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(size)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return spawned(tmp_path_factory.mktemp("pair"), 2)


def _check_equal(results: list[dict[Any, Any]], case: tuple[str, str, bool], groups: int) -> None:
    _, dtype, flat = case
    model = residual(dtype, flat)
    alone, _, _ = trained(model, images(model, STEPS, 4 * groups))
    for result in results:
        values, metrics = result[case]
        assert worst(values, alone) <= FLOORS[dtype]
        assert metrics["workers"] == 2 * groups
        assert metrics["split_steps"] > 10


@pytest.mark.parametrize("case", EQUAL[2])
def test_five_steps_of_two_workers_are_those_of_one(
    pair: list[dict[Any, Any]], case: tuple[str, str, bool]
) -> None:
    _check_equal(pair, case, 1)


def test_five_steps_of_two_groups_of_two_are_those_of_one(tmp_path: Path) -> None:
    results = spawned(tmp_path, 4)
    for case in EQUAL[4]:
        _check_equal(results, case, 2)


@pytest.mark.parametrize("job", JOBS)
def test_a_job_gives_the_weights_that_one_process_gives(
    pair: list[dict[Any, Any]], job: str, tmp_path: Path
) -> None:
    alone, metrics = train(job, str(tmp_path))
    for result in pair:
        values, found = result[job]
        for name, value in alone.items():
            np.testing.assert_allclose(
                values[name], value, rtol=0, atol=CLOSE[job] * np.abs(value).max(), err_msg=name
            )
        for name in ("first_loss", "last_loss", "samples", "epochs"):
            assert found[name] == pytest.approx(metrics[name], rel=1e-4), name
    assert pair[0][job][1].get("resumed_after") == (2.0 if job == "resumed" else None)
    if job == "patient":
        assert metrics["epochs"] < 4
    held = pair[0][job][1]["own_weight_bytes"] / pair[0][job][1]["weight_bytes"]
    assert held == 1 if job == "shaped" else held < 0.6


def test_a_memory_budget_is_kept_and_changes_nothing(pair: list[dict[Any, Any]]) -> None:
    for result in pair:
        values, metrics = result["memory"]
        assert metrics["recomputed"] > 0
        assert metrics["activation_peak_bytes"] <= 0.8 * result["room"][1]["activation_bytes"]
        for name, value in result["room"][0].items():
            np.testing.assert_allclose(values[name], value, rtol=0, atol=1e-6)


def test_auto_keeps_what_was_faster_and_the_steps_of_one_process(
    pair: list[dict[Any, Any]], tmp_path: Path
) -> None:
    alone, _ = train("auto", str(tmp_path), batch=32)
    longer, _ = train("resumed", str(tmp_path), batch=32)
    for result in (one["auto"] for one in pair):
        for name, (values, metrics, _) in result.items():
            wanted = longer if name == "again" else alone
            for weight, value in wanted.items():
                close = CLOSE["resumed" if name == "again" else "rows"] * np.abs(value).max()
                np.testing.assert_allclose(
                    values[weight], value, rtol=0, atol=close, err_msg=f"{name} {weight}"
                )
            if name == "measured" and "step_seconds_data" not in metrics:
                # on a loaded machine the link may be so slow that samples alone are proposed: nothing to time
                assert metrics["groups"] == 2
            elif name != "again":
                times = metrics["step_seconds_data"], metrics["step_seconds_auto"]
                assert metrics["groups"] == (1 if times[1] < times[0] else 2)
                assert list(times) == TIMES.get(name, list(times))
            held = metrics.get("own_weight_bytes", 1.0) / metrics.get("weight_bytes", 1.0)
            assert (held < 0.6) == (metrics["groups"] == 1)
        assert result["again"][1]["groups"] == 1
        assert result["again"][1]["resumed_after"] == 2
        assert "step_seconds_data" not in result["again"][1]
        said = "\n".join(result["measured"][2])
        assert "by samples alone" in said
        assert ("ten steps each took" in said) == ("step_seconds_data" in result["measured"][1])
        assert result["measured"][1]["link_latency_seconds"] > 0
    figures = [{name: one["auto"]["measured"][1].get(name) for name in MEASURED} for one in pair]
    assert figures[0] == figures[1]


MEASURED = (
    "link_latency_seconds",
    "link_bytes_per_second",
    "step_seconds_data",
    "step_seconds_auto",
    "groups",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["width", "auto"]
)  # the others by `pair`: here, each imports PyTorch three times
def test_from_the_command_line(how: str, tmp_path: Path) -> None:
    batch = next(iter(digits(48).batches(48)))
    np.savez(tmp_path / "few.npz", image=batch.inputs["image"], labels=batch.labels)
    network = str(MODELS / "lenet5-mnist" / "model.onnx")
    passes = "retrain(epochs=1, batch={}, optimizer=sgd, distill=0)"
    arguments = ["--train", str(tmp_path / "few.npz"), "--quiet", "--target", "onnx"]
    together = ["--launch", "--nproc-per-node=2", "--parallel", f"{how}=2"]
    each = 8 if how == "auto" else 16  # of a worker there, of the group elsewhere
    for name, more in (("two", together), ("one", [])):
        size = passes.format(each if more else 16)
        assert main([network, "--passes", size, *arguments, *more, "--out", str(tmp_path / name)]) == 0
    one, two = (
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for model in (onnx.load(next((tmp_path / name).glob("**/*.onnx"))) for name in ("one", "two"))
    )
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=0, atol=2e-4 * np.abs(value).max(), err_msg=name)
