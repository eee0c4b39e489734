"""What workers share: data, steps, gradients. Two processes that gloo connects, started once for all that
needs them.
"""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.distributed as dist
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from onnx_lathe.errors import DataError, PassError, UsageError
from onnx_lathe.runtime.data import DataSource, model_inputs, open_source
from onnx_lathe.runtime.data.source import Batch, First, Share
from onnx_lathe.runtime.training import TrainingSetup, session
from onnx_lathe.runtime.training.parallel.gradients import Traffic, communication_hook, decode, encode
from onnx_lathe.runtime.training.parallel.strategy import DataParallel
from onnx_lathe.runtime.training.parallel.workers import LaunchedGroup
from tests.support.distributed import digits, lenet, moved
from tests.support.models import MODELS
from tests.support.training import options
from tests.support.workers import together

LIMIT_S = 240.0


def regression() -> onnx.ModelProto:
    """x [N, 1, 28, 28] -> y [N, 3, 2]: no classes, so the mean squared error relative to the teacher is
    minimized.
    """
    generator = np.random.default_rng(0)
    weight = numpy_helper.from_array(generator.standard_normal((784, 6)).astype(np.float32) / 28, "w")
    shape = numpy_helper.from_array(np.array([-1, 3, 2]), "shape")
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["product"]),
        helper.make_node("Reshape", ["product", "shape"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 28, 28])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, 2])]
    return helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, [weight, shape]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    # 129 samples: the last step has one sample, which one of two workers has
    "adamw": (
        "lenet",
        129,
        {"epochs": 2, "distill": 0.5, "shift": 2, "flip": True, "weight_decay": 0.01, "clip": 0.1},
    ),
    "sgd": (
        "lenet",
        131,
        {"epochs": 2, "optimizer": "sgd", "weight_decay": 0.01, "holdout": 0.1, "decay": "onecycle"},
    ),
    "compressed": ("lenet", 160, {"epochs": 4, "clip": 0.0}),
    "regression": ("regression", 67, {"epochs": 2, "optimizer": "sgd"}),
}


ALIKE = ("adamw", "sgd", "regression")
"""Cases that two workers train as one does."""


