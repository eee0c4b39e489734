"""svd(timed=true): what is timed, what becomes of a layer that is slower when split, and of the budget that
it was to help to meet.
"""

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.optimizer.inspect import measure
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.svd.svd import Svd
from onnx_lathe.runtime.running.ort import PairTimer
from tests.support.builders import build, random, run

LAYERS = """(float[N, 8, 12, 12] x) => (float[N, 10] y) {
    c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r1, w2)  r2 = Relu (c2)
    t = ConvTranspose <strides = [2, 2]> (r2, w3, b3)
    p = GlobalAveragePool (t)  f = Flatten (p)  m = MatMul (f, w4)  s = Add (m, b4)  y = Gemm <transB = 1> (s, w5, b5)
}"""
LAYER_OUTPUTS = {"Conv_0": "c1", "Conv_2": "c2", "ConvTranspose_4": "t", "MatMul_7": "m", "Gemm_9": "y"}


def model() -> onnx.ModelProto:
    weights = {
        "w1": random(24, 8, 3, 3),
        "w2": random(24, 24, 3, 3),
        "w3": random(24, 24, 3, 3),
        "w4": random(24, 24),
        "w5": random(10, 24),
    }
    return build(LAYERS, **weights, b1=random(24), b3=random(24), b4=random(24), b5=random(10))


