"""Memory of training, beside what PyTorch keeps for the backward pass of the same network."""

import numpy as np
import onnx
import pytest

import onnx_lathe
from tests.support.builders import build, random

torch = pytest.importorskip("torch")

NETWORKS = {
    "a ReLU's result is the next layer's input": "a = Conv (x, w)  b = Relu (a)  c = Conv (b, v)  y = Flatten (c)",
    "a sigmoid keeps its result, a sum nothing": "a = Conv (x, w)  b = Sigmoid (a)  c = Add (a, b)  y = Flatten (c)",
    "a product keeps both": "a = Conv (x, w)  b = Tanh (a)  c = Mul (a, b)  y = Flatten (c)",
    "a leaky ReLU keeps its input": "a = Conv (x, w)  b = LeakyRelu (a)  c = Conv (b, v)  y = Flatten (c)",
    "an average over windows keeps its input": (
        "a = Conv (x, w)  b = Tanh (a)  c = Neg (b)  d = AveragePool <kernel_shape = [2, 2]> (c)  y = Flatten (d)"
    ),
    "averages of all keep nothing": "a = Conv (x, w)  b = GlobalAveragePool (a)  y = Flatten (b)",
    "what has no gradient is not kept": "r = Relu (x)  a = Conv (r, w)  y = Flatten (a)",
}


def network(text: str) -> onnx.ModelProto:
    weights = {"w": random(6, 6, 1, 1), "v": random(6, 6, 1, 1)}
    return build(
        f"(float[N, 6, 5, 5] x) => (float[N, F] y) {{ {text} }}",
        **{name: value for name, value in weights.items() if f", {name})" in text},
    )


def kept_by_torch(model: onnx.ModelProto, batch: int) -> int:
    """Bytes of the different storages that autograd holds, weights left out."""
    module = onnx_lathe.to_torch(model)
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    held: dict[int, int] = {}
    alive = []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(torch.from_numpy(np.ones((batch, 6, 5, 5), np.float32)))
    return sum(held.values())


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_kept_is_what_pytorch_keeps(name: str) -> None:
    model = network(NETWORKS[name])
    found = onnx_lathe.inspect(model, training=True, batch=3).whole
    assert found.training is not None
    assert found.training.kept == kept_by_torch(model, 3) > 0


def test_what_is_assumed_is_named() -> None:
    found = onnx_lathe.inspect(
        network("a = Conv (x, w)  b = Selu (a)  c = Celu (b)  y = Flatten (c)"), training=True
    )
    assert found.whole.notes == ()
    sums = "axis = Constant <value = int64 {1}> ()  a = Conv (x, w)  b = CumSum (a, axis)  y = Flatten (b)"
    found = onnx_lathe.inspect(network(sums), training=True)
    assert any("of CumSum it is assumed" in note for note in found.whole.notes)


def test_means_and_variances_are_not_trained() -> None:
    model = build(
        "(float[N, 6, 5, 5] x) => (float[N, 6, 5, 5] y) { y = BatchNormalization (x, a, b, c, d) }",
        a=random(6), b=random(6), c=random(6), d=np.ones(6, np.float32),
    )  # fmt: skip
    found = onnx_lathe.inspect(model, training=True, optimizer="momentum").whole.training
    assert found is not None
    assert (found.weights, found.gradients, found.optimizer) == (4 * 24, 4 * 12, 4 * 12)
