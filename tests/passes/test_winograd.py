"""The choice of a convolution's algorithm: what is eligible, what decides, what the node and the report say."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import import_model
from onnx_lathe.passes.winograd.winograd import Winograd
from onnx_lathe.protocols import Observed
from tests.support.builders import build, random, run


class Given:
    """A calibrator that has observed one batch."""

    def __init__(self, **values: np.ndarray) -> None:
        self.values = values

    def observe(self, model: onnx.ModelProto, tensors: Sequence[str]) -> Iterator[Observed]:
        yield Observed({name: self.values[name] for name in tensors}, len(next(iter(self.values.values()))))


def chosen(
    model: onnx.ModelProto, context: Context | None = None, **options: object
) -> tuple[dict[str, str], PassReport]:
    """Node name -> what `lathe.conv_algorithm` says; and the report."""
    after, report = apply_pass(configure(Winograd, options), model, context or Context())
    onnx.checker.check_model(after, full_check=True)
    found = {
        node.name: entry.value
        for node in after.graph.node
        for entry in node.metadata_props
        if entry.key == metadata.CONV_ALGORITHM
    }
    return found, report


def said(model: onnx.ModelProto, context: Context, **options: object) -> dict[str, str]:
    """What the first node says."""
    after, _ = apply_pass(configure(Winograd, options), model, context)
    return {entry.key: entry.value for entry in after.graph.node[0].metadata_props}


def layer(inputs: int, outputs: int, size: int, attributes: str = "pads = [1, 1, 1, 1]") -> onnx.ModelProto:
    text = f"(float[N, {inputs}, {size}, {size}] x) => (float[N, {outputs}, P, Q] y) {{ [conv] y = Conv <{attributes}> (x, w) }}"
    return build(text, w=(random(outputs, inputs, 3, 3) / np.sqrt(9 * inputs)).astype(np.float32))


@pytest.mark.parametrize(
    "inputs, outputs, size, algorithm",
    [
        (64, 64, 56, "winograd43"),
        (256, 256, 14, "winograd43"),
        (512, 512, 7, "winograd23"),
        (512, 512, 2, "direct"),
        (3, 64, 112, "direct"),
        (4, 4, 32, "direct"),
        (32, 32, 32, "winograd63"),
        (64, 64, 14, "winograd43"),
        (128, 128, 8, "winograd23"),
        (128, 128, 10, "winograd43"),
    ],
)
def test_by_cost_on_x86(inputs: int, outputs: int, size: int, algorithm: str) -> None:
    """As ncnn's own times on x86 have it: small maps are better off with small tiles where its table has them, three
    channels with none.
    """
    found, report = chosen(layer(inputs, outputs, size))
    assert found == {"conv": algorithm}
    assert report.metrics["multiplications_saved"] >= 1


def test_what_the_report_says() -> None:
    _, report = chosen(layer(64, 64, 56))
    (edit,) = report.edits
    assert (
        "winograd43: the runtime's own, 4x fewer multiplications (4x with what tiles leave over)" in edit.what
    )
    assert "4x the memory, the bound of the error is" in edit.what
    assert report.metrics["multiplications_saved"] == 4
    assert report.metrics["transformed_weight_bytes"] == 64 * 64 * 36 * 4


@pytest.mark.parametrize(
    "text, shape, reason",
    [
        ("y = Conv (x, w)", (8, 16, 1, 1), "its kernel is 1 x 1, not 3 x 3"),
        ("y = Conv <strides = [2, 2]> (x, w)", (8, 16, 3, 3), r"its strides are \[2, 2\]"),
        ("y = Conv <dilations = [2, 2]> (x, w)", (8, 16, 3, 3), r"its dilations are \[2, 2\]"),
        ("y = Conv <group = 2> (x, w)", (8, 8, 3, 3), "it has groups"),
        ("v = Relu (w)  y = Conv (x, v)", (8, 16, 3, 3), "its weight is computed at run time"),
    ],
)
def test_what_is_not_eligible(text: str, shape: tuple[int, ...], reason: str) -> None:
    model = build(f"(float[N, 16, 12, 12] x) => (float[N, 8, P, Q] y) {{ {text} }}", w=random(*shape))
    found, report = chosen(model)
    assert not found
    assert not report.edits
    (skip,) = report.skips
    assert skip.node.startswith("Conv")
    assert re.search(reason, skip.reason)


def test_an_open_size_is_a_reason() -> None:
    text = "(float[N, 16, H, W] x) => (float[N, 8, P, Q] y) { y = Conv (x, w) }"
    found, report = chosen(build(text, w=random(8, 16, 3, 3)))
    assert not found
    assert "is not known before the model runs" in report.skips[0].reason


INT8 = """(float[1, 16, 12, 12] x) => (float[1, 16, P, Q] y) {
    [q] s = QuantizeLinear (x, c, z)
    [dq] t = DequantizeLinear (s, c, z)
    [dw] u = DequantizeLinear <axis = 0> (i, d)
    [conv] y = Conv <pads = [1, 1, 1, 1]> (t, u)
}"""
IN_INT8 = build(
    INT8,
    i=np.ones((16, 16, 3, 3), np.int8),
    c=np.array(0.03, np.float32),
    z=np.array(0, np.int8),
    d=np.full(16, 0.002, np.float32),
)
HALF = {"by": "error", "profile": "arm64-fp16"}
IN_FLOAT32 = {metadata.CONV_ALGORITHM: "direct", metadata.CONV_PRECISION: "float32"}


def test_by_error_leaves_large_tiles_where_half_precision_is_too_coarse() -> None:
    """F(6 x 6) is what ARM's runtime takes for few channels; its error in half precision is several percent. Sums in
    float32 are for where direct convolution errs too much as well: they take twice its time.
    """
    model = layer(64, 64, 24)
    context = Context(calibrator=Given(x=random(2, 64, 24, 24)))
    assert said(model, context, **HALF) == {metadata.CONV_ALGORITHM: "direct"}
    _, report = chosen(model, context, **HALF)
    assert re.match(
        r"direct: errors winograd63 \S+e-02, direct \S+e-03, direct with sums in float32 [1-9.]+e-04, no",
        report.edits[0].what,
    )
    assert report.metrics["transformed_weight_bytes"] == 0
    assert said(model, context, **HALF, error=1e-3) == IN_FLOAT32
    assert said(model, context, **HALF, error=0.5) == {metadata.CONV_ALGORITHM: "winograd63"}
    assert chosen(model, context, by="error", profile="arm64-fp32")[0] == {"conv": "winograd63"}
    _, report = chosen(model, context, **HALF, error=1e-9)
    assert "all beyond 1e-09" in report.edits[0].what


def test_small_maps_are_direct_in_half_precision() -> None:
    """A tile of 6 x 6 is wasted on 2 x 2 results."""
    model, context = layer(32, 32, 2), Context(calibrator=Given(x=random(2, 32, 2, 2)))
    assert said(model, context, **HALF) == {metadata.CONV_ALGORITHM: "direct"}


@pytest.mark.parametrize("inputs, outputs", [(64, 64), (128, 128), (256, 256), (512, 512), (3, 32)])
def test_every_layer_gets_below_the_bound(inputs: int, outputs: int) -> None:
    """Direct convolution in half precision does not, of 512 channels; F(6 x 6) of few errs by several percent."""
    model = layer(inputs, outputs, 14)
    _, report = chosen(model, Context(calibrator=Given(x=random(1, inputs, 14, 14))), **HALF)
    what = report.edits[0].what
    shown = re.findall(r"(winograd\d\d|direct)( with sums in float32)? (\d\S+),", what)
    errors = {name + where: float(error) for name, where, error in shown}
    assert errors[what.partition(":")[0]] < 0.01
    assert next(iter(errors.values())) > (0.01 if inputs > 3 else 0)
    assert (errors["direct"] > 0.01) == (inputs >= 512)
    assert what.startswith("direct with sums in float32:") == (inputs >= 512)
    assert 1e-4 < errors["direct with sums in float32"] < 1e-3


def test_what_it_said_before_is_not_left() -> None:
    model, context = layer(64, 64, 24), Context(calibrator=Given(x=random(2, 64, 24, 24)))
    after, _ = apply_pass(configure(Winograd, HALF | {"error": 1e-3}), model, context)
    _, report = chosen(after, context, **HALF, error=1e-3)
    assert [skip.reason for skip in report.skips] == ["its algorithm is direct with sums in float32 already"]
    assert said(after, context, **HALF, error=0.5) == {metadata.CONV_ALGORITHM: "winograd63"}


@pytest.mark.parametrize("profile", ["arm64-fp16", "arm64-fp32"])
@pytest.mark.parametrize(
    "inputs, outputs, size, algorithm",
    [
        (3, 32, 14, "winograd63"),
        (16, 64, 7, "winograd63"),
        (512, 512, 2, "winograd43"),
        (512, 512, 1, "direct"),
        (128, 128, 2, "direct"),
    ],
)
def test_by_cost_leaves_to_arm_what_arithmetic_does_not_double(
    inputs: int, outputs: int, size: int, algorithm: str, profile: str
) -> None:
    """Its times were not measured."""
    found, report = chosen(layer(inputs, outputs, size), profile=profile)
    assert found == {"conv": algorithm}
    assert ("by arithmetic alone" in report.edits[0].what) == (algorithm == "direct")


def test_integers_are_exact() -> None:
    found, report = chosen(IN_INT8, Context(calibrator=Given()), by="error", profile="arm64-int8")
    assert found == {"conv": "winograd43"}
    assert "exact" in report.edits[0].what


def test_what_is_left_in_float_beside_integers_is_in_half_precision() -> None:
    """Three channels are Winograd's there, and direct on integers."""
    model = layer(3, 32, 32)
    for options in ({}, {"by": "error"}):
        context = Context(calibrator=Given(x=random(1, 3, 32, 32)))
        found, other = (
            chosen(model, context, profile=name, **options) for name in ("arm64-int8", "arm64-fp16")
        )
        assert found[0] == other[0]
        assert found[1].edits == other[1].edits
        assert "exact" not in found[1].edits[0].what
    assert chosen(model, profile="arm64-int8")[0] == {"conv": "winograd63"}
    weights = chosen(layer(16, 16, 32), profile="arm64-int8")[1].metrics["transformed_weight_bytes"]
    assert weights == 16 * 16 * 64 * 2


