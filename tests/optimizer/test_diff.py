"""Two models side by side: what is matched with what, the figures, where they part, and what is said of it."""

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.diffing import diff as diffing
from onnx_lathe.optimizer.diffing import groups
from onnx_lathe.optimizer.diffing.diff import Diff, TensorError
from onnx_lathe.optimizer.diffing.explorer import node_data
from tests.support import faults
from tests.support.builders import build, random, run
from tests.support.command import refused
from tests.support.faults import changed, channel_times, network, node, spliced


def diff(base: onnx.ModelProto, candidate: onnx.ModelProto, **options: object) -> Diff:
    return onnx_lathe.diff(base, candidate, data={"x": faults.samples()}, **options)  # type: ignore[arg-type]


def row(found: Diff, name: str) -> TensorError:
    return next(one for one in found.tensors if one.name == name)


def matched(found: Diff) -> dict[str, str]:
    return {one.name: one.base for one in found.tensors}


def test_figures_of_a_fault() -> None:
    """They are what NumPy finds on the same outputs."""
    wrong = changed(network(), "w2", channel_times(3.0))
    found = diff(network(), wrong)
    assert [one.name for one in found.tensors] == [one.output[0] for one in network().graph.node]
    assert found.parts_at == "b"
    assert [row(found, name).verdict for name in ("a", "a_relu")] == ["equal", "equal"]
    one, other = (run(model, {"x": faults.samples()})["y"].astype(np.float64) for model in (network(), wrong))
    ends = row(found, "y")
    assert ends.output
    assert ends.sqnr == pytest.approx(10 * math.log10((one**2).sum() / ((one - other) ** 2).sum()), abs=1e-3)
    assert ends.max_abs == pytest.approx(np.abs(one - other).max(), rel=1e-5)
    assert sum(ends.histogram) == ends.values == 60


def test_worst_first_and_the_threshold() -> None:
    wrong = changed(network(), "w4", channel_times(1.001, 7))
    found = diff(network(), wrong)
    assert found.parts_at is None
    assert diff(network(), wrong, at=90.0).parts_at == "y"
    assert found.worst_first()[0].name == "y"


def test_a_model_and_itself_are_equal() -> None:
    found = diff(network(), network())
    assert {one.verdict for one in found.tensors} == {"equal"}
    assert found.structure is not None
    assert not found.structure.initializers
    assert found.structure.unchanged == 8
    assert not any(one.added or one.removed or one.changed for one in found.structure.operators)


def test_pairs_of_q_and_dq_are_what_they_stand_behind() -> None:
    int8 = onnx_lathe.rewrite(network(), "int8", calibration={"x": faults.samples()})
    found = diff(network(), int8)
    after = {one.base: one for one in found.tensors if one.operator == "DequantizeLinear"}
    assert set(after) == {"x", "a_relu", "b_relu", "flat"}
    assert "Q/DQ pair" in after["a_relu"].how
    assert 20 < after["a_relu"].closeness < 60
    weights = {one.name: one for one in found.stored}
    assert set(weights) == {"w1", "w2", "w3", "w4"}
    assert weights["w1"].form == "DequantizeLinear"
    assert not any(one.operator == "QuantizeLinear" for one in found.tensors)
    assert found.unpaired == 0


