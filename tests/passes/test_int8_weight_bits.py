"""int8(weight_bits=...): weights of fewer levels, stored as INT8."""

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.passes.numerics.quantization.affine import signal_to_noise_db
from tests.support.builders import build, random, run
from tests.support.int8 import Form
from tests.support.rounding import IMAGE, Samples, adapt, alike

TEXT = IMAGE.format("c = Conv <pads = [1, 1, 1, 1]> (x, v, b)  r = Relu (c)  y = Conv (r, w)")


def network() -> onnx.ModelProto:
    return build(TEXT, v=random(8, 4, 3, 3), w=random(6, 8, 3, 3), b=random(8))


@pytest.mark.parametrize("bits, largest", [(2, 1), (4, 7), (7, 63)])
def test_levels_end_at_the_bits_and_scales_lose_least(bits: int, largest: int) -> None:
    model = network()
    weight = next(one for one in model.graph.initializer if one.name == "v")
    values = np.frombuffer(weight.raw_data, np.float32).reshape(weight.dims)
    result, report = adapt(model, Samples(40, 4, 9, 9), "nearest", weight_bits=bits)
    form = Form(result)
    levels = form.constants["v_int8"]
    assert levels.dtype == np.int8
    assert np.abs(levels).max() == largest
    scale = form.constants["v_scale"].reshape(-1, 1, 1, 1)
    widest = np.abs(values).max((1, 2, 3), keepdims=True) / largest
    by_largest = np.clip(np.rint(values / widest), -largest, largest) * widest
    assert np.square(levels * scale - values).sum() <= np.square(by_largest - values).sum()
    assert any(f"weight is INT8 of {2 * largest + 1} levels" in edit.what for edit in report.edits)


def test_single_layers_may_have_others() -> None:
    result, _ = adapt(network(), Samples(40, 4, 9, 9), "nearest", weight_bits=4, layer_weight_bits={"v": 8})
    form = Form(result)
    assert np.abs(form.constants["v_int8"]).max() == 127
    assert np.abs(form.constants["w_int8"]).max() == 7


def test_few_levels_that_answer_together_lose_much_less() -> None:
    model, unseen = network(), alike(40, 4, 9, 9)
    nearest, adapted = (
        adapt(model, Samples(100, 4, 9, 9), rounding, weight_bits=4, activations=False)[0]
        for rounding in ("nearest", "adaptive")
    )
    wanted = run(model, {"x": unseen})["y"]
    before, after = (signal_to_noise_db(wanted, run(one, {"x": unseen})["y"]) for one in (nearest, adapted))
    assert after > before + 3
    assert np.abs(Form(adapted).constants["v_int8"]).max() <= 7


@pytest.mark.parametrize("bits, largest", [(3, 3), (4, 7)])
def test_few_levels_that_make_up_for_each_other_lose_less_on_samples_that_were_not_seen(
    bits: int, largest: int
) -> None:
    model, unseen = network(), alike(40, 4, 9, 9)
    nearest, hessian = (
        adapt(model, Samples(100, 4, 9, 9), rounding, weight_bits=bits, activations=False)
        for rounding in ("nearest", "hessian")
    )
    wanted = run(model, {"x": unseen})["y"]
    before, after = (
        signal_to_noise_db(wanted, run(one, {"x": unseen})["y"]) for one, _ in (nearest, hessian)
    )
    assert after > before + 2
    for name in ("v_int8", "w_int8"):
        levels = Form(hessian[0]).constants[name]
        assert levels.dtype == np.int8
        assert np.abs(levels).max() == largest
        assert (levels != Form(nearest[0]).constants[name]).any()
    assert sum("levels are not the nearest" in edit.what for edit in hessian[1].edits) == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weight_bits": 1}, r"int8\(weight_bits=...\) must be 2 to 8, not 1"),
        ({"layer_weight_bits": {"v": 9}}, r"int8\(layer_weight_bits=...\) must be 2 to 8, not 9"),
        ({"layer_weight_bits": {"none": 4}}, "none"),
    ],
)
def test_other_widths_and_patterns_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        adapt(network(), Samples(40, 4, 9, 9), "nearest", **options)
