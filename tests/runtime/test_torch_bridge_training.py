"""What moves when a module is trained, and how: shared weights, centroids, straight-through rounding,
gradients.
"""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_lathe.errors import ModelError
from tests.support import quantized
from tests.support.builders import build, random

torch = pytest.importorskip("torch")
from onnx_lathe.runtime.torch_bridge import GraphModule  # noqa: E402
from tests.support.bridge import OPTIMIZERS, mark_sparse, train  # noqa: E402

W, B, V = (
    np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    for seed, shape in enumerate(((4, 4), (4,), (1, 4, 1, 1)))
)


def test_a_shared_weight_is_one_parameter() -> None:
    model = build("(float[n, 4] x) => (float[n, 4] y) { a = MatMul(x, w)  y = MatMul(a, w) }", w=W)
    module = GraphModule(model)
    assert len(list(module.parameters())) == 1
    x = random(3, 4)
    module(torch.from_numpy(x)).sum().backward()
    w = torch.from_numpy(W).requires_grad_()
    (torch.from_numpy(x) @ w @ w).sum().backward()
    torch.testing.assert_close(module.weights()["w"].grad, w.grad)


def test_the_gradient_of_a_centroid_sums_over_its_weights() -> None:
    indices = np.arange(12).reshape(3, 4) % 3
    model = build(
        "(float[n, 3] x) => (float[n, 4] y) { w = Gather(book, i)  y = MatMul(x, w) }",
        book=random(3),
        i=indices,
    )
    module = GraphModule(model)
    x = random(5, 3)
    module(torch.from_numpy(x)).sum().backward()
    of_weight = np.tile(x.sum(0)[:, None], (1, 4))
    want = [of_weight[indices == centroid].sum() for centroid in range(3)]
    np.testing.assert_allclose(module.weights()["book"].grad.numpy(), want, rtol=1e-5)


@pytest.mark.parametrize("int8", [False, True])
def test_codebooks_train_and_stay_shared(int8: bool) -> None:
    model = quantized.lenet(codebook=True, int8=int8)
    module = GraphModule(model)
    assert set(module.weights()) == {"b1", "w1_codebook", "w2_codebook", "w3_codebook"}
    before = module.values()
    train(module, OPTIMIZERS["sgd"], quantized.IMAGES["image"])
    after = module.values()
    for name in ("w1_codebook", "w2_codebook", "w3_codebook"):
        assert np.abs(after[name] - before[name]).max() > 1e-4
        assert len(np.unique(after[name])) == 16
    indices = numpy_helper.to_array(quantized.stored(model)["w2_indices"])
    decoded = next(value for _, name, value in module.trace(image=torch.zeros(1, 1, 28, 28)) if name == "w2")
    np.testing.assert_array_equal(decoded.numpy(force=True), after["w2_codebook"][indices.astype(int)])


@pytest.mark.parametrize("kind", [np.int8, np.uint8, ml_dtypes.int4, ml_dtypes.uint4])
@pytest.mark.parametrize("learn_scales", [False, True])
def test_stored_integers_stay_what_they_are(kind: type, learn_scales: bool) -> None:
    levels = (np.arange(16).reshape(4, 4) % 8).astype(kind)
    text = """(float[n, 4] x) => (float[n, 4] y) {
        d = DequantizeLinear <axis = 1> (w, s, z)  a = MatMul(x, d)  t = Add(a, b)  y = MatMul(t, d)
    }"""
    scales = np.full(4, 0.1, np.float32)
    model = build(text, 21, w=levels, s=scales, z=np.full(4, 3).astype(kind), b=B)
    module = GraphModule(model, learn_scales)
    train(module, OPTIMIZERS["adamw"], random(8, 4))
    values = module.values()
    assert set(values) == ({"b", "s"} if learn_scales else {"b"})
    assert all(not value.dtype.name.endswith(("int4", "int8")) for value in values.values())
    weight = next((value for _, name, value in module.trace(x=torch.zeros(1, 4)) if name == "d"), None)
    assert (weight is not None) == learn_scales  # else it is a constant
    if weight is not None:
        np.testing.assert_allclose(
            weight.numpy(force=True), (levels.astype(np.float32) - 3) * values["s"], rtol=1e-6
        )


