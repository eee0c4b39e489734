"""Mixed precision: master weights, the scale of the loss, steps left out, and going on after an
interruption.
"""

import copy

import pytest

from onnx_lathe.errors import UsageError
from tests.support.builders import build, random

torch = pytest.importorskip("torch")
from onnx_lathe.runtime.torch_bridge import GraphModule  # noqa: E402
from onnx_lathe.runtime.training.loop.precision import Precision  # noqa: E402

CPU = torch.device("cpu")
MODEL = build("(float[n, 6] x) => (float[n, 3] y) { a = Gemm(x, w, b)  h = Relu(a)  y = MatMul(h, v) }",
              w=random(6, 8) / 3, b=random(8), v=random(8, 3) / 3)  # fmt: skip
X, Y = torch.from_numpy(random(32, 6)), torch.from_numpy(random(32, 3))


class Training:
    def __init__(
        self, precision: Precision, factor: float = 1.0, clip: float = 0.0, optimizer: str = "sgd"
    ) -> None:
        self.module, self.precision, self.factor, self.clip = GraphModule(MODEL), precision, factor, clip
        self.parameters = list(self.module.parameters())
        if optimizer == "sgd":
            self.optimizer = torch.optim.SGD(self.parameters, lr=0.05 / factor, momentum=0.9)
        else:
            self.optimizer = torch.optim.AdamW(self.parameters, lr=0.01, fused=True)

    def step(self) -> tuple[float, bool]:
        with self.precision.autocast():
            loss = (self.module(X) - Y).square().mean() * self.factor
        self.optimizer.zero_grad()
        self.precision.backward(loss)
        return loss.item(), self.precision.step(self.optimizer, self.parameters, self.clip)

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_float16_leaves_overflowing_steps_out_and_recovers(optimizer: str) -> None:
    """The factor makes gradients of activations too large for float16 until the scale is small enough."""
    training = Training(Precision("float16", CPU), factor=1e4, optimizer=optimizer)
    before = training.weights()
    losses, done = zip(*(training.step() for _ in range(40)), strict=True)
    skipped = done.index(True)
    assert skipped >= 2
    assert all(done[skipped:])
    assert training.precision.metrics == {"loss_scale": 2.0 ** (16 - skipped), "skipped_steps": skipped}
    assert losses[0] == losses[skipped], "a step that is left out changes no weight"
    assert losses[-1] < 0.7 * losses[0]
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in training.weights())
    assert not equal(before, training.weights())


def test_a_step_left_out_touches_neither_weights_nor_momentum() -> None:
    training = Training(Precision("float16", CPU, first_scale=1024.0))
    assert training.step()[1]
    before = training.weights(), copy.deepcopy(training.optimizer.state_dict())
    training.factor = 1e6
    assert not training.step()[1]
    assert equal(before[0], training.weights())
    after = training.optimizer.state_dict()["state"]
    assert all(
        torch.equal(after[key]["momentum_buffer"], state["momentum_buffer"])
        for key, state in before[1]["state"].items()
    )


def test_the_scale_doubles_after_so_many_good_steps() -> None:
    training = Training(Precision("float16", CPU, first_scale=8.0, doubling=3))
    scales = []
    for _ in range(7):
        assert training.step()[1]
        scales.append(training.precision.metrics["loss_scale"])
    assert scales == [8, 8, 16, 16, 16, 32, 32]


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_weights_and_gradients_are_float32(name: str) -> None:
    training, exact = Training(Precision(name, CPU, first_scale=1024.0)), Training(Precision("float32", CPU))
    with training.precision.autocast():
        assert torch.mm(X, X.T).dtype == getattr(torch, name)
    for _ in range(10):
        half, full = training.step()[0], exact.step()[0]
        assert half == pytest.approx(full, rel=2e-2)
        assert half != full, "it did compute in half precision"
    for weight, other in zip(training.parameters, exact.parameters, strict=True):
        assert weight.dtype == weight.grad.dtype == torch.float32
        assert torch.linalg.norm(weight - other) < 2e-2 * torch.linalg.norm(other)
        assert not torch.equal(weight, weight.to(getattr(torch, name)).float()), (
            "a weight keeps digits that half precision has not"
        )


def test_float32_is_plain_training() -> None:
    precision = Precision("float32", CPU)
    training, plain = Training(precision), Training(Precision("float32", CPU))
    for _ in range(3):
        assert training.step()[1]
        plain.optimizer.zero_grad()
        (plain.module(X) - Y).square().mean().backward()
        plain.optimizer.step()
    assert equal(training.weights(), plain.weights())
    assert precision.metrics == {}
    assert precision.state() == {}


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_gradients_are_shortened_at_their_own_scale(name: str) -> None:
    training = Training(Precision(name, CPU, first_scale=1024.0), clip=1e-3)
    training.step()
    length = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(parameter.grad) for parameter in training.parameters])
    )
    assert length.item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_goes_on_bit_identically(name: str) -> None:
    whole = Training(Precision(name, CPU, first_scale=2.0**16, doubling=4), factor=300.0)
    for _ in range(14):
        whole.step()
    first = Training(Precision(name, CPU, first_scale=2.0**16, doubling=4), factor=300.0)
    for _ in range(6):
        first.step()
    second = Training(Precision(name, CPU), factor=300.0)
    if name == "float16":
        assert first.precision.metrics["skipped_steps"] > 0
        second.precision = Precision(name, CPU, doubling=4)
    second.module.load_state_dict(first.module.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.precision.restore(first.precision.state())
    for _ in range(8):
        second.step()
    assert equal(whole.weights(), second.weights())
    assert whole.precision.metrics == second.precision.metrics


def test_refuses() -> None:
    with pytest.raises(UsageError, match=r"no precision 'half'; give float32, bfloat16, float16"):
        Precision("half", CPU)
    with pytest.raises(UsageError, match="bfloat16 on meta; give another precision="):
        Precision("bfloat16", torch.device("meta"))