def train(
    case: str, batch: int, workers: Any = None, **more: Any
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    name, count, given = CASES[case]
    model = lenet() if name == "lenet" else regression()
    setup = TrainingSetup(digits(count), model, hook=more.pop("hook", None), device="cpu")
    return session.train(setup, moved(model), options(batch=batch, **given | more), None, workers)


# ---- in the two processes
# -------------------------------------------------------------------------------------------------------------


class Generated(DataSource):
    """Samples 0, 1, 2, ... as a function yields them: their number is not known."""

    labelled, count, fingerprint, description = False, None, "", "numbers"

    def __init__(self, length: int) -> None:
        self.length = length

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        for start in range(0, self.length, size):
            yield Batch({"x": np.arange(start, min(start + size, self.length))})


class Net(nn.Module):
    """Its second weight never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Parameter(torch.zeros(40, 40)), nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.used * x).sum()


def thresholded(make: Any, poison: bool) -> dict[str, Any]:
    """Gradients are known here, and what becomes of them."""
    workers = make(gradients="threshold", gradient_threshold=0.5)
    net, largest = Net(), 0.0
    network = workers.parallel(net)
    generator = torch.Generator().manual_seed(workers.rank)
    received, own = torch.zeros(40, 40), torch.zeros(40, 40)
    for step in range(6):
        x = torch.randn(40, 40, generator=generator) * 0.4
        if poison and step == 5 and workers.rank == 1:
            x[3, 3] = torch.inf
        net.zero_grad()
        network(x).backward()
        gradient = net.used.grad
        assert gradient is not None
        own += x
        received += gradient
        largest = max(largest, float(gradient.abs().max()))
    residual = workers.hook.__self__.residuals[id(net.used)].view(40, 40)
    return {
        "own": own,
        "received": received,
        "residual": residual.clone(),
        "largest": largest,
        "unused": net.unused.grad,
        "metrics": workers.metrics(),
    }


def both(rank: int, port: int, folder: str) -> None:
    # the one store that all groups meet at, as torchrun has it
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    result: dict[str, Any] = {}

    def make(**given: Any) -> DataParallel:
        if dist.is_initialized():
            dist.destroy_process_group()
        return DataParallel(LaunchedGroup(cuda=False), options(optimizer="sgd", **given))

    for case in ALIKE:
        result[case] = train(case, 16, make())
    result["known"] = thresholded(make, poison=False)
    result["poisoned"] = thresholded(make, poison=True)
    for kind in ("full", "half", "powersgd", "threshold"):
        result[kind] = train("compressed", 16, make(gradients=kind, gradient_threshold=0.03))[1]
    workers = make()
    result["generated"] = [
        (batch.inputs["x"].tolist(), batch.weight) for batch in workers.share(Generated(9)).batches(2)
    ]
    with pytest.raises(DataError, match="numbers: differ from worker to worker") as uneven:
        list(workers.share(Generated(9 + 4 * rank)).batches(2))
    result["uneven"] = str(uneven.value)
    with pytest.raises(PassError, match="the workers ended with different weights") as apart:
        train("adamw", 16, make(), hook=f"{folder}/hook.py:forgets")
    result["apart"] = str(apart.value)
    with pytest.raises(PassError, match="worker 1 has another model, other options or other data") as unlike:
        train("adamw", 16 + rank, make())
    result["unlike"] = str(unlike.value)
    dist.destroy_process_group()
    (Path(folder) / f"{rank}.pickle").write_bytes(pickle.dumps(result))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("workers")
    (folder / "hook.py").write_text(
        "import torch\n"
        "def forgets(module, job):\n"
        "    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)\n"
        "    for batch in job.data.batches(16):\n"
        "        loss = module(image=torch.from_numpy(batch.inputs['image'])).square().mean()\n"
        "        optimizer.zero_grad(); loss.backward(); optimizer.step()\n"
    )
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    together(both, 2, store.port, str(folder), limit_s=LIMIT_S)
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in (0, 1)]


# ---- what they found
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ALIKE)
def test_two_workers_of_a_batch_give_the_weights_of_one_of_twice_the_batch(
    results: list[dict[str, Any]], case: str
) -> None:
    one, metrics = train(case, 32)
    before, _ = train(case, 32, rate=0.0)
    for name, value in one.items():
        for result in results:
            np.testing.assert_allclose(
                result[case][0][name], value, rtol=0, atol=2e-4 * np.abs(value).max(), err_msg=name
            )
        assert np.abs(value - before[name]).max() > 1e-3 * np.abs(value).max()
    for name in ("first_loss", "last_loss", "samples", "epochs"):
        assert results[0][case][1][name] == pytest.approx(metrics[name], rel=1e-4)
        assert results[1][case][1][name] == results[0][case][1][name]


def test_what_the_threshold_cuts_off_arrives_later(results: list[dict[str, Any]]) -> None:
    parts = [result["known"] for result in results]
    sent = [part["own"] - part["residual"] for part in parts]
    torch.testing.assert_close(parts[0]["received"], (sent[0] + sent[1]) / 2, rtol=0, atol=1e-5)
    torch.testing.assert_close(parts[0]["received"], parts[1]["received"], rtol=0, atol=0)
    for part, one in zip(parts, sent, strict=True):
        assert part["largest"] <= 0.5 + 1e-6
        steps = one / 0.5
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
        assert 0.1 < (steps != 0).float().mean() < 0.9


def test_a_gradient_that_is_not_finite_reaches_all_workers(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["poisoned"]["received"].isnan().all()
        assert result["known"]["received"].isfinite().all()


def test_compression_trains_to_nearly_the_same_loss_for_fewer_bytes(results: list[dict[str, Any]]) -> None:
    full = results[0]["full"]
    parameters = sum(
        numpy_helper.to_array(tensor).size
        for tensor in lenet().graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    )
    assert full["bytes_per_step"] == 4 * parameters
    assert full["gradient_ratio"] == 1.0
    assert results[0]["half"]["gradient_ratio"] == 2.0
    assert results[0]["powersgd"]["gradient_ratio"] > 5
    assert results[0]["threshold"]["gradient_ratio"] > 5
    assert results[0]["half"]["last_loss"] == pytest.approx(full["last_loss"], rel=0.01)
    assert full["last_loss"] < 0.1 * full["first_loss"]
    for kind in ("half", "powersgd", "threshold"):
        fallen = results[0][kind]["first_loss"] - results[0][kind]["last_loss"]
        assert fallen > 0.8 * (full["first_loss"] - full["last_loss"]), kind
        assert results[0][kind]["workers"] == 2


def test_data_of_unknown_length_is_shared_too(results: list[dict[str, Any]]) -> None:
    first, second = (result["generated"] for result in results)
    assert first == [([0, 1], 1.0), ([4, 5], 1.0), ([8], 0.0)]
    assert second == [([2, 3], 1.0), ([6, 7], 1.0), ([8], 2.0)]


def test_all_workers_refuse_alike(results: list[dict[str, Any]]) -> None:
    for name, say in (
        ("uneven", "seed what is random"),
        ("apart", "job.workers.parallel(module)"),
        ("unlike", "the same command"),
    ):
        assert all(say in result[name] and "\n" not in result[name] for result in results)


# ---- without processes
# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 8, 24, 29])
@pytest.mark.parametrize("workers", [2, 3])
def test_shares_make_up_the_whole(count: int, workers: int) -> None:
    whole = digits(count)
    shares = [Share(whole, rank, workers, lambda n: True) for rank in range(workers)]
    steps = list(zip(*(share.batches(4, shuffle_seed=5) for share in shares), strict=True))
    joined = list(whole.batches(4 * workers, shuffle_seed=5))
    assert len(steps) == len(joined)
    for parts, batch in zip(steps, joined, strict=True):
        assert batch.labels is not None
        found = [part.labels[: part.mine] for part in parts if part.labels is not None]
        np.testing.assert_array_equal(np.concatenate(found), batch.labels)
        assert all(part.count >= 1 and part.total == batch.count for part in parts)
        means = [part.weight * np.mean(part.labels) for part in parts if part.labels is not None]
        assert np.mean(means) == pytest.approx(batch.labels.mean())
    assert sum(1 for _ in shares[0].batches(4)) == -(-(shares[0].count or 0) // 4)
    assert shares[0].total == count


def test_every_source_can_be_pickled(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / "pictures" / f"{number % 10}").mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), 40 * number).save(tmp_path / "pictures" / f"{number % 10}" / f"{number}.png")
    for name in range(10):
        (tmp_path / "pictures" / str(name)).mkdir(exist_ok=True)
    (tmp_path / "loader.py").write_text(
        "import numpy as np\n"
        "scale = lambda x: x * 2\n"
        "handle = open(__file__)\n"
        "def batches():\n"
        "    for n in range(3):\n"
        "        yield scale(np.full((4, 1, 28, 28), n, np.float32)), np.arange(4)\n"
    )
    inputs = model_inputs(lenet())
    np.savez(tmp_path / "last.npz", image=np.arange(2 * 784, dtype=np.uint8).reshape(2, 28, 28, 1))
    sources = [
        open_source(f"{MODELS / 'mnist.npz'}:test", inputs, "scale=1/255"),
        open_source(str(tmp_path / "last.npz"), inputs, "scale=1/255 layout=nhwc"),
        open_source(str(tmp_path / "pictures"), inputs, "scale=1/255", 10),
        open_source(f"{tmp_path / 'loader.py'}:batches", inputs, None, 10),
    ]
    for source in [*sources, First(sources[3], 5), digits(20)]:
        copy = pickle.loads(pickle.dumps(source))
        assert (copy.fingerprint, copy.description, copy.labelled, copy.count) == (
            source.fingerprint, source.description, source.labelled, source.count,
        )  # fmt: skip
        for one, other in zip(copy.batches(6), source.batches(6), strict=True):
            np.testing.assert_array_equal(one.inputs["image"], other.inputs["image"])
            np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize(
    ("count", "share"), [(10, 0.5), (70_000, 1.0), (300_000, 1e-5), (5, 0.0), (100_000, 0.01)]
)
def test_codes_name_the_same_elements(count: int, share: float) -> None:
    generator = torch.Generator().manual_seed(count)
    index = (torch.rand(count, generator=generator) < share).nonzero().flatten()
    negative = torch.rand(len(index), generator=generator) < 0.5
    codes = encode(index, negative)
    places, signs = decode(codes)
    assert codes.dtype == torch.int16
    assert len(codes) <= len(index) + count // 0x7FFF
    assert torch.equal(places, index)
    assert torch.equal(signs < 0, negative)


@pytest.mark.parametrize("gap", [0, 1, 32766, 32767, 32768, 65534, 65535])
def test_codes_at_the_ends_of_what_one_code_can_say(gap: int) -> None:
    index = torch.tensor([gap, 2 * gap + 1])
    places, signs = decode(encode(index, torch.tensor([True, False])))
    assert places.tolist() == index.tolist()
    assert signs.tolist() == [-1, 1]


@pytest.mark.parametrize("name", ["powersgd", "threshold"])
def test_carried_gradients_and_a_scaled_loss_do_not_go_together(name: str) -> None:
    with pytest.raises(UsageError, match=f"gradients='{name}' carries gradients over.*bfloat16"):
        communication_hook(name, 2, 1e-3, "float16", Traffic(2))
