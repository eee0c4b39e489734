"""A server of weights by itself: which gradients make an update, what becomes of late ones, who is waited for."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import torch.distributed as dist  # noqa: E402

from onnx_lathe.errors import PassError  # noqa: E402
from onnx_lathe.runtime.torch_bridge import GraphModule  # noqa: E402
from onnx_lathe.runtime.training.parallel.client import Client  # noqa: E402
from onnx_lathe.runtime.training.parallel.grid import Server as Policy  # noqa: E402
from onnx_lathe.runtime.training.parallel.messages import Line, Vector, coding  # noqa: E402
from onnx_lathe.runtime.training.parallel.server import Pushed, Server, line_of  # noqa: E402
from tests.support.training import model  # noqa: E402

LIMIT_S = 10.0
BRIEFLY_S = 0.1
"""Enough for a thread to end that does not wait."""
RATE = 0.5
THRESHOLD = 0.25


class Bench:
    """A server with SGD, whose workers are calls, or those of `client`."""

    def __init__(self, policy: Policy, name: str = "full") -> None:
        module = GraphModule(model())
        self.vector = Vector(module)
        expected = {rank: rank for rank in range(1, policy.workers + 1)}
        self.name = name
        self.server = Server(module, self.vector, coding(name, THRESHOLD, self.vector), policy, expected)
        self.optimizer = torch.optim.SGD(self.vector.parameters, lr=RATE)
        self.before = self.vector.weights()

    def push(self, number: int, version: int, value: float = 1.0, samples: int = 4) -> threading.Thread:
        """A worker sends gradients that are all `value`; the thread ends when it may go on."""
        gradients = torch.full((len(self.vector),), value)
        pushed = Pushed(version, samples, value, gradients)
        return started(lambda: self.server.take(pushed, number))

    def client(self, number: int) -> Client:
        """A worker that got the first weights, and has the gradient 1 for each."""
        self.server.publish()
        store, module = dist.HashStore(), GraphModule(model())
        started(lambda: self.server.serve(store, number))
        vector = Vector(module)
        line = Line(store, line_of(number), 1)
        client = Client(line, number, module, vector, coding(self.name, THRESHOLD, vector))
        assert client.fetch()
        for parameter in vector.parameters:
            parameter.grad = torch.ones_like(parameter)
        return client

    def update(self) -> float:
        """The loss of an update, as the built-in hook makes it."""
        for group in self.optimizer.param_groups:
            group["lr"] = RATE
        loss = float(self.server.gradients(self.optimizer))
        self.optimizer.step()
        self.server.updated()
        self.server.publish()
        return loss

    def moved(self) -> float:
        """How far all weights went."""
        steps = (self.before - self.vector.weights()).unique()
        assert float(steps.max() - steps.min()) < 1e-5
        return float(steps[0])


def started(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def ended(thread: threading.Thread, within_s: float = LIMIT_S) -> bool:
    thread.join(within_s)
    return not thread.is_alive()


def test_each_gradient_is_an_update_and_its_age_is_counted() -> None:
    bench = Bench(Policy(2))
    first = bench.push(1, 0)
    assert bench.update() == 1.0
    assert ended(first)
    second = bench.push(2, 0, 3.0)
    assert bench.update() == 3.0
    assert ended(second)
    assert bench.moved() == pytest.approx(RATE * (1 + 3), abs=1e-5)
    found = bench.server.metrics()
    assert (found["updates"], found["staleness[0]"], found["staleness[1]"]) == (2, 1, 1)
    assert found["staleness_mean"] == 0.5
    assert found["dropped_gradients"] == found["lost_workers"] == 0


def test_an_update_is_the_mean_over_samples() -> None:
    bench = Bench(Policy(2, 2))
    bench.push(1, 0, 1.0, 6)
    wait(lambda: bench.server.count == 1)
    bench.push(2, 0, 5.0, 2)
    assert bench.update() == pytest.approx(2.0)
    assert bench.moved() == pytest.approx(RATE * 2.0, abs=1e-5)


def test_an_aware_rate_is_divided_by_the_age() -> None:
    bench = Bench(Policy(2, 2, aware=True))
    bench.server.version = 4
    bench.push(1, 4, 1.0)
    wait(lambda: bench.server.count == 1)
    bench.push(2, 0, 3.0)
    assert bench.update() == pytest.approx(2.0)
    # Zhang et al., equation 6: rate / n * sum of gradients / staleness
    assert bench.moved() == pytest.approx(RATE / 2 * (1.0 + 3.0 / 4), abs=1e-5)


def test_late_gradients_are_dropped_and_their_worker_goes_on_at_once() -> None:
    bench = Bench(Policy(3, 2, "drop"))
    taken = [bench.push(1, 0), bench.push(2, 0)]
    wait(lambda: bench.server.count == 2)
    late = bench.push(3, 0, 100.0)
    assert not any(ended(thread, BRIEFLY_S) for thread in (*taken, late))
    assert bench.server.received == 2
    bench.update()
    assert all(map(ended, (*taken, late)))
    assert bench.server.received == 3
    assert bench.server.metrics()["dropped_gradients"] == 1
    assert bench.moved() == pytest.approx(RATE, abs=1e-5)


def test_what_dropped_gradients_left_is_dropped_with_them() -> None:
    bench = Bench(Policy(2, 1, "drop"), "threshold")
    one, late = bench.client(1), bench.client(2)
    for client in (one, late):
        client.push(torch.tensor(1.0), 4)
    first = started(one.fetch)
    bench.update()
    assert ended(first)
    assert late.fetch()
    assert bench.server.dropped == 1
    assert set(one.coding.residual.tolist()) == {1 - THRESHOLD}
    assert set(late.coding.residual.tolist()) == {0}


def test_weights_that_no_loss_reaches_have_no_gradient() -> None:
    bench = Bench(Policy(2, 2))
    one, two = bench.client(1), bench.client(2)
    one.figures, two.figures = {"activation_bytes": 5.0}, {"activation_bytes": 7.0}
    for parameter in one.vector.parameters[1:3]:
        parameter.grad = None
    two.vector.parameters[1].grad = None
    fetched = []
    for version in range(2):
        for client in (one, two):
            client.push(torch.tensor(1.0), 4)
            started(lambda client=client: fetched.append(client.fetch()))
        bench.server.gradients(bench.optimizer)
        found = [
            None if one.grad is None else set(one.grad.unique().tolist()) for one in bench.vector.parameters
        ]
        assert found == [{1.0}, None, {0.5}, {1.0}]
        bench.server.updated()
        bench.server.publish()
        wait(lambda due=2 * (version + 1): len(fetched) == due)
    assert bench.server.metrics()["activation_bytes"] == 5


def test_no_update_waits_for_workers_that_are_lost() -> None:
    bench = Bench(Policy(3, 3))
    bench.push(1, 0)
    bench.push(2, 0)
    wait(lambda: bench.server.count == 2)
    updating = started(bench.update)
    bench.server.lose(3)
    assert ended(updating)
    bench.server.lose(3, "was ended by signal 9")
    assert bench.server.losses() == [
        "lost worker 3, which was ended by signal 9; the others went on without it"
    ]
    found = bench.server.metrics()
    assert (found["lost_workers"], found["lost[worker 3]"]) == (1, 1)


def test_a_worker_may_come_in_the_place_of_another() -> None:
    bench = Bench(Policy(2, 2, "drop"))
    bench.server.lose(2, "was ended by signal 9")
    bench.server.join(5, 2)
    bench.server.arrive(5)
    bench.server.lose(2)  # the thread of the first one notices
    taken = [bench.push(1, 0), bench.push(5, 0)]
    bench.update()
    assert all(map(ended, taken))
    assert bench.server.losses() == [
        "lost worker 2, which was ended by signal 9 and came back; the others went on without it"
    ]


def test_a_machine_that_fell_silent_takes_its_workers_with_it() -> None:
    bench = Bench(Policy(4, 4))
    bench.server.lose_machine(2, 3, "is on m1, silent for 30 s")
    assert sorted(bench.server.present.values()) == [1]
    assert [line.split(";")[0] for line in bench.server.losses()] == [
        f"lost worker {rank}, which is on m1, silent for 30 s" for rank in (2, 3, 4)
    ]


def test_without_any_worker_the_training_ends() -> None:
    bench = Bench(Policy(1))
    bench.server.lose(1, "was ended by signal 9")
    with pytest.raises(PassError, match=r"all workers were lost \(worker 1, was ended by signal 9\)"):
        bench.update()


def test_the_last_worker_may_come_back() -> None:
    bench = Bench(Policy(1))
    updating = started(bench.update)
    bench.server.lose(1)
    assert not ended(updating, BRIEFLY_S), "nobody has said yet whether another comes"
    bench.server.lose(1, "was ended by signal 9", again=True)
    assert not ended(updating, BRIEFLY_S)
    bench.server.join(3, 1)
    assert not ended(updating, BRIEFLY_S)
    bench.server.arrive(3)
    bench.push(3, 0)
    assert ended(updating)
    assert bench.server.version == 1


@pytest.mark.parametrize("word", ["none comes", "silence", "its machine is lost", "it is lost as it starts"])
def test_nobody_hopes_for_ever_for_a_worker(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "onnx_lathe.runtime.training.parallel.server.WORD_S", 0.01 if word == "silence" else LIMIT_S
    )
    bench = Bench(Policy(1))
    bench.server.lose(1)
    if word == "none comes":
        bench.server.lose(1, "was ended by signal 9")
    elif word == "its machine is lost":
        bench.server.lose(1, "was ended by signal 9", again=True)
        bench.server.lose_machine(1, 1, "is on m1, silent for 30 s")
    elif word == "it is lost as it starts":
        bench.server.lose(1, "was ended by signal 9", again=True)
        bench.server.join(3, 1)
        bench.server.lose(3, "was ended by signal 9")
    with pytest.raises(PassError, match=r"all workers were lost \(worker 1, "):
        bench.update()


def test_no_update_waits_for_a_worker_that_is_starting() -> None:
    bench = Bench(Policy(2, 2))
    bench.server.lose(2, "was ended by signal 9", again=True)
    bench.server.join(4, 2)
    bench.push(1, 0)
    bench.update()
    bench.server.arrive(4)
    bench.push(1, 1)
    updating = started(bench.update)
    assert not ended(updating, BRIEFLY_S)
    bench.push(4, 1)
    assert ended(updating)


def test_no_gradient_is_lost_to_a_worker_that_comes_during_an_update() -> None:
    bench = Bench(Policy(2, 2))
    bench.server.lose(2, "was ended by signal 9", again=True)
    bench.server.join(4, 2)
    bench.push(1, 0)
    bench.server.gradients(bench.optimizer)
    bench.server.arrive(4)
    late = bench.push(4, 0, 3.0)
    assert not ended(late, BRIEFLY_S)
    bench.server.updated()
    bench.push(1, 1, 1.0)
    assert bench.update() == pytest.approx(2.0)
    assert ended(late)


def test_ages_are_those_of_gradients_that_updates_had() -> None:
    bench = Bench(Policy(2, 2))
    bench.push(1, 0)
    wait(lambda: bench.server.count == 1)
    assert "staleness[0]" not in bench.server.metrics()
    bench.push(2, 0)
    bench.update()
    bench.push(1, 0)
    wait(lambda: bench.server.count == 1)
    found = bench.server.metrics()
    assert (found["staleness[0]"], found["staleness_mean"]) == (2, 0)
    assert "staleness[1]" not in found


def test_a_mistake_at_a_worker_ends_the_training() -> None:
    bench = Bench(Policy(2))
    bench.server.fail("label 7 in the data")
    with pytest.raises(PassError, match="label 7 in the data"):
        bench.update()


@pytest.mark.parametrize("name", ["full", "half", "threshold"])
def test_gradients_arrive_as_they_are_sent(name: str) -> None:
    vector = Vector(GraphModule(model()))
    code = coding(name, 0.25, vector)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(len(vector), generator=generator) for _ in range(200)]
    arrived = [code.decode(code.encode(one).view(torch.uint8)) for one in given]
    if name == "full":
        assert all(map(torch.equal, given, arrived))
    elif name == "half":
        assert all(torch.equal(one.half().float(), other) for one, other in zip(given, arrived, strict=True))
    else:
        left = sum(given) - sum(arrived)
        torch.testing.assert_close(left, code.residual, rtol=0, atol=1e-3)
        assert set(arrived[-1].unique().tolist()) == {-0.25, 0.0, 0.25}
        broken = code.decode(code.encode(given[0] * torch.inf).view(torch.uint8))
        assert broken.isnan().all()
        assert torch.isfinite(code.residual).all()
