"""Layers that are split, in workers that are threads: each operator, and whole networks, against one worker."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor

from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.torch_bridge.plan import Plan, Step
from onnx_lathe.runtime.torch_bridge.registry import operators
from onnx_lathe.runtime.training.parallel.layout import Split, even
from onnx_lathe.runtime.training.parallel.placer import Placer, split_by
from onnx_lathe.runtime.training.parallel.rules.table import Choose, Mesh, Placing, rules
from tests.support import quantized
from tests.support.bridge import mark_sparse
from tests.support.operator_case import Case, build, case, floats, ints
from tests.support.operator_cases import CASES
from tests.support.parallel import Net, averaged, images, in_threads, plain, residual, trained, worst

EXACT = 1e-12
"""Largest relative difference in float64; sums in another order make some 1e-15."""


def alternating() -> Choose:
    """Filters, then channels: what one layer leaves split the next one sums."""
    count = 0

    def choose(placer: Placing, step: Step) -> str:
        nonlocal count
        count += 1
        return "filter" if count % 2 else "channel"

    return choose


def mixed() -> Choose:
    """Rows of large images, filters of small ones, matrix products by channels."""

    def choose(placer: Placing, step: Step) -> str:
        if step.node.op_type != "Conv":
            return "channel"
        return "height" if placer.shape(step.outputs[0])[2] >= 8 else "filter"

    return choose


WAYS: dict[str, Callable[[], Choose]] = {
    **{how: (lambda how=how: split_by(how)) for how in ("height", "width", "filter", "channel")},  # type: ignore[misc]
    "alternating": alternating,
    "mixed": mixed,
}


def check(
    model: onnx.ModelProto, how: str, workers: int = 2, data: int = 1, steps: int = 2, **options: Any
) -> list[Placer]:
    """Trains with and without workers, and returns their placers; `floor` is the largest difference of a weight."""
    floor = options.pop("floor", EXACT)
    made = {name: options[name] for name in ("train_normalization", "learn_scales") if name in options}
    batches = images(model, steps, 2 * data)
    alone, _, losses = trained(model, batches, **made)
    found = in_threads(
        workers, lambda mesh: trained(model, batches, mesh, WAYS[how](), **copy.copy(options)), data
    )
    for values, _, _ in found:
        assert worst(values, alone) <= floor
    means = np.mean([one for _, _, one in found], 0)
    assert means == pytest.approx(losses, rel=max(floor, 1e-6))
    start = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert max(np.abs(alone[name] - start[name]).max() for name in alone) > 1e-3
    return [placer for _, placer, _ in found if placer is not None]


@pytest.mark.parametrize("how", WAYS)
def test_two_workers_take_the_steps_of_one(how: str) -> None:
    placers = check(residual(), how)
    assert not any(decision.gathered for decision in placers[0].decisions)


@pytest.mark.parametrize("how", ["height", "mixed"])
def test_four_workers_in_two_groups_take_the_steps_of_one(how: str) -> None:
    check(residual(flat=how == "height"), how, data=2, steps=1)


def test_three_workers_and_float32() -> None:
    check(residual("float32", flat=True), "width", workers=3, floor=5e-6)


@pytest.mark.parametrize("how", ["height", "alternating"])
def test_frozen_normalization_and_recomputation(how: str) -> None:
    check(residual(), how, steps=1, cuts=(9, 25), train_normalization=False)
    check(residual(), how, steps=1, cuts=(9, 25))


def test_the_weight_behind_a_flatten_is_never_exchanged() -> None:
    model = plain("float64", 8, (4, 6), flat=10)
    placers = check(model, "height")
    first, *_ = (tensor for tensor in model.graph.initializer if tensor.dims == [10, 6 * 16])
    names = {weight.attribute: name for name, weight in placers[0].module._weights.items()}
    assert [names[attribute] for attribute in placers[0].module.parts()] == [first.name]
    assert placers[0].traffic.sent["exchange", "forward"] > 0


def test_each_worker_holds_its_part_of_the_weights() -> None:
    model = plain("float64", 8, (8, 8))
    whole = sum(parameter.numel() for parameter in GraphModule(model).parameters())
    for placer in check(model, "filter"):
        assert sum(parameter.numel() for parameter in placer.module.parameters()) <= 0.51 * whole
    for placer in check(model, "filter", steps=1, parts=False):
        assert sum(parameter.numel() for parameter in placer.module.parameters()) == whole


def test_zeros_stay_and_their_weights_are_cut_where_they_are_read() -> None:
    model = plain("float64", 8, (4, 4))
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    array = numpy_helper.to_array(weight).copy()
    array[np.random.default_rng(0).random(array.shape) < 0.5] = 0
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    mark_sparse(model, weight.name)
    for how in ("filter", "height"):
        placer = check(model, how)[0]
        read = placer.module._read(placer.module._weights[weight.name]).detach().numpy()
        assert not read[array == 0].any()
        assert read[array != 0].any()
        assert weight.name not in {
            name for name, one in placer.module._weights.items() if one.attribute in placer.module.parts()
        }


@pytest.mark.parametrize("how", ["height", "filter", "channel"])
def test_codebooks_and_scales_are_trained_as_by_one_worker(how: str) -> None:
    """A step of quantization later, a rounding that falls the other way would show: so many digits have to be equal."""
    check(quantized.lenet(), how, steps=1, floor=1e-4, learn_scales=True)
    check(quantized.lenet(int8=False), how, steps=1, floor=1e-5)


def test_a_weight_that_is_no_number_in_places_keeps_its_bits() -> None:
    model = plain("float32", 8, (4, 4))
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    array = numpy_helper.to_array(weight).copy()
    array.view(np.uint32)[3, 0, 0, 0] = 0x7FC12345
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))

    def work(mesh: Mesh) -> bytes:
        sample = {"x": torch.ones(2, 3, 8, 8)}
        module = Placer(GraphModule(model), sample, mesh, split_by("filter")).place().module
        assert module.parts()
        return module.values()[weight.name].tobytes()

    assert in_threads(2, work) == [array.tobytes()] * 2


def test_what_a_pass_imposes_reaches_the_parts() -> None:
    model = plain("float64", 8, (4, 4))
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    mask = np.random.default_rng(0).random(tuple(weight.dims)) < 0.5
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alone = GraphModule(model)
    alone.impose({weight.name: mask})

    def work(mesh: Mesh) -> Any:
        module = Placer(GraphModule(model).eval(), {"x": x}, mesh, split_by("filter")).place().module
        np.testing.assert_array_equal(module.trained()[weight.name], numpy_helper.to_array(weight))
        module.impose({weight.name: mask})
        return module(x=x).detach(), module.values()[weight.name]

    for result, value in in_threads(2, work):
        torch.testing.assert_close(result, alone(x).detach(), rtol=0, atol=1e-12)
        np.testing.assert_array_equal(value, alone.values()[weight.name])


# ---- windows
# ---------------------------------------------------------------------------------------------------------


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    extent = (kernel - 1) * dilation + 1
    op = draw(st.sampled_from(["Conv", "Conv", "MaxPool", "AveragePool"]))
    attributes: dict[str, Any] = {"strides": [draw(st.integers(1, 3)), 1], "kernel_shape": [kernel, 2]}
    if op == "Conv" or draw(st.booleans()):
        attributes["dilations"] = [dilation, 1]
    else:
        extent = kernel
    if draw(st.booleans()):
        attributes["auto_pad"] = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    else:
        most = kernel - 1 if op != "Conv" else 4
        attributes["pads"] = [
            draw(st.integers(0, most)),
            0,
            draw(st.integers(0, most)),
            draw(st.integers(0, 1)),
        ]
        if op != "Conv":
            attributes["ceil_mode"] = draw(st.integers(0, 1))
    if op == "AveragePool":
        attributes["count_include_pad"] = draw(st.integers(0, 1))
    group = draw(st.sampled_from([1, 2, 4])) if op == "Conv" else 1
    return {
        "op": op, "attributes": attributes, "group": group, "size": draw(st.integers(extent + 2, 13)),
        "parts": draw(st.integers(2, 3)), "how": draw(st.sampled_from(["height", "height", "width", "filter", "channel"])),
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(windows())
def test_a_move_and_the_local_operator_are_the_whole_operator(case: dict[str, Any]) -> None:
    net = Net("float64")
    x = net.conv("x", 2, 4, 1)
    attributes, more = dict(case["attributes"]), []
    if case["how"] == "width":  # the split axis is the one that is drawn
        for name in ("strides", "kernel_shape", "dilations"):
            attributes[name] = attributes.get(name, [1, 1])[::-1]
        if "pads" in attributes:
            attributes["pads"] = [attributes["pads"][place] for place in (1, 0, 3, 2)]
        if case["op"] != "Conv" and "dilations" not in case["attributes"]:
            del attributes["dilations"]
    if case["op"] == "Conv":
        more = [net.weight(4, 4 // case["group"], *attributes["kernel_shape"]), net.weight(4)]
        attributes["group"] = case["group"]
    y = net.op(case["op"], x, *more, **attributes)
    sizes = (case["size"], 5) if case["how"] != "width" else (5, case["size"])
    model = net.model(y, (2, *sizes), 1)
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    x = torch.randn(3, 2, *sizes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone, x_alone = GraphModule(model), x.clone().requires_grad_()
    wanted = alone(x_alone)
    seed = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted.backward(seed)

    def work(mesh: Mesh) -> Any:
        module = Placer(GraphModule(model), {"x": x[:2]}, mesh, split_by(case["how"])).place().module
        own = x.clone().requires_grad_()
        result = module(own)
        result.backward(seed)
        averaged(module, mesh)
        gradients = {name: parameter.grad for name, parameter in module.weights().items()}
        for name, weight in module._weights.items():
            gradients[name] = module._whole(weight.attribute, gradients[name])
        assert own.grad is not None
        mesh.every.add(own.grad)
        return result.detach(), own.grad / mesh.every.size, gradients

    for result, of_input, gradients in in_threads(case["parts"], work):
        torch.testing.assert_close(result, wanted.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(of_input, x_alone.grad, rtol=1e-12, atol=1e-12)
        for name, parameter in alone.weights().items():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-11, atol=1e-11)


# ---- the table of rules
# ----------------------------------------------------------------------------------------------


class Cut(Placer):
    """Places a graph whose first input comes cut along `axis`."""

    axis = 0

    def _add(self, step: Step) -> None:
        plan: Plan = self._plan
        for name in self.sample:
            slot = plan.slot(name)
            shape = self.shape(slot)
            if len(shape) > self.axis and slot in step.inputs:
                cut = self.want(slot, Split(self.axis, even(shape[self.axis], self.size)))
                step.inputs = tuple(cut if one == slot else one for one in step.inputs)
            if self.axis < len(shape):
                break
        super()._add(step)


EXTRA = [case("Reshape", floats(2, 4, 6, 5), constants=[ints(2, -1)])]
"""Cases that a rule takes, and the bridge's own do not have."""


