"""Zeros of a sparse weight stay zero while it is trained: alone, in a pattern, behind a codebook and INT8."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_lathe.errors import ModelError
from tests.support import quantized
from tests.support.builders import build, random

torch = pytest.importorskip("torch")
from onnx_lathe.runtime.torch_bridge import GraphModule  # noqa: E402
from tests.support.bridge import OPTIMIZERS, Optimizer, mark_sparse, train  # noqa: E402

W = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)


def in_groups(weight: np.ndarray, zeros: int, of: int) -> np.ndarray:
    """The weight [..., N] with the smallest `zeros` of every `of` neighbours on its last axis set to zero."""
    groups = weight.reshape(-1, of).copy()
    np.put_along_axis(groups, np.argsort(np.abs(groups), axis=1)[:, :zeros], 0, axis=1)
    return groups.reshape(weight.shape)


def run(model: onnx.ModelProto, values: dict[str, np.ndarray], **feeds: np.ndarray) -> np.ndarray:
    """ONNX Runtime's first output with new values in the initializers."""
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return quantized.run(model, feeds)[0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_zeros_of_a_sparse_weight_stay_zero(optimizer: Optimizer) -> None:
    pruned = np.where(np.abs(W) < 0.7, 0, W).astype(np.float32)
    text = "(float[n, 4] x) => (float[n, 4] y) { a = MatMul(x, w)  r = Tanh(a)  y = MatMul(r, v) }"
    module = GraphModule(mark_sparse(build(text, w=pruned, v=pruned), "w"))
    train(module, optimizer, random(8, 4))
    values = module.values()
    assert np.array_equal(values["w"] == 0, pruned == 0)
    assert (values["w"] != pruned)[pruned != 0].all()
    assert (values["v"] != 0).all()  # not named: its zeros are ordinary weights


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_a_pattern_of_zeros_holds(pattern: str, optimizer: Optimizer) -> None:
    """Of a matrix, of a convolution, and of one that is shared: every group keeps its zeros where they
    were, and the rest moves.
    """
    kept, size = map(int, pattern.split(":"))
    w, k = (
        in_groups(random(8, 8), size - kept, size),
        in_groups(random(4, 2, 8), size - kept, size).reshape(4, 2, 2, 4),
    )
    text = """(float[n, 2, 4, 6] x) => (float[n, 8] y) {
        c = Conv <pads = [1, 1, 0, 2]> (x, k)  t = Tanh(c)  f = Flatten(t)
        m = MatMul(f, v)  a = MatMul(m, w)  b = Tanh(a)  y = MatMul(b, w)
    }"""
    model = mark_sparse(build(text, w=w, k=k, v=0.1 * random(96, 8)), "w", "k", pattern=pattern)
    module = GraphModule(model)
    train(module, optimizer, random(8, 2, 4, 6))
    values = module.values()
    for name, before in (("w", w), ("k", k)):
        np.testing.assert_array_equal(values[name] == 0, before == 0)
        assert (values[name] != before)[before != 0].mean() > 0.95
        assert ((values[name].reshape(-1, size) != 0).sum(1) == kept).all()


def test_a_pattern_holds_behind_a_codebook_and_int8() -> None:
    """A weight that is pruned 2:4, then shared, then quantized: three constraints at once, all read from
    the graph.
    """
    weight = in_groups(np.where(random(4, 8) > 0, 1.0, -1.0) * np.arange(1, 33).reshape(4, 8), 2, 4)
    book, indices = np.unique(np.sign(weight) * (1 + np.abs(weight) // 8), return_inverse=True)
    book = (book / 4).astype(np.float32)
    text = """(float[n, 8] x) => (float[n, 4] y) {
        w = Gather(book, i)  q = QuantizeLinear <axis = 0> (w, s, z)  d = DequantizeLinear <axis = 0> (q, s, z)
        y = Gemm <transB = 1> (x, d)
    }"""
    constants = {
        "book": book,
        "i": indices.reshape(4, 8),
        "s": np.linspace(0.01, 0.02, 4, dtype=np.float32),
        "z": np.zeros(4, np.int8),
    }
    model = mark_sparse(build(text, **constants), "w", pattern="2:4")
    for learn_scales in (False, True):
        module = GraphModule(model, learn_scales)
        train(module, OPTIMIZERS["adamw"], random(16, 8))
        assert set(module.values()) == {"book"} | ({"s"} if learn_scales else set())
        trained = module.values()["book"]
        np.testing.assert_array_equal(trained == 0, book == 0)
        assert (trained != book)[book != 0].all()
        decoded = next(value for _, name, value in module.trace(x=torch.zeros(1, 8)) if name == "d").numpy(
            force=True
        )
        assert ((decoded.reshape(-1, 4) == 0).sum(1) >= 2).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_zeros_of_a_sparse_codebook_weight_stay_zero(optimizer: Optimizer) -> None:
    book = np.array([-0.5, 0.0, 0.5, 1.0], np.float32)
    text = """(float[n, 4] x) => (float[n, 4] y) {
        w = Gather(book, i)  v = Gather(book, j)  a = MatMul(x, w)  r = Tanh(a)  y = MatMul(r, v)
    }"""
    indices = np.arange(16).reshape(4, 4)
    # v, dense, shares w's codebook
    model = mark_sparse(build(text, book=book, i=indices % 4, j=indices // 4), "w")
    module = GraphModule(model)
    x = random(8, 4)
    train(module, optimizer, x)
    values = module.values()["book"]
    assert values[1] == 0
    assert (values != book)[[0, 2, 3]].all()
    result = module(torch.from_numpy(x)).numpy(force=True)
    np.testing.assert_allclose(run(model, {"book": values}, x=x), result, atol=1e-5)


def test_a_sparse_weight_may_be_quantized_behind_its_codebook() -> None:
    model = quantized.lenet(codebook=True, int8=True)
    for tensor in model.graph.initializer:
        if tensor.name == "w3_codebook":
            book = numpy_helper.to_array(tensor).copy()
            book[7] = 0
            tensor.CopyFrom(numpy_helper.from_array(book, tensor.name))
    module = GraphModule(mark_sparse(model, "w3"))
    train(module, OPTIMIZERS["sgd"], quantized.IMAGES["image"])
    trained = module.values()["w3_codebook"]
    assert trained[7] == 0
    assert (trained != book).sum() >= 14


def test_even_an_optimizer_that_moves_everything_leaves_zeros() -> None:
    pruned = np.where(np.abs(W) < 0.7, 0, W).astype(np.float32)
    module = GraphModule(
        mark_sparse(build("(float[n, 4] x) => (float[n, 4] y) { y = MatMul(x, w) }", w=pruned), "w")
    )
    with torch.no_grad():
        module.weights()["w"].add_(1)
    assert np.array_equal(module.values()["w"] == 0, pruned == 0)
    assert torch.equal(module(torch.eye(4)) == 0, torch.from_numpy(pruned == 0))


def test_zeros_made_of_other_values_freeze_their_parameters() -> None:
    text = "(float[n, 4] x) => (float[n, 4] y) { s = Add(w, v)  y = MatMul(x, s) }"
    module = GraphModule(mark_sparse(build(text, w=W, v=-W), "s"))
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("name", ["nowhere", "y", "x"])
def test_a_sparse_entry_that_names_no_weight_is_refused(name: str) -> None:
    model = mark_sparse(build("(float[n, 4] x) => (float[n, 4] y) { y = MatMul(x, w) }", w=W), name)
    with pytest.raises(ModelError, match=f"lathe.sparse names '{name}', which is not a weight"):
        GraphModule(model)
