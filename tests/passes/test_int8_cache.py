"""Calibration caches of TensorRT: their scales become Q/DQ pairs by the names of tensors, without data."""

import json
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.int8.cache import read_cache
from onnx_lathe.passes.int8.int8 import UNCORRECTED, Int8
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from onnx_lathe.runtime.running.ort import run, session
from tests.support.builders import build
from tests.support.int8 import Form, Rows
from tests.support.seeds import generator

HEAD = "TRT-8601-EntropyCalibration2"
NETWORK = """(float[N, 4, 8, 8] x) => (float[N, 6] y) {
    [first] a = Conv (x, w1, b1)
    r = Relu (a)
    m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    [second] c = Conv (m, w2)
    f = Flatten (c)
    [third] y = Gemm (f, w3)
}"""
IMAGES = {"x": generator().standard_normal((4, 4, 8, 8)).astype(np.float32)}
SCALES = {"x": 0.03, "r": 0.05, "m": 0.04, "c": 0.5, "(Unnamed Layer* 3) [Constant]_output": 0.01}


def network() -> onnx.ModelProto:
    random = generator()
    shapes = {"w1": (5, 4, 3, 3), "b1": (5,), "w2": (6, 5, 1, 1), "w3": (54, 6)}
    return build(
        NETWORK,
        **{name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()},
    )


def bits(scale: float) -> str:
    return struct.pack(">f", scale).hex()


def written(folder: Path, scales: dict[str, float] | None = None, head: str = HEAD) -> str:
    lines = [head, *(f"{name}: {bits(scale)}" for name, scale in (scales or SCALES).items())]
    path = folder / "calib.cache"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def quantize(cache: str, context: Context | None = None, **options: object) -> tuple[Form, PassReport]:
    model, report = apply_pass(configure(Int8, {"ranges": cache} | options), network(), context or Context())
    onnx.checker.check_model(model, full_check=True)
    assert run(session(model), IMAGES)["y"].shape == (4, 6)
    return Form(model), report


def pair_of(form: Form, layer: str) -> onnx.NodeProto:
    """The QuantizeLinear of what the layer reads."""
    node = next(node for node in form.nodes if node.name == layer)
    return form.producers[form.producers[node.input[0]].input[0]]


@pytest.mark.parametrize(
    "head",
    [HEAD, "TRT-100300-EntropyCalibration2", "TRT-7103-MinMaxCalibration", "TRT-8601-EntropyCalibration2\r"],
)
def test_scales_of_a_cache_become_those_of_pairs_without_data(tmp_path: Path, head: str) -> None:
    assert Int8(Int8.Config(ranges=written(tmp_path, head=head))).needs == ()
    form, report = quantize(written(tmp_path, head=head))
    for layer, tensor in (("first", "x"), ("second", "m")):
        quantizer = pair_of(form, layer)
        assert quantizer.input[0] == tensor
        scale = form.constants[quantizer.input[1]]
        assert scale.shape == ()
        assert scale == np.float32(SCALES[tensor])
    assert report.metrics["layers"] == 3
    assert UNCORRECTED in report.warnings


def test_a_tensor_takes_the_scale_of_one_with_the_same_values(tmp_path: Path) -> None:
    """Flatten only moves what `c` holds: the cache may know it under that name alone."""
    quantizer = pair_of(quantize(written(tmp_path))[0], "third")
    assert quantizer.input[0] == "f"
    form, _ = quantize(written(tmp_path))
    assert form.constants[quantizer.input[1]] == np.float32(SCALES["c"])


def test_what_follows_a_relu_has_no_range_below_zero(tmp_path: Path) -> None:
    """A target with a zero-point has all its levels above zero then."""
    form, _ = quantize(written(tmp_path))
    ranges = {
        layer: json.loads(
            next(p.value for p in pair_of(form, layer).metadata_props if p.key == metadata.RANGE)
        )
        for layer in ("first", "second", "third")
    }
    assert ranges["first"] == [-127 * np.float32(0.03), 127 * np.float32(0.03)]
    assert ranges["second"] == [0, 127 * np.float32(0.04)]
    assert ranges["third"][0] < 0


def test_layers_without_a_range_stay_in_float_by_name(tmp_path: Path) -> None:
    cache = written(tmp_path, {"x": 0.03, "nobody": 1.0})
    form, report = quantize(cache)
    skipped = {skip.node: skip.reason for skip in report.skips}
    assert skipped["second"] == f"its input 'm' has no range in {cache}"
    assert skipped["third"] == f"its input 'f' has no range in {cache}"
    assert "no tensor of this name" in skipped["nobody"]
    assert form.ops().count("QuantizeLinear") == 1
    assert report.metrics["unmatched_ranges"] == 1


def test_names_that_tensorrt_made_up_are_reported(tmp_path: Path) -> None:
    report = quantize(written(tmp_path))[1]
    assert [skip.node for skip in report.skips] == ["(Unnamed Layer* 3) [Constant]_output"]
    assert report.metrics["cached_ranges"] == len(SCALES)


