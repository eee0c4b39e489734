"""int8(rounding=adaptive): which layers are rounded to nearest after all, and the reason that is given."""

import numpy as np
import pytest

from onnx_lathe.errors import PassError
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import import_model
from onnx_lathe.passes.int8.int8 import Int8
from tests.support.builders import build, random
from tests.support.rounding import IMAGE, ROWS, Samples, adapt

CODES = {"k": np.random.default_rng(0).integers(0, 16, (4, 4, 1, 1)).astype(np.uint8), "book": random(16)}
REFUSED = {
    "shared": (IMAGE.format("c = Conv (x, w)  y = Conv (c, w)"), "its weight is shared by several layers"),
    "codebook": (
        IMAGE.format("i = Cast <to = 6> (k)  u = Gather <axis = 0> (book, i)  y = Conv (x, u)"),
        "it is stored as a codebook",
    ),
    "computed bias": (
        IMAGE.format("m = ReduceMax <keepdims = 0, axes = [0, 2, 3]> (x)  y = Conv (x, w, m)"),
        "its bias cannot be changed",
    ),
    "transposed": (
        "(float[4, N] x) => (float[N, 6] y) { y = Gemm <transA = 1> (x, v) }",
        "its input is transposed",
    ),
    "bias per row": (
        "(float[8, 4] x) => (float[8, 6] y) { y = Gemm (x, v, rows) }",
        "its bias is no number for each output channel",
    ),
}


@pytest.mark.parametrize("text, reason", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_adapted_is_rounded_to_nearest_and_said(text: str, reason: str) -> None:
    model = build(text, w=random(4, 4, 1, 1), v=random(4, 6), rows=random(8, 6), **CODES)
    data = Samples(*((40, 4, 9, 9) if "9, 9" in text else (4, 8) if "transA" in text else (8, 4)))
    result, report = adapt(model, data)
    layers = [node.name for node in import_model(model).nodes if node.op in ("Conv", "Gemm")]
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        (node, f"its weight is rounded to nearest: {reason}") for node in layers
    ]
    assert result == adapt(model, data, "nearest")[0]


def test_where_nothing_better_is_found_nearest_is_kept_and_said() -> None:
    drawn = random(4, 4, 1, 1)
    weight = np.rint(127 * drawn / np.abs(drawn).max((1, 2, 3), keepdims=True)) / 64  # on levels
    model, data = build(IMAGE.format("y = Conv (x, w)"), w=weight.astype(np.float32)), Samples(40, 4, 9, 9)
    result, report = adapt(model, data, activations=False)
    (reason,) = [skip.reason for skip in report.skips]
    assert reason.startswith("its weight is rounded to nearest: nothing better was found (")
    assert reason.endswith(" signal to noise of what it answers)")
    assert result == adapt(model, data, "nearest", activations=False)[0]


def test_few_samples_are_said() -> None:
    model = build(IMAGE.format("y = Conv (x, w)"), w=random(4, 4, 1, 1))
    _, report = adapt(model, Samples(8, 4, 9, 9))
    assert report.warnings == [
        "rounding=adaptive had 8 calibration samples, which tell little of what layers read; give 32 or more"
    ]


def test_a_layer_that_computes_nan_is_rounded_to_nearest() -> None:
    model = build(ROWS.format("y = MatMul (x, w)"), w=random(4, 6))
    _, report = adapt(model, Samples(8, 4, bad=np.nan), activations=False)
    assert [skip.reason for skip in report.skips] == [
        "its weight is rounded to nearest: the layer computes NaN or infinity on calibration data"
    ]


def test_it_needs_data_even_for_weights_alone() -> None:
    assert configure(Int8, {"rounding": "adaptive", "activations": False}).needs == ("calibrator",)
    with pytest.raises(PassError, match="this pass needs calibration data"):
        configure(Int8, {"rounding": "adaptive", "activations": False}).apply(
            import_model(build(ROWS.format("y = MatMul (x, w)"), w=random(4, 6))), Context()
        )
