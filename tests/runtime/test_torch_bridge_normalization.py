"""Batch normalization by the statistics of the batch, against ONNX's own definition, and where it stays
frozen.
"""

import copy
import multiprocessing
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.support import quantized
from tests.support.builders import build
from tests.support.workers import METHOD

torch = pytest.importorskip("torch")
from onnx_lathe.runtime.torch_bridge import GraphModule  # noqa: E402


def random(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32 values, the same at every call."""
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


NODE = "y = BatchNormalization <epsilon = 0.003, momentum = 0.7> (x, g, b, m, v)"
STORED = {"g": random(3), "b": random(3, seed=1), "m": random(3, seed=2), "v": random(3, seed=3) ** 2 + 1}


def network(shape: str = "n, 3, 4, 5", body: str = NODE, **stored: np.ndarray) -> onnx.ModelProto:
    return build(f"(float[{shape}] x) => (float[{shape}] y) {{ {body} }}", 17, **(STORED | stored))


def trained(model: onnx.ModelProto) -> GraphModule:
    return GraphModule(model, train_normalization=True)


def definition(model: onnx.ModelProto, x: np.ndarray, values: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Output, running mean and running variance of the node with training_mode=1, as the onnx package
    computes them.
    """
    node = copy.deepcopy(model.graph.node[0])
    node.attribute.append(onnx.helper.make_attribute("training_mode", 1))
    node.output.extend(["mean", "variance"])
    return ReferenceEvaluator(node).run(None, {"x": x, **values})


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (6, 3, 4, 5), (2, 3, 1, 1), (1, 3, 4, 5)])
def test_training_is_as_onnx_defines_it(shape: tuple[int, ...]) -> None:
    model = network(", ".join(["n", *map(str, shape[1:])]))
    module, want = trained(model), dict(STORED)
    for scale in (1, 3):
        x = scale * random(*shape, seed=scale) + 2
        result = module(torch.from_numpy(x))
        y, mean, variance = definition(model, x, want)
        want |= {"m": mean, "v": variance}
        np.testing.assert_allclose(result.numpy(force=True), y, rtol=0, atol=2e-5 * np.abs(y).max())
        values = module.values()
        assert set(values) == set(STORED)
        for name in STORED:
            assert values[name].dtype == np.float32
            np.testing.assert_allclose(values[name], want[name], rtol=1e-5, atol=1e-6)
    assert np.abs(module.values()["v"] - STORED["v"]).min() > 1e-3


def test_what_was_learned_is_what_onnx_runtime_runs() -> None:
    model = network()
    module = trained(model)
    for seed in range(3):
        module(torch.from_numpy(2 * random(8, 3, 4, 5, seed=seed) - 1))
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(module.values()[tensor.name], tensor.name))
    x = random(4, 3, 4, 5)
    before = module.values()
    result = module.eval()(torch.from_numpy(x))
    np.testing.assert_allclose(result.numpy(force=True), quantized.run(model, {"x": x})[0], atol=1e-5)
    assert all(module.values()[name].tobytes() == value.tobytes() for name, value in before.items())


def test_without_the_option_statistics_are_frozen() -> None:
    x = torch.from_numpy(random(8, 3, 4, 5))
    module = GraphModule(network())
    assert torch.equal(module.train()(x), GraphModule(network()).eval()(x))
    assert torch.equal(trained(network()).eval()(x), module(x))
    assert set(module.values()) == {"g", "b"}


def test_gradients_equal_finite_differences() -> None:
    text = "(double[n, 3, 4] x, double[3, 4] pull) => (double[n, 3, 4] y) { t = BatchNormalization(x, g, b, m, v)  y = Mul(t, pull) }"
    module = trained(build(text, 17, **{name: value.astype(np.float64) for name, value in STORED.items()}))
    pull = torch.from_numpy(random(3, 4).astype(np.float64))
    x = torch.from_numpy(random(5, 3, 4).astype(np.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x, pull).square(), (x,), rtol=1e-5)


FROZEN = {
    "its mean has another reader": (
        f"{NODE.replace('y =', 't =')} y = Add(t, c)  w = Neg(m)",
        {"c": random(4, 5)},
    ),
    "two nodes share statistics": (f"{NODE.replace('y =', 't =')} {NODE.replace('(x,', '(t,')}", {}),
    "mean and variance are one": (NODE.replace("m, v)", "v, v)"), {}),
    "its variance is computed": (f"u = Abs(v) {NODE.replace('m, v)', 'm, u)')}", {}),
}


