"""The bridge on the cases and models that the onnx package ships: the floor, no silent difference, and a
document that says what is.
"""

import re

import onnx
import pytest
from onnx import TensorProto, helper

torch = pytest.importorskip("torch")
from benchmarks import bridge_coverage as coverage  # noqa: E402
from onnx_lathe.errors import ModelError  # noqa: E402
from onnx_lathe.runtime.torch_bridge import (  # noqa: E402
    GraphModule,
    unsupported,
)
from onnx_lathe.runtime.torch_bridge.registry import (  # noqa: E402
    NEWEST_OPSET,
    operators,
)
from onnx_lathe.runtime.torch_bridge.scope import (  # noqa: E402
    LIMITS,
    REASONS,
)


@pytest.mark.slow
def test_at_least_95_percent_of_the_float_cases_of_the_floor_pass() -> None:
    inside = [
        result
        for result in coverage.node_cases()
        if result.is_float and result.family and result.family not in coverage.BEYOND_FLOOR
    ]
    assert len(inside) > 500
    assert sum(result.passed for result in inside) / len(inside) >= coverage.FLOOR


def test_a_case_passes_or_is_refused_or_is_listed() -> None:
    """Nothing crashes (`node_cases` would raise), and a wrong result is never a surprise."""
    wrong = {result.case: result.wrong for result in coverage.node_cases() if result.wrong}
    assert wrong.keys() <= coverage.DIFFERENT.keys(), wrong


def test_an_operator_written_as_a_graph_of_others_passes_or_is_refused() -> None:
    graphs = coverage.node_cases(expanded=True)
    assert {result.case: result.wrong for result in graphs if result.wrong} == {}
    assert sum(result.passed for result in graphs) > 0.8 * len(graphs)


def test_a_refusal_of_an_operator_is_documented() -> None:
    refused = {result.op for result in coverage.node_cases() if result.refused}
    assert refused <= LIMITS.keys() | REASONS.keys()
    assert {name for _, name in operators()} >= LIMITS.keys()
    assert not REASONS.keys() & {name for _, name in operators()}


def test_every_operator_of_the_standard_runs_or_has_a_reason() -> None:
    standard = {
        schema.name
        for schema in onnx.defs.get_all_schemas()
        if schema.domain == "" and schema.since_version <= NEWEST_OPSET
    }
    assert standard <= {name for domain, name in operators() if not domain} | REASONS.keys()


@pytest.mark.parametrize("folder", ["pytorch-converted", "pytorch-operator"])
def test_models_converted_from_pytorch_agree_with_their_stored_outputs(folder: str) -> None:
    _, passed, failed = coverage.stored(folder)
    total = len(list((coverage.DATA / folder).glob("*/model.onnx")))
    assert total > 30
    assert (passed, failed) == (f"{total} of {total}", "")


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_light_models_agree_with_onnx_runtime(name: str) -> None:
    path = coverage.DATA / "light" / f"light_{name}.onnx"
    assert coverage.against_runtime(path, coverage.random_weights(path)) == (path.stem, "1 of 1", "")


def test_the_document_is_up_to_date() -> None:
    document = coverage.DOCUMENT.read_text(encoding="utf-8")
    measured_with = re.search(r"cases of onnx (\S+),", document)
    assert measured_with is not None
    if measured_with[1] != onnx.__version__:
        pytest.skip(f"the document counts the cases of onnx {measured_with[1]}, here is {onnx.__version__}")
    written = document.partition("## Models")[0]
    assert written == coverage.operator_part(coverage.node_cases()), (
        "run `python benchmarks/bridge_coverage.py`"
    )


def test_the_measure_finds_what_is_wrong() -> None:
    one = torch.ones(2)
    assert coverage.difference(one, (one * 1.0002).numpy()).startswith("relative error 2.0e-04")
    assert coverage.difference(one, (one * 1.00005).numpy()) == ""
    assert coverage.difference(one, torch.ones(3).numpy()) == "shape [2], wanted is [3]"
    assert coverage.difference(one, one.double().numpy()).startswith("type")
    assert coverage.difference(one * torch.nan, one.numpy()) == "relative error nan"
    assert coverage.difference(one, (one * torch.inf).numpy()) == "other infinities or NaNs"
    assert coverage.difference(torch.tensor([1, 2]), torch.tensor([1, 3]).numpy()) == "other values"


