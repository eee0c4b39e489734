"""int8(rounding=adaptive): which layers are rounded, on what, and what becomes of the levels."""

from collections.abc import Mapping

import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.passes.int8 import rounding
from onnx_lathe.passes.numerics.quantization.affine import signal_to_noise_db
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from onnx_lathe.runtime.training import TorchRounder
from tests.support.builders import build, random, run
from tests.support.int8 import Form
from tests.support.rounding import IMAGE, ROWS, Recorder, Samples, adapt


def replayed(call: Mapping, levels: np.ndarray) -> np.ndarray:
    """What ONNX Runtime computes with the model that the rounder was given."""
    feeds = {**call["inputs"], call["weight"]: (levels * call["step"]).astype(np.float32)}
    model = onnx.ModelProto()
    model.CopyFrom(call["layer"])
    model.ir_version = 9
    return next(iter(run(model, feeds).values()))


LAYERS = {
    "Conv": (IMAGE, "c = Conv <pads = [1, 1, 1, 1]> (x, w, b)  y = Relu (c)", (6, 4, 3, 3)),
    "uneven padding": (IMAGE, "y = Conv <pads = [2, 0, 1, 3], strides = [2, 1]> (x, w, b)", (6, 4, 3, 2)),
    "padding by name": (IMAGE, 'y = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w)', (6, 4, 4, 4)),
    "no padding by name": (IMAGE, 'y = Conv <auto_pad = "VALID", dilations = [2, 2]> (x, w)', (6, 4, 3, 3)),
    "groups": (IMAGE, "c = Conv <group = 2> (x, w, b)  y = LeakyRelu (c)", (6, 2, 3, 3)),
    "large image": (
        "(float[N, 4, 30, 30] x) => (float[N, O, P, Q] y) {{ {} }}",
        "y = Conv <pads = [1, 1, 1, 1]> (x, w, b)",
        (6, 4, 3, 3),
    ),
    "one dimension": (
        "(float[N, 4, 20] x) => (float[N, O, P] y) {{ {} }}",
        "y = Conv <pads = [1, 1]> (x, w, b)",
        (6, 4, 3),
    ),
    "normalization": (
        IMAGE,
        "c = Conv (x, w)  n = BatchNormalization (c, b, b, b, v)  y = Relu (n)",
        (6, 4, 3, 3),
    ),
    "skip": (IMAGE, "c = Conv <pads = [1, 1, 1, 1]> (x, w)  s = Add (c, x)  y = Relu (s)", (4, 4, 3, 3)),
    "two before": (
        IMAGE,
        "c = Conv (x, w)  a = Add (c, e)  m = Mul (f, a)  y = Clip (m, zero, f)",
        (6, 4, 3, 3),
    ),
    "PRelu": (IMAGE, "c = Conv (x, w)  y = PRelu (c, e)", (6, 4, 3, 3)),
    "Gemm": (ROWS, "c = Gemm <alpha = 0.5, beta = 2.0> (x, w, b)  y = Relu (c)", (4, 6)),
    "Gemm, transposed": (ROWS, "y = Gemm <transB = 1> (x, w)", (6, 4)),
    "MatMul": (
        "(float[N, 5, 4] x) => (float[N, 5, 6] y) {{ {} }}",
        "c = MatMul (x, w)  a = Add (g, c)  y = Sigmoid (a)",
        (4, 6),
    ),
}


@pytest.mark.parametrize("text, nodes, shape", LAYERS.values(), ids=LAYERS)
def test_the_layer_alone_computes_what_it_computes_in_the_network(
    text: str, nodes: str, shape: tuple[int, ...]
) -> None:
    constants = {
        "w": random(*shape),
        "b": random(6),
        "v": random(6) ** 2 + 1,
        "e": random(6, 1, 1),
        "f": np.float32(2),
        "g": random(1, 1, 6),
    }
    text = text.format(nodes)
    model = build(text, zero=np.float32(0), **constants)
    dims = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    recorder = Recorder()
    result, report = adapt(model, Samples(6, *dims), recorder, activations=False, rounding_steps=7)
    (call,) = recorder.calls
    assert call["steps"] == 7
    np.testing.assert_allclose(call["exact"] * call["step"], constants["w"], rtol=1e-6, atol=1e-6)
    assert [node.op_type for node in call["layer"].graph.node] == [node.op_type for node in model.graph.node]
    assert len(call["target"]) == (30 if nodes.startswith("c = MatMul") else 6)
    assert all(size <= rounding.EDGE for size in call["target"].shape[2:])
    np.testing.assert_allclose(
        replayed(call, call["exact"]), call["target"], rtol=0, atol=2e-5 * np.abs(call["target"]).max()
    )
    form = Form(result)
    np.testing.assert_array_equal(form.constants["w_int8"], call["high"])
    assert report.edits[-1].what.endswith(
        "levels are not the nearest: 20.0 -> 30.0 dB signal to noise behind the layer"
    )


