"""int8(rounding=adaptive): which levels are chosen, on what, and what becomes of the network's answers."""

import numpy as np
import pytest

from onnx_lathe import metadata
from onnx_lathe.passes.numerics.quantization.affine import signal_to_noise_db
from tests.support.builders import build, random, run
from tests.support.int8 import Form
from tests.support.rounding import IMAGE, Samples, adapt, alike

LAYERS = {
    "Conv": (IMAGE, "c = Conv <pads = [1, 1, 1, 1]> (x, w, b)  y = Relu (c)", (6, 4, 3, 3)),
    "uneven padding": (IMAGE, "y = Conv <pads = [2, 0, 1, 3], strides = [2, 1]> (x, w, b)", (6, 4, 3, 2)),
    "padding by name": (IMAGE, 'y = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w)', (6, 4, 4, 4)),
    "no padding by name": (IMAGE, 'y = Conv <auto_pad = "VALID", dilations = [2, 2]> (x, w)', (6, 4, 3, 3)),
    "groups": (IMAGE, "c = Conv <group = 2> (x, w, b)  y = LeakyRelu (c)", (6, 2, 3, 3)),
    "one dimension": (
        "(float[N, 4, 20] x) => (float[N, O, P] y) {{ {} }}",
        "y = Conv <pads = [1, 1]> (x, w, b)",
        (6, 4, 3),
    ),
    "Gemm": (
        "(float[N, 16] x) => (float[N, 6] y) {{ {} }}",
        "c = Gemm <alpha = 0.5, beta = 2.0> (x, w, b)  y = Relu (c)",
        (16, 6),
    ),
    "Gemm, transposed": (
        "(float[N, 16] x) => (float[N, 6] y) {{ {} }}",
        "y = Gemm <transB = 1> (x, w)",
        (6, 16),
    ),
    "MatMul": (
        "(float[N, 5, 16] x) => (float[N, 5, 6] y) {{ {} }}",
        "c = MatMul (x, w)  y = Add (g, c)",
        (16, 6),
    ),
}


@pytest.mark.parametrize("text, nodes, shape", LAYERS.values(), ids=LAYERS)
def test_a_layer_answers_nearer_to_the_float_one_on_samples_that_were_not_seen(
    text: str, nodes: str, shape: tuple[int, ...]
) -> None:
    model = build(text.format(nodes), w=random(*shape), b=random(6), g=10 + random(1, 1, 6))
    dims = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    data, unseen = Samples(120, *dims), alike(70, *dims)
    if "MatMul" in nodes:  # channels are last
        data.x, unseen = (random(samples, *dims) + 3 * random(samples, 5, 1) for samples in (120, 70))
    nearest, (adapted, report) = (
        adapt(model, data, "nearest", activations=False)[0],
        adapt(model, data, activations=False),
    )
    wanted = run(model, {"x": unseen})["y"]
    before, after = (signal_to_noise_db(wanted, run(one, {"x": unseen})["y"]) for one in (nearest, adapted))
    assert after > before + 1
    assert not report.skips
    assert report.edits[-1].what.endswith("dB signal to noise of what it answers")
    assert "levels are not the nearest" in report.edits[-1].what


def test_a_layer_makes_up_for_what_the_layers_rounded_before_it_lost() -> None:
    """What the first answers is of two channels that depend on each other: what it errs in one, the other tells."""
    model = build(
        IMAGE.format("c = Conv (x, v)  y = Conv (c, w)"), v=random(6, 4, 1, 1), w=random(5, 6, 1, 1)
    )
    data, unseen = Samples(64, 4, 9, 9), alike(30, 4, 9, 9)
    both, _ = adapt(model, data, activations=False)
    second, _ = adapt(model, data, activations=False, layers={"v": False})
    assert not np.array_equal(Form(both).constants["w_int8"], Form(second).constants["w_int8"])
    nearest, _ = adapt(model, data, "nearest", activations=False)
    wanted = run(model, {"x": unseen})["y"]
    before, after = (signal_to_noise_db(wanted, run(one, {"x": unseen})["y"]) for one in (nearest, both))
    assert after > before + 3


def test_pairs_that_the_model_had_stay_on_both_sides() -> None:
    nodes = "q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  y = MatMul (d, w)"
    step, weight = np.float32(9), random(16, 6)
    text = "(float[N, 16] x) => (float[N, 6] y) { "
    model = build(text + nodes + " }", w=weight, s=step, z=np.int8(0))
    data, rounded = Samples(60, 16), Samples(60, 16)
    rounded.x = np.rint(data.x / step) * step
    plain = build(text + "y = MatMul (x, w) }", w=weight)
    found, same, other = (
        Form(adapt(one, samples, existing="complete")[0]).constants["w_int8"]
        for one, samples in ((model, data), (plain, rounded), (plain, data))
    )
    np.testing.assert_array_equal(found, same)
    assert not np.array_equal(found, other)


@pytest.mark.parametrize("group", [1, 8])
def test_a_wide_range_of_activations_does_not_move_levels(group: int) -> None:
    """Of these activations INT8 keeps little, because of one outlier: no reason to round weights otherwise
    than for the float network.
    """
    data = Samples(64, 8, 6, 6)
    data.x[0, 0, 0, 0] = 200
    nodes = f"c = Conv <pads = [1, 1, 1, 1], group = {group}> (x, w)  y = Relu (c)"
    model = build(
        "(float[N, 8, 6, 6] x) => (float[N, O, P, Q] y) { " + nodes + " }", w=random(8, 8 // group, 3, 3)
    )
    with_pairs, without = (
        Form(adapt(model, data, activations=on, layers={"*": True})[0]).constants["w_int8"]
        for on in (True, False)
    )
    np.testing.assert_array_equal(with_pairs, without)


def test_nothing_but_the_levels_differs_from_rounding_to_nearest() -> None:
    weight = random(6, 4, 3, 3)
    weight[np.abs(weight) < 0.5] = 0
    model = build(IMAGE.format("c = Conv (x, w, b)  y = Relu (c)"), w=weight, b=random(6))
    model.metadata_props.add(key=metadata.SPARSE, value=metadata.format_sparse({"w": "unstructured"}))
    data = Samples(40, 4, 9, 9)
    nearest, adapted = adapt(model, data, "nearest")[0], adapt(model, data)[0]
    levels, changed = (Form(one).constants["w_int8"].astype(int) for one in (nearest, adapted))
    assert 0 < np.abs(changed - levels).max() <= 3
    assert not changed[weight == 0].any()
    for one in (nearest, adapted):
        (stored,) = [tensor for tensor in one.graph.initializer if tensor.name == "w_int8"]
        stored.raw_data = b""
    assert nearest == adapted


@pytest.mark.parametrize("opset", [11, 21])
def test_a_network_comes_nearer_to_the_float_one(opset: int) -> None:
    data, unseen = Samples(128, 4, 9, 9), alike(32, 4, 9, 9)
    nodes = "c = Conv <pads = [1, 1, 1, 1]> (x, v, b)  r = Relu (c)  d = Conv (r, w)  y = Relu (d)"
    model = build(IMAGE.format(nodes), opset=opset, v=random(8, 4, 3, 3), w=random(6, 8, 3, 3), b=random(8))
    nearest = adapt(model, data, "nearest", activations=False)[0]
    adapted, report = adapt(model, data, activations=False)
    expected = run(model, {"x": unseen})["y"]
    before, after = (signal_to_noise_db(expected, run(one, {"x": unseen})["y"]) for one in (nearest, adapted))
    assert after > before + 1.5
    assert not report.skips
    assert adapted == adapt(model, data, activations=False)[0]
