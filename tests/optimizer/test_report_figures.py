"""What report.html says: of which artifact, of which output, and in figures that are true of the whole."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.optimizer.pairing import network as seen
from onnx_lathe.optimizer.pairing import paired
from onnx_lathe.optimizer.recipe import parse_calls
from onnx_lathe.optimizer.report.html import distributions, summary
from onnx_lathe.optimizer.report.html.document import document
from onnx_lathe.optimizer.report.html.picture import picture
from onnx_lathe.optimizer.report.html.summary import TIMES
from onnx_lathe.optimizer.report.record import GateRecord, RunRecord, StepRecord, TargetRecord, read_record
from onnx_lathe.optimizer.report.units import shown
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from tests.support.builders import build, random


def record(baseline: dict[str, float], final: dict[str, float], **metrics: float) -> RunRecord:
    step = StepRecord(1, "int8", {}, "steps/01-int8.onnx", True, 1.0, 100, final, [], [], metrics)
    facts = {"path": "m.onnx", "sha256": "0", "size_bytes": 400}
    return RunRecord("1", [], facts, baseline=baseline, steps=[step], exit_code=0, outcome="done")


def tiles(found: RunRecord) -> dict[str, dict[str, str]]:
    return {tile["title"]: tile for tile in summary.tiles(found)}


OUTPUTS = {"sqnr": 0.3, "sqnr[boxes]": 0.3, "sqnr[scores]": 40.0, "sqnr[mask]": 38.0}


def test_the_worst_of_several_outputs_is_named_and_all_are_listed() -> None:
    equal = dict.fromkeys(OUTPUTS, float("inf"))
    found = record({"size": 400.0, "top1": 0.9} | equal, {"size": 100.0, "top1": 0.9} | OUTPUTS)
    worst = tiles(found)["Worst output"]
    assert (worst["value"], worst["kind"]) == ("0.3 dB", "bad")
    assert "boxes, of 3 outputs" in worst["detail"]
    assert "Of its 3 outputs, boxes is the worst: 0.3 dB SQNR." in summary.sentence(found)
    shown = document(found, None, None, None, [])["outputs"]
    assert shown["columns"] == ["model: SQNR"]
    assert [(row["name"], row["cells"][0][1]) for row in shown["rows"]] == [
        ("boxes", "0.3 dB"),
        ("scores", "40.0 dB"),
        ("mask", "38.0 dB"),
    ]
    found.gates = [GateRecord("sqnr >= 0", "model", True, "")]
    assert tiles(found)["Worst output"]["kind"] == "plain"  # as much was allowed
    single = record({"sqnr": float("inf")}, {"sqnr": 0.3, "sqnr[y]": 0.3})
    assert "Worst output" not in tiles(single)


def test_all_figures_are_of_one_artifact_that_is_named() -> None:
    found = record(
        {"size": 400.0, "top1": 0.9, "macs": 8.0},
        {"size": 100.0, "top1": 0.5, "macs": 4.0, "latency": 3.0, "base_latency": 1.0},
    )
    assert {tile["of"] for tile in summary.tiles(found)} == {"steps/01-int8.onnx"}
    timed = {"top1": 0.9, "latency": 1.0, "base_latency": 2.0}
    found.targets = [
        TargetRecord("pack", ["m.pack"], 10, {}),
        TargetRecord("ort", ["model.ort.onnx"], 200, timed),
    ]
    seen = tiles(found)
    assert seen["File size"]["value"] == f"2.0{TIMES} smaller"
    assert seen["Top-1"]["value"] == "Unchanged"
    assert seen["Latency"]["value"] == f"2.0{TIMES} faster"
    assert {seen[title]["of"] for title in ("File size", "Top-1", "Latency")} == {"model.ort.onnx for ort"}
    assert seen["Multiply-accumulates"]["of"] == "before lowering"
    assert summary.sentence(found).startswith(f"The model built for ort is 2.0{TIMES} smaller")


@pytest.mark.parametrize(("after", "said"), [(1.04, "Unchanged"), (0.96, "Unchanged"), (1.1, "slower")])
def test_noise_is_neither_faster_nor_slower(after: float, said: str) -> None:
    found = record({"size": 400.0}, {"size": 400.0, "latency": after, "base_latency": 1.0})
    assert said in tiles(found)["Latency"]["value"]


def test_short_times_have_three_digits() -> None:
    assert shown("latency", 0.0269) == "0.0269 ms"
    assert shown("latency", 0.5) == "0.500 ms"
    assert shown("latency", 12.345) == "12.35 ms"


def test_gates_are_counted_as_one_says_it() -> None:
    found = record({}, {})
    said = []
    for _ in range(3):
        found.gates.append(GateRecord("size <= 1", "model", True, ""))
        said.append(summary.verdict(found)["text"])
    assert said == ["The gate passed", "Both gates passed", "All 3 gates passed"]


def pruned(sparsity: float) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    weight = random(16, 16)
    text = "(float[N, 16] x) => (float[N, 16] y) { y = MatMul(x, w) }"
    return build(text, w=weight), build(
        text, w=np.where(np.arange(256).reshape(16, 16) < 256 * sparsity, 0, weight)
    )


def test_shares_are_of_all_weights_pruned_ones_too() -> None:
    before, after = (seen(model) for model in pruned(0.75))
    pair = paired(before, after)[0]
    series = distributions.weight_series(pair, distributions.Weights(before), distributions.Weights(after))
    assert [sum(one["shares"]) for one in series] == pytest.approx([1.0, 0.25], abs=1e-3)


def split() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    before = build("(float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }", w=random(4, 4))
    text = "(float[N, 4] x) => (float[N, 4] y) { h = MatMul(x, w_first)\n y = MatMul(h, w_second) }"
    after = build(text, w_first=random(4, 2), w_second=random(2, 4))
    before.graph.node[0].name = "layer"
    for node, name in zip(after.graph.node, ("layer_first", "layer_second"), strict=True):
        node.name = name
        node.metadata_props.add(key="lathe.pass", value="svd")
    return before, after


def test_sensitivities_of_a_split_layer_and_of_several_passes_are_kept() -> None:
    before, after = (seen(model) for model in split())
    found = record({}, {}, **{"sensitivity/w": 30.0})
    measured = {"sensitivity/w_first": 20.0, "sensitivity/w_second": 10.0}
    found.steps.append(StepRecord(2, "int8", {}, "f", True, 1.0, 1, {}, [], [], measured))
    shown = document(found, before, after, None, [])
    assert shown["sensitive"] == ["1 int8", "2 int8"]
    assert [row["sensitivity"] for row in shown["layers"]] == [{"1 int8": 30.0, "2 int8": 10.0}]


def test_a_layer_without_bytes_and_products_of_its_own_is_not_listed() -> None:
    text = """(float[N, 4, 3, 3] x) => (float[N, 4, 3, 3] y) {
        a = Conv(x, w)
        b = BatchNormalization(a, g, h, m, v)
        c = Conv(b, w)
        y = BatchNormalization(c, g, h, m, v)
    }"""
    vectors = {name: np.ones(4, np.float32) for name in "ghmv"}
    side = seen(build(text, w=random(4, 4, 1, 1), **vectors))
    shown = document(record({}, {}), side, side, None, [])
    assert [row["op"] for row in shown["layers"]] == ["Conv", "BatchNormalization", "Conv"]


def nested() -> onnx.ModelProto:
    """If in If, which reads `b` two bodies deep and a layer in its else_branch; behind layer A alone."""
    helper, shape = onnx.helper, ["N", 8]

    def body(name: str, node: onnx.NodeProto, output: str) -> onnx.GraphProto:
        made = helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, shape)
        return helper.make_graph([node], name, [], [made])

    deep = [body(name, helper.make_node("Neg", ["b"], [name]), name) for name in ("it", "ie")]
    inner = helper.make_node("If", ["c"], ["ot"], name="inner", then_branch=deep[0], else_branch=deep[1])
    layer = helper.make_node("MatMul", ["a", "w"], ["oe"], name="hidden")
    branches = {"then_branch": body("t", inner, "ot"), "else_branch": body("e", layer, "oe")}
    model = build(
        """(float[N, 8] x) => (float[N, 8] y) {
            a = MatMul(x, w)
            b = MatMul(x, v)
            m = ReduceMax<keepdims=0>(a)
            c = Greater(m, zero)
            y = Neg(a)
        }""",
        w=random(8, 8),
        v=random(8, 8),
        zero=np.float32(0),
    )
    del model.graph.node[-1]
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], name="outer", **branches))
    return model


def test_a_node_with_bodies_has_a_box_that_lists_its_layers() -> None:
    side = seen(nested())
    drawn = picture(side, {row.node: row.node for row in side.rows})
    boxes = {box["id"]: box for box in drawn["boxes"]}
    assert boxes["outer"]["members"] == [["outer", "If"], ["hidden", "MatMul"]]
    assert boxes["outer"]["inside"] == ["hidden"]
    ids = list(boxes)
    sources = {ids[one] for one, other in drawn["edges"] if ids[other] == "outer"}
    assert sources == {row.node for row in side.rows if not row.place}  # `b` is read two bodies deep


def given(found: RunRecord) -> Any:
    """The passes of the call on the page, read as a user would give them."""
    call = ast.parse(summary.called(found).replace(", ...)", ")"), mode="eval").body
    assert isinstance(call, ast.Call)
    passes = ast.literal_eval(call.args[1])
    return [configure(find(call.name), call.options).config for call in parse_calls(passes, "passes")]


def test_the_call_of_a_run_from_python_can_be_given_again(tmp_path: Path) -> None:
    weights = {"else_w": random(16, 16), "w": random(16, 16)}
    model = build(
        "(float[N, 16] x) => (float[N, 16] y) { a = MatMul(x, else_w)\n y = MatMul(a, w) }", **weights
    )
    model.graph.node[1].name = "a, b"
    layers = '{"else*": 0.0, "a, b": 0.5}'
    passes = f"fold, prune(sparsity=0.5, layers={layers}), codebook(bits=4, min_size=1)"
    onnx_lathe.optimize(model, passes=passes, out=tmp_path / "out", html=False, latency=False)
    found = read_record(tmp_path / "out" / "report.json")
    asked = [configure(find(call.name), call.options).config for call in parse_calls(passes, "passes")]
    assert given(found) == asked
