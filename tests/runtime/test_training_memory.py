"""Activations computed again instead of kept: bit-equal weights, less memory, the best plan for a budget,
refusals.
"""

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import PassError
from onnx_lathe.metadata import SPARSE, format_sparse
from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup
from tests.support.builders import build, random
from tests.support.training import Points, model, options

torch = pytest.importorskip("torch")
from onnx_lathe.runtime.torch_bridge import (  # noqa: E402
    GraphModule,
    segments,
)
from onnx_lathe.runtime.training.memory import (  # noqa: E402
    budget,
    recompute,
)

CPU = torch.device("cpu")
NET = """(float[n, 3, 8, 8] x) => (float[n, 5] y, float[n, 4, 8, 8] middle) {
    a = Conv<pads=[1,1,1,1]>(x, w0, b0)  b = Relu(a)
    c = Conv<pads=[1,1,1,1]>(b, w1)  middle = Relu(c)
    d = Conv<pads=[1,1,1,1]>(middle, w1)  e = Add(d, b)  f = BatchNormalization(e, s, t, m, v)  g = Relu(f)
    h = Conv<pads=[1,1,1,1]>(g, w1)  i = Sigmoid(h)  j = Mul(i, h)
    k = MaxPool<kernel_shape=[2,2], strides=[2,2]>(j)
    size = Shape(k)  zero = Constant<value_int=0>()  batch = Gather(size, zero)  rows = Unsqueeze(batch, first)
    whole = Concat<axis=0>(rows, rest)
    l = Reshape(k, whole)  o = Gemm(l, w2, b2)  y = Softplus(o)
}"""
WEIGHTS = {
    "w0": random(4, 3, 3, 3) / 5, "b0": random(4), "w1": random(4, 4, 3, 3) / 6, "s": random(4) + 2, "t": random(4), "m": random(4),
    "v": random(4) ** 2 + 0.5, "w2": random(64, 5) / 8, "b2": random(5), "first": np.array([0]), "rest": np.array([-1]),
}  # fmt: skip
IMAGES = torch.from_numpy(random(12, 3, 8, 8))
STEPS = 19


def net(*sparse: str) -> onnx.ModelProto:
    weights = WEIGHTS | {"w1": np.where(np.abs(WEIGHTS["w1"]) < 0.1, 0, WEIGHTS["w1"]).astype(np.float32)}
    made = build(NET, **weights)
    if sparse:
        made.metadata_props.add(key=SPARSE, value=format_sparse(dict.fromkeys(sparse, "unstructured")))
    return made


def loss(module: GraphModule, images: Any = IMAGES) -> Any:
    y, middle = module(images)
    return (y.float() - 1).square().mean() + middle.float().mean()


Prepare = Callable[[GraphModule], None]


@dataclass
class Case:
    """A way of training `net`: `prepare` gets the module once, `each` before every step."""

    sparse: tuple[str, ...] = ()
    prepare: Prepare = lambda module: None
    each: Prepare = lambda module: None
    half: bool = False
    options: dict[str, bool] = field(default_factory=dict)


def mask(module: GraphModule) -> None:
    module.impose(
        {"w1": np.abs(module.trained()["w1"]) > 0.1, "w2": np.round(module.trained()["w2"] * 8) / 8}
    )


def pieces(module: GraphModule) -> None:
    module.fixed_batch = 5


CASES = {
    "plain": Case(),
    "stand-ins": Case(each=mask),
    "sparse": Case(sparse=("w0", "w1")),
    "sparse stand-ins": Case(sparse=("w1",), each=mask),
    "bfloat16": Case(half=True),
    "pieces": Case(prepare=pieces),
    "batch statistics": Case(options={"train_normalization": True}),
    "batch statistics of pieces": Case(prepare=pieces, options={"train_normalization": True}),
}


def trained(
    case: Case, cuts: tuple[int, ...] = (), offload: bool = False, steps: int = 4
) -> dict[str, np.ndarray]:
    module = GraphModule(net(*case.sparse), **case.options)
    module.train()
    case.prepare(module)
    module.checkpoint(cuts, offload)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        case.each(module)
        with torch.autocast("cpu", torch.bfloat16, enabled=case.half):
            value = loss(module)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return {**module.values(), "loss": np.array(loss(module).item())}


@pytest.mark.parametrize("name", CASES)
def test_weights_are_bit_equal(name: str) -> None:
    case = CASES[name]
    assert len(GraphModule(net()).segments.steps) == STEPS
    wanted = trained(case)
    assert not np.array_equal(wanted["w1"], WEIGHTS["w1"])
    generator = np.random.default_rng(5)
    some = [tuple(generator.choice(np.arange(1, STEPS), 4, replace=False).tolist()) for _ in range(3)]
    for cuts, offload in [
        ((STEPS - 1,), False),
        (tuple(range(1, STEPS)), False),
        (some[0], False),
        (some[1], True),
        (some[2], True),
        ((), True),
    ]:
        result = trained(case, cuts, offload)
        different = [key for key, value in wanted.items() if not np.array_equal(value, result[key])]
        assert not different, (cuts, offload)


