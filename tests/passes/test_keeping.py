"""What a model says besides its graph of tensors stays through every pass; optional inputs stay inputs."""

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_lathe.errors import ContractError
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import all_passes
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.graph.opset import raise_opset
from tests.support.builders import build, random, run


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    return model


def two_convs() -> onnx.ModelProto:
    return named(
        build(
            "(float[N, 3, 8, 8] x) => (float[N, 8, 4, 4] y) { a = Conv(x, w1) b = Relu(a) y = Conv(b, w2) }",
            w1=random(8, 3, 3, 3),
            w2=random(8, 8, 3, 3),
        )
    )


def talkative() -> onnx.ModelProto:
    """Every field that says something without computing."""
    model = two_convs()
    model.doc_string, model.model_version, model.domain = "reads digits", 7, "org.example"
    model.producer_name, model.producer_version = "studio", "3.1"
    model.metadata_props.add(key="license", value="MIT")
    graph = model.graph
    graph.doc_string = "the whole network"
    graph.metadata_props.add(key="origin", value="studio")
    for value in (graph.input[0], graph.output[0]):
        value.doc_string = f"doc of {value.name}"
        value.type.denotation = "IMAGE"
        value.metadata_props.add(key="unit", value="1/255")
        for dim, name in zip(value.type.tensor_type.shape.dim, ("BATCH", "CHANNEL"), strict=False):
            dim.denotation = f"DATA_{name}"
    graph.initializer[0].doc_string = "edges"
    graph.quantization_annotation.add(tensor_name="w1").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="w2"
    )
    graph.node[0].doc_string = "finds edges"
    graph.node[0].metadata_props.add(key="stage", value="1")
    training = model.training_info.add()
    training.algorithm.name = "descent"
    training.update_binding.add(key="w1", value="w1")
    return model