def parsed(text: str, opset: int = 17) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> g {text}')


def refusals(model: onnx.ModelProto) -> list[str]:
    names = [str(item) for item in unsupported(model)]
    with pytest.raises(ModelError, match="PyTorch cannot run") as caught:
        GraphModule(model)
    assert all(name in str(caught.value) for name in names)
    assert "\n" not in str(caught.value)
    return names


def test_control_flow_is_refused_with_what_to_do() -> None:
    text = """(float[n, 4] x, bool c, int64 k) => (float[n, 4] y, float[n, 4] z, float[n, 4] s) {
        a = Det(x)
        [branch] y = If <then_branch = one () => (float[n, 4] p) { p = Identity(a) },
                         else_branch = two () => (float[n, 4] q) { q = Neg(x) }> (c)
        [turns] z = Loop <body = b (int64 i, bool d, float[n, 4] v) => (bool e, float[n, 4] w) { e = Identity(d)  w = Neg(v) }> (k, c, x)
        [steps] s = Scan <num_scan_inputs = 1, body = t (float[4] r) => (float[4] o) { o = Neg(r) }> (x)
    }"""
    what = "control flow: export the model with its branches decided and its loops unrolled"
    names = [
        f"branch (If, opset 17: {what})",
        f"turns (Loop, opset 17: {what})",
        f"steps (Scan, opset 17: {what})",
    ]
    assert refusals(parsed(text)) == names


def test_what_only_a_subgraph_reads_is_reported_too() -> None:
    text = """(float[n, 4] x, bool c) => (float[n, 4] y) {
        [noise] a = RandomNormalLike(x)
        [branch] y = If <then_branch = one () => (float[n, 4] p) { p = Neg(a) }, else_branch = two () => (float[n, 4] q) { q = Neg(x) }> (c)
    }"""
    assert [name.split(" ")[0] for name in refusals(parsed(text))] == ["noise", "branch"]


def test_operators_of_other_domains_are_refused_by_their_full_name() -> None:
    model = parsed("(float[n, 4] x) => (float[n, 4] y) { a = Relu(x)  y = Neg(a) }")
    model.graph.node[0].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert refusals(model) == ["Relu_0 (com.microsoft.Relu, opset 1)"]


def test_a_function_is_refused_for_the_nodes_inside() -> None:
    text = """<ir_version: 9, opset_import: ["": 17, "local": 1]>
        g (float[n, 3] x) => (float[n, 3] y) { y = local.noisy(x) }
        <domain: "local", opset_import: ["": 17]> noisy (a) => (b) { c = RandomNormalLike(a)  b = Add(a, c) }"""
    assert [(item.op, item.opset, item.domain) for item in unsupported(onnx.parser.parse_model(text))] == [
        ("RandomNormalLike", 17, "")
    ]


@pytest.mark.parametrize(
    "element, reason",
    [
        (TensorProto.STRING, "STRING"),
        (TensorProto.COMPLEX64, "COMPLEX64"),
        (TensorProto.FLOAT8E4M3FN, "FLOAT8E4M3FN"),
    ],
)
def test_types_that_pytorch_lacks_are_refused_wherever_they_enter(element: int, reason: str) -> None:
    entering = parsed("(float[n] x) => (float[n] y) { [first] y = Identity(x) }", 21)
    entering.graph.input[0].type.tensor_type.elem_type = element
    assert refusals(entering)[0] == f"first (Identity of {reason}, opset 21)"
    leaving = parsed("(float[n] x) => (float[n] y) { [first] y = Identity(x) }", 21)
    leaving.graph.output[0].type.tensor_type.elem_type = element
    assert refusals(leaving) == [f"first (Identity giving {reason}, opset 21)"]


def test_sequences_are_refused() -> None:
    model = parsed(
        "(seq(float[n]) x, float[n] i) => (seq(float[n]) y, float[n] z) { [keep] y = Identity(x)  [pick] z = SequenceAt(x, i) }"
    )
    assert refusals(model) == [
        "keep (Identity of sequence, opset 17)",
        "pick (SequenceAt, opset 17: not a tensor)",
    ]


def test_an_input_that_nothing_reads_is_no_obstacle() -> None:
    module = GraphModule(parsed("(float[n] x, float[n] unused) => (float[n] y) { y = Neg(x) }"))
    assert torch.equal(module(torch.ones(2), torch.zeros(2)), -torch.ones(2))
