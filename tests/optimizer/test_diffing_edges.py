"""`diff` and `debug`: batches that one of two models fixes, later calls, texts, bodies, and where `debug` writes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.errors import LatheError, UsageError
from onnx_lathe.optimizer.diffing import bundle
from onnx_lathe.optimizer.diffing.debug import Debugged
from onnx_lathe.optimizer.diffing.terminal import nothing
from tests.support import faults
from tests.support.bodies import branches
from tests.support.builders import build
from tests.support.faults import changed, channel_times, network

WEIGHT = np.arange(20, dtype=np.float32).reshape(4, 5)
ROWS = np.random.default_rng(3).standard_normal((16, 4)).astype(np.float32)


def linear(batch: int | str, made: int | str | None = None) -> onnx.ModelProto:
    made = batch if made is None else made
    text = f"(float[{batch}, 4] x) => (float[{made}, 5] y) {{ h = MatMul (x, w) y = Relu (h) }}"
    return build(text, 17, w=WEIGHT)


@pytest.mark.parametrize("one, other, calls", [("N", 1, 16), (1, "N", 16), ("N", 2, 8)])
def test_a_batch_that_one_model_fixes(tmp_path: Path, one: int | str, other: int | str, calls: int) -> None:
    models = linear(one), linear(other)
    found = onnx_lathe.diff(*models, data={"x": ROWS})
    assert (found.calls, [row.verdict for row in found.tensors]) == (calls, ["equal", "equal"])
    assert onnx_lathe.diff(*models).calls == 1
    assert onnx_lathe.debug(*models, tmp_path / "out", data={"x": ROWS}).notes == []


def test_two_batches_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"its input 'x' takes 2 at a time, that of base \(in memory\) 1"):
        onnx_lathe.diff(linear(1), linear(2))
    with pytest.raises(UsageError, match="takes 2 at a time"):
        onnx_lathe.debug(linear(1), linear(2), tmp_path / "out")


def test_sizes_that_are_declared_wrong_have_no_culprit(tmp_path: Path) -> None:
    """Its input is declared with 3 columns, which no node minds by itself once it is fed with 4."""
    base = build("(float[N, 4] x) => (float[N, M] y) { h = Abs (x) y = Neg (h) }")
    wrong = build("(float[N, 3] x) => (float[N, M] y) { h = Abs (x) y = Neg (h) }")
    found = onnx_lathe.debug(base, wrong, tmp_path / "out", data={"x": ROWS})
    assert found.culprits == []
    assert "declares of its inputs" in nothing(found)
    assert not (tmp_path / "out").exists()


def test_a_failure_in_a_later_call(tmp_path: Path) -> None:
    """ROWS of the data are run at once: only the third call has an index that the smaller table lacks."""

    def looks_up(rows: int) -> onnx.ModelProto:
        text = "(int64[N] i) => (float[N, 5] y) { e = Gather (t, i) y = Relu (e) }"
        return build(text, 17, t=np.ones((rows, 5), np.float32))

    data = {"i": np.arange(24)}
    found = onnx_lathe.debug(looks_up(24), looks_up(20), tmp_path / "out", data=data, samples=24)
    assert [culprit.operator for culprit in found.culprits] == ["Gather"]
    assert "out of data bounds" in found.culprits[0].refusal


def label(values: list[str]) -> onnx.ModelProto:
    """Texts by the place of the largest of four numbers."""
    make = onnx.helper.make_node
    nodes = [
        make("ArgMax", ["x"], ["i"], axis=1, keepdims=0),
        make("LabelEncoder", ["i"], ["s"], "names", domain="ai.onnx.ml", keys_int64s=range(4), values_strings=values),
        make("Identity", ["s"], ["o"], "last"),
    ]  # fmt: skip
    told = onnx.helper.make_tensor_value_info
    inputs = [told("x", onnx.TensorProto.FLOAT, ["N", 4])]
    graph = onnx.helper.make_graph(nodes, "g", inputs, [told("o", onnx.TensorProto.STRING, ["N"])])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 2)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)


def said_by_script(found: Debugged) -> str:
    [culprit] = found.culprits
    done = subprocess.run(
        [sys.executable, "run.py"], cwd=culprit.folder, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_texts_are_written_and_counted(tmp_path: Path) -> None:
    base, wrong = label(["a", "b", "c", "d"]), label(["a", "b", "x", "d"])
    found = onnx_lathe.debug(base, wrong, tmp_path / "out", data={"x": np.eye(4, dtype=np.float32)})
    assert found.culprits[0].node == "names"
    assert found.culprits[0].figure == "1 of 4 values that differ"
    assert said_by_script(found) == "s: 1 of 4 values differ\n"


def test_a_part_that_reads_texts(tmp_path: Path) -> None:
    """np.load reads them without pickle."""
    base, wrong = label(["a", "b", "c", "d"]), label(["a", "b", "c", "d"])
    for model, words in ((base, "abcd"), (wrong, "abdc")):
        back = onnx.helper.make_node("LabelEncoder", ["s"], ["o"], "back", domain="ai.onnx.ml", keys_strings=list(words), values_int64s=range(4))  # fmt: skip
        model.graph.node[2].CopyFrom(back)
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    found = onnx_lathe.debug(base, wrong, tmp_path / "out", data={"x": np.eye(4, dtype=np.float32)})
    assert found.culprits[0].node == "back"
    assert said_by_script(found) == "o: 2 of 4 values differ\n"


def test_the_weights_of_two_bodies_of_one_name_are_two() -> None:
    made = branches()

    def same_name(factor: float) -> onnx.ModelProto:
        model = faults.copied(made)
        yes, no = (attribute.g for attribute in model.graph.node[1].attribute)
        tensor = no.initializer[0]
        yes.initializer.add().CopyFrom(
            onnx.numpy_helper.from_array(factor * onnx.numpy_helper.to_array(tensor), "own")
        )
        return model

    found = onnx_lathe.diff(same_name(1), same_name(2)).structure
    assert found is not None
    assert [(one.name, one.place) for one in found.initializers] == [("own", "then_branch of If 'y'")]
    assert found.unchanged == 3


def faulty() -> onnx.ModelProto:
    return changed(network(), "w2", channel_times(3.0))


def test_debug_fills_the_folder_that_one_works_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = onnx_lathe.debug(network(), faulty(), ".", data={"x": faults.samples()})
    assert len(found.culprits) == 1
    assert sorted(path.name for path in Path.cwd().iterdir()) == [
        "README.md",
        "input.npz",
        "model.onnx",
        "run.py",
    ]


def test_what_the_disk_refuses_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LatheError, match="file/out: cannot be written"):
        onnx_lathe.debug(network(), faulty(), tmp_path / "file" / "out", data={"x": faults.samples()})
    with pytest.raises(LatheError, match="out: cannot be written"), bundle.new_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_node_that_is_gone_is_named(tmp_path: Path) -> None:
    """B's layer reads what A's Relu read."""
    without = faults.copied(network())
    place = next(place for place, node in enumerate(without.graph.node) if node.output[0] == "b_relu")
    del without.graph.node[place]
    next(node for node in without.graph.node if node.output[0] == "c").input[0] = "b"
    found = onnx_lathe.debug(network(), without, tmp_path / "out", data={"x": faults.samples()})
    assert "A has Relu 'node_b_relu', Conv 'node_c'" in found.culprits[0].reason


def test_a_quantized_layer_is_the_same_layer(tmp_path: Path) -> None:
    int8 = onnx_lathe.rewrite(network(), "int8", calibration={"x": faults.samples()})
    found = onnx_lathe.debug(network(), int8, tmp_path / "out", data={"x": faults.samples()}, at=90, top=9)
    assert found.culprits
    assert not [
        one.reason for one in found.culprits if "A has Conv" in one.reason and "Relu" not in one.reason
    ]


def test_results_of_one_node_are_one_layer(tmp_path: Path) -> None:
    drawn = np.random.default_rng(3).standard_normal
    weight, recurrent = (drawn((1, 24, size)).astype(np.float32) for size in (5, 6))

    def lstm(factor: float) -> onnx.ModelProto:
        text = """(float[3, 2, 5] x) => (float[3, 1, 2, 6] y, float[1, 2, 6] h, float[1, 2, 6] c) {
            a, h, b = LSTM <hidden_size = 6> (x, w, r)  y = Relu (a)  c = Tanh (b)
        }"""
        return build(text, 17, w=np.float32(factor) * weight, r=recurrent)

    found = onnx_lathe.debug(lstm(1), lstm(2), tmp_path / "out", top=5)
    assert (found.failing, [culprit.operator for culprit in found.culprits]) == (1, ["LSTM"])


@pytest.mark.parametrize("option", [{"top": "1"}, {"top": 1.5}, {"at": "20dB"}, {"samples": True}])
def test_options_of_another_type(tmp_path: Path, option: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(option))} takes a number"):
        onnx_lathe.debug(linear(1), linear(1), tmp_path / "out", **option)  # type: ignore[arg-type]
