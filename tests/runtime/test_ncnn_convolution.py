"""Convolutions of all kinds as ncnn's layers, against ONNX Runtime."""

import numpy as np
import onnx
import pytest

from onnx_lathe.runtime.targets.ncnn.convert import convert
from tests.support.builders import build, random
from tests.support.ncnn import agree, refusals, types


def conv(attributes: str, weight: tuple[int, ...], source: str, op: str = "Conv") -> onnx.ModelProto:
    outputs = weight[0] if op == "Conv" else weight[1]
    text = f"(float[{source}] x) => (float[{','.join('NCDHW'[: source.count(',') + 1])}] y) {{ [layer] y = {op} <{attributes}> (x, w) }}"
    assert outputs
    return build(text, w=random(*weight))


@pytest.mark.parametrize(
    "attributes, weight, source, layer",
    [
        ("pads = [1, 1, 1, 1]", (5, 3, 3, 3), "1, 3, 9, 7", "Convolution"),
        ("pads = [0, 1, 2, 3], strides = [2, 1]", (4, 3, 3, 5), "1, 3, 11, 8", "Convolution"),
        ("dilations = [2, 3]", (4, 3, 3, 2), "1, 3, 11, 9", "Convolution"),
        ('auto_pad = "SAME_UPPER", strides = [2, 2]', (4, 3, 4, 3), "1, 3, 11, 8", "Convolution"),
        ('auto_pad = "SAME_LOWER", strides = [2, 2]', (4, 3, 4, 3), "1, 3, 11, 8", "Convolution"),
        ('auto_pad = "VALID"', (4, 3, 2, 3), "1, 3, 6, 8", "Convolution"),
        ("group = 4", (4, 1, 3, 3), "1, 4, 6, 6", "ConvolutionDepthWise"),
        ("group = 2, pads = [1, 1, 1, 1]", (6, 2, 3, 3), "1, 4, 6, 6", "ConvolutionDepthWise"),
        ("pads = [2, 1], strides = [2]", (4, 3, 5), "1, 3, 20", "Convolution1D"),
        ("group = 3, pads = [2, 1]", (3, 1, 4), "1, 3, 20", "ConvolutionDepthWise1D"),
        ("pads = [0, 1, 2, 1, 1, 0]", (4, 3, 3, 2, 3), "1, 3, 6, 7, 5", "Convolution3D"),
    ],
)
def test_convolutions(attributes: str, weight: tuple[int, ...], source: str, layer: str) -> None:
    assert types(agree(conv(attributes, weight, source))) == [layer]


@pytest.mark.parametrize(
    "attributes, weight, source, layer",
    [
        ("strides = [2, 2]", (3, 5, 2, 2), "1, 3, 6, 7", "Deconvolution"),
        ("strides = [2, 3], pads = [1, 0, 0, 2]", (3, 5, 4, 5), "1, 3, 6, 7", "Deconvolution"),
        (
            "strides = [2, 2], output_padding = [1, 1], pads = [1, 1, 1, 1]",
            (3, 5, 3, 3),
            "1, 3, 6, 7",
            "Deconvolution",
        ),
        ("dilations = [2, 1]", (3, 5, 3, 3), "1, 3, 6, 7", "Deconvolution"),
        ('auto_pad = "SAME_UPPER", strides = [2, 2]', (3, 5, 3, 3), "1, 3, 6, 7", "Deconvolution"),
        ("strides = [2, 2], output_shape = [13, 14]", (3, 5, 3, 3), "1, 3, 6, 7", "Deconvolution"),
        ("group = 2, strides = [2, 2]", (4, 3, 2, 2), "1, 4, 6, 7", "DeconvolutionDepthWise"),
        ("strides = [2], pads = [1, 0]", (3, 5, 4), "1, 3, 9", "Deconvolution1D"),
    ],
)
def test_transposed_convolutions(attributes: str, weight: tuple[int, ...], source: str, layer: str) -> None:
    assert types(agree(conv(attributes, weight, source, "ConvTranspose"))) == [layer]


def test_a_bias_and_an_activation_are_part_of_the_layer() -> None:
    text = "(float[1, 3, 6, 6] x) => (float[1, 4, 6, 6] y) { a = Conv <pads = [1, 1, 1, 1]> (x, w, b) y = Relu(a) }"
    (layer,) = [one for one in agree(build(text, w=random(4, 3, 3, 3), b=random(4))) if one.type != "Input"]
    assert (layer.type, layer.params[5], layer.params[9], layer.tops) == ("Convolution", 1, 1, ["y"])


def test_open_sizes_stay_open() -> None:
    text = '(float[1, 3, H, W] x) => (float[1, 4, P, Q] y) { y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w) }'
    layers = agree(build(text, w=random(4, 3, 3, 3)), {"x": (1, 3, 8, 9)}, {"x": (1, 3, 13, 16)})
    assert layers[0].params == {}


def test_what_is_no_single_sample_is_refused() -> None:
    model = conv("pads = [1, 1, 1, 1]", (5, 3, 3, 3), "2, 3, 9, 7")
    ((node, op, reason),) = refusals(model)
    assert (node, op) == ("layer", "Conv")
    assert "several samples at once" in reason


def test_a_weight_that_is_computed_is_refused() -> None:
    text = "(float[1, 3, 6, 6] x, float[4, 3, 3, 3] w) => (float[1, 4, 4, 4] y) { [layer] y = Conv(x, w) }"
    ((node, _, reason),) = refusals(build(text))
    assert (node, reason) == ("layer", "its weight is computed at run time")


def test_a_codebook_stays_one() -> None:
    text = """(float[1, 3, 6, 6] x) => (float[1, 4, 4, 4] y) {
        codes = Cast <to = 6> (indices)
        w = Gather(table, codes)
        y = Conv(x, w)
    }"""
    indices = np.random.default_rng(0).integers(0, 16, (4, 3, 3, 3)).astype(np.uint8)
    layers = agree(build(text, indices=indices, table=random(16)))
    (layer,) = [one for one in layers if one.type == "Convolution"]
    assert layer.weights[0].stored.table is not None
    assert layer.weights[0].stored.values.dtype == np.uint8


def test_a_convolution_that_becomes_several_layers_has_no_algorithm() -> None:
    """One row of a sequence: dimensions of 1 are put in and taken out beside it."""
    text = "(float[1, 40] x) => (float[1, 4, 38] y) { u = Relu (x) r = Unsqueeze (u, axes) y = Conv (r, w) }"
    model = build(text, w=random(4, 1, 3), axes=np.array([1]))
    sizes = {"x": (1, 40)}
    assert not convert(model, sizes, sizes, "arm64-fp16").refused