@pytest.mark.parametrize(
    "digits, said",
    [
        ("0", "has scale 0 in {}"),
        ("00000000", "has scale 0 in {}"),
        (bits(2.5e-10), "has scale 2.5e-10 in {}, below 1e-08, the smallest that is used"),
    ],
)
def test_a_tensor_whose_scale_is_too_small_stays_in_float(tmp_path: Path, digits: str, said: str) -> None:
    path = tmp_path / "calib.cache"
    path.write_text(f"{HEAD}\nx: {digits}\nm: {bits(0.04)}\nc: {bits(0.5)}\n")
    form, report = quantize(str(path))
    assert {skip.node: skip.reason for skip in report.skips} == {
        "first": "its input 'x' " + said.format(path)
    }
    assert form.ops().count("QuantizeLinear") == 2


def test_a_tensor_that_is_zero_in_the_data_stays_in_float() -> None:
    calibrator = StreamingCalibrator(Rows(x=np.zeros_like(IMAGES["x"])))
    report = apply_pass(configure(Int8, {}), network(), Context(calibrator=calibrator))[1]
    assert ("first", "its input is zero on all calibration data") in [
        (skip.node, skip.reason) for skip in report.skips
    ]


def test_an_addition_whose_other_operand_has_no_range_reads_it_in_float(tmp_path: Path) -> None:
    model = build(
        """(float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {
            i = Relu (x)  c = Conv (i, w)  other = Exp (x)  [join] y = Add (c, other)
        }""",
        w=np.ones((4, 4, 1, 1), np.float32),
    )
    cache = written(tmp_path, {"i": 0.1})
    made, report = apply_pass(configure(Int8, {"ranges": cache}), model, Context())
    assert [node.op_type for node in made.graph.node].count("QuantizeLinear") == 1
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("join", f"its input 'other' has no range in {cache}")
    ]
    cache = written(tmp_path, {"i": 0.1, "other": 0.0})
    made, report = apply_pass(configure(Int8, {"ranges": cache}), model, Context())
    assert [node.op_type for node in made.graph.node].count("QuantizeLinear") == 1
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("join", f"its input 'other' has scale 0 in {cache}")
    ]


def test_with_data_biases_are_corrected_too(tmp_path: Path) -> None:
    calibrator = StreamingCalibrator(Rows(**IMAGES))
    report = quantize(written(tmp_path), Context(calibrator=calibrator))[1]
    assert UNCORRECTED not in report.warnings
    assert "bias_correction_gain_db" in report.metrics
    assert UNCORRECTED not in quantize(written(tmp_path), bias_correction=False)[1].warnings


def test_the_cache_of_another_model_is_refused(tmp_path: Path) -> None:
    """Names of weights alone are none that fits."""
    cache = written(tmp_path, {"conv1": 0.1, "w1": 0.2})
    with pytest.raises(
        UsageError, match=r"calib\.cache: no activation of the model has one of its 2 names, such as 'conv1'"
    ):
        quantize(cache)


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "is no calibration cache of TensorRT"),
        ("not a cache\nx: 3caa5293\n", "is no calibration cache of TensorRT"),
        ("x" * 5000, "is no calibration cache of TensorRT"),
        (f"{HEAD}\n", "holds no tensor"),
        (f"{HEAD}\nx: 3caa5293\nm: 3caz5293\n", "line 3: is not 'tensor: scale'"),
        (f"{HEAD}\nx 3caa5293\n", "line 2: is not 'tensor: scale'"),
        (f"{HEAD}\nx: 3caa52931\n", "line 2: is not 'tensor: scale'"),
        (
            f"{HEAD}\nx: 3caa5293\nm: 3d337\n",
            "line 3: is not 'tensor: scale' with the scale in 8 hexadecimal digits or 0",
        ),
        (f"{HEAD}\nx: 00\n", "line 2: is not 'tensor: scale'"),
        (f"{HEAD}\nx: 7fc00000\n", "line 2: the scale of 'x' is nan"),
        (f"{HEAD}\nx: 7f800000\n", "line 2: the scale of 'x' is inf"),
        (f"{HEAD}\nx: bcaa5293\n", "line 2: the scale of 'x' is -0.02"),
        (f"{HEAD}\nx: 3caa5293\nx: 3caa5294\n", "line 3: 'x' has another scale above"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.cache"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        configure(Int8, {"ranges": str(path)})
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_one_that_is_not_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.cache: cannot read the calibration cache \(No such file"):
        configure(Int8, {"ranges": str(tmp_path / "absent.cache")})
    binary = tmp_path / "binary.cache"
    binary.write_bytes(HEAD.encode() + b"\n\xff\xfe: 3caa5293\n")
    with pytest.raises(UsageError, match="is not text"):
        read_cache(str(binary))


def test_names_may_hold_colons_and_spaces(tmp_path: Path) -> None:
    cache = read_cache(written(tmp_path, {"serving_default_input_2:0": 0.5, "a b: c": 0.25}))
    assert cache.scales == {"serving_default_input_2:0": 0.5, "a b: c": 0.25}


@pytest.mark.parametrize(
    "options, said",
    [
        ({"activations": False}, "activations=false quantizes none"),
        ({"method": "mse"}, "method= and percentile= choose them from data"),
        ({"percentile": 99.0}, "method= and percentile= choose them from data"),
    ],
)
def test_options_that_choose_ranges_from_data_are_refused(
    tmp_path: Path, options: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        configure(Int8, {"ranges": written(tmp_path)} | options)


@pytest.mark.parametrize("options", [{"min_sqnr": 20.0}, {"sensitivity": True}, {"rounding": "adaptive"}])
def test_options_that_measure_still_need_data(tmp_path: Path, options: dict[str, object]) -> None:
    assert configure(Int8, {"ranges": written(tmp_path)} | options).needs
