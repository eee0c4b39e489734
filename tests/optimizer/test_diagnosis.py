"""What is wrong with a model, in one line that names the node; and that nothing is said of one that is right."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_lathe.errors import ModelError
from onnx_lathe.optimizer import diagnosis
from tests.support import bodies, quantized
from tests.support.broken import BROKEN, FILE

WORDS = {
    "scales of another number": "node 'w2_DQ': it has 5 scales, and 8 values along axis 0",
    "axis out of range": "node 'w2_DQ': axis 7 is not one of its 4 dimensions",
    "weight of another shape": "node 'conv2': its weight 'w2' is for 3 input channels, and its input has 8",
    "custom operator": "node 'mine': com.example.Special is not an operator of the ONNX standard",
    "input of size 0": "input 'x' has size 0 in dimension 0",
    "text as input": "input 'x' is STRING, not numbers",
    "nodes of one name": "several nodes have the one name 'node'",
    "weight of another type": "node 'conv1': B has inconsistent type tensor(double)",
}


@pytest.mark.parametrize("name", WORDS)
def test_what_is_wrong(name: str, tmp_path: Path) -> None:
    case = next(case for case in BROKEN if case.name == name)
    case.write(tmp_path / FILE)
    found = diagnosis.problem(onnx.load(tmp_path / FILE))
    assert found.startswith(WORDS[name])
    assert "export the model" in found or "cut it off" in found


@pytest.mark.parametrize(
    "axis, count, said",
    [
        (9, 8, "node 'q': axis 9 is not one of its 4 dimensions"),
        (1, 7, "node 'q': it has 7 scales, and 8 values along axis 1"),
        (-3, 8, ""),
    ],
)
def test_scales_of_an_activation(axis: int, count: int, said: str, tmp_path: Path) -> None:
    """Its shape is known by inference alone."""
    scales = {"s": np.ones(count, np.float32), "z": np.zeros(count, np.int8)}
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["c"], "q", axis=axis),
        helper.make_node("DequantizeLinear", ["c", "s", "z"], ["y"], "d", axis=axis),
    ]
    model = quantized.model(nodes, {"x": ["n", 8, 4, 4]}, {"y": ["n", 8, 4, 4]}, scales)
    onnx.save(model, tmp_path / FILE)
    assert diagnosis.problem(model).startswith(said)
    if said:
        with pytest.raises(ModelError, match="node 'q'"):
            diagnosis.refuse_broken(tmp_path / FILE, model)


def test_a_kernel_of_another_size_than_its_weight(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv", kernel_shape=[7, 7])
    weights = {"w": np.ones((4, 3, 5, 5), np.float32)}
    model = quantized.model([node], {"x": [1, 3, 9, 9]}, {"y": [1, 4, 3, 3]}, weights)
    onnx.save(model, tmp_path / FILE)
    with pytest.raises(
        ModelError, match=r"'conv': it says a kernel of 7 x 7, and its weight 'w' has one of 5 x 5; export"
    ):
        diagnosis.refuse_broken(tmp_path / FILE, model)


def test_nodes_of_one_name_do_not_hide_what_is_wrong(tmp_path: Path) -> None:
    case = next(case for case in BROKEN if case.name == "weight of another type")
    case.write(tmp_path / FILE)
    model = onnx.load(tmp_path / FILE)
    names = {node.name for node in model.graph.node} - {"conv1"}
    for node in model.graph.node:
        node.name = "one" if node.name in names else node.name
    assert diagnosis.problem(model).startswith("node 'conv1': B has inconsistent type tensor(double)")


@pytest.mark.parametrize(
    "model", [quantized.lenet(), quantized.lenet(int8=False), bodies.branches(), bodies.loop()]
)
def test_nothing_is_wrong(model: onnx.ModelProto) -> None:
    assert diagnosis.problem(model) == ""


def test_what_onnx_runtime_takes_is_not_refused(tmp_path: Path) -> None:
    """It has the last word: shape inference of the standard may be stricter."""
    nodes = [helper.make_node("Add", ["x", "w"], ["y"], "add")]
    model = quantized.model(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": np.ones(4, np.float32)})
    onnx.save(model, tmp_path / FILE)
    called: list[str] = []

    def suspicious(model: onnx.ModelProto) -> str:
        called.append("")
        return "something; export the model again"

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(diagnosis, "problem", suspicious)
        diagnosis.refuse_broken(tmp_path / FILE, model)
        del model.graph.output[:]
        onnx.save(model, tmp_path / FILE)
        with pytest.raises(ModelError, match=r"model\.onnx: something; export the model again"):
            diagnosis.refuse_broken(tmp_path / FILE, model)
    assert len(called) == 2