def test_what_is_computed_again_is_all_but_the_last_segment() -> None:
    module = GraphModule(net())
    runs = [0] * STEPS
    for number, step in enumerate(module.segments.steps):
        step.run = counted(step.run, runs, number)
    loss(module).backward()
    assert runs == [1] * STEPS
    module.checkpoint((6, 11))
    loss(module).backward()
    assert runs[:5] == [3] * 5
    assert runs[11:] == [2] * (STEPS - 11)
    with torch.no_grad():
        loss(module)
    assert runs[0] == 4, "nothing is computed again without gradients"


def counted(function: Callable[..., Any], runs: list[int], number: int) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        runs[number] += 1
        return function(*arguments)

    return run


@pytest.mark.parametrize("cut", [0, -1, STEPS])
def test_refuses_a_cut_outside(cut: int) -> None:
    with pytest.raises(PassError, match=f"no cut before step {cut}; the model has steps 0 to {STEPS - 1}"):
        GraphModule(net()).checkpoint((3, cut))


DEEP = " ".join(f"a{i + 1} = Conv<pads=[1,1,1,1]>(r{i}, w)  r{i + 1} = Relu(a{i + 1})" for i in range(12))
DEEP = f"(float[n, 4, 16, 16] r0) => (float[n, 4, 1, 1] y) {{ {DEEP}  y = GlobalAveragePool(r12) }}"
UNIT = 8 * 4 * 16 * 16 * 4
"""Bytes of one activation of DEEP for eight samples."""


def deep() -> tuple[GraphModule, Callable[[], Any]]:
    module, images = GraphModule(build(DEEP, w=WEIGHTS["w1"])), torch.from_numpy(random(8, 4, 16, 16))
    return module, lambda: module(images).square().mean()


def test_measures_what_backward_needs() -> None:
    """Each Relu saves its result, which the next Conv saves as well. Nothing else that is saved is large."""
    module, run = deep()
    profile = budget.measure(module, run)
    assert profile.saved_bytes == pytest.approx(12 * UNIT, rel=0.01)
    assert [
        activation.made
        for activation in profile.activations
        if activation.saved is not None and activation.size == UNIT
    ] == list(range(1, 24, 2))
    assert module.segments.watch is None


@pytest.mark.parametrize("cuts", [(), (6,), (6, 14), (8, 12, 18), tuple(range(2, 24, 2))])
def test_predicts_the_peak_that_is_measured(cuts: tuple[int, ...]) -> None:
    module, run = deep()
    predicted = peak(budget.measure(module, run), cuts)
    module.checkpoint(cuts)
    assert budget.peak_bytes(module, run) == pytest.approx(predicted, rel=0.05)


def peak(profile: recompute.Profile, cuts: tuple[int, ...]) -> int:
    costs, kept, first, peaks = recompute.Costs(profile), 0, 0, []
    for end in cuts:
        peaks.append(kept + costs.peak(first, end))
        kept += costs.crossing(first, end)
        first = end
    return max([*peaks, kept + costs.rest(first)])


def invented(seed: int, steps: int = 9) -> recompute.Profile:
    generator = np.random.default_rng(seed)
    activations = []
    for made in range(steps):
        reads = sorted({int(read) for read in generator.integers(made + 1, min(made + 4, steps) + 1, 2)})
        saved = None if generator.random() < 0.3 else int(generator.choice([made, reads[0]]))
        activations.append(recompute.Activation(made, int(generator.integers(1, 9)), saved, reads, True))
    until = [float(part) if generator.random() < 0.7 else None for part in generator.random(steps)]
    return recompute.Profile(steps, activations, [1.0 + (part or 0.0) for part in until], until, [0] * steps)


@pytest.mark.parametrize("seed", range(8))
def test_the_plan_is_the_best_of_all(seed: int) -> None:
    profile = invented(seed)
    costs = recompute.Costs(profile)
    plans = [cuts for count in range(9) for cuts in itertools.combinations(range(1, 9), count)]
    facts = {cuts: (peak(profile, cuts), costs.recomputed(cuts)) for cuts in plans}
    for enough in sorted({size for size, _ in facts.values()}):
        for allowed in (enough - 1, enough):
            best = min((seconds for size, seconds in facts.values() if size <= allowed), default=None)
            chosen = recompute.choose(profile, allowed)
            if best is None:
                assert chosen is None
            else:
                assert facts[chosen][0] <= allowed
                assert facts[chosen][1] == pytest.approx(best)
    assert peak(profile, recompute.smallest(profile)) == min(size for size, _ in facts.values())