def said(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without what its graph computes."""
    left = onnx.ModelProto()
    left.CopyFrom(model)
    for node in left.graph.node:
        node.name = ""
    for tensor in left.graph.initializer:
        tensor.raw_data = b""
    return left


def test_every_field_stays() -> None:
    model = talkative()
    after = export_model(import_model(model))
    assert said(after) == said(model)


@pytest.mark.parametrize("name", ["prune", "fold", "float16"])
def test_passes_and_contract_keep_the_fields(name: str) -> None:
    model = talkative()
    after, _ = apply_pass(configure(all_passes()[name], {}), model, Context())
    contract.check_structure(model, after, name)
    before, found = said(model), said(after)
    for one in (before, found):
        for field in ("node", "initializer", "value_info"):
            one.graph.ClearField(field)
        del one.metadata_props[1:]  # what the pass says
    assert found == before


def test_a_raised_opset_keeps_them() -> None:
    graph = import_model(talkative())
    assert raise_opset(graph, 21) is None
    found, expected = said(export_model(graph)), said(talkative())
    expected.opset_import[0].version = 21
    found.graph.ClearField("value_info")  # the converter infers shapes
    assert found == expected


def test_metadata_and_documents_of_bodies_stay() -> None:
    model = build(
        "(bool c, float[2] x) => (float[2] y) { y = If (c) <then_branch = g () => (float[2] p) "
        "{ p = Relu(x) }, else_branch = h () => (float[2] q) { q = Neg(x) }> }"
    )
    body = model.graph.node[0].attribute[0].g
    body.doc_string = "taken when bright"
    body.metadata_props.add(key="case", value="bright")
    body.node[0].doc_string = "keeps light"
    body.node[0].metadata_props.add(key="lathe.pass", value="somebody")
    after = export_model(import_model(model)).graph.node[0].attribute[0].g
    assert (after.doc_string, after.metadata_props) == (body.doc_string, body.metadata_props)
    assert after.node[0].doc_string == "keeps light"
    assert after.node[0].metadata_props == body.node[0].metadata_props


def test_functions_stay_word_for_word() -> None:
    body = [helper.make_node("Conv", ["a", "w"], ["t"]), helper.make_node("Relu", ["t"], ["o"])]
    opsets = [helper.make_opsetid("", 17)]
    functions = []
    for overload in ("", "second"):
        function = helper.make_function("net", "Block", ["a", "w"], ["o"], body, opsets, overload=overload)
        function.metadata_props.add(key="origin", value="net.py")
        function.doc_string = f"block {overload}"
        functions.append(function)
    model = two_convs()
    model.ir_version = 10
    model.opset_import.append(helper.make_opsetid("net", 1))
    model.functions.extend(functions)
    model.graph.node[2].CopyFrom(
        helper.make_node("Block", ["b", "w2"], ["y"], domain="net", overload="second")
    )
    after = export_model(import_model(model))
    assert list(after.functions) == functions
    assert after.graph.node[2].overload == "second"


def test_an_attribute_that_graphsurgeon_cannot_read_stays() -> None:
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [2]))
    model = two_convs()
    model.graph.node.append(helper.make_node("Optional", [], ["nothing"], type=kind.optional_type.elem_type))
    after = export_model(import_model(model))
    optional = next(node for node in after.graph.node if node.op_type == "Optional")
    assert list(optional.attribute) == list(model.graph.node[3].attribute)


def with_gain() -> onnx.ModelProto:
    """The weight of the second layer is an optional input, and so is the gain behind the first."""
    return named(
        build(
            "(float[N, 3, 8, 8] x, float[8, 8, 3, 3] w2, float[1] gain) => (float[N, 8, 4, 4] y) "
            "{ a = Conv(x, w1) b = Mul(a, gain) c = Relu(b) y = Conv(c, w2) }",
            w1=random(8, 3, 3, 3),
            w2=random(8, 8, 3, 3),
            gain=np.ones(1, np.float32),
        )
    )


@pytest.mark.parametrize("name", ["fold", "prune", "float16", "codebook", "int4"])
def test_an_optional_input_stays_one(name: str) -> None:
    model = with_gain()
    after, report = apply_pass(configure(all_passes()[name], {}), model, Context())
    if after is not model:
        contract.check_structure(model, after, name)
    assert [value.name for value in after.graph.input] == ["x", "w2", "gain"]
    defaults = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    for tensor in model.graph.initializer:
        if tensor.name in ("w2", "gain"):
            np.testing.assert_array_equal(defaults[tensor.name], onnx.numpy_helper.to_array(tensor))
    if name not in ("fold", "float16"):
        assert any("a caller may feed another one" in skip.reason for skip in report.skips)
    feeds = {"x": random(2, 3, 8, 8)}
    plain = run(after, feeds)["y"]
    np.testing.assert_allclose(
        run(after, feeds | {"gain": np.full(1, 2, np.float32)})["y"], 2 * plain, rtol=2e-2, atol=1e-2
    )


def test_fold_takes_no_optional_input_for_a_constant() -> None:
    model = build(
        "(float[N, 4] x, float[4] a) => (float[N, 4] y) { s = Add(a, b) y = Mul(x, s) }",
        a=random(4),
        b=random(4),
    )
    after, _ = apply_pass(configure(all_passes()["fold"], {}), model, Context())
    assert [node.op_type for node in after.graph.node] == ["Add", "Mul"]


def test_an_optional_input_that_a_body_reads_stays_one() -> None:
    model = build(
        "(bool c, float[2] x, float[2] k) => (float[2] y) { y = If (c) <then_branch = g () => (float[2] p) "
        "{ p = Add(x, k) }, else_branch = h () => (float[2] q) { q = Neg(x) }> }",
        k=random(2),
    )
    after = export_model(import_model(model))
    assert [value.name for value in after.graph.input] == ["c", "x", "k"]
    assert [tensor.name for tensor in after.graph.initializer] == ["k"]
    assert not after.graph.node[0].attribute[0].g.initializer
    feeds = {"c": np.array(True), "x": np.zeros(2, np.float32), "k": np.ones(2, np.float32)}
    np.testing.assert_array_equal(run(after, feeds)["y"], np.ones(2))


def test_the_contract_sees_optional_inputs() -> None:
    model = with_gain()
    gone, changed = onnx.ModelProto(), onnx.ModelProto()
    gone.CopyFrom(model)
    del gone.graph.input[2]
    with pytest.raises(ContractError, match="changed optional input 'gain'"):
        contract.check_structure(model, gone, "prune")
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name == "gain":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(1, 3, np.float32), "gain"))
    with pytest.raises(ContractError, match="changed the default of input 'gain'"):
        contract.check_structure(model, changed, "prune")


def test_initializers_among_the_inputs_are_weights_up_to_ir_version_3() -> None:
    model = two_convs()
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    model.ir_version = 3
    after, report = apply_pass(configure(all_passes()["prune"], {}), model, Context())
    contract.check_structure(model, after, "prune")
    assert len(report.edits) == 2
    assert [value.name for value in after.graph.input] == ["x"]