def test_int8_weights_are_never_trained() -> None:
    module = GraphModule(quantized.lenet(codebook=False, int8=True))
    assert set(module.weights()) == {"b1"}
    train(module, OPTIMIZERS["adamw"], quantized.IMAGES["image"])
    assert set(module.values()) == {"b1"}


@pytest.mark.parametrize(
    "zero, scale, axis", [(0, 0.1, None), (3, 0.1, None), (0, [0.1, 0.2], 1), (-5, [0.1, 0.2], 1)]
)
def test_rounding_is_straight_through_and_cutting_off_is_not(
    zero: int, scale: float | list[float], axis: int | None
) -> None:
    text = f"""(float[n, 2] x) => (float[n, 2] y) {{
        q = QuantizeLinear <axis = {axis or 1}> (x, s, z)  d = DequantizeLinear <axis = {axis or 1}> (q, s, z)  y = Mul(d, two)
    }}"""
    scales = np.array(scale, np.float32)
    model = build(text, s=scales, z=np.full(scales.shape, zero, np.int8), two=np.float32(2))
    x = torch.tensor([[0.3, 0.34], [-50.0, 50.0], [9.0, -9.0], [12.4, 24.5]], requires_grad=True)
    result = GraphModule(model)(x)
    np.testing.assert_allclose(
        result.numpy(force=True), quantized.run(model, {"x": x.numpy(force=True)})[0], atol=1e-5
    )
    result.sum().backward()
    whole = np.round(x.numpy(force=True) / scales) + zero
    np.testing.assert_allclose(
        x.grad.numpy(), np.where((whole >= -128) & (whole <= 127), 2.0, 0.0), atol=1e-6
    )


def test_gradients_equal_finite_differences() -> None:
    text = """(double[n, 3, 7, 6] x) => (double[n, 4] y) {
        c = Conv <pads = [0, 1, 2, 0], strides = [2, 1], dilations = [1, 2]> (x, w1, b1)
        s = BatchNormalization(c, gamma, beta, mean, variance)
        p = PRelu(s, slope)
        u = ConvTranspose <strides = [2, 2], pads = [1, 0, 0, 1]> (p, w2)
        r = Resize <mode = "linear"> (u, none, scales)
        a = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [0, 1, 1, 0], ceil_mode = 1> (r)
        g = ReduceMean <axes = [2, 3], keepdims = 0> (a)
        m = Gather(book, i)
        h = MatMul(g, m)
        n = LayerNormalization(h, scale, shift)
        y = Gemm <alpha = 0.5, transB = 1> (n, w3, b3)
    }"""
    weights = {
        "w1": random(4, 3, 3, 2), "b1": random(4), "gamma": random(4), "beta": random(4), "slope": random(4, 1, 1),
        "w2": random(4, 2, 3, 3), "book": random(4), "scale": random(5), "shift": random(5), "w3": random(4, 5), "b3": random(4),
    }  # fmt: skip
    fixed = {"mean": random(4), "variance": random(4) ** 2 + 0.5}
    stored = {name: value.astype(np.float64) for name, value in (weights | fixed).items()}
    stored |= {
        "none": np.zeros(0, np.float32),
        "scales": np.array([1, 1, 1.5, 2], np.float32),
        "i": np.arange(10).reshape(2, 5) % 4,
    }
    module = GraphModule(build(text, **stored))
    parameters = module.weights()
    assert set(parameters) == set(weights)
    x = torch.from_numpy(random(2, 3, 7, 6).astype(np.float64))
    pull = torch.from_numpy(random(2, 4).astype(np.float64))

    def loss() -> torch.Tensor:
        return (module(x) * pull).sum()

    loss().backward()
    for name, parameter in parameters.items():
        for element in {0, parameter.numel() // 2, parameter.numel() - 1}:
            around = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    kept = parameter.view(-1)[element].item()
                    parameter.view(-1)[element] = kept + step
                    around.append(loss().item())
                    parameter.view(-1)[element] = kept
            estimate = (around[0] - around[1]) / 2e-6
            assert parameter.grad.view(-1)[element].item() == pytest.approx(estimate, rel=1e-5, abs=1e-7), (
                name,
                element,
            )


LOOPS = {
    "If": """[choose] y = If <then_branch = one () => (float[n, 4] p) { p = MatMul(x, w) },
                              else_branch = two () => (float[n, 4] q) { q = Neg(x) }> (c)""",
    "Loop": """[choose] y = Loop <body = body (int64 i, bool go, float[n, 4] v) => (bool on, float[n, 4] u) {
                   on = Identity(go)  u = MatMul(v, w) }> (count, c, x)""",
}


@pytest.mark.parametrize("op", LOOPS)
@pytest.mark.parametrize(
    "choices", [{}, {"learn_scales": True, "train_normalization": True}], ids=["frozen", "all"]
)
def test_branches_and_loops_are_refused(op: str, choices: dict[str, bool]) -> None:
    text = f"(float[n, 4] x, bool c, int64 count) => (float[n, 4] y) {{ {LOOPS[op]} }}"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 17]> g {text}')
    model.graph.initializer.append(numpy_helper.from_array(W, "w"))
    with pytest.raises(
        ModelError, match=rf"PyTorch cannot run 1 of the model's nodes: choose \({op}, opset 17: control flow"
    ):
        GraphModule(model, **choices)