def test_a_layer_sees_what_the_layers_rounded_before_it_give() -> None:
    model = build(
        IMAGE.format("c = Conv (x, v)  r = Relu (c)  y = Conv (r, w)"),
        v=random(5, 4, 1, 1),
        w=random(6, 5, 1, 1),
    )
    data, recorder = Samples(3, 4, 9, 9), Recorder()
    result, _ = adapt(model, data, recorder, activations=False)
    first, second = recorder.calls
    (seen,) = second["inputs"].values()
    given = np.maximum(np.einsum("oihw,nixy->noxy", first["high"] * first["step"], data.x), 0)
    for window, image in zip(seen, given, strict=True):
        places = [image[:, row : row + 8, column : column + 8] for row in range(2) for column in range(2)]
        assert min(np.abs(window - place).max() for place in places) < 1e-4
    np.testing.assert_array_equal(Form(result).constants["v_int8"], first["high"])


def test_activations_are_float_on_both_sides() -> None:
    """Weights that make up for one target's activations would harm on another, which has them asymmetric."""
    model, data, recorder = (
        build(ROWS.format("h = MatMul (x, v)  y = MatMul (h, w)"), v=random(4, 4), w=random(4, 6)),
        Samples(40, 4),
        Recorder(),
    )
    result, _ = adapt(model, data, recorder)
    assert Form(result).ops().count("QuantizeLinear") == 2
    first, second = recorder.calls
    np.testing.assert_array_equal(next(iter(first["inputs"].values())), data.x)
    np.testing.assert_allclose(
        next(iter(second["inputs"].values())), data.x @ (first["high"] * first["step"]), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(second["target"], run(model, {"x": data.x})["y"])


def test_pairs_that_the_model_had_stay_on_both_sides() -> None:
    nodes = (
        "q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  h = MatMul (d, v)  y = MatMul (h, w)"
    )
    model = build(ROWS.format(nodes), v=random(4, 4), w=random(4, 6), s=np.float32(0.1), z=np.int8(0))
    data, recorder = Samples(40, 4), Recorder()
    adapt(model, data, recorder, existing="complete")
    first = next(iter(recorder.calls[0]["inputs"].values()))
    np.testing.assert_allclose(first, np.rint(data.x / np.float32(0.1)) * np.float32(0.1), rtol=0, atol=1e-5)


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
    layers = {"layers": {"*": True}}
    with_pairs, without = (
        Form(adapt(model, data, TorchRounder(), rounding_steps=60, activations=on, **layers)[0]).constants[
            "w_int8"
        ]
        for on in (True, False)
    )
    np.testing.assert_array_equal(with_pairs, without)


def test_nothing_but_the_levels_differs_from_rounding_to_nearest() -> None:
    weight = random(6, 4, 3, 3)
    weight[np.abs(weight) < 0.5] = 0
    model = build(IMAGE.format("c = Conv (x, w, b)  y = Relu (c)"), w=weight, b=random(6))
    model.metadata_props.add(key=metadata.SPARSE, value=metadata.format_sparse({"w": "unstructured"}))
    data = Samples(8, 4, 9, 9)
    nearest, adapted = adapt(model, data)[0], adapt(model, data, Recorder())[0]
    levels, changed = (Form(one).constants["w_int8"].astype(int) for one in (nearest, adapted))
    assert set(np.unique(changed - levels)) == {0, 1}
    assert not changed[weight == 0].any()
    for one in (nearest, adapted):
        (stored,) = [tensor for tensor in one.graph.initializer if tensor.name == "w_int8"]
        stored.raw_data = b""
    assert nearest == adapted


STOPS = {
    "an output": "(float[N, 4, 9, 9] x) => (float[N, O, P, Q] c, float[N, O, P, Q] y) { c = Conv (x, w)  y = Relu (c) }",
    "two readers": IMAGE.format("c = Conv (x, w)  r = Relu (c)  t = Tanh (c)  y = Add (r, t)"),
    "another operator": IMAGE.format(
        "c = Conv (x, w)  p = MaxPool <kernel_shape = [2, 2]> (c)  y = Relu (p)"
    ),
    "a broadcast addition": IMAGE.format(
        "g = GlobalMaxPool (x)  c = Conv (x, w)  s = Add (c, g)  y = Relu (s)"
    ),
    "a constant per position": IMAGE.format("c = Conv (x, w)  s = Add (c, row)  y = Relu (s)"),
    "no activation": IMAGE.format("c = Conv (x, w)  y = Add (c, e)"),
    "a body that reads it": """(float[N, 4, 9, 9] x) => (float[N, O, P, Q] y) {
        c = Conv (x, w)  r = Relu (c)  y = If (f) <then_branch = a () => (float[N, O, P, Q] z) { z = Add (c, r) },
        else_branch = b () => (float[N, O, P, Q] z) { z = Identity (r) }> }""",
}


@pytest.mark.parametrize("text", STOPS.values(), ids=STOPS)
def test_where_no_activation_follows_the_layer_is_matched_itself(text: str) -> None:
    model, recorder = (
        build(text, w=random(4, 4, 1, 1), e=random(4, 1, 1), row=random(9), f=np.array(True)),
        Recorder(),
    )
    adapt(model, Samples(4, 4, 9, 9), recorder)
    assert [[node.op_type for node in call["layer"].graph.node] for call in recorder.calls] == [["Conv"]]


def test_the_activation_is_found_behind_a_quantized_addition() -> None:
    """Where a target adds in INT8, pairs stand between the layer and its activation."""
    nodes = "c = Conv (x, w)  q = QuantizeLinear (c, s, z)  d = DequantizeLinear (q, s, z)  a = Add (d, x)  y = Relu (a)"
    model = build(IMAGE.format(nodes), w=random(4, 4, 1, 1), s=np.float32(0.05), z=np.int8(0))
    recorder = Recorder()
    adapt(model, Samples(4, 4, 9, 9), recorder)
    assert [node.op_type for node in recorder.calls[0]["layer"].graph.node][-2:] == ["Add", "Relu"]
    assert len(recorder.calls[0]["inputs"]) == 2


def test_samples_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "SAMPLE_BYTES", 10_000)
    nodes = "c = Conv (x, v)  r = Relu (c)  y = Conv (r, w)"
    recorder = Recorder()
    adapt(
        build(IMAGE.format(nodes), v=random(5, 4, 1, 1), w=random(6, 5, 1, 1)),
        Samples(200, 4, 9, 9),
        recorder,
    )
    sizes = [
        sum(array.nbytes for array in (*call["inputs"].values(), call["target"])) for call in recorder.calls
    ]
    assert all(5_000 < size <= 10_000 for size in sizes)