def test_fits_a_budget_and_disturbs_nothing() -> None:
    module, run = deep()
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.eval()
    state = torch.get_rng_state()
    whole = budget.fit(module, run, None)
    assert whole["recomputed"] == 0
    metrics = budget.fit(module, run, 8 * UNIT)
    assert metrics["activation_peak_bytes"] <= 8 * UNIT < 0.7 * whole["activation_peak_bytes"]
    assert budget.peak_bytes(module, run) == metrics["activation_peak_bytes"], "the module keeps to it"
    assert 0 < metrics["recomputed"] < 1
    assert (
        metrics["activation_bytes"]
        == whole["activation_bytes"]
        == pytest.approx(whole["activation_peak_bytes"], rel=0.05)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert not module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(bool((parameter.grad == 1).all()) for parameter in module.parameters())
    assert budget.fit(module, run, 100 * UNIT)["recomputed"] == 0, (
        "a budget that is large enough costs nothing"
    )


def test_running_statistics_are_as_before() -> None:
    module = GraphModule(net(), train_normalization=True)
    module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    loss(module)
    assert any(not torch.equal(value, before[name]) for name, value in module.state_dict().items())
    module.load_state_dict(before)
    budget.fit(module, lambda: loss(module), 10**9)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_names_the_least_possible_budget() -> None:
    module, run = deep()
    with pytest.raises(
        PassError,
        match=r"budget of 1 KiB is too small: activations of one batch need at least (\d+\.?\d*) KiB",
    ) as refusal:
        budget.fit(module, run, 1024)
    least = float(str(refusal.value).split("at least ")[1].split(" KiB")[0]) * 1024
    assert 3 * UNIT < least < 8 * UNIT
    assert budget.fit(module, run, round(least))["activation_peak_bytes"] <= least


def test_workers_choose_alike() -> None:
    """Another worker is a thousand times slower in its first steps, and once needs more memory than this
    one.
    """
    (alone, run), (slow, slow_run) = deep(), deep()
    budget.fit(alone, run, 8 * UNIT)
    asked: list[tuple[float, ...]] = []

    def most(*values: float) -> list[float]:
        asked.append(values)
        if len(asked) == 1:
            return [1000 * value if number < 4 else value for number, value in enumerate(values)]
        return [9.0 * UNIT if len(asked) == 2 else value for value in values]

    metrics = budget.fit(slow, slow_run, 8 * UNIT, most)
    assert len(asked) > 2, "the plan that was too much for the other worker is not kept"
    assert metrics["activation_peak_bytes"] == asked[-1][0] <= 8 * UNIT
    with pytest.raises(PassError, match="budget"):  # what the other one cannot meet, this one refuses, too
        budget.fit(
            slow, slow_run, 8 * UNIT, lambda *values: [9.0 * UNIT] if len(values) == 1 else list(values)
        )


def test_offloading_copies_activations_and_leaves_weights() -> None:
    weight = torch.from_numpy(WEIGHTS["w0"]).requires_grad_()
    images = IMAGES.clone(memory_format=torch.channels_last).requires_grad_()
    with segments._offloading([None, weight, 3]):
        activation = images * 2
        node = torch.conv2d(activation, weight).grad_fn
    assert node._saved_weight.data_ptr() == weight.data_ptr()
    assert node._saved_input.data_ptr() != activation.data_ptr()
    assert torch.equal(node._saved_input, activation)
    assert node._saved_input.stride() == activation.stride()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_job_reports_its_peak() -> None:
    peak = budget.job_peak(CPU)["peak_memory_bytes"]
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    assert peak == pytest.approx(int(line.split()[1]) * 1024, rel=0.05)


@pytest.mark.parametrize("kind", ["labels", "distillation"])
def test_a_budget_changes_no_weight_of_a_retraining(kind: str) -> None:
    network = model()
    data = Points(labelled=kind == "labels")
    teacher = None if kind == "labels" else model(seed=1)
    settings = options(epochs=2, batch=128)
    plain = TorchTrainer(TrainingSetup(data, teacher)).train(network, settings)
    fitted = TorchTrainer(TrainingSetup(data, teacher, memory=10**9)).train(network, settings)
    assert all(np.array_equal(value, fitted.values[name]) for name, value in plain.values.items())
    assert fitted.metrics["activation_peak_bytes"] <= 10**9
    with pytest.raises(PassError, match="memory budget of 10 bytes is too small"):
        TorchTrainer(TrainingSetup(data, teacher, memory=10)).train(network, settings)
