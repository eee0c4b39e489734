"""int8: the canonical form, rule by rule."""

import json

import numpy as np
import pytest

from onnx_lathe import metadata
from onnx_lathe.passes.numerics.quantization import affine
from tests.support.builders import build, random, run
from tests.support.int8 import CONV, HIGH, LOW, RESIDUAL, FixedCalibrator, Form, quantize


@pytest.mark.parametrize(
    "text, shape, axis",
    [
        (CONV.format(nodes="y = Conv (x, w)"), (6, 4, 3, 3), 0),
        (CONV.format(nodes="y = Conv <group = 2> (x, w)"), (6, 2, 3, 3), 0),
        ("(float[N, 4, 9] x) => (float[N, 6, 7] y) { y = Conv (x, w) }", (6, 4, 3), 0),
        ("(float[N, 4] x) => (float[N, 6] y) { y = Gemm (x, w) }", (4, 6), 1),
        ("(float[N, 4] x) => (float[N, 6] y) { y = Gemm <transB = 1, alpha = 0.5> (x, w) }", (6, 4), 0),
        ("(float[N, 5, 4] x) => (float[N, 5, 6] y) { y = MatMul (x, w) }", (4, 6), 1),
    ],
    ids=["conv", "grouped conv", "conv 1d", "gemm", "gemm transB", "matmul"],
)
def test_weights_per_output_channel_and_activations_per_tensor(
    text: str, shape: tuple[int, ...], axis: int
) -> None:
    model = build(text, w=random(*shape))
    result, report = quantize(model)
    form, weight = Form(result), Form(model).constants["w"]
    layer = form.nodes[-1]
    assert form.ops() == sorted([layer.op_type, "DequantizeLinear", "DequantizeLinear", "QuantizeLinear"])

    decoder = form.producers[layer.input[1]]
    assert decoder.output[0] == "w"
    levels, scale, zero = (form.constants[name] for name in decoder.input)
    assert [(a.name, a.i) for a in decoder.attribute] == [("axis", axis)]
    assert (levels.dtype, zero.dtype, scale.dtype) == (np.int8, np.int8, np.float32)
    assert scale.shape == zero.shape == (shape[axis],)
    assert not zero.any()
    assert (
        np.abs(levels.astype(int)).max(axis=tuple(i for i in range(len(shape)) if i != axis)).tolist()
        == [127] * shape[axis]
    )
    np.testing.assert_array_equal(levels, affine.quantize(weight, affine.channel_scale(weight, axis), axis))

    dequantize = form.producers[layer.input[0]]
    quantizer = form.producers[dequantize.input[0]]
    assert (dequantize.op_type, quantizer.op_type, quantizer.input[0]) == (
        "DequantizeLinear",
        "QuantizeLinear",
        "x",
    )
    assert dequantize.input[1:] == quantizer.input[1:]
    scale, zero = (form.constants[name] for name in quantizer.input[1:])
    assert (scale.shape, zero.shape, zero.dtype, int(zero)) == ((), (), np.int8, 0)
    assert scale == np.float32(HIGH / 127)
    assert {entry.key: json.loads(entry.value) for entry in quantizer.metadata_props} == {
        metadata.RANGE: [LOW, HIGH]
    }

    assert report.metrics == {"layers": 1, "quantized_activations": 1}
    assert {edit.node for edit in report.edits} == {layer.name}
    feeds = {"x": random(2, *[dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]])}
    clipped = {"x": np.clip(feeds["x"], -HIGH, HIGH)}
    expected, found = run(model, clipped)["y"], run(result, clipped)["y"]
    assert affine.signal_to_noise_db(expected, found) > 30


def test_the_bias_stays_float() -> None:
    model = build(CONV.format(nodes="y = Conv (x, w, b)"), w=random(6, 4, 3, 3), b=random(6))
    form = Form(quantize(model)[0])
    assert form.layer("Conv").input[2] == "b"
    np.testing.assert_array_equal(form.constants["b"], Form(model).constants["b"])


def test_a_dead_channel_gets_a_positive_scale() -> None:
    weight = random(6, 4, 3, 3)
    weight[2] = 0
    form = Form(quantize(build(CONV.format(nodes="y = Conv (x, w)"), w=weight))[0])
    assert form.constants["w_scale"][2] == np.float32(1e-8)
    assert not form.constants["w_int8"][2].any()


