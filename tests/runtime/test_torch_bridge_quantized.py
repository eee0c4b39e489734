"""Learned scales: which ones, their gradients against the paper's equations, and their bounds."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnx_lathe.metadata import SPARSE, format_sparse
from tests.support import quantized
from tests.support.builders import build

torch = pytest.importorskip("torch")
from onnx_lathe.runtime.torch_bridge import GraphModule  # noqa: E402

PAIR = "q = QuantizeLinear <axis = {axis}> (x, s, z)  d = DequantizeLinear <axis = {axis}> (q, s, z)  y = Mul(d, pull)"
RANGES = {
    np.dtype(np.int8): (-128, 127),
    np.dtype(np.uint8): (0, 255),
    np.dtype(ml_dtypes.int4): (-8, 7),
    np.dtype(ml_dtypes.uint4): (0, 15),
}


def random(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 values, the same at every call."""
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def learned(model: onnx.ModelProto) -> GraphModule:
    return GraphModule(model, learn_scales=True)


def step_gradient(
    x: np.ndarray, scale: np.ndarray, zero: int, kind: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Equations 3 and 5 of Esser et al., by element: of the result for the scale, and for x. `scale`
    broadcasts with x.
    """
    low, high = (bound - zero for bound in RANGES[np.dtype(kind)])
    ratio = x.astype(np.float64) / scale
    inside = (ratio > low) & (ratio < high)
    return np.where(inside, np.round(ratio) - ratio, np.where(ratio <= low, low, high)), inside.astype(
        np.float64
    )


@pytest.mark.parametrize(
    "kind, zero, scale, axis",
    [
        (np.int8, 0, 0.03, 1),
        (np.uint8, 131, 0.04, 1),
        (ml_dtypes.int4, 0, 1.1, 1),
        (ml_dtypes.uint4, 7, 1.3, 1),
        (np.int8, 0, [0.011, 0.11, 1.1], 1),
        (np.int8, -3, [0.011, 0.11, 1.1], 1),
        (ml_dtypes.int4, 0, [0.3, 0.7, 1.1, 1.9], 2),
        (ml_dtypes.int4, 0, [0.3, 0.7, 1.1, 1.9], -1),
    ],
)
def test_the_gradient_is_that_of_the_paper(
    kind: type, zero: int, scale: float | list[float], axis: int
) -> None:
    scales = np.array(scale, np.float32)
    text = f"(float[n, 3, 4] x, float[n, 3, 4] pull) => (float[n, 3, 4] y) {{ {PAIR.format(axis=axis)} }}"
    module = learned(build(text, 21, s=scales, z=np.full(scales.shape, zero, kind)))
    x = torch.from_numpy(5 * random(6, 3, 4)).requires_grad_()
    pull = random(6, 3, 4, seed=1)
    module(x, torch.from_numpy(pull)).sum().backward()
    shape = [1, 1, 1]
    if scales.ndim:
        shape[axis] = -1
    of_scale, of_x = step_gradient(x.numpy(force=True), scales.reshape(shape), zero, np.dtype(kind))
    assert 0.1 < of_x.mean() < 0.97  # some are inside the range, some are not
    np.testing.assert_allclose(x.grad.numpy(), pull * of_x, rtol=1e-5, atol=1e-6)
    others = tuple(a for a in range(3) if shape[a] == 1) if scales.ndim else (0, 1, 2)
    pace = 1 / np.sqrt(3 * 4 / scales.size * RANGES[np.dtype(kind)][1])
    want = (pull * of_scale).sum(others) * pace
    np.testing.assert_allclose(module.scales()["s"].grad.numpy() * scales, want, rtol=1e-4, atol=1e-5)


def test_a_weight_counts_all_its_values() -> None:
    text = """(float[n, 6] x) => (float[n, 5] y) {
        q = QuantizeLinear <axis = 1> (w, s, z)  d = DequantizeLinear <axis = 1> (q, s, z)  y = MatMul(x, d)
    }"""
    w, scales = random(6, 5), np.linspace(0.1, 0.5, 5, dtype=np.float32)
    module = learned(build(text, 21, w=w, s=scales, z=np.zeros(5, ml_dtypes.int4)))
    x = random(9, 6)
    module(torch.from_numpy(x)).square().sum().backward()
    levels = np.clip(np.round(w / scales), -8, 7)
    of_weight = 2 * x.T @ (x @ (levels * scales))
    of_scale, inside = step_gradient(w, scales, 0, np.dtype(ml_dtypes.int4))
    np.testing.assert_allclose(module.weights()["w"].grad.numpy(), of_weight * inside, rtol=1e-4, atol=1e-4)
    want = (of_weight * of_scale).sum(0) / np.sqrt(6 * 7)
    np.testing.assert_allclose(module.scales()["s"].grad.numpy() * scales, want, rtol=1e-4, atol=1e-4)


def test_a_scale_per_block_has_the_gradient_of_its_block() -> None:
    text = """(float[n, 6] x) => (float[n, 5] y) {
        q = QuantizeLinear <axis = 0, block_size = 4> (w, s, z)  d = DequantizeLinear <axis = 0, block_size = 4> (q, s, z)  y = MatMul(x, d)
    }"""
    w, scales = random(6, 5), np.linspace(0.1, 0.5, 10, dtype=np.float32).reshape(2, 5)
    module = learned(build(text, 21, w=w, s=scales, z=np.zeros((2, 5), ml_dtypes.int4)))
    x = random(3, 6)
    module(torch.from_numpy(x)).sum().backward()
    of_scale, _ = step_gradient(w, scales.repeat([4, 2], axis=0), 0, np.dtype(ml_dtypes.int4))
    each = x.sum(0)[:, None] * of_scale
    want = np.stack([each[:4].sum(0), each[4:].sum(0)]) / np.sqrt(30 / 10 * 7)
    np.testing.assert_allclose(module.scales()["s"].grad.numpy() * scales, want, rtol=1e-4, atol=1e-4)


def test_the_mean_gradient_does_not_depend_on_the_batch_size() -> None:
    text = f"(float[n, 8] x, float[8] pull) => (float[n, 8] y) {{ {PAIR.format(axis=1)} }}"
    model = build(text, 17, s=np.float32(0.01), z=np.int8(0))
    x, pull = torch.from_numpy(random(4, 8)), torch.from_numpy(random(8))
    gradients = []
    for batch in (x, torch.cat([x, x, x])):
        module = learned(model)
        module(batch, pull).sum(1).mean().backward()
        gradients.append(module.scales()["s"].grad.item())
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-4)
    assert abs(gradients[0]) > 1e-3


def test_the_scale_of_stored_integers_is_an_ordinary_factor() -> None:
    """With the zero-point taken off, y = x ((1 + change) s (w - z)): the chain rule alone."""
    levels = np.arange(20, dtype=np.uint8).reshape(4, 5).astype(ml_dtypes.uint4)
    text = (
        "(float[n, 4] x) => (float[n, 5] y) { d = DequantizeLinear <axis = 1> (w, s, z)  y = MatMul(x, d) }"
    )
    scales = np.linspace(0.01, 0.3, 5, dtype=np.float32)
    model = build(text, 21, w=levels, s=scales, z=np.full(5, 8, ml_dtypes.uint4))
    module = learned(model)
    assert set(module.scales()) == {"s"}
    assert set(module.weights()) == set()
    x = random(3, 4)
    module(torch.from_numpy(x)).sum().backward()
    weight = (levels.astype(np.float32) - 8) * scales
    np.testing.assert_allclose(
        module.scales()["s"].grad.numpy(), (x.sum(0)[:, None] * weight).sum(0), rtol=1e-4, atol=1e-5
    )
    torch.optim.SGD(module.parameters(), 0.1).step()
    assert set(module.values()) == {"s"}
    assert np.abs(module.values()["s"] - scales).max() > 1e-3


S, Z = np.float32(0.1), np.int8(0)
Q, D = "q = QuantizeLinear(x, s, z)", "d = DequantizeLinear(q, s, z)"
WEIGHT = "v = DequantizeLinear(w, t, u)"
LEVELS = np.arange(16, dtype=np.int8).reshape(4, 4)
CHOICES = [
    (f"{Q} {D} y = Neg(d)", {"s": S, "z": Z}, "s"),
    (f"{Q} {D} e = DequantizeLinear(q, s, z)  y = Add(d, e)", {"s": S, "z": Z}, "s"),
    (f"{Q} {D} r = QuantizeLinear(d, s, z)  y = DequantizeLinear(r, s, z)", {"s": S, "z": Z}, "s"),
    (f"{Q} d = DequantizeLinear(q, t, z)  y = Neg(d)", {"s": S, "t": S, "z": Z}, ""),
    (f"{Q} {D} e = DequantizeLinear(q, t, z)  y = Add(d, e)", {"s": S, "t": S, "z": Z}, ""),
    (f"{Q} r = Transpose <perm = [0, 1]> (q)  d = DequantizeLinear(r, s, z)  y = Neg(d)", {"s": S, "z": Z}, ""),
    (f"{Q} {D} y = Mul(d, s)", {"s": S, "z": Z}, ""),
    (f"{Q} d = DequantizeLinear <axis = 0> (q, s, z)  y = Neg(d)", {"s": S, "z": Z}, "s"),
    (f"{Q} d = DequantizeLinear <axis = -1> (q, s, z)  y = Neg(d)", {"s": S.repeat(4), "z": Z.repeat(4)}, ""),
    (f"{Q} {D} y = Neg(d)", {"s": np.float32(0.125), "z": Z}, ""),
    (f"{Q} {D} y = Neg(d)", {"s": np.array([0.125, 0.1, 1, 2], np.float32), "z": np.zeros(4, np.int8)}, "s"),
    (f"{Q} {D} y = Neg(d)", {"s": np.array([0.1, 0, 1, 2], np.float32), "z": np.zeros(4, np.int8)}, ""),
    (f"{Q} {D} y = Neg(d)", {"s": np.array([0.1, -0.1, 1, 2], np.float32), "z": np.zeros(4, np.int8)}, ""),
    (f"{Q} {D} y = Neg(d)", {"s": np.array([0.1, np.inf, 1, 2], np.float32), "z": np.zeros(4, np.int8)}, ""),
    (f"{Q} {D} y = Neg(d)", {"s": np.float32(np.nan), "z": Z}, ""),
    (f"{WEIGHT} y = MatMul(x, v)", {"w": LEVELS, "t": S, "u": Z}, "t"),
    ("i = Gather(book, j)  v = DequantizeLinear(i, t, u)  y = MatMul(x, v)",
     {"book": np.arange(5, dtype=np.int8), "j": LEVELS.astype(np.int64) % 5, "t": S, "u": Z}, "t"),
    (f"{Q} {D} v = DequantizeLinear(w, s, z)  y = MatMul(d, v)", {"w": LEVELS, "s": S, "z": Z}, ""),
    (f"{Q} {D} {WEIGHT} y = Gemm(d, v, b)", {"w": LEVELS, "s": S, "z": Z, "t": S, "u": Z, "b": random(4)}, "s t"),
    (f"{Q} {D} {WEIGHT} b = DequantizeLinear(c, r)  y = Gemm(d, v, b)",
     {"w": LEVELS, "s": S, "z": Z, "t": S, "u": Z, "c": np.arange(4, dtype=np.int32), "r": np.float32(0.01)}, ""),
    (f"{Q} {D} {WEIGHT} c = Constant <value = int32[4] {{1, 2, 3, 4}}> ()  b = DequantizeLinear(c, r)  y = Gemm(d, v, b)",
     {"w": LEVELS, "s": S, "z": Z, "t": S, "u": Z, "r": np.float32(0.01)}, ""),
    (f"{Q} {D} {WEIGHT} b = DequantizeLinear(c, r)  y = Gemm(d, v, b)",
     {"w": LEVELS, "s": S, "z": Z, "t": S, "u": Z, "c": np.arange(4, dtype=np.int8), "r": np.float32(0.01)}, "s t r"),
    ("k = QuantizeLinear(w, s, z)  v = DequantizeLinear(k, s, z)  y = MatMul(x, v)", {"w": random(4, 4), "s": S, "z": Z}, "s"),
    ("k = QuantizeLinear(w, s, z)  v = DequantizeLinear(k, t, z)  y = MatMul(x, v)", {"w": random(4, 4), "s": S, "t": S, "z": Z}, ""),
]  # fmt: skip


@pytest.mark.parametrize("body, stored, scales", CHOICES)
def test_use_decides_which_scales_are_learned(body: str, stored: dict[str, np.ndarray], scales: str) -> None:
    model = build(f"(float[n, 4] x) => (float[n, 4] y) {{ {body} }}", 21, **stored)
    assert set(learned(model).scales()) == set(scales.split())
    assert GraphModule(model).scales() == {}
    assert not set(GraphModule(model).values()) & {"s", "t"}


def test_a_scale_that_makes_an_output_is_not_learned() -> None:
    model = build(f"(float[n, 4] x) => (int8[n, 4] q, float[n, 4] d) {{ {Q} {D} }}", 21, s=S, z=Z)
    assert learned(model).scales() == {}


def test_nothing_is_different_before_training() -> None:
    """And nothing but the scales is trained besides."""
    for codebook in (False, True):
        model = quantized.lenet(codebook=codebook)
        module, frozen = learned(model), GraphModule(model)
        names = {f"{name}_scale" for name in ("w1", "w2", "w3", "image", "p1", "flat")}
        assert set(module.scales()) == names
        assert set(module.values()) == set(frozen.values()) | names
        assert set(module.trained()) == set(frozen.trained())
        for name in names:
            assert (
                module.values()[name].tobytes()
                == numpy_helper.to_array(quantized.stored(model)[name]).tobytes()
            )
        image = torch.from_numpy(quantized.IMAGES["image"])
        assert torch.equal(module(image), frozen(image))


@pytest.mark.parametrize("codebook", [False, True])
def test_trained_scales_mean_the_same_to_onnx_runtime(codebook: bool) -> None:
    model = quantized.lenet(codebook=codebook)
    module = learned(model)
    optimizer = torch.optim.AdamW(module.parameters(), 0.02)
    image = torch.from_numpy(quantized.IMAGES["image"])
    for _ in range(5):
        optimizer.zero_grad()
        (module(image) - 1).square().mean().backward()
        optimizer.step()
    before = quantized.stored(model)
    for name, value in module.values().items():
        assert value.dtype == numpy_helper.to_array(before[name]).dtype
        assert np.abs(value / numpy_helper.to_array(before[name]) - 1).max() > 1e-3, name
        before[name].CopyFrom(numpy_helper.from_array(value, name))
    want = quantized.run(model, quantized.IMAGES)[0]
    result = module(image).numpy(force=True)
    assert np.sqrt(np.mean((result - want) ** 2)) < 1e-3 * np.sqrt(np.mean(want**2))


def test_a_shared_scale_stays_one() -> None:
    """Two pairs and two layers read it: its gradient is the sum of both."""
    text = (
        f"(float[n, 4] x, float[4] pull) => (float[n, 4] y, float[n, 4] e) {{ {PAIR.format(axis=1)} p = Neg(y) f = QuantizeLinear(p, s, z) \
        e = DequantizeLinear(f, s, z) }}"
    )
    module = learned(build(text, 21, s=S, z=Z))
    assert len(list(module.parameters())) == 1
    x, pull = torch.from_numpy(random(3, 4)), torch.from_numpy(random(4))
    gradients = []
    for outputs in ((0,), (1,), (0, 1)):
        module.zero_grad()
        results = module(x, pull)
        sum(results[index].sum() for index in outputs).backward()
        gradients.append(module.scales()["s"].grad.item())
    assert gradients[2] == pytest.approx(gradients[0] + gradients[1], rel=1e-4)
    assert min(map(abs, gradients)) > 1e-4


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("change", [-3.0, -1.0, 1e-30 - 1, 1e30, np.inf])
def test_no_optimizer_makes_a_scale_useless(dtype: type, change: float) -> None:
    text = "(float[n, 4] x) => (float[n, 4] y) { v = DequantizeLinear <axis = 1> (w, s, z)  u = Cast <to = 1> (v)  y = MatMul(x, u) }"
    scales = np.array([3e-7, 1e-5, 0.03, 600.0]).astype(dtype)
    model = build(text, 21, w=LEVELS - 3, s=scales, z=np.zeros(4, np.int8))
    module = learned(model)
    assert module.values()["s"].tobytes() == scales.tobytes()
    with torch.no_grad():
        module.scales()["s"].fill_(change)
    values = module.values()["s"]
    assert values.dtype == scales.dtype
    assert (values.astype(np.float64) > 0).all()
    assert np.isfinite(values.astype(np.float64)).all()
    module(torch.ones(2, 4)).sum().backward()
    assert module.scales()["s"].grad.abs().min() > 0  # it can come back


def test_adamw_moves_scales_of_all_sizes_by_the_same_share() -> None:
    text = f"(float[n, 4] x, float[4] pull) => (float[n, 4] y) {{ {PAIR.format(axis=1)} }}"
    scales = np.array([1e-4, 1e-2, 0.9, 30], np.float32)
    module = learned(build(text, 21, s=scales, z=np.zeros(4, np.int8)))
    optimizer = torch.optim.AdamW(module.parameters(), 1e-2, eps=1e-20, weight_decay=0)
    module(torch.from_numpy(random(16, 4)), torch.ones(4)).sum().backward()
    optimizer.step()
    np.testing.assert_allclose(np.abs(module.values()["s"] / scales - 1), 1e-2, rtol=1e-3)


def test_weight_decay_draws_a_scale_back_to_where_it_was() -> None:
    text = f"(float[n, 4] x, float[4] pull) => (float[n, 4] y) {{ {PAIR.format(axis=1)} }}"
    module = learned(build(text, 21, s=S, z=Z))
    with torch.no_grad():
        module.scales()["s"].fill_(0.5)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, weight_decay=1.0)
    for _ in range(50):
        optimizer.zero_grad()
        (0 * module(torch.from_numpy(random(4, 4)), torch.ones(4))).sum().backward()
        optimizer.step()
    assert module.values()["s"] == pytest.approx(S, rel=0.01)


def test_sgd_moves_the_scale_itself() -> None:
    text = f"(float[n, 8] x, float[8] pull) => (float[n, 8] y) {{ {PAIR.format(axis=1)} }}"
    module = learned(build(text, 21, s=S, z=Z))
    x, pull = random(4, 8), random(8)
    module(torch.from_numpy(x), torch.from_numpy(pull)).sum().backward()
    torch.optim.SGD(module.parameters(), 1e-3).step()
    gradient = (pull * step_gradient(x, S, 0, np.dtype(np.int8))[0]).sum() / np.sqrt(8 * 127)
    assert module.values()["s"] - S == pytest.approx(-1e-3 * gradient, rel=1e-3)


def test_zeros_stay_zero_while_scales_are_learned() -> None:
    """Of a weight that is stored as integers, and of one that is quantized at each step."""
    w = np.where(np.abs(random(6, 5)) < 0.8, 0, random(6, 5)).astype(np.float32)
    levels = np.clip(np.round(w / 0.03), -128, 127).astype(np.int8)
    text = """(float[n, 6] x) => (float[n, 5] y) {
        v = DequantizeLinear(l, t, z)  k = QuantizeLinear(w, s, z)  d = DequantizeLinear(k, s, z)
        a = MatMul(x, v)  b = MatMul(x, d)  y = Add(a, b)
    }"""
    model = build(text, 21, w=w, l=levels, s=np.float32(0.03), t=np.float32(0.03), z=Z)
    model.metadata_props.add(key=SPARSE, value=format_sparse({"w": "unstructured", "v": "unstructured"}))
    module = learned(model)
    optimizer = torch.optim.AdamW(module.parameters(), 0.05, weight_decay=0.5)
    x = torch.from_numpy(random(16, 6))
    for _ in range(10):
        optimizer.zero_grad()
        (module(x) - 1).square().mean().backward()
        optimizer.step()
    values = module.values()
    assert set(values) == {"w", "s", "t"}
    np.testing.assert_array_equal(values["w"] == 0, w == 0)
    assert min(abs(values[name] / 0.03 - 1) for name in ("s", "t")) > 0.01


def test_the_default_type_of_whole_numbers_is_uint8() -> None:
    """Without a zero-point, which would tell."""
    text = "(float[n, 4] x, float[4] pull) => (float[n, 4] y) { q = QuantizeLinear(x, s)  d = DequantizeLinear(q, s)  y = Mul(d, pull) }"
    for opset, attribute, kind in (
        (17, "", np.uint8),
        (21, f" <output_dtype = {TensorProto.INT4}> ", ml_dtypes.int4),
    ):
        model = build(text.replace("QuantizeLinear(x", f"QuantizeLinear{attribute}(x", 1), opset, s=S)
        module = learned(model)
        x = random(5, 4)
        module(torch.from_numpy(x), torch.ones(4)).sum().backward()
        want = step_gradient(x, S, 0, np.dtype(kind))[0].sum() / np.sqrt(4 * RANGES[np.dtype(kind)][1])
        assert module.scales()["s"].grad.item() * S == pytest.approx(want, rel=1e-4)