def test_many_layers_are_sampled_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "ROUNDS", 2)
    runs = []
    monkeypatch.setattr(
        StreamingCalibrator,
        "observe",
        lambda self, *call, was=StreamingCalibrator.observe: (runs.append(1), was(self, *call))[1],
    )
    text = ROWS.format("a = MatMul (x, u)  b = MatMul (a, v)  y = MatMul (b, w)")
    recorder = Recorder()
    adapt(build(text, u=random(4, 3), v=random(3, 5), w=random(5, 6)), Samples(8, 4), recorder)
    assert [call["weight"] for call in recorder.calls] == ["u", "v", "w"]
    assert len(runs) == 4  # two groups, two networks


@pytest.mark.slow
@pytest.mark.parametrize("opset", [11, 21])
def test_a_network_comes_nearer_to_the_float_one(opset: int) -> None:
    """End to end, with PyTorch and ONNX Runtime, on samples that nothing was chosen on."""
    generator = np.random.default_rng(5)
    # channels alike, so that errors of weights can cancel
    mixing = generator.standard_normal((4, 4)).astype(np.float32)
    data, unseen = Samples(128, 4, 9, 9), random(32, 4, 9, 9)
    mixing[:, 0] += 3
    data.x = np.einsum("oi,nixy->noxy", mixing, data.x)
    unseen = np.einsum("oi,nixy->noxy", mixing, unseen)
    nodes = "c = Conv <pads = [1, 1, 1, 1]> (x, v, b)  r = Relu (c)  d = Conv (r, w)  y = Relu (d)"
    weights = {
        name: generator.standard_normal(shape).astype(np.float32)
        for name, shape in (("v", (8, 4, 3, 3)), ("w", (6, 8, 3, 3)), ("b", 8))
    }
    model = build(IMAGE.format(nodes), opset=opset, **weights)
    rounder = TorchRounder()
    nearest, (adapted, report) = (
        adapt(model, data, activations=False)[0],
        adapt(model, data, rounder, activations=False, rounding_steps=150),
    )
    expected = run(model, {"x": unseen})["y"]
    before, after = (signal_to_noise_db(expected, run(one, {"x": unseen})["y"]) for one in (nearest, adapted))
    assert after > before + 1.5
    assert not report.skips
    assert adapted == adapt(model, data, rounder, activations=False, rounding_steps=150)[0]
