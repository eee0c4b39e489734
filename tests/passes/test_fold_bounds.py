"""fold: the larger or smaller of a tensor and a number becomes a Clip."""

import numpy as np
import onnx
import pytest

from tests.support.builders import build, random, run
from tests.support.folding import fold, ops
from tests.support.placement import kernels, lowered, output, quantized, relative

HEAD = "(float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y)"


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("body", ["y = Max (x, c)", "y = Max (c, x)", "y = Min (x, c)", "y = Min (c, x)"])
def test_a_bound_becomes_a_clip(body: str, shape: tuple[int, ...]) -> None:
    model = build(f"{HEAD} {{ {body} }}", c=np.full(shape, -0.4, np.float32))
    folded, report = fold(model)
    assert ops(folded) == ["Clip"]
    assert [edit.what for edit in report.edits] == ["became a Clip"]
    feeds = {"x": random(2, 4, 8, 8)}
    np.testing.assert_array_equal(run(folded, feeds)["y"], run(model, feeds)["y"])


@pytest.mark.parametrize(
    "constant",
    [np.float32([1, 2, 3, 4]).reshape(4, 1, 1), np.float32(np.nan), np.ones((1, 1, 1, 1, 1), np.float32)],
    ids=["per channel", "NaN", "more dimensions"],
)
def test_another_maximum_stays(constant: np.ndarray) -> None:
    head = HEAD if constant.ndim < 5 else "(float[N, 4, 8, 8] x) => (float[M, N, 4, 8, 8] y)"
    folded, _ = fold(build(f"{head} {{ y = Max (x, c) }}", c=constant))
    assert ops(folded) == ["Max"]


def bounded(text: str) -> onnx.ModelProto:
    constants = {
        "low": np.float32(-0.4),
        "high": np.float32(1.5),
        "w": random(8, 8, 1, 1),
        "v": random(8, 8, 1, 1),
    }
    used = {name: values for name, values in constants.items() if f" {name}" in text}
    return build(f"(float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y) {{ {text}  y = Conv (b, v) }}", **used)


@pytest.mark.parametrize(
    "text",
    [
        "a = Conv (x, w)  r = LeakyRelu (a)  c = Max (r, low)  b = Conv (c, v)",
        "a = Conv (x, w)  c = Clip (a, low, high)  b = Conv (c, v)",
        "a = Conv (x, w)  r = Relu (a)  c = Min (r, high)  b = Conv (c, v)",
    ],
    ids=["leaky", "both ends", "ReLU and minimum"],
)
def test_a_quantizer_does_what_the_bound_did(text: str) -> None:
    model, data = bounded(text), random(12, 8, 6, 6)
    result, _ = lowered(quantized(fold(model)[0], data=data)[0])
    counts = kernels(result)
    assert counts["QLinearConv"] == 2
    assert not {"Clip", "Max", "Min", "Relu", "LeakyRelu"} & set(counts)
    assert counts["QuantizeLinear"] == 1
    assert relative(output(model, data), output(result, data)) < 0.05
