"""litert(stem=fold): neighbouring pixels as channels of a first convolution on integers."""

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from onnx_lathe.runtime.targets.litert.running import REFERENCE, XNNPACK, Opened
from onnx_lathe.runtime.targets.litert.sizing import Fitted, fitted
from onnx_lathe.runtime.targets.litert.stepwise import steps_by_operator
from tests.support.builders import build, random
from tests.support.litert import codes, content
from tests.support.litert_int8 import convolution, without_identities

FOLDED = ["PAD", "RESHAPE", "CONV_2D"]


def levels(
    attributes: str, shape: tuple[int, ...], kernels: str = XNNPACK
) -> tuple[Fitted, list[np.ndarray]]:
    """(the folded network, what the file gives without folding and with); asserts that single operators are ONNX's."""
    model = without_identities(convolution(attributes, shape))
    feeds = {"image": 2 * random(1, shape[1], 9, 8)}
    results = []
    for fold in (False, True):
        found = fitted(model, {}, fold_stem=fold)
        assert not found.conversion.refused
        opened = Opened(content(model, found), "model.tflite", kernels=kernels, keep=True)
        results.append(next(iter(opened.run(feeds).values())))
        table = steps_by_operator(model, found, opened, feeds)["CONV_2D"]
        assert max(table.counts) <= (0 if kernels == XNNPACK else 1)
    return found, results


@pytest.mark.parametrize("kernels", [XNNPACK, REFERENCE])
@pytest.mark.parametrize(
    "attributes, shape, kernel",
    [
        ("pads = [3, 3, 3, 3], strides = [2, 2]", (5, 3, 7, 7), [5, 7, 4, 6]),
        ("pads = [1, 1, 1, 1], strides = [2, 2]", (5, 3, 3, 3), [5, 3, 2, 6]),
        ("pads = [0, 1, 1, 2], strides = [1, 3]", (4, 1, 2, 5), [4, 2, 2, 3]),
        ("strides = [2, 2], dilations = [2, 1]", (4, 2, 3, 4), [4, 3, 2, 4]),
        ("strides = [1, 2]", (5, 3, 3, 2), [5, 3, 1, 6]),
    ],
)
def test_levels_are_those_of_the_plain_convolution(
    kernels: str, attributes: str, shape: tuple[int, ...], kernel: list[int]
) -> None:
    found, (plain, folded) = levels(attributes, shape, kernels)
    np.testing.assert_array_equal(folded, plain)
    assert [code for code in codes(found) if code in FOLDED][-2:] == FOLDED[1:]
    net = found.conversion.network
    layer = next(one for one in net.operators if one.code == "CONV_2D")
    assert list(net.tensors[layer.inputs[1]].shape) == kernel
    assert layer.fields["strideW"] == 1


@pytest.mark.parametrize(
    "attributes, shape",
    [
        ("pads = [1, 1, 1, 1]", (5, 3, 3, 3)),  # without a stride
        ("strides = [2, 2]", (5, 8, 3, 3)),  # whole lanes as it is
        ("strides = [2, 2], dilations = [1, 2]", (5, 3, 3, 3)),
        ("group = 2, strides = [2, 2]", (6, 2, 3, 3)),
        ("strides = [1, 3]", (5, 1, 3, 3)),  # its windows leave the map's last two columns out
    ],
)
def test_what_gains_nothing_or_does_not_fit_stays(attributes: str, shape: tuple[int, ...]) -> None:
    found = fitted(without_identities(convolution(attributes, shape)), {}, fold_stem=True)
    assert not found.conversion.refused
    assert "RESHAPE" not in codes(found)


def test_the_batch_stays_open() -> None:
    model = without_identities(convolution("pads = [1, 1, 1, 1], strides = [2, 2]"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    found = fitted(model, {}, fold_stem=True)
    assert found.batch
    image = 2 * random(3, 3, 9, 8)
    opened = Opened(content(model, found), "model.tflite")
    whole = next(iter(opened.run({"image": image}).values()))
    single = [next(iter(opened.run({"image": image[row : row + 1]}).values())) for row in range(3)]
    assert "RESHAPE" in codes(found)
    np.testing.assert_array_equal(whole, np.concatenate(single))


def test_floats_stay_as_they_are() -> None:
    """XNNPACK's float kernels fill nothing up."""
    text = "(float[1, 3, 9, 8] x) => (float[1, 5, 4, 3] y) { y = Conv <strides = [2, 2]> (x, w) }"
    assert "RESHAPE" not in codes(fitted(build(text, w=random(5, 3, 3, 3)), {}, fold_stem=True))