def test_one_pair_serves_all_quantized_readers_and_no_other() -> None:
    text = """(float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y, float[N, 6, 8, 8] z, float[N, 4, 8, 8] s) {
        r = Relu (x)  y = Conv (r, a)  z = Conv (r, b)  s = Sigmoid (r) }"""
    calibrator = FixedCalibrator()
    result, report = quantize(build(text, a=random(6, 4, 1, 1), b=random(6, 4, 1, 1)), calibrator)
    form = Form(result)
    assert calibrator.asked == ["r"]
    assert form.ops().count("QuantizeLinear") == 1
    assert form.layer("Conv").input[0] == form.layer("Conv", 1).input[0]
    assert form.layer("Sigmoid").input[0] == "r"
    assert report.metrics == {"layers": 2, "quantized_activations": 1}


def test_quantization_comes_after_activation_and_pooling() -> None:
    text = """(float[N, 4, 8, 8] x) => (float[N, 5] y) {
        c = Conv (x, a)  r = Relu (c)  p = GlobalMaxPool (r)  f = Flatten (p)  y = Gemm (f, b) }"""
    form = Form(quantize(build(text, a=random(6, 4, 3, 3), b=random(6, 5)))[0])
    assert form.chain(form.layer("Gemm").input[0])[:4] == [
        "DequantizeLinear",
        "QuantizeLinear",
        "Flatten",
        "GlobalMaxPool",
    ]
    assert form.layer("Relu").input[0] == "c"


def test_a_concatenation_has_one_scale() -> None:
    text = """(float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y) {
        r = Relu (x)  t = Tanh (x)  j = Concat <axis = 1> (r, t)  y = Conv (j, w) }"""
    form = Form(quantize(build(text, w=random(6, 8, 1, 1)))[0])
    assert form.chain(form.layer("Conv").input[0])[:3] == ["DequantizeLinear", "QuantizeLinear", "Concat"]
    assert form.ops().count("QuantizeLinear") == 1


NORMALIZED = "n = BatchNormalization (c, one, one, one, one)"


@pytest.mark.parametrize("add", ["Add", "Sum"])
@pytest.mark.parametrize(
    "body, quantized_operand",
    [
        ("c = Conv (i, w)  s = {add} (c, i)", 1),
        ("c = Conv (i, w)  s = {add} (i, c)", 0),
        (f"c = Conv (i, w)  {NORMALIZED}  s = {{add}} (n, i)", 1),
    ],
    ids=["skip behind", "skip in front", "through batch normalization"],
)
def test_a_residual_addition_reads_its_skip_input_quantized(
    add: str, body: str, quantized_operand: int
) -> None:
    result, report = quantize(
        build(RESIDUAL.format(body=body.format(add=add)), w=random(4, 4, 1, 1), one=np.ones(4, np.float32))
    )
    form = Form(result)
    node = form.layer(add)
    assert node.input[quantized_operand] == form.layer("Conv").input[0]  # one pair per tensor
    assert form.chain(node.input[1 - quantized_operand])[0] in ("Conv", "BatchNormalization")
    assert (node.name, "reads i as INT8, like other layers") in [
        (edit.node, edit.what) for edit in report.edits
    ]
    assert report.metrics["quantized_activations"] == 1


def test_a_residual_projection_is_quantized_behind_its_convolution() -> None:
    body = "c = Conv (i, w)  d = Conv (i, v)  s = Add (c, d)"
    result, report = quantize(build(RESIDUAL.format(body=body), w=random(4, 4, 1, 1), v=random(4, 4, 1, 1)))
    form = Form(result)
    assert form.chain(form.layer("Add").input[0])[0] == "Conv"
    assert form.chain(form.layer("Add").input[1])[:3] == ["DequantizeLinear", "QuantizeLinear", "Conv"]
    assert report.metrics["quantized_activations"] == 2


@pytest.mark.parametrize(
    "body",
    [
        "c = Relu (i)  d = Tanh (i)  s = Add (c, d)",
        "c = Conv (i, w)  s = Add (c, b)",
        "c = Conv (i, w)  g = GlobalAveragePool (i)  s = Add (c, g)",
        "c = Conv (i, w)  d = Relu (c)  s = Add (c, d)",
    ],
    ids=["no convolution", "a constant", "broadcast", "two readers"],
)
def test_other_additions_stay_as_they_are(body: str) -> None:
    result, _ = quantize(build(RESIDUAL.format(body=body), w=random(4, 4, 1, 1), b=random(4, 1, 1)))
    form = Form(result)
    assert "DequantizeLinear" not in [form.chain(name)[0] for name in form.layer("Add").input]


