"""tucker: what it refuses, and the reason that it gives."""

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model, set_sparse_tensors
from onnx_lathe.passes.tucker.tucker import TuckerPass
from tests.support.answers import applied, context
from tests.support.builders import build, random

CONV = "(float[N, 8, 6, 6] x) => (float[N, {outputs}, h, w] y) {{ y = Conv <group = {group}> (x, w) }}"
REFUSED = {
    "its kernel is 1 x 1; svd splits it in two": (CONV.format(outputs=16, group=1), {"w": (16, 8, 1, 1)}),
    "its convolution is grouped: each group is a small layer already": (
        CONV.format(outputs=8, group=8),
        {"w": (8, 1, 3, 3)},
    ),
    "it is a Gemm; tucker splits Conv, and svd this too": (
        "(float[N, 8] x) => (float[N, 16] y) { y = Gemm (x, w) }",
        {"w": (8, 16)},
    ),
    "its weight is computed at run time": (
        "(float[N, 8, 6, 6] x, float[8, 8, 3, 3] u) => (float[N, 8, h, w] y) { v = Neg (u)  y = Conv (x, v) }",
        {},
    ),
    "its bias cannot be changed": (
        "(float[N, 8, 6, 6] x, float[16] u) => (float[N, 16, h, w] y) { b = Neg (u)  y = Conv (x, w, b) }",
        {"w": (16, 8, 3, 3)},
    ),
    "its weight is shared by several layers": (
        "(float[N, 8, 6, 6] x) => (float[N, 8, h, w] y) { a = Conv (x, w)  y = Conv (a, w) }",
        {"w": (8, 8, 3, 3)},
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_split_is_skipped_with_its_reason(reason: str) -> None:
    text, initializers = REFUSED[reason]
    model = build(text, **{name: random(*shape) for name, shape in initializers.items()})
    after, report = applied("tucker", model, Context(), rank=1)
    assert after is model
    assert [skip.reason for skip in report.skips] == [reason]
    assert report.skips[0].node.split("_")[0] in ("Conv", "Gemm")


PLAIN = "(float[N, 8, 6, 6] x) => (float[N, 16, h, w] y) { y = Conv (x, w) }"


def test_what_saves_nothing_is_refused() -> None:
    model = build(PLAIN, w=random(16, 8, 3, 3))
    where = context(model, x=random(32, 8, 6, 6))
    for options, reason in (
        ({"rank": 16}, "ranks 8 of 8 and 16 of 16 save no MACs"),
        ({"rank": 100, "form": "cp"}, "72 terms save no MACs"),
        ({"macs": 1.0}, "the budget of MACs is met without it"),
        ({"energy": 1.0}, "no ranks that are allowed save MACs and keep 100 % of energy"),
        ({"macs": 0.5, "least": 1.0}, "no rank that is allowed saves MACs"),
    ):
        after, report = applied("tucker", model, where, **options)
        assert after is model
        assert [(skip.node, skip.reason) for skip in report.skips] == [("Conv_0", reason)]


def test_values_that_cannot_be_measured() -> None:
    weight = random(16, 8, 3, 3)
    model = build(PLAIN, w=weight)
    graph = import_model(model)
    set_sparse_tensors(graph, {"w": "unstructured"})
    broken = weight.copy()
    broken[0, 0, 0, 0] = np.nan
    zeros, spoilt = np.zeros((32, 8, 6, 6), np.float32), random(32, 8, 6, 6)
    spoilt[3, 0] = np.inf
    cases: list[tuple[onnx.ModelProto, np.ndarray | None, str]] = [
        (
            export_model(graph),
            None,
            "its zeros must stay (lathe.sparse), and factors would have none; tucker before prune",
        ),
        (build(PLAIN, w=broken), None, "its weight has NaN or infinite elements"),
        (build(PLAIN, w=0 * weight), None, "its weight is 0"),
        (model, zeros, "its inputs on the calibration data are 0"),
        (model, spoilt, "its inputs on the calibration data are NaN or infinite"),
    ]
    for one, data, reason in cases:
        where = Context() if data is None else context(one, x=data)
        after, report = applied("tucker", one, where)
        assert after is one
        assert [skip.reason for skip in report.skips] == [reason]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4, "macs": 0.5}, "tucker: rank and macs both choose ranks; give one of them"),
        ({"energy": 0.0}, "tucker: energy must be above 0"),
        ({"form": "tt"}, "must be one of tucker, cp, not 'tt'"),
        ({"always": True, "timed": True, "rank": 2}, "tucker: always splits whatever that costs"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        configure(TuckerPass, options)


def test_the_command_says_what_is_wrong(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    path = f"{tmp_path}/model.onnx"
    onnx.save(build(PLAIN, w=random(16, 8, 3, 3)), path)
    assert main([path, "--passes", "tucker(layers={nothing: 3})", "--out", f"{tmp_path}/out"]) == 2
    assert "tucker(layers=...): no weight or layer is named 'nothing'" in capsys.readouterr().err
