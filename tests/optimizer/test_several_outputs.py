"""The command line on models of several outputs: each is measured, gated by name, and reported."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_lathe.optimizer.cli import main
from tests.support.house import ROOT

BOXES = 640.0


def detector(box_gain: float = BOXES, sequence: bool = False, joined: bool = False) -> onnx.ModelProto:
    """x [N, 3, 8, 8] -> scores [N, 5] and boxes [N, 4], the latter of 0 to `box_gain`."""
    rng = np.random.default_rng(3)
    weights = {
        "w": 0.3 * rng.standard_normal((8, 3, 3, 3)),
        "ws": 0.5 * rng.standard_normal((8, 5)),
        "wb": 0.5 * rng.standard_normal((8, 4)),
        "gain": np.array(box_gain),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["c"], "conv"),
        node("Relu", ["c"], ["r"], "relu"),
        node("GlobalAveragePool", ["r"], ["p"], "pool"),
        node("Flatten", ["p"], ["f"], "flat"),
        node("MatMul", ["f", "ws"], ["scores"], "score"),
        node("MatMul", ["f", "wb"], ["b"], "box"),
        node("Sigmoid", ["b"], ["sb"], "squash"),
        node("Mul", ["sb", "gain"], ["boxes"], "scale"),
    ]
    value = helper.make_tensor_value_info
    outputs = [value("scores", TensorProto.FLOAT, ["N", 5]), value("boxes", TensorProto.FLOAT, ["N", 4])]
    if sequence:
        nodes.append(node("SequenceConstruct", ["scores", "boxes"], ["both"], "both"))
        outputs = [
            outputs[0],
            helper.make_tensor_sequence_value_info("both", TensorProto.FLOAT, ["N", None]),
        ]
    if joined:
        nodes += [
            node("Sigmoid", ["scores"], ["sigmoid"], "sigmoid"),
            node("Concat", ["boxes", "sigmoid"], ["all"], "join", axis=1),
        ]
        outputs = [value("all", TensorProto.FLOAT, ["N", 9])]
    graph = helper.make_graph(
        nodes,
        "detector",
        [value("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        outputs,
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32))
    return path


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def gate(*arguments: object) -> int:
    return main(["gate", *map(str, arguments)])


def test_a_gate_sees_the_second_output(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = saved(detector(), tmp_path / "a.onnx"), saved(detector(0.0), tmp_path / "b.onnx")
    assert gate(whole, whole, "--data", data, "--gate", "sqnr >= 60") == 0
    assert "the float outputs are equal" in capsys.readouterr().out
    assert gate(whole, broken, "--data", data, "--gate", "sqnr >= 60") == 3
    assert "sqnr >= 60: 0 dB ([boxes]), missed by 60 dB" in capsys.readouterr().out
    assert gate(whole, broken, "--data", data, "--gate", "sqnr[scores] >= 60") == 0
    assert gate(whole, broken, "--data", data, "--gate", "sqnr[boxes] >= 30") == 3


def test_a_gate_sees_a_slice_of_a_joined_output(tmp_path: Path, data: Path) -> None:
    whole = saved(detector(joined=True), tmp_path / "a.onnx")
    model = detector(joined=True)
    scores = next(tensor for tensor in model.graph.initializer if tensor.name == "ws")
    scores.CopyFrom(numpy_helper.from_array(np.full((8, 5), -10, np.float32), "ws"))
    broken = saved(model, tmp_path / "b.onnx")
    assert gate(whole, broken, "--data", data, "--gate", "sqnr >= 20") == 3
    assert gate(whole, broken, "--data", data, "--gate", "sqnr[all][0-3] >= 60") == 0


def test_a_gate_on_an_output_that_is_not_there(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = saved(detector(), tmp_path / "a.onnx")
    assert gate(whole, whole, "--data", data, "--gate", "sqnr[boxs] >= 60") == 2
    message = capsys.readouterr().err
    assert "sqnr has no output [boxs]" in message
    assert "did you mean 'sqnr[boxes]'?" in message


def test_the_report_has_every_output(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, out = saved(detector(), tmp_path / "a.onnx"), tmp_path / "out"
    arguments = ["--passes", "prune(sparsity=0.7)", "--data", str(data), "--out", str(out), "--no-latency"]
    gates = ["--gate", "sqnr[boxes] >= 3, sqnr[scores] >= -20"]
    assert main([str(whole), *arguments, *gates]) == 0
    report = json.loads((out / "report.json").read_text())
    jsonschema.validate(report, json.loads((ROOT / "docs" / "report.schema.json").read_text()))
    quality = report["steps"][0]["quality"]
    assert quality["sqnr"] == min(quality["sqnr[boxes]"], quality["sqnr[scores]"])
    assert quality["agreement"] == min(quality["agreement[boxes]"], quality["agreement[scores]"])
    assert "sqnr" in report["steps"][0]["worse"]
    verdict = report["gates"][0]
    assert verdict["needed"] == 3
    assert verdict["measured"] == quality["sqnr[boxes]"]
    assert verdict["margin"] == pytest.approx(quality["sqnr[boxes]"] - 3)
    printed = capsys.readouterr().out
    assert "model: SQNR" in printed
    assert "boxes" in printed
    assert "sqnr equal -> " in printed


@pytest.mark.parametrize("passes", ["fold", "prune", "codebook", "float16", "fold, int8"])
def test_outputs_that_are_sequences_are_judged(passes: str, tmp_path: Path, data: Path) -> None:
    model, out = saved(detector(sequence=True), tmp_path / "a.onnx"), tmp_path / "out"
    arguments = ["--passes", passes, "--data", str(data), "--out", str(out), "--no-latency", "--quiet"]
    assert main([str(model), *arguments, "--target", "onnx,ort"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert {"sqnr[scores]", "sqnr[both[0]]", "sqnr[both[1]]"} <= report["steps"][-1]["quality"].keys()


def test_maps_of_a_classifier_are_judged(tmp_path: Path) -> None:
    """As exporters of tree and linear models end: ZipMap of the scores, beside the label."""
    rng = np.random.default_rng(0)
    ml, node, value = "ai.onnx.ml", helper.make_node, helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            node("MatMul", ["x", "w"], ["s"], "mm"),
            node("Softmax", ["s"], ["p"], "soft", axis=1),
            node("ArgMax", ["s"], ["label"], "best", axis=1, keepdims=0),
            node("ZipMap", ["p"], ["map"], "zip", domain=ml, classlabels_int64s=[0, 1, 2]),
        ],
        "g",
        [value("x", TensorProto.FLOAT, ["N", 16])],
        [
            value("label", TensorProto.INT64, ["N"]),
            helper.make_value_info(
                "map",
                helper.make_sequence_type_proto(
                    helper.make_map_type_proto(
                        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
                    )
                ),
            ),
        ],
        [numpy_helper.from_array(rng.standard_normal((16, 3)).astype(np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(ml, 3)]
    model = saved(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    data = tmp_path / "d.npz"
    np.savez(data, x=rng.standard_normal((30, 16)).astype(np.float32))
    out = tmp_path / "out"
    arguments = ["--passes", "codebook(bits=2)", "--data", str(data), "--out", str(out), "--quiet"]
    assert main([str(model), *arguments, "--no-latency"]) == 0
    quality = json.loads((out / "report.json").read_text())["steps"][0]["quality"]
    assert {"sqnr[map]", "agreement[label]", "agreement[map]"} <= quality.keys()