def batch_norms() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A convolution with a BatchNormalization and a Relu; and the same folded, whose convolution goes on writing
    to `c`.
    """
    weight, bias = random(4, 3, 1, 1), random(4)
    scale, shift, mean, variance = random(4), random(4), random(4), np.abs(random(4)) + 0.5
    ends = "(float[n, 3, 4, 4] x) => (float[n, 4, 4, 4] y)"
    base = build(
        ends + "{ c = Conv(x, w, b)\n n = BatchNormalization(c, s, o, m, v)\n r = Relu(n)\n y = Sigmoid(r) }",
        w=weight, b=bias, s=scale, o=shift, m=mean, v=variance,
    )  # fmt: skip
    factor = scale / np.sqrt(variance + 1e-5)
    folded = build(
        ends + "{ c = Conv(x, w, b)\n r = Relu(c)\n y = Sigmoid(r) }",
        w=weight * factor[:, None, None, None], b=(bias - mean) * factor + shift,
    )  # fmt: skip
    return base, folded


@pytest.mark.parametrize("renamed", [False, True])
def test_a_folded_normalization_is_part_of_its_layer(renamed: bool) -> None:
    """By names that stayed, and where every name is another."""
    base, folded = batch_norms()
    if renamed:
        folded = with_names(folded)
    found = onnx_lathe.diff(base, folded, data={"x": random(2, 3, 4, 4)})
    convolution = next(one for one in found.tensors if one.operator == "Conv")
    assert convolution.base == "n"
    assert "BatchNormalization is part of the layer before it" in convolution.how
    assert min(one.closeness for one in found.tensors) > 100


def with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose inner tensors, nodes and initializers have numbers for names, as another export might."""
    copy = faults.copied(model)
    ends = {value.name for value in (*copy.graph.input, *copy.graph.output)}
    names: dict[str, str] = {}

    def named(name: str) -> str:
        return name if name in ends else names.setdefault(name, str(900 - len(names)))

    for tensor in copy.graph.initializer:
        tensor.name = named(tensor.name)
    for place, one in enumerate(copy.graph.node):
        one.name = f"n{place}"
        one.input[:] = [named(name) for name in one.input]
        one.output[:] = [named(name) for name in one.output]
    return copy


def test_the_first_of_two_layers_has_no_counterpart() -> None:
    """It reads what the base's one layer reads, and is neither that nor the layer's result."""
    two = faults.copied(network())
    two.graph.initializer.append(onnx.numpy_helper.from_array(random(8, 8, 1, 1), "wider"))
    place = next(index for index, one in enumerate(two.graph.node) if one.output[0] == "b")
    two.graph.node[place].input[0] = "first"
    two.graph.node.insert(place, node("Conv", ["a_relu", "wider"], "first"))
    found = diff(network(), two)
    assert "first" not in matched(found)
    assert found.unpaired == 1
    assert matched(found)["b"] == "b"


def test_names_that_moved_are_found_by_structure() -> None:
    other = with_names(changed(network(), "w3", channel_times(3.0)))
    found = diff(network(), other)
    assert [one.base for one in found.tensors] == [one.output[0] for one in network().graph.node]
    assert found.parts_at is not None
    assert row(found, found.parts_at).base == "c"
    assert all(one.how.startswith("structure") for one in found.tensors if not one.output)


def test_layers_are_found_by_their_weights_in_another_layout() -> None:
    """The base works on [N, H, W, C] between its convolutions, as exports of TensorFlow do."""
    weights = {"w1": random(4, 3, 3, 3), "w2": random(5, 4, 3, 3)}
    ends = "(float[n, 3, 8, 8] x) => (float[n, 5, 4, 4] y)"
    base = build(
        ends + """{ a = Conv(x, w1)\n t = Transpose <perm = [0, 2, 3, 1]> (a)\n r = Relu(t)
            u = Transpose <perm = [0, 3, 1, 2]> (r)\n b = Conv(u, w2)\n y = Relu(b) }""",
        **weights,
    )  # fmt: skip
    moved_away = build(
        ends + "{ m1 = Conv(x, w1)\n m2 = Relu(m1)\n m3 = Conv(m2, w2)\n y = Relu(m3) }", **weights
    )
    found = onnx_lathe.diff(base, moved_away, data={"x": random(2, 3, 8, 8)})
    assert matched(found) == {"m1": "a", "m2": "u", "m3": "b", "y": "y"}
    assert row(found, "m1").how == "structure: the layer of weight 'w1'"
    assert min(one.closeness for one in found.tensors) > 100


def test_a_pair_in_a_graph_of_other_names() -> None:
    stored = [
        onnx.numpy_helper.from_array(np.array(value), name)
        for name, value in (("s", np.float32(0.05)), ("z", np.int8(0)))
    ]
    copy = faults.copied(network())
    copy.graph.initializer.extend(stored)
    quantize = node("QuantizeLinear", ["a_relu", "s", "z"], "q")
    other = with_names(
        spliced(copy, "a_relu", quantize, node("DequantizeLinear", ["q", "s", "z"], "a_relu_new"))
    )
    found = diff(network(), other)
    assert [one.base for one in found.tensors if one.operator == "DequantizeLinear"] == ["a_relu"]
    assert {"b", "c", "pooled", "y"} <= set(matched(found).values())