def test_a_shared_weight_is_stored_once() -> None:
    text = "(float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) { a = Conv (x, w)  r = Relu (a)  y = Conv (r, w) }"
    result, report = quantize(build(text, w=random(4, 4, 1, 1)))
    form = Form(result)
    assert form.layer("Conv").input[1] == form.layer("Conv", 1).input[1] == "w"
    assert form.ops().count("DequantizeLinear") == 3
    assert report.metrics["layers"] == 2


def test_a_codebook_keeps_its_indices_and_is_quantized_behind_them() -> None:
    indices = np.random.default_rng(0).integers(0, 16, (6, 4, 3, 3)).astype(np.uint8)
    text = CONV.format(nodes="i = Cast <to = 6> (k)  w = Gather <axis = 0> (book, i)  y = Conv (x, w)")
    model = build(text, k=indices, book=random(16))
    model.metadata_props.add(key=metadata.SPARSE, value=metadata.format_sparse({"w": "unstructured"}))
    result, _ = quantize(model)
    form = Form(result)
    assert form.chain(form.layer("Conv").input[1]) == ["DequantizeLinear", "QuantizeLinear", "Gather", "book"]
    assert form.producers["w"].op_type == "Gather"
    np.testing.assert_array_equal(form.constants["k"], indices)
    assert form.constants["w_scale"].shape == (6,)
    assert [(a.name, a.i) for a in form.producers[form.layer("Conv").input[1]].attribute] == [("axis", 0)]
    assert metadata.read_sparse(result.metadata_props) == {"w": "unstructured"}
    assert result.ByteSize() < model.ByteSize() + 2000
    feeds = {"x": np.clip(random(2, 4, 8, 8), -HIGH, HIGH)}
    assert affine.signal_to_noise_db(run(model, feeds)["y"], run(result, feeds)["y"]) > 30


def test_a_weight_decoded_in_another_way_is_stored_as_int8() -> None:
    text = CONV.format(
        nodes="f = Cast <to = 1> (half)  w = Transpose <perm = [3, 2, 0, 1]> (f)  y = Conv (x, w)"
    )
    stored = random(3, 3, 4, 6).astype(np.float16)
    result, _ = quantize(build(text, half=stored))
    form = Form(result)
    assert form.ops() == ["Conv", "DequantizeLinear", "DequantizeLinear", "QuantizeLinear"]
    weight = stored.astype(np.float32).transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(
        form.constants["w_int8"], affine.quantize(weight, affine.channel_scale(weight, 0), 0)
    )


@pytest.mark.parametrize(
    "text, constants",
    [
        ("w = ConstantOfShape <value = float[1] {0.5}> (s)", {"s": np.array([6, 4, 3, 3])}),
        ("w = Expand (v, s)", {"v": random(6, 4, 1, 1), "s": np.array([6, 4, 3, 3])}),
        ("w = Tile (v, s)", {"v": random(6, 2, 3, 3), "s": np.array([1, 2, 1, 1])}),
    ],
    ids=["ConstantOfShape", "Expand", "Tile"],
)
def test_a_weight_of_a_few_repeated_numbers_is_stored_as_int8(
    text: str, constants: dict[str, np.ndarray]
) -> None:
    model = build(f"(float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] y) {{ {text} y = Conv (x, w) }}", **constants)
    result, report = quantize(model)
    form = Form(result)
    assert form.ops() == ["Conv", "DequantizeLinear", "DequantizeLinear", "QuantizeLinear"]
    assert (form.constants["w_int8"].shape, form.constants["w_int8"].dtype) == ((6, 4, 3, 3), np.int8)
    assert report.skips == []
    stored = sum(array.nbytes for array in constants.values())
    said = f"int8 stores 216 weights that {text.split()[2]} wrote from fewer numbers: {stored} B -> 240 B of the file; "
    node = "Conv_1"
    assert report.warnings == (
        [f"{said}int8(layers={{{node}: false}}) keeps them in float"] if stored < 240 else []
    )
    feeds = {"x": np.clip(random(2, 4, 8, 8), -HIGH, HIGH)}
    assert affine.signal_to_noise_db(run(model, feeds)["y"], run(result, feeds)["y"]) > 30


def test_zeros_stay_zero() -> None:
    weight = random(6, 4, 3, 3)
    weight[weight < 0.8] = 0
    model = build(CONV.format(nodes="y = Conv (x, w)"), w=weight)
    model.metadata_props.add(key=metadata.SPARSE, value=metadata.format_sparse({"w": "unstructured"}))
    result, _ = quantize(model)
    assert not Form(result).constants["w_int8"][weight == 0].any()
    assert metadata.read_sparse(result.metadata_props) == {"w": "unstructured"}