def test_every_operator_of_the_bridge_is_split_or_gathered_and_equals_the_whole() -> None:
    covered: set[str] = set()
    seen: set[tuple[str, int]] = set()
    for item in CASES + EXTRA:
        feeds = {f"x{place}": torch.from_numpy(np.asarray(value)) for place, value in enumerate(item.inputs)}
        for axis in range(max((value.dim() for value in feeds.values()), default=0)):
            size = next((value.shape[axis] for value in feeds.values() if value.dim() > axis), 0)
            known = (item.op, axis) in seen and item.op not in rules()
            if size >= 2 and not known:
                seen.add((item.op, axis))
                _check_cut(item, feeds, axis, covered)
    assert {op for op, _ in seen} | {"Range"} >= {
        name for domain, name in operators() if not domain
    } - WITHOUT
    assert covered == set(rules())


WITHOUT = {"Constant", "ConstantOfShape"}
"""Operators that read no tensor that could be split."""


def _check_cut(item: Case, feeds: dict[str, Tensor], axis: int, covered: set[str]) -> None:
    model = build(item)
    wanted = _listed(GraphModule(model).eval()(**feeds))

    def work(mesh: Mesh) -> Any:
        placer = Cut(GraphModule(model).eval(), feeds, mesh, split_by("channel"))
        placer.axis = axis
        with torch.no_grad():
            return _listed(placer.place().module(**feeds)), placer.decisions

    results = in_threads(2, work)
    for found, decisions in results:
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(
                one,
                other,
                rtol=2e-5,
                atol=2e-5,
                equal_nan=True,
                msg=lambda text: f"{item} axis {axis}: {text}",
            )
        covered |= {decision.op for decision in decisions if not decision.gathered}


def _listed(outputs: Any) -> Sequence[Tensor]:
    return [one.detach() for one in (outputs if isinstance(outputs, tuple) else (outputs,))]