def test_shapes_and_values_that_are_not_finite() -> None:
    wider = changed(network(), "w4", lambda weight: np.concatenate([weight, weight]))
    wider = changed(wider, "b4", lambda bias: np.concatenate([bias, bias]))
    wider.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 20
    ends = row(diff(network(), wider), "y")
    assert (ends.verdict, ends.shape, ends.base_shape, ends.sqnr) == ("shape", (6, 20), (6, 10), None)
    broken = changed(network(), "b4", lambda bias: np.where(np.arange(10) == 1, np.nan, bias))
    found = diff(network(), broken)
    assert (row(found, "y").verdict, row(found, "y").not_finite, found.parts_at) == ("not finite", 6, "y")


def test_structure_names_what_is_other() -> None:
    other = changed(network(), "w2", channel_times(3.0))
    other = spliced(other, "b", node("Sigmoid", ["b"], "b_new"))
    found = diff(network(), other).structure
    assert found is not None
    operators = {one.operator: one for one in found.operators}
    assert (operators["Sigmoid"].base, operators["Sigmoid"].candidate, operators["Sigmoid"].added) == (
        0,
        1,
        1,
    )
    assert (operators["Relu"].changed, operators["Conv"].changed) == (1, 0)
    [changed_one] = found.initializers
    assert (changed_one.name, changed_one.differing, changed_one.values) == ("w2", 72, 576)


def test_every_output_counts_and_one_that_is_missing_is_named() -> None:
    ends = "(float[n, 4] x) => (float[n, 4] p, int64[n] q{}) {{ p = Relu(x)\n q = ArgMax <axis = 1, keepdims = 0> (p){} }}"
    base = build(ends.format(", float[n, 4] r", "\n r = Exp(p)"))
    found = onnx_lathe.diff(base, build(ends.format("", "")), data={"x": random(5, 4)})
    assert [one.name for one in found.tensors if one.output] == ["p", "q"]
    assert any("has no output 'r'" in note for note in found.notes)


def test_other_outputs_of_the_same_number_are_named() -> None:
    base, other = (build(f"(float[n, 4] x) => (float[n, 4] {names[0]}, float[n, 4] {names[1]}) {{ {names[0]} = Relu(x)\n {names[1]} = Exp(x) }}") for names in ("pq", "qr"))  # fmt: skip
    found = onnx_lathe.diff(base, other, data={"x": random(5, 4)})
    assert [one.name for one in found.tensors if one.output] == ["q"]
    assert any("candidate (in memory) has no output 'p'" in note for note in found.notes)
    assert any("base (in memory) has no output 'r'" in note for note in found.notes)


