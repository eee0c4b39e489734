"""`lathe.range` of tensors that no pair stands behind: said by int8 for targets that store all, kept true by passes."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.errors import ContractError, ModelError
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph, Node, Variable
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.graph.quantization.ranges import derive, in_parts, measure_again, said_ranges
from onnx_lathe.placement import CANONICAL, PHONE, Placement
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from onnx_lathe.runtime.targets.ort.ort import PLACEMENT
from tests.support.builders import build, random
from tests.support.int8 import Rows
from tests.support.placement import IMAGES, MOBILE, RESIDUAL, network, quantized


def said(model: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    return said_ranges(import_model(model))


def test_int8_says_the_range_of_what_is_stored_and_the_others_follow() -> None:
    model = network(RESIDUAL)
    graph = import_model(quantized(model, PHONE)[0])
    ranges = said_ranges(graph)
    assert ranges.keys() == {"x", "r", "cr", "d", "e", "g", "y"}  # a ReLU's input is not stored
    assert ranges["r"][0] == 0 < ranges["r"][1]
    assert ranges["d"][0] < 0
    derive(graph, ranges)
    assert ranges["p"] == ranges["r"]
    assert ranges["f"] == ranges["g"]


def test_inputs_are_said_on_the_model_and_each_output_on_its_node() -> None:
    result = quantized(network(RESIDUAL), PHONE)[0]
    on_model = {entry.key: json.loads(entry.value) for entry in result.metadata_props}
    assert on_model[metadata.RANGE].keys() == {"x"}
    node = next(node for node in result.graph.node if node.op_type == "Gemm")
    on_node = {entry.key: json.loads(entry.value) for entry in node.metadata_props}
    assert on_node[metadata.RANGE].keys() == {"y"}


@pytest.mark.parametrize("placement", [CANONICAL, PLACEMENT], ids=["canonical", "ort"])
@pytest.mark.parametrize("text", [RESIDUAL, MOBILE], ids=["residual", "mobile"])
def test_recording_changes_nothing_else(placement: Placement, text: str) -> None:
    model = network(text)
    plain = quantized(model, placement)[0]
    recorded = quantized(model, replace(placement, stored=True))[0]
    assert said(recorded)
    assert not said(plain)
    del recorded.metadata_props[:]
    for node in recorded.graph.node:
        if node.op_type != "QuantizeLinear":
            kept = [entry for entry in node.metadata_props if entry.key != metadata.RANGE]
            del node.metadata_props[:]
            node.metadata_props.extend(kept)
    assert recorded.SerializeToString() == plain.SerializeToString()


def test_a_target_that_stores_all_asks_for_it_for_others_too() -> None:
    both = CANONICAL | PHONE
    assert both.stored
    assert both.wide
    assert not both.unsigned
    assert not CANONICAL.stored


def test_a_tensor_that_holds_infinity_has_no_range_and_the_others_do() -> None:
    text = """(float[N, 4] x) => (float[N, 4] y, float[N, 4] z) {
        a = MatMul (x, w)  r = Relu (a)  z = Log (r)  y = MatMul (r, w) }"""
    data = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    result, report = quantized(build(text, w=random(4, 4)), PHONE, data)
    assert said(result).keys() == {"x", "r", "y"}
    assert report.metrics["recorded_ranges"] == 3


class Renaming(Pass):
    """Gives the last node another in its place, and takes the name of the first one's result away."""

    name = "renaming"

    def apply(self, graph: Graph, context: Context) -> PassReport:
        last = next(node for node in graph.nodes if node.op == "Gemm")
        output, inputs, attributes = last.outputs[0], list(last.inputs), dict(last.attrs)
        last.inputs.clear()
        last.outputs.clear()
        graph.nodes.remove(last)
        graph.nodes.append(Node("Gemm", "replaced", attributes, inputs, [output]))
        pool = next(node for node in graph.nodes if node.op == "GlobalAveragePool")
        result, readers = Variable("renamed", np.float32), list(pool.outputs[0].outputs)
        for reader in readers:
            reader.inputs[0] = result
        pool.outputs[0] = result
        report = PassReport()
        report.edit("replaced", "replaced")
        return report


def test_a_range_goes_with_the_tensor_and_not_with_the_node() -> None:
    before = quantized(network(RESIDUAL), PHONE)[0]
    after, _ = apply_pass(Renaming(), before, Context())
    contract.check_structure(before, after, "renaming")
    assert said(after)["y"] == said(before)["y"]
    assert said(after).keys() == said(before).keys() - {"g"}
    assert not any("'g'" in entry.value for node in after.graph.node for entry in node.metadata_props)


def test_the_contract_refuses_a_range_of_what_the_node_does_not_compute() -> None:
    before = quantized(network(RESIDUAL), PHONE)[0]
    after = onnx.ModelProto()
    after.CopyFrom(before)
    node = next(node for node in after.graph.node if node.op_type == "Gemm")
    entry = next(entry for entry in node.metadata_props if entry.key == metadata.RANGE)
    entry.value = metadata.format_ranges({"elsewhere": (0.0, 1.0)})
    with pytest.raises(
        ContractError, match=f"pass 'x' left lathe.range of node '{node.name}' naming 'elsewhere'"
    ):
        contract.check_structure(before, after, "x")


@pytest.mark.parametrize("text", ["{", '{"y": 3}', '[1, "a"]', '{"y": [0, NaN]}'])
def test_malformed_ranges_are_refused(text: str) -> None:
    with pytest.raises(ModelError, match="remove the entry or restore it"):
        metadata.parse_ranges(text)


def test_after_training_ranges_are_measured_again() -> None:
    model = quantized(network(RESIDUAL), PHONE)[0]
    for tensor in model.graph.initializer:
        if tensor.name.startswith("b5"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(5, 100, np.float32), tensor.name))
    graph = import_model(model)
    assert said_ranges(graph)["y"][1] < 50
    measure_again(graph, Context())  # without data they stay
    assert said_ranges(graph)["y"][1] < 50
    measure_again(graph, Context(calibrator=StreamingCalibrator(Rows(x=IMAGES))))
    assert said_ranges(graph)["y"][1] > 90
    assert said(export_model(graph)).keys() == said(model).keys()


def test_large_tensors_are_calibrated_in_parts() -> None:
    text = (
        "(float[N, 1, 4096, 8192] x) => (float[N, 1, 4096, 8192] y) { a = Neg (x)  b = Neg (a)  y = Neg (b) }"
    )
    parts = in_parts(import_model(build(text)), ["x", "a", "b"])  # 128 MiB each, 256 MiB at once
    assert parts == [["x", "a"], ["b"]]