class Clock:
    """Says how long each layer takes, by the name of the first node; keeps the models."""

    def __init__(self, slow: tuple[str, ...] = ()) -> None:
        self.slow, self.pairs = slow, dict[str, tuple[onnx.ModelProto, onnx.ModelProto]]()
        self.calls: list[str] = []

    def latencies(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> tuple[float, float]:
        name = base.graph.node[0].name
        self.calls.append(name)
        self.pairs[name] = base, candidate
        return (0.3125, 0.42) if name in self.slow else (0.3125, 0.25)


def timed(whole: onnx.ModelProto, clock: Clock, **options: object) -> tuple[onnx.ModelProto, PassReport]:
    return apply_pass(
        configure(Svd, {"method": "weight", "timed": True, "multiple": 1} | options),
        whole,
        Context(timer=clock),
    )


@pytest.mark.parametrize("method", ["weight", "spatial"])
def test_each_layer_is_timed_alone_as_it_will_be(method: str) -> None:
    whole, clock = model(), Clock()
    after, report = timed(whole, clock, method=method, rank=4)
    inputs = {"Conv_0": [1, 8, 12, 12], "Conv_2": [1, 24, 12, 12], "ConvTranspose_4": [1, 24, 6, 6]}
    if method == "weight":
        inputs |= {"MatMul_7": [1, 24], "Gemm_9": [1, 24]}
    assert clock.calls == list(inputs) == [edit.node for edit in report.edits]
    final = {node.name: node for node in after.graph.node}
    shapes = {tensor.name: list(tensor.dims) for tensor in after.graph.initializer}
    for name, (base, candidate) in clock.pairs.items():
        original = next(node for node in whole.graph.node if node.output[0] == LAYER_OUTPUTS[name])
        assert base.graph.node[0].attribute == original.attribute
        assert base.opset_import[0].version == candidate.opset_import[0].version == 17
        assert [dim.dim_value for dim in candidate.graph.input[0].type.tensor_type.shape.dim] == inputs[name]
        timed_shapes = {tensor.name: list(tensor.dims) for tensor in candidate.graph.initializer}
        for node in candidate.graph.node[:2]:
            assert (node.op_type, node.attribute) == (final[node.name].op_type, final[node.name].attribute)
            assert timed_shapes[node.input[1]] == shapes[final[node.name].input[1]]
        feeds = {base.graph.input[0].name: random(*inputs[name])}
        one, other = run(base, feeds), run(candidate, feeds)
        assert [value.shape for value in one.values()] == [value.shape for value in other.values()]
    assert all(edit.what.endswith(", 0.312 ms became 0.25 ms") for edit in report.edits)


def test_a_split_that_is_slower_is_skipped_with_that_reason() -> None:
    _, report = timed(model(), Clock(slow=("Conv_2", "MatMul_7")), rank=4)
    assert [edit.node for edit in report.edits] == ["Conv_0", "ConvTranspose_4", "Gemm_9"]
    reason = "slower when timed: 0.42 ms against 0.312 ms"
    assert [(skip.node, skip.reason) for skip in report.skips] == [("Conv_2", reason), ("MatMul_7", reason)]


def test_the_others_make_up_for_what_a_slow_layer_would_have_saved() -> None:
    whole, clock = model(), Clock(slow=("Conv_2",))
    after, report = timed(whole, clock, macs=0.6)
    assert measure(after).macs <= 0.6 * measure(whole).macs
    assert report.metrics["macs_kept"] == pytest.approx(measure(after).macs / measure(whole).macs)
    assert {skip.node: skip.reason for skip in report.skips}["Conv_2"].startswith("slower when timed")
    nodes = [entry.node for entry in [*report.edits, *report.skips]]
    assert sorted(nodes) == sorted(LAYER_OUTPUTS)  # each once, though ranks were chosen twice
    assert clock.calls.count("Conv_2") == 1


def test_where_all_are_slower_nothing_changes() -> None:
    whole = model()
    after, report = timed(whole, Clock(slow=tuple(LAYER_OUTPUTS)), rank=4)
    assert after is whole
    assert (report.edits, report.metrics) == ([], {})


def test_layers_that_share_a_weight_are_timed_together() -> None:
    text = "(float[N, 64] x) => (float[N, 64] y) { a = MatMul (x, w)  b = Relu (a)  y = MatMul (b, w) }"
    clock = Clock()
    timed(build(text, w=random(64, 64)), clock, rank=4)
    base, candidate = clock.pairs["MatMul_0"]
    assert [node.op_type for node in base.graph.node] == ["MatMul"] * 2
    assert [node.op_type for node in candidate.graph.node] == ["MatMul"] * 4
    assert len(base.graph.input) == len(base.graph.output) == 2


def test_times_are_medians_of_real_runs() -> None:
    """Which of the two is faster is for the machine to say: the report holds either way."""
    whole = build(
        "(float[N, 512] x) => (float[N, 512] y) { y = MatMul (x, w) }", w=random(512, 2048)[:, :512]
    )
    context = Context(timer=PairTimer(budget_s=0.05))
    _, report = apply_pass(configure(Svd, {"method": "weight", "timed": True, "rank": 1}), whole, context)
    what = [*(edit.what for edit in report.edits), *(skip.reason for skip in report.skips)]
    assert len(what) == 1
    assert " ms became " in what[0] or what[0].startswith("slower when timed: ")


def test_what_cannot_be_timed_is_left() -> None:
    whole = build(
        "(float[N, 64] x) => (float[N, 64] y) { s = Shape (x)  u = Reshape (x, s)  y = MatMul (u, w) }",
        w=random(64, 64),
    )
    whole.graph.node[0].domain = "unheard.of"
    whole.opset_import.add(domain="unheard.of", version=1)
    _, report = timed(whole, Clock(), rank=4)
    assert [skip.reason for skip in report.skips] == [
        "the size of its input is not known, so that it cannot be timed"
    ]


def test_contradictions_and_a_context_without_a_timer() -> None:
    with pytest.raises(UsageError) as error:
        configure(Svd, {"always": True, "timed": True, "rank": 3})
    assert (
        str(error.value)
        == "svd: always splits whatever that costs, and timed only what gets faster; give one of them"
    )
    with pytest.raises(PassError, match="this pass times layers, and there is nothing to time them with"):
        apply_pass(configure(Svd, {"method": "weight", "timed": True, "rank": 3}), model(), Context())


def test_timing_leaves_the_weights_as_they_were() -> None:
    whole = model()
    before = whole.SerializeToString()
    after, _ = timed(whole, Clock(), rank=4)
    plain, _ = apply_pass(configure(Svd, {"method": "weight", "rank": 4}), whole, Context())
    assert whole.SerializeToString() == before
    feeds = {"x": random(3, 8, 12, 12)}
    np.testing.assert_array_equal(run(after, feeds)["y"], run(plain, feeds)["y"])
