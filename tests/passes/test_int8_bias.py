"""int8(bias_correction=true): layers keep the means of their outputs, and no network's outputs get worse by
it.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.int8.int8 import Int8
from onnx_lathe.passes.numerics.quantization import affine
from onnx_lathe.passes.retrain import Retrain
from onnx_lathe.protocols import Observed
from onnx_lathe.runtime.data import model_inputs, open_source
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup
from tests.support import calls
from tests.support.builders import build, random, run
from tests.support.int8 import Fixed, Form, Rows, quantize
from tests.support.seeds import generator

X = np.abs(random(64, 4))
IMAGES = np.abs(random(32, 3, 6, 6))


def coarse(*shape: int, axis: int = 0) -> np.ndarray:
    """Weights of which one per channel is so large that the others are rounded to few levels, and mostly
    down.
    """
    weight = np.float32(0.4) + np.float32(0.05) * np.abs(random(*shape))
    view = np.moveaxis(weight, axis, 0)
    view[(slice(None), *[0] * (len(shape) - 1))] = 127
    return weight


def means(
    model: onnx.ModelProto, tensors: Sequence[str], feeds: Mapping[str, np.ndarray], axis: int
) -> list[np.ndarray]:
    seen = onnx.ModelProto.FromString(model.SerializeToString())
    del seen.graph.output[:]
    seen.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    values = run(seen, feeds)
    return [
        values[name].mean(tuple(i for i in range(values[name].ndim) if i != axis % values[name].ndim))
        for name in tensors
    ]


@pytest.mark.parametrize(
    "layers, constants, axis, responses",
    [
        (
            "h = Conv (x, a)  r = Relu (h)  y = Conv (r, b, c)",
            {"a": (5, 3, 3, 3), "b": (4, 5, 3, 3), "c": (4,)},
            1,
            ["h"],
        ),
        ("y = Conv <group = 3> (x, a, )", {"a": (6, 1, 3, 3)}, 1, ["y"]),
    ],
)
def test_the_means_of_convolutions_come_back(
    layers: str, constants: dict[str, tuple[int, ...]], axis: int, responses: list[str]
) -> None:
    text = f"(float[N, 3, 6, 6] x) => (float[N, C, H, W] y) {{ {layers} }}"
    model = build(
        text,
        **{
            name: coarse(*shape) if len(shape) > 1 else np.ones(shape, np.float32)
            for name, shape in constants.items()
        },
    )
    check(model, {"x": IMAGES}, axis, responses)


@pytest.mark.parametrize(
    "layers, constants",
    [
        ("y = Gemm (x, a)", {}),
        ("y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, b, c)", {"c": np.ones((1, 1), np.float32)}),
        ("h = MatMul (x, a)  y = Add (c, h)", {"c": np.ones((1, 6), np.float32)}),
    ],
)
def test_the_means_of_products_come_back(layers: str, constants: dict[str, np.ndarray]) -> None:
    model = build(
        f"(float[N, 4] x) => (float[N, 6] y) {{ {layers} }}",
        a=coarse(4, 6, axis=1),
        b=coarse(6, 4),
        **constants,
    )
    check(model, {"x": X}, 1, ["y"])


def check(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], axis: int, responses: list[str]) -> None:
    """The means of the responses, which no corrected layer comes before, are off without correction and
    right with it.
    """
    calibrator = StreamingCalibrator(Rows(**feeds))
    options = {"method": "minmax", "layers": {"*": True}}
    plain, corrected = (quantize(model, calibrator, bias_correction=on, **options) for on in (False, True))
    wanted = means(model, responses, feeds, axis)
    for one, other, right in zip(
        means(plain[0], responses, feeds, axis),
        means(corrected[0], responses, feeds, axis),
        wanted,
        strict=True,
    ):
        assert np.abs(one - right).max() > 0.005 * np.abs(right).max()
        np.testing.assert_allclose(other, right, rtol=1e-3)
    expected = run(model, feeds)["y"]
    before, after = (
        affine.signal_to_noise_db(expected, run(result, feeds)["y"]) for result, _ in (plain, corrected)
    )
    assert corrected[1].metrics["bias_correction_gain_db"] == pytest.approx(after - before, abs=0.1)
    assert after > before + 1
    layers = {node.name for node in import_model(model).nodes if node.op in ("Conv", "Gemm", "MatMul")}
    assert {
        edit.node for edit in corrected[1].edits if edit.what.startswith("bias corrected: the means")
    } == layers


def test_a_codebook_is_corrected_by_what_it_decodes_to() -> None:
    text = "(float[N, 4] x) => (float[N, 6] y) { i = Cast <to = 6> (k)  w = Gather <axis = 0> (book, i)  y = Gemm (x, w) }"
    book = np.append(np.float32(0.4 + 0.01 * generator().random(15)), np.float32(127))
    codes = generator().integers(0, 15, (4, 6)).astype(np.uint8)
    codes[0] = 15
    check(build(text, k=codes, book=book), {"x": X}, 1, ["y"])


def test_a_shared_bias_becomes_one_for_each_layer() -> None:
    text = "(float[N, 4] x) => (float[N, 4] y, float[4] b) {  h = Gemm (x, v, b)  y = Gemm (h, w, b) }"
    model = build(text, v=coarse(4, 4, axis=1), w=coarse(4, 4, axis=1), b=np.ones(4, np.float32))
    form = Form(quantize(model, StreamingCalibrator(Rows(x=X)), bias_correction=True)[0])
    first, second = (form.constants[form.layer("Gemm", index).input[2]] for index in range(2))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(form.constants["b"], np.ones(4))


def test_a_bias_that_keeps_zeros_and_a_product_without_one_stay() -> None:
    text = "(float[N, 4] x) => (float[N, 6] y, float[N, 6] z) { y = Gemm (x, v, b)  z = MatMul (x, w) }"
    model = build(text, v=coarse(4, 6, axis=1), w=coarse(4, 6, axis=1), b=np.zeros(6, np.float32))
    model.metadata_props.add(key=metadata.SPARSE, value=metadata.format_sparse({"b": "unstructured"}))
    result, report = quantize(model, StreamingCalibrator(Rows(x=X)), bias_correction=True)
    assert not Form(result).constants["b"].any()
    assert Form(result).ops().count("Add") == 0
    assert "bias_correction_gain_db" not in report.metrics


class Narrow(StreamingCalibrator):
    """Measures ranges far narrower than what the tensors hold."""

    def statistics(self, model: onnx.ModelProto, tensors: Sequence[str]) -> Mapping[str, Fixed]:
        return dict.fromkeys(tensors, Fixed())


def test_where_outputs_would_be_worse_the_biases_stay() -> None:
    """Most inputs are far below the range; a ReLU hides what that does, until the correction lowers the
    others by as much.
    """
    x = np.where(np.arange(64) % 8, -10, 2).astype(np.float32)[:, None]
    model = build(
        "(float[N, 1] x) => (float[N, 1] y) { h = Gemm (x, w, b)  y = Relu (h) }",
        w=np.ones((1, 1), np.float32),
        b=np.float32([0.1]),
    )
    result, report = quantize(model, Narrow(Rows(x=x)), bias_correction=True)
    assert report.metrics["bias_correction_gain_db"] == 0
    assert Form(result).layer("Gemm").input[2] == "b"
    assert {tensor.name for tensor in result.graph.initializer} == {
        "b",
        "w_int8",
        "w_scale",
        "w_zero_point",
        "x_scale",
        "x_zero_point",
    }
    np.testing.assert_allclose(run(result, {"x": x})["y"], run(model, {"x": x})["y"], atol=0.05)


def test_training_goes_on_from_corrected_biases() -> None:
    """Quantization-aware, with learned scales: scales and corrected biases change, integers stay integers,
    and the loss falls.
    """
    text = "(float[N, 4] x) => (float[N, 3] y) { h = Gemm (x, v)  r = Relu (h)  y = Gemm (r, w, b) }"
    weights = {name: random(*shape) for name, shape in {"v": (4, 8), "w": (8, 3)}.items()}
    model = build(text, 21, **weights, b=np.zeros(3, np.float32))
    data = Rows(x=X)
    graph = import_model(model)
    context = Context(
        calibrator=StreamingCalibrator(data), trainer=TorchTrainer(TrainingSetup(data, teacher=model))
    )
    quantized = configure(Int8, {"weights": "mse"}).apply(graph, context)
    assert quantized.metrics["bias_correction_gain_db"] >= 0
    before = Form(export_model(graph)).constants
    options = {"epochs": 3, "batch": 16, "rate": 0.01, "learn_scales": True, "holdout": 0.0}
    configure(Retrain, options).apply(graph, context)
    result = export_model(graph)
    onnx.checker.check_model(result, full_check=True)
    after = Form(result)
    changed = {name for name, values in after.constants.items() if not np.array_equal(values, before[name])}
    gemms = [after.layer("Gemm", index) for index in range(2)]
    assert {name for gemm in gemms for name in gemm.input[2:]} <= changed
    assert {"x_scale", "r_scale", "v_scale", "w_scale"} <= changed
    assert {name: values.dtype for name, values in after.constants.items()} == {
        name: values.dtype for name, values in before.items()
    }
    assert affine.signal_to_noise_db(run(model, {"x": X})["y"], run(result, {"x": X})["y"]) > 25


class Watched(StreamingCalibrator):
    """Remembers the sizes of what it hands out, and how many batches were taken at the most."""

    sizes: dict[str, int]
    batches = 0

    def observe(self, model: onnx.ModelProto, tensors: Sequence[str]) -> Iterator[Observed]:
        for number, batch in enumerate(super().observe(model, tensors), 1):
            self.batches = max(self.batches, number)
            self.sizes |= {name: values.size for name, values in batch.items()}
            yield batch


@pytest.mark.parametrize("opset", [13, 21])
def test_no_activation_leaves_the_network_but_its_outputs(opset: int) -> None:
    text = (
        "(float[N, 3, 6, 6] x) => (float[N, 4, H, W] y) { h = Conv (x, a)  r = Relu (h)  y = Conv (r, b, c) }"
    )
    calibrator = Watched(Rows(x=IMAGES))
    calibrator.sizes = {}
    model = build(text, opset, a=coarse(5, 3, 3, 3), b=coarse(4, 5, 3, 3), c=np.ones(4, np.float32))
    _, report = quantize(model, calibrator, method="minmax", bias_correction=True)
    assert report.metrics["bias_correction_gain_db"] > 1
    outputs = calibrator.sizes.pop("y")
    assert outputs > 5
    assert sorted(calibrator.sizes.values()) == [4, 4, 5, 5]


@pytest.mark.parametrize(
    "tail", ["s = Softmax (h)  y = Identity (s)", "y = Sigmoid (h)", "y = LogSoftmax (h)"]
)
def test_a_classifier_is_judged_by_its_scores(tail: str) -> None:
    """Not by probabilities, most of which are 0 or 1 whatever the error."""
    calibrator = Watched(Rows(x=X))
    calibrator.sizes = {}
    model = build(
        f"(float[N, 4] x) => (float[N, 6] y) {{ h = Gemm (x, a, b)  {tail} }}",
        a=coarse(4, 6, axis=1),
        b=np.ones(6, np.float32),
    )
    _, report = quantize(model, calibrator, bias_correction=True)
    assert report.metrics["bias_correction_gain_db"] > 1
    assert "h" in calibrator.sizes
    assert not {"s", "y"} & set(calibrator.sizes)


def test_outputs_that_collapse_are_warned_of() -> None:
    """Beside 127, which meets zeros alone, a weight of 0.4 is rounded to none."""
    weight, x = np.full((4, 6), 0.4, np.float32), X.copy()
    weight[0], x[:, 0] = 127, 0
    fine, broken = (
        quantize(
            build("(float[N, 4] x) => (float[N, 6] y) { y = Gemm (x, a) }", a=values),
            StreamingCalibrator(Rows(x=x)),
            bias_correction=True,
        )[1]
        for values in (weight.clip(0, 1), weight)
    )
    assert not fine.warnings
    assert fine.metrics["outputs_sqnr"] > 30
    (warning,) = broken.warnings
    assert f"at {broken.metrics['outputs_sqnr']:.1f} dB" in warning
    assert "min_sqnr=20" in warning


OBJECTS = """(float[N, 3, 6, 6] x) => (float[M] y) { a = Conv (x, v)  r = Relu (a)  h = Conv (r, w, b)
    g = Greater (h, some)  f = Reshape (h, flat)  k = Reshape (g, flat)  y = Compress <axis = 0> (f, k) }"""


def test_outputs_with_a_value_per_object_are_not_compared() -> None:
    """How many there are differs from the float network; all samples count, however many they are."""
    constants = {
        "v": random(5, 3, 3, 3),
        "w": coarse(4, 5, 3, 3),
        "b": np.ones(4, np.float32),
    }
    response = (
        "(float[N, 3, 6, 6] x) => (float[N, 4, 2, 2] h) { a = Conv (x, v)  r = Relu (a)  h = Conv (r, w, b) }"
    )
    some = np.median(run(build(response, **constants), {"x": IMAGES})["h"])
    calibrator = Watched(Rows(x=IMAGES))
    calibrator.sizes = {}
    model = build(OBJECTS, **constants, some=some, flat=np.array([-1]))
    found, wanted = (
        quantize(one, calibrator, bias_correction=True) for one in (model, build(response, **constants))
    )
    assert found[1].metrics["bias_correction_gain_db"] == pytest.approx(
        wanted[1].metrics["bias_correction_gain_db"], rel=1e-3
    )
    first, second = (
        Form(result).constants[Form(result).layer("Conv", 1).input[2]] for result, _ in (found, wanted)
    )
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_infinite_outputs_are_not_compared() -> None:
    text = "(float[N, 4] x) => (float[N, 6] y) { h = Gemm (x, a, b)  g = Greater (h, zero)  y = Where (g, h, never) }"
    constants = {
        "a": coarse(4, 6, axis=1),
        "b": np.ones(6, np.float32),
        "zero": np.float32(80),
        "never": np.float32(-np.inf),
    }
    _, report = quantize(build(text, **constants), StreamingCalibrator(Rows(x=X)), bias_correction=True)
    assert report.metrics["bias_correction_gain_db"] > 1


def test_the_float_copy_reads_floats_where_a_pair_has_operators_on_integers_inside() -> None:
    text = """(float[N, 3, 6, 6] x) => (float[N, 4, 1, 1] y) { h = Conv (x, v)  r = Relu (h)  q = QuantizeLinear (r, s, z)
        p = MaxPool <kernel_shape = [2, 2]> (q)  d = DequantizeLinear (p, s, z)  y = Conv (d, w, b) }"""
    constants = {"v": coarse(5, 3, 3, 3), "w": coarse(4, 5, 3, 3), "b": np.ones(4, np.float32)}
    model = build(text, **constants, s=np.float32(4), z=np.int8(0))
    _, report = quantize(
        model, StreamingCalibrator(Rows(x=IMAGES)), bias_correction=True, existing="complete"
    )
    assert report.metrics["layers"] == 2
    assert report.metrics["bias_correction_gain_db"] > 1


def test_a_call_is_one_sample_however_long_its_first_axis_is() -> None:
    calibrator = Watched(open_source(calls.samples("spectral"), model_inputs(calls.spectral())))
    calibrator.sizes = {}
    quantize(calls.spectral(), calibrator, method="minmax", bias_correction=True)
    assert calibrator.batches >= calls.SAMPLES
