"""Stages one after the other, in one process, compute what the whole module computes."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import combinations
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from onnx_lathe.errors import PassError
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training.loop.lesson import Lesson
from onnx_lathe.runtime.training.loop.objective import Objective
from onnx_lathe.runtime.training.loop.precision import Precision
from onnx_lathe.runtime.training.loop.settings import Settings
from onnx_lathe.runtime.training.memory.budget import measure
from onnx_lathe.runtime.training.parallel.schedule import Pipelined, Place
from onnx_lathe.runtime.training.parallel.stages import Reading, Sent, Stage, keyword, owners
from tests.support.builders import build
from tests.support.pipelines import regression, residual, tied
from tests.support.training import options

CPU = torch.device("cpu")


def quantized() -> onnx.ModelProto:
    """Weights in INT8 and activations through Q/DQ, the scales of which are learned."""
    generator = np.random.default_rng(0)
    text = """
        (float[n, 6] x) => (float[n, 4] y) {
            w = DequantizeLinear (w8, ws)
            v = DequantizeLinear (v8, vs)
            a = MatMul (x, w)
            b = Relu (a)
            q = QuantizeLinear (b, bs, zero)
            d = DequantizeLinear (q, bs, zero)
            y = MatMul (d, v)
        }"""
    return build(
        text,
        w8=generator.integers(-127, 128, (6, 8)).astype(np.int8),
        v8=generator.integers(-127, 128, (8, 4)).astype(np.int8),
        **{name: np.float32(size) for name, size in {"ws": 0.011, "vs": 0.013, "bs": 0.07}.items()},
        zero=np.int8(0),
    )


def chain(module: GraphModule, bounds: Sequence[int]) -> list[Stage]:
    reading = Reading(module)
    weights = reading.weights()
    held = owners(weights, bounds)
    return [
        Stage(
            reading,
            *bounds[stage : stage + 2],
            [weight for weight, owner in zip(weights, held, strict=True) if owner == stage],
            nullcontext,
        )
        for stage in range(len(bounds) - 1)
    ]


def run(stages: Sequence[Stage], samples: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    sent, carried = Sent(), tuple[Tensor, ...]()
    for stage in stages:
        stage.given = sent.numbers
        sent = stage.describe(sent.made(CPU), samples)
        given = stage(*carried, **{name: samples[name] for name in stage.feeds})
        carried = given if isinstance(given, tuple) else (given,)
        assert [(tuple(one.shape), one.dtype) for one in carried] == [one[:2] for one in sent.tensors]
    return carried


def gradients(module: GraphModule, outputs: Any) -> dict[str, Tensor | None]:
    module.zero_grad()
    sum(
        output.square().sum() for output in (outputs if isinstance(outputs, tuple) else (outputs,))
    ).backward()
    return {
        name: None if weight.grad is None else weight.grad.clone()
        for name, weight in (module.weights() | module.scales()).items()
    }


def cut_anywhere(module: GraphModule, stages: int) -> list[tuple[int, ...]]:
    """Every way in which each stage has weights of its own."""
    count, weights = len(module.plan.steps), Reading(module).weights()
    return [
        (0, *chosen, count)
        for chosen in combinations(range(1, count), stages - 1)
        if not any(weight.first < cut <= weight.last for cut in chosen for weight in weights)
        and len(set(owners(weights, (0, *chosen, count)))) == stages
    ]


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize(
    ("model", "shape", "learn"),
    [
        (residual(), (4, 3, 9, 7), False),
        (regression(), (4, 3, 9, 7), False),
        (quantized(), (4, 6), True),
    ],
    ids=["residual", "regression", "quantized"],
)
def test_stages_are_the_module(
    model: onnx.ModelProto, shape: tuple[int, ...], learn: bool, stages: int
) -> None:
    module = GraphModule(model, learn_scales=learn)
    generator = torch.Generator().manual_seed(0)
    wide = next(iter(module.parameters())).dtype
    x = torch.randn(shape, generator=generator, dtype=wide)
    samples = {keyword(module.plan.slots["x"]): x}
    whole = module(x=x)
    wanted = gradients(module, whole)
    every = cut_anywhere(module, stages)
    assert len(every) >= 2
    for bounds in every[:: max(1, len(every) // 20)]:
        found = run(chain(module, bounds), samples)
        for one, other in zip(found, whole if isinstance(whole, tuple) else (whole,), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)
        for name, gradient in gradients(module, found).items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-12, atol=1e-13)


def test_stand_ins_are_read() -> None:
    module = GraphModule(residual())
    mask = np.arange(5 * 4).reshape(5, 4) % 2 == 0
    module.impose({"w5": mask})
    x = torch.ones(2, 3, 9, 7, dtype=torch.float64)
    found = run(chain(module, (0, 6, len(module.plan.steps))), {keyword(module.plan.slots["x"]): x})
    torch.testing.assert_close(found[0], module(x=x), rtol=1e-13, atol=1e-14)


def test_what_crosses() -> None:
    module = GraphModule(residual())
    plan = module.plan
    place = {step.node.output[0]: number for number, step in enumerate(plan.steps)}
    first, second = chain(module, (0, place["f"], len(plan.steps)))
    names = {slot: name for name, slot in plan.slots.items()}
    assert {names[slot] for slot in first.outputs} == {"a", "c", "e", "large"}
    assert second.inputs == first.outputs
    assert {names[slot] for slot in first.numbers} <= {"shape", "first", "count", "wanted"} != set()
    assert [step.node.output[0] for step in second.steps if step.static] == ["w3"]
    assert not [step for step in first.steps if step.static]
    held = [set(map(id, stage.parameters())) for stage in (first, second)]
    assert not held[0] & held[1]
    trained = [weight for weight in module.weights().values() if weight.requires_grad]
    assert held[0] | held[1] == set(map(id, trained))


def test_a_profile_says_what_crosses_and_how_long_stages_take() -> None:
    module = GraphModule(residual())
    x = torch.ones(2, 3, 9, 7, dtype=torch.float64)
    reading = Reading(module)
    profile = measure(module, lambda: module(x=x).sum())
    place = {step.node.output[0]: number for number, step in enumerate(module.plan.steps)}
    assert reading.crossing(profile)[place["f"]] == 2 * 4 * 9 * 7 * (3 * 8 + 1)
    assert sum(reading.times(profile)) == pytest.approx(sum(profile.seconds))
    assert reading.times(profile)[place["w3"]] == 0


# ---- what is refused
# --------------------------------------------------------------------------------------------------------------------


def pipelined(model: onnx.ModelProto, stages: int, **flags: Any) -> Pipelined:
    module = GraphModule(model)
    x = torch.ones(4, *(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]))
    wide = next(iter(module.parameters())).dtype
    feeds = {"x": x.to(wide)}
    outputs = module(**feeds)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    settings = Settings.read(options())
    objective = Objective(module.output_ops, outputs, 4, False, True, settings)
    lesson = Lesson(
        objective,
        Precision("float32", CPU),
        lambda feeds: [one.detach() for one in outputs],
        lambda n: (feeds, None),
        lambda line: None,
    )
    for name, flag in flags.items():
        setattr(module, name, flag)
    place = Place(0, stages, None, 1, None, CPU, lambda *values: list(values))
    return Pipelined(module, lesson, place, 8, 2, "1f1b")


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(PassError) as refused:
        pipelined(regression(), 4)
    assert (
        "each stage needs a layer with weights to train, and the model has 3; give pipeline=3 or less"
        in str(refused.value)
    )
    assert pipelined(regression(), 3).bounds[0] == 0


def test_a_weight_that_two_stages_would_read_is_named() -> None:
    with pytest.raises(PassError) as refused:
        pipelined(tied(), 2)
    assert "weight 'w' is read from node" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"fixed_batch": 4}, "for 4 samples at a time only"),
        ({"per_call": True}, "for one call for each sample only"),
    ],
)
def test_a_graph_of_one_batch_size_is_refused(flags: dict[str, Any], told: str) -> None:
    with pytest.raises(PassError, match=told):
        pipelined(regression(), 2, **flags)