@pytest.mark.parametrize("body, stored", FROZEN.values(), ids=FROZEN)
def test_statistics_that_are_not_the_nodes_own_stay_frozen(body: str, stored: dict[str, np.ndarray]) -> None:
    model = network(body=body, **stored)
    x = random(8, 3, 4, 5)
    module = trained(model)
    result = module(torch.from_numpy(x)).numpy(force=True)
    want = quantized.run(model, {"x": x})[0]
    np.testing.assert_allclose(result, want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert not {"m", "v"} & set(module.values())


def test_statistics_that_the_model_gives_out_stay_frozen() -> None:
    model = build(f"(float[n, 3] x) => (float[n, 3] y, float[3] m) {{ {NODE} }}", 17, **STORED)
    module = trained(model)
    module(torch.from_numpy(random(4, 3)))
    assert set(module.values()) == {"g", "b"}


def test_one_node_may_be_frozen_while_another_trains() -> None:
    body = "s = BatchNormalization(x, g, b, m, m)  y = BatchNormalization(s, g, b, mean, v)"
    module = trained(network(body=body, mean=random(3)))
    module(torch.from_numpy(random(4, 3, 4, 5)))
    assert set(module.values()) == {"g", "b", "mean", "v"}


def test_a_batch_of_one_value_per_channel_uses_what_is_stored() -> None:
    x = torch.from_numpy(random(1, 3))
    module = trained(network("n, 3"))
    assert torch.equal(module(x), GraphModule(network("n, 3"))(x))
    assert module.values()["v"].tobytes() == STORED["v"].tobytes()


def test_a_step_that_is_computed_again_counts_once() -> None:
    body = "a = Conv(x, w)  t = BatchNormalization(a, g, b, m, v)  r = Relu(t)  y = Conv(r, w)"
    model = network(body=body, w=random(3, 3, 1, 1))
    x = torch.from_numpy(random(6, 3, 4, 5))
    results = []
    for cuts in ((), (3,)):
        module = trained(model)
        module.checkpoint(cuts)
        for _ in range(2):
            module.zero_grad()
            module(x).square().sum().backward()
        gradients = {name: weight.grad.numpy().tobytes() for name, weight in module.weights().items()}
        results.append((gradients, {name: value.tobytes() for name, value in module.values().items()}))
    assert results[0] == results[1]
    assert results[0][1]["m"] != STORED["m"].tobytes()


@pytest.mark.parametrize("half", [np.float16, "bfloat16"])
def test_statistics_in_half_precision_gather_small_changes(half: str | type) -> None:
    """A change of a thousandth each step would be lost if it were rounded to half precision each time."""
    dtype = (
        onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
        if half == "bfloat16"
        else np.dtype(half)
    )
    kind = "bfloat16" if half == "bfloat16" else "float16"
    text = f"({kind}[n, 3] x) => ({kind}[n, 3] y) {{ y = BatchNormalization <momentum = 0.9999> (x, g, b, m, v) }}"
    stored = {"g": np.ones(3), "b": np.zeros(3), "m": np.full(3, 4.0), "v": np.ones(3)}
    module = trained(build(text, 17, **{name: value.astype(dtype) for name, value in stored.items()}))
    x = torch.from_numpy(random(64, 3)).to(torch.bfloat16 if half == "bfloat16" else torch.float16)
    for _ in range(500):
        assert module(x).dtype == x.dtype
    assert module.values()["m"].dtype == dtype
    want = 4 * 0.9999**500 + (1 - 0.9999**500) * x.double().mean(0).numpy()
    np.testing.assert_allclose(module.values()["m"].astype(np.float64), want, rtol=1e-2)
    assert (module.values()["m"].astype(np.float64) < 3.9).all()


def test_copies_and_state_keep_their_own_statistics() -> None:
    module = trained(network())
    x = torch.from_numpy(random(6, 3, 4, 5))
    other = copy.deepcopy(module)
    other(x)
    assert module.values()["m"].tobytes() == STORED["m"].tobytes()
    module.load_state_dict(other.state_dict())
    assert module.values()["m"].tobytes() == other.values()["m"].tobytes() != STORED["m"].tobytes()


def test_tracing_and_failing_change_nothing() -> None:
    module = trained(network())
    x = torch.from_numpy(random(6, 3, 4, 5))
    assert [name for _, name, _ in module.trace(x=x)] == ["y"]
    with pytest.raises(RuntimeError):
        module(torch.zeros(6, 4, 4, 5))
    assert module.values()["m"].tobytes() == STORED["m"].tobytes()


def test_a_batch_that_is_run_in_pieces_uses_what_is_stored() -> None:
    """Statistics of one or two samples, some of them repeated, are none."""
    x = torch.from_numpy(random(5, 3))
    module = trained(network("2, 3"))
    module.fixed_batch = 2
    torch.testing.assert_close(module(x), GraphModule(network("n, 3"))(x))
    assert module.values()["v"].tobytes() == STORED["v"].tobytes()


def worker(rank: int, folder: str, cuts: tuple[int, ...]) -> None:
    """One of two that train together on seven samples; in worker 1, nothing is computed again."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    module = trained(deep())
    module.checkpoint(cuts if rank == 0 else ())
    for step in range(3):
        x = torch.from_numpy(random(7, 3, 4, 5, seed=step))[[slice(0, 4), slice(4, 7)][rank]]
        descend(module, x, 7 / 2)
    np.savez(f"{folder}/{rank}.npz", **module.values())
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def deep() -> onnx.ModelProto:
    body = f"a = Conv(x, w)  {NODE.replace('y =', 't =').replace('(x,', '(a,')}  r = Relu(t)  y = Conv(r, w)"
    return network(body=body, w=random(3, 3, 1, 1))


def descend(module: GraphModule, x: torch.Tensor, samples: float) -> None:
    """A step of steepest descent by the mean of all workers' gradients."""
    module.zero_grad()
    ((module(x) - 1).square().sum() / samples).backward()
    for weight in module.weights().values():
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(weight.grad)
            weight.grad /= 2
        weight.data -= 0.01 * weight.grad


@pytest.mark.slow
def test_two_workers_are_one(tmp_path: Path) -> None:
    """Weights and statistics equal those of one process that sees all samples; both workers have the same."""
    started = [
        multiprocessing.get_context(METHOD).Process(target=worker, args=(rank, str(tmp_path), (3,)))
        for rank in (0, 1)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
        process.kill()  # how it ends does not matter once its values are there: gloo may abort then
    alone = trained(deep())
    for step in range(3):
        descend(alone, torch.from_numpy(random(7, 3, 4, 5, seed=step)), 7)
    with np.load(tmp_path / "0.npz") as first, np.load(tmp_path / "1.npz") as second:
        for name, value in alone.values().items():
            assert first[name].tobytes() == second[name].tobytes(), name
            np.testing.assert_allclose(first[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert np.abs(alone.values()["w"] - random(3, 3, 1, 1)).max() > 0.01


def test_training_with_batch_statistics_makes_the_loss_fall() -> None:
    body = "a = Conv(x, w)  t = BatchNormalization(a, g, b, m, v)  r = Relu(t)  y = Conv(r, w2)"
    module = trained(network(body=body, w=random(3, 3, 1, 1), w2=random(3, 3, 1, 1, seed=1)))
    x = torch.from_numpy(random(16, 3, 4, 5) * 5)
    optimizer, losses = torch.optim.Adam(module.parameters(), 0.03), []
    for _ in range(60):
        loss = (module(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    evaluated = (module.eval()(x) - 1).square().mean().item()  # the running statistics have caught up
    assert evaluated < 0.05 * losses[0]


@pytest.mark.parametrize(
    "operator", ["InstanceNormalization (x, s, b)", "GroupNormalization <num_groups = 2> (x, s, b)"]
)
def test_channels_last_images_give_their_scale_a_gradient(operator: str) -> None:
    """PyTorch crashes here if it is left to itself."""
    proto = build(
        f"(float[n, 4, 3, 3] x) => (float[n, 4, 3, 3] y) {{ y = {operator} }}",
        opset=21,
        s=np.ones(4, np.float32),
        b=np.ones(4, np.float32),
    )
    images = torch.randn(2, 4, 3, 3)
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        module = GraphModule(proto)
        module(images.to(memory_format=layout)).square().sum().backward()
        gradients.append(module.weights()["s"].grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-4)


def test_images_of_one_channel_whose_strides_say_channels_last() -> None:
    """Contiguous in either sense, and PyTorch crashes here if it is left to itself."""
    proto = build(
        "(float[n, 1, 3, 3] x) => (float[n, 1, 3, 3] y) { y = InstanceNormalization (x, s, b) }",
        s=np.ones(1, np.float32),
        b=np.ones(1, np.float32),
    )
    images, gradients = torch.randn(2, 1, 3, 3), []
    for strides in ((9, 9, 3, 1), (9, 1, 3, 1)):
        module = GraphModule(proto)
        module(images.as_strided((2, 1, 3, 3), strides)).square().sum().backward()
        gradients.append(module.weights()["s"].grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-4)