@pytest.mark.parametrize(
    "choices", [{}, {"learn_scales": True, "train_normalization": True}], ids=["frozen", "all"]
)
def test_any_batch_size_trains(choices: dict[str, bool]) -> None:
    """One module, one batch after another of other sizes; the shape is computed in the graph."""
    text = """(float[n, 2, 3, 4] x) => (float[n, 5] y) {
        q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  c = Conv(d, k)  t = BatchNormalization(c, g, b, m, v)
        shape = Shape(t)  rows = Slice(shape, zero, one)  whole = Concat <axis = 0> (rows, rest)  f = Reshape(t, whole)  y = MatMul(f, w)
    }"""
    integers = {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([-1]), "z": np.int8(0)}
    floats = {
        "s": np.float32(0.03),
        "k": random(3, 2, 1, 1),
        "w": random(36, 5),
        "g": random(3),
        "b": random(3),
        "m": random(3),
    }
    module = GraphModule(build(text, **integers, **floats, v=random(3) ** 2 + 1), **choices)
    optimizer = torch.optim.SGD(module.parameters(), 1e-3)
    before = module.values()
    for batch in (5, 1, 8, 2):
        optimizer.zero_grad()
        result = module(torch.from_numpy(random(batch, 2, 3, 4)))
        assert tuple(result.shape) == (batch, 5)
        result.square().sum().backward()
        optimizer.step()
    after = module.values()
    assert set(after) == ({"k", "w", "g", "b"} | ({"s", "m", "v"} if choices else set()))
    assert all(np.abs(after[name] - before[name]).max() > 0 for name in after)


def test_a_weight_that_nothing_needs_waits_for_no_gradient() -> None:
    pruned = np.where(np.abs(W) < 0.7, 0, W).astype(np.float32)
    model = build(
        "(float[n, 4] x) => (float[n, 4] y) { y = MatMul(x, w)  z = MatMul(x, v)  u = MatMul(x, t) }",
        w=W,
        v=W,
        t=pruned,
    )
    module = GraphModule(mark_sparse(model, "t"))
    assert {name: parameter.requires_grad for name, parameter in module.weights().items()} == {
        "w": True,
        "v": False,
        "t": False,
    }
    train(module, OPTIMIZERS["adamw"], random(8, 4))
    assert module.values()["v"].tobytes() == W.tobytes()
    assert (module.values()["w"] != W).all()