def test_a_model_that_does_not_run_leads_to_debug(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In one line, whatever ONNX Runtime logs."""
    broken = changed(network(), "w3", lambda weight: weight[:, :5])
    for name, model in (("a", network()), ("b", broken)):
        onnx.save(model, tmp_path / f"{name}.onnx")
    said = refused(capfd, ["diff", *(str(tmp_path / f"{name}.onnx") for name in "ab"), "--quiet"])
    assert f"{tmp_path / 'b.onnx'}: ONNX Runtime cannot run the model" in said
    assert said.endswith("; optimize debug A B --out DIR finds the node")


def test_bodies_are_named_as_not_looked_into() -> None:
    text = """(float[n, 4] x, bool f) => (float[n, 4] y) {
        a = Relu(x)
        y = If (f) <then_branch = g1 () => (float[n, 4] t) { t = Exp(a) }, else_branch = g2 () => (float[n, 4] e) { e = Mul(a, k) }>
    }"""
    base, other = (build(text, k=np.full(4, value, np.float32)) for value in (2, 3))
    data = {"x": random(5, 1, 4), "f": np.zeros(5, bool)}
    found = onnx_lathe.diff(base, other, data=data)
    assert found.parts_at == "y"
    assert any(note.startswith("not looked into: the bodies of If ") for note in found.notes)
    assert found.structure is not None
    assert len(found.structure.bodies) == 1


def test_a_large_network_is_observed_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same figures, from sessions that give out few tensors each."""
    wrong = changed(network(), "w2", channel_times(3.0))
    whole = diff(network(), wrong)
    asked: list[int] = []
    tapped = diffing.tapped
    monkeypatch.setattr(
        diffing, "tapped", lambda model, names: asked.append(len(names)) or tapped(model, names)
    )
    one_tensor = 6 * 8 * 8 * 8 * 4
    monkeypatch.setattr(groups.grouped, "__defaults__", (2 * one_tensor,))
    pieces = diff(network(), wrong)
    assert max(asked) < 6
    assert len(asked) > 4
    assert [one.sqnr for one in pieces.tensors] == pytest.approx([one.sqnr for one in whole.tensors])


def moved(factor: float) -> onnx.ModelProto:
    """Its second layer is `factor` times as large and what reads it makes that good."""
    larger = changed(
        changed(network(), "w2", lambda weight: factor * weight), "b2", lambda bias: factor * bias
    )
    return changed(larger, "w3", lambda weight: weight / factor)


def test_a_scale_that_moved_is_no_parting() -> None:
    found = diff(network(), moved(np.float32(4)))
    assert found.parts_at is None
    assert found.recovered == ["b", "b_relu"]
    assert row(found, "b").closeness < 0
    assert row(found, "y").closeness > 100


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    onnx.save(network(), tmp_path / "a.onnx")
    onnx.save(changed(network(), "w2", channel_times(3.0)), tmp_path / "b.onnx")
    np.savez(tmp_path / "data.npz", x=faults.samples())
    return [
        "diff",
        *(str(tmp_path / name) for name in ("a.onnx", "b.onnx")),
        "--data",
        str(tmp_path / "data.npz"),
    ]


def test_the_command(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    explorer = tmp_path / "nodes.json"
    assert main([*files, "--quiet", "--model-explorer", str(explorer)]) == 0
    printed = capsys.readouterr().out
    assert "they part at 'b' of Conv 'node_b'" in printed
    assert "w2 stored 576 72 " in " ".join(printed.split())
    onnx_lathe.pack(files[2], tmp_path / "b.lathe")
    files[2] = str(tmp_path / "b.lathe")
    assert main([*files, "--quiet", "--json", "--at", "500 dB"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parts_at"] == "b"
    assert found["tensors"][0]["verdict"] == "equal"


def test_a_file_without_a_graph_is_compared_by_its_outputs(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "b.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(tmp_path / "b.onnx", options)
    files[2] = str(tmp_path / "b.ort")
    assert main([*files, "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["tensors"]] == ["y"]
    assert found["tensors"][0]["sqnr"] < 40
    assert any("holds no ONNX graph, so outputs alone are compared" in note for note in found["notes"])


def test_node_data_colours_every_node(files: list[str]) -> None:
    found = onnx_lathe.diff(files[1], files[2], data=files[4])
    data = json.loads(node_data(found))
    assert list(data["results"]) == [one.name for one in network().graph.node]
    assert data["results"]["node_a"]["value"] == 150
    assert data["results"]["node_b"]["value"] == pytest.approx(row(found, "b").sqnr, abs=0.01)
    values = [one["value"] for one in data["thresholds"]]
    assert values == sorted(values)
    assert min(values) <= min(one["value"] for one in data["results"].values()) or values[0] == -50
    assert set(data) == {"results", "thresholds"}


@pytest.mark.parametrize(
    "more, reason",
    [
        (["--html", "page.txt"], "page.txt: is written as .html"),
        (["--html", "nowhere/page.html"], "nowhere is no folder"),
        (["--at", "many"], "--at takes a number of dB"),
        (["--samples", "0"], "--samples takes a number from 1 on"),
    ],
)
def test_wrong_use(
    files: list[str], more: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reason in refused(capsys, [*files, "--quiet", *more])


def test_models_with_other_inputs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "xz":
        onnx.save(
            build(f"(float[n, 4] {name}) => (float[n, 4] y) {{ y = Relu({name}) }}"),
            tmp_path / f"{name}.onnx",
        )
    said = refused(capsys, ["diff", str(tmp_path / "x.onnx"), str(tmp_path / "z.onnx"), "--quiet"])
    assert "its input 'z' is none of" in said
