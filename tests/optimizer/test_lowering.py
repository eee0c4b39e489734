"""How a target's lowering is run: as often as the target sees more of the model."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer import kernel_times, lowering
from onnx_lathe.optimizer.build import configured_targets, lower
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.recipe import parse_calls
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.runtime.targets.core import branches
from onnx_lathe.runtime.targets.core.registry import find
from tests.support.builders import build, random

NESTED = """(float[1, L, 4] x) => (float[A, B, D] y) {
    shape = Shape(x) l = Gather(shape, one) always = Equal(one, one) long = Greater(l, limit)
    s = If (always) <
        then_branch = first () => (float[A, B, D] a) {
            u = Mul(x, w)
            a = If (long) <
                then_branch = inner () => (float[A, B, D] b) { b = Neg(u) },
                else_branch = outer () => (float[A, B, D] b) { b = Abs(u) }
            >
        },
        else_branch = second () => (float[A, B, D] a) { a = Sigmoid(x) }
    >
    y = Relu(s)
}"""
BATCH = """(float[N, 4] x) => (float[N, 4] y) {
    s = Shape(x) n = Gather(s, zero) c = Equal(n, one) r = Relu(x)
    y = If (c) <
        then_branch = a () => (float[N, 4] p) { p = Neg(r) },
        else_branch = b () => (float[N, 4] q) { m = ReduceMean <axes = [0]> (r) q = Sub(m, r) }
    >
}"""


def nested() -> onnx.ModelProto:
    return build(NESTED, one=np.array(1), limit=np.array(70), w=random(4))


def types(model: onnx.ModelProto) -> list[str]:
    return sorted(node.op_type for node in model.graph.node if node.op_type != "Identity")


def as_ncnn(model: onnx.ModelProto, options: str = "") -> tuple[onnx.ModelProto, PassReport]:
    ((target, config),) = configured_targets(parse_calls(f"ncnn{options}", "target"))
    return lower(target, config, model, Context())


@pytest.mark.parametrize(
    "options, wanted",
    [
        ("(shapes={x: 1x80x4})", ["Mul", "Neg", "Relu"]),
        ("(shapes={x: 1x9x4})", ["Abs", "Mul", "Relu"]),
        ("(shapes={x: 1x9x4:1x20x4})", ["Abs", "Mul", "Relu"]),
        # what is written then runs at any length, also at those behind the number that it is compared with
        ("(shapes={x: 1x9x4~1x20x4})", ["Gather", "Greater", "If", "Mul", "Relu", "Shape"]),
        ("(shapes={x: 1x60x4:1x80x4})", ["Gather", "Greater", "If", "Mul", "Relu", "Shape"]),
    ],
)
def test_branches_within_branches_are_taken_in_rounds(options: str, wanted: list[str]) -> None:
    assert types(as_ncnn(nested(), options)[0]) == wanted


def test_sizes_at_which_the_model_does_not_run_decide_nothing() -> None:
    text = """(float[1, L] x) => (float[1, M] y) {
        m = MatMul(x, w) s = Shape(m) n = Gather(s, one) c = Equal(n, one)
        y = If (c) < then_branch = a () => (float[1, M] p) { p = Neg(m) }, else_branch = b () => (float[1, M] q) { q = Abs(m) } >
    }"""
    model = build(text, w=random(7, 3), one=np.array(1))
    assert as_ncnn(model)[0] is model
    assert types(as_ncnn(model, "(shapes={x: 1x7})")[0]) == ["Abs", "MatMul"]


def test_a_model_without_branches_is_lowered_once_and_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("ONNX Runtime was asked")

    monkeypatch.setattr(branches, "free_values", never)
    applied = []

    def apply(instance: Pass, model: onnx.ModelProto) -> tuple[onnx.ModelProto, PassReport]:
        applied.append(instance.config)
        return model, PassReport()

    model = build("(float[1, 3, H, W] x) => (float[1, 3, H, W] y) { y = Relu(x) }")
    target = find("ncnn")()
    lowering.lowered(target, target.Config(), model, apply)
    assert len(applied) == 1


def test_the_timer_of_kernels_sees_what_is_built() -> None:
    text = """(float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y) {
        s = Shape(x) n = Gather(s, one) c = Equal(n, one) r = Conv <pads = [1, 1, 1, 1]> (x, w)
        y = If (c) <
            then_branch = a () => (float[1, 4, 8, 8] p) { p = Neg(r) },
            else_branch = b () => (float[1, 4, 8, 8] q) { q = Relu(r) }
        >
    }"""
    model = build(text, w=random(4, 3, 3, 3), one=np.array(1))
    assert types(kernel_times._lowered(model, "x86")) == ["Conv", "Relu"]


def compiled(model: onnx.ModelProto, data: np.ndarray, tmp_path: Path) -> tuple[int, dict[str, Any]]:
    """(exit code, record of the run)."""
    path, out = tmp_path / "net.onnx", tmp_path / "out"
    onnx.save(model, path)
    np.savez(tmp_path / "data.npz", x=data)
    arguments = ["--passes", "fold", "--eval", str(tmp_path / "data.npz"), "--target", "ncnn"]
    code = main([str(path), *arguments, "--out", str(out), "--no-latency", "--quiet"])
    return code, json.loads((out / "report.json").read_text())


@pytest.mark.parametrize("length", [60, 80])
def test_a_branch_is_decided_by_the_sizes_that_the_data_fixes(length: int, tmp_path: Path) -> None:
    """The inner branch is another at a size nearby: open sizes leave it, and those of the data decide it."""
    code, record = compiled(nested(), random(3, length, 4), tmp_path)
    assert code == 0, record["targets"]
    assert (record["targets"][0]["quality"]["sqnr"] or math.inf) > 100  # none: they are equal
    assert record["targets"][0]["details"]["open_sizes"] is False
    (note,) = record["warnings"]
    assert f"built for inputs of x 1x{length}x4, as the data has them" in note
    assert "which of its branches runs depends on the size of the input" in note


def test_a_branch_that_asks_for_the_batch_makes_it_none(tmp_path: Path) -> None:
    """The lowered model has the body for one sample, which two at once do not take."""
    model = build(BATCH, 17, zero=np.array(0), one=np.array(1))
    code, record = compiled(model, random(6, 4), tmp_path)
    assert code == 4
    assert "of two samples at once is another than of each alone" in record["targets"][0]["error"]


def test_the_lowering_is_not_run_again_for_sizes_that_show_it_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix of 7 columns fixes the size; there is no branch."""
    asked: list[Mapping[str, Any]] = []
    plain = lowering.find_lowering

    def counted(name: str) -> type[Pass]:
        asked.append({"lowering": name})
        return plain(name)

    monkeypatch.setattr(lowering, "find_lowering", counted)
    model = build("(float[N, L] x) => (float[N, M] y) { y = MatMul (x, w) }", w=random(7, 3))
    code, record = compiled(model, random(4, 7), tmp_path)
    assert code == 0
    assert any("built for inputs of x 1x7, as the data has them" in line for line in record["warnings"])
    assert len(asked) == 1