def test_by_error_needs_data() -> None:
    assert configure(Winograd, {"by": "error"}).needs == ("calibrator",)
    assert configure(Winograd, {}).needs == ()
    with pytest.raises(PassError, match="calibration data"):
        chosen(layer(16, 16, 12), by="error")


def test_a_layer_by_name() -> None:
    found, report = chosen(layer(64, 64, 56), layers={"conv": "winograd23"})
    assert found == {"conv": "winograd23"}
    assert "as the options say" in report.edits[0].what


@pytest.mark.parametrize(
    "layers, message",
    [
        ({"conv": "fft"}, r"takes direct, winograd23, winograd43, winograd63, not 'fft'"),
        ({"cnv": "direct"}, "no eligible layer is named 'cnv'"),
    ],
)
def test_wrong_layers(layers: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chosen(layer(16, 16, 12), layers=layers)


def test_the_network_computes_the_same_and_twice_says_nothing_new() -> None:
    model = layer(16, 16, 32)
    after, _ = apply_pass(configure(Winograd, {}), model, Context())
    x = random(2, 16, 32, 32)
    np.testing.assert_array_equal(run(after, {"x": x})["y"], run(model, {"x": x})["y"])
    _, report = apply_pass(configure(Winograd, {}), after, Context())
    assert not report.edits
    assert [skip.reason for skip in report.skips] == ["its algorithm is winograd63 already"]
    assert [node.name for node in import_model(after).nodes] == ["conv"]


def test_direct_is_no_transform_that_overflows() -> None:
    """A checkerboard near the end of half precision's range: differences of neighbours leave it, products do not."""
    signs = np.indices((24, 24)).sum(axis=0) % 2 * 2 - 1
    image = np.broadcast_to(signs * 20000, (1, 64, 24, 24)).astype(np.float32)
    weight = np.zeros((64, 64, 3, 3), np.float32)
    weight[:, 0, 1, 1] = 0.5
    model = build(
        "(float[N, 64, 24, 24] x) => (float[N, 64, P, Q] y) { [conv] y = Conv <pads = [1, 1, 1, 1]> (x, w) }",
        w=weight,
    )
    found, report = chosen(model, Context(calibrator=Given(x=image)), by="error", profile="arm64-fp16")
    assert "winograd63 inf, direct 0.0e+00, direct with sums in float32" in report.edits[0].what
    assert found == {"conv": "direct"}


def test_the_piece_with_values_is_looked_at() -> None:
    """Pictures with a black border above are not exact."""
    image = random(1, 64, 64, 24)
    image[:, :, :30] = 0
    text = (
        "(float[N, 64, 64, 24] x) => (float[N, 64, P, Q] y) { [conv] y = Conv <pads = [1, 1, 1, 1]> (x, w) }"
    )
    model = build(text, w=random(64, 64, 3, 3))
    assert said(model, Context(calibrator=Given(x=image)), **HALF) == {metadata.CONV_ALGORITHM: "direct"}
    found, report = chosen(model, Context(calibrator=Given(x=0 * image)), **HALF)
    assert not found
    assert "its error cannot be told" in report.skips[0].reason


def test_a_fixed_batch_reads_its_weights_once() -> None:
    text = "(float[64, 512, 7, 7] x) => (float[64, 512, P, Q] y) { [conv] y = Conv <pads = [1, 1, 1, 1]> (x, w) }"
    assert chosen(build(text, w=random(512, 512, 3, 3)))[0] == {"conv": "winograd43"}
