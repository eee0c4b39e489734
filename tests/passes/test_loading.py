"""Local functions are inlined, and what exporters wrote of the user's source code is left out."""

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, helper

from onnx_lathe.passes.loading.order import is_sorted, sort_nodes
from onnx_lathe.passes.loading.preparing import Wishes, is_ready, prepare
from tests.support.builders import build, random, run

OPSETS = [helper.make_opsetid("", 17)]


def leaky_block(overload: str = "") -> onnx.FunctionProto:
    """MatMul and LeakyRelu, whose slope is an attribute of the function with a default."""
    leaky = helper.make_node("LeakyRelu", ["t"], ["o"], name="leaky")
    leaky.attribute.append(AttributeProto(name="alpha", ref_attr_name="slope", type=AttributeProto.FLOAT))
    product = helper.make_node("MatMul", ["a", "w"], ["t"], name="product")
    default = helper.make_attribute("slope", 0.5)
    return helper.make_function(
        "net",
        "Leaky",
        ["a", "w"],
        ["o"],
        [product, leaky],
        OPSETS,
        attribute_protos=[default],
        overload=overload,
    )


def nest() -> onnx.FunctionProto:
    """A function that calls another one twice."""
    calls = [
        helper.make_node("Leaky", ["a", "w"], ["t"], domain="net", name="first", slope=0.25),
        helper.make_node("Leaky", ["t", "w"], ["o"], domain="net", name="second"),
    ]
    return helper.make_function(
        "net", "Nest", ["a", "w"], ["o"], calls, [*OPSETS, helper.make_opsetid("net", 1)]
    )


def calling(text: str, *functions: onnx.FunctionProto, **initializers: np.ndarray) -> onnx.ModelProto:
    head = '<ir_version: 10, opset_import: ["": 17, "net": 1]>'
    model = onnx.parser.parse_model(f"{head} g {text}")
    model.functions.extend(functions)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in initializers.items()
    )
    onnx.checker.check_model(model)
    return model


def inlined(model: onnx.ModelProto, **feeds: np.ndarray) -> onnx.ModelProto:
    """The model prepared, which computes the same and has no function left."""
    expected = run(model, feeds)
    done = prepare(model)
    assert done.rewritten
    onnx.checker.check_model(model, full_check=True)
    assert not model.functions
    for name, value in run(model, feeds).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)
    return model


def test_functions_in_functions_and_bodies_are_inlined() -> None:
    model = calling(
        "(float[N, 4] x, bool c) => (float[N, 4] y) { a = net.Nest(x, w) b = If (c) "
        "<then_branch = g () => (float[N, 4] p) { p = net.Nest(a, w) }, "
        "else_branch = h () => (float[N, 4] q) { q = net.Leaky(x, w) }> y = Add(a, b) }",
        leaky_block(),
        nest(),
        w=random(4, 4),
    )
    after = inlined(model, x=random(3, 4), c=np.array(True))
    assert [node.op_type for node in after.graph.node] == ["MatMul", "LeakyRelu"] * 2 + ["If", "Add"]
    assert [entry.domain for entry in after.opset_import] == [""]
    slopes = [node.attribute[0].f for node in after.graph.node if node.op_type == "LeakyRelu"]
    assert slopes == [0.25, 0.5]


def test_the_note_names_functions_and_counts_calls() -> None:
    model = calling(
        "(float[N, 4] x) => (float[N, 4] y) { y = net.Nest(x, w) }", leaky_block(), nest(), w=random(4, 4)
    )
    assert prepare(model).notes == ["2 local functions inlined where 1 node called them: net.Leaky, net.Nest"]


def test_names_inside_a_function_clash_with_nobody() -> None:
    """`t` and its numbered forms are values of the graph, a big initializer and a value of a body."""
    model = calling(
        "(float[N, 64] x, bool c) => (float[N, 64] y) { t = net.Leaky(x, t__2) u = net.Leaky(t, t__2) "
        "t__1 = Neg(u) b = If (c) <then_branch = g () => (float[N, 64] t__3) { t__3 = net.Leaky(t__1, t__2) }, "
        "else_branch = h () => (float[N, 64] q) { q = Relu(x) }> y = Add(t__1, b) }",
        leaky_block(),
        t__2=random(64, 64),
    )
    after = inlined(model, x=random(2, 64), c=np.array(True))
    written = [name for node in after.graph.node for name in node.output]
    assert len(set(written)) == len(written)


def test_overloads_are_told_apart() -> None:
    other = leaky_block("steep")
    other.attribute_proto[0].f = 0.125
    model = calling(
        "(float[N, 4] x) => (float[N, 4] y) { a = net.Leaky(x, w) y = net.Leaky(a, w) }",
        leaky_block(),
        w=random(4, 4),
    )
    model.functions.append(other)
    model.graph.node[1].overload = "steep"
    prepare(model)
    assert [node.attribute[0].f for node in model.graph.node if node.op_type == "LeakyRelu"] == [0.5, 0.125]


def test_weights_and_fields_of_the_model_stay() -> None:
    model = calling(
        "(float[N, 64] x) => (float[N, 64] y) { y = net.Leaky(x, w) }", leaky_block(), w=random(64, 64)
    )
    model.doc_string = "reads digits"
    model.metadata_props.add(key="lathe.sparse", value='{"w": "unstructured"}')
    model.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    kept = onnx.ModelProto.FromString(model.SerializeToString())
    prepare(model)
    assert model.graph.initializer == kept.graph.initializer
    assert model.graph.input == kept.graph.input
    assert (model.doc_string, model.metadata_props) == (kept.doc_string, kept.metadata_props)


STACK = 'File "/home/me/secret/train.py", line 9, in forward\n    return self.conv(x)'


def traced() -> onnx.ModelProto:
    """As torch.onnx writes it, and some that others wrote."""
    model = build("(float[2] x, bool c) => (float[2] y) { a = Relu(x) y = If (c) <then_branch = g () => (float[2] p) "
                  "{ p = Neg(a) }, else_branch = h () => (float[2] q) { q = Abs(a) }> }")  # fmt: skip
    model.graph.metadata_props.add(key="pkg.torch.export.ExportedProgram.graph_signature", value="# inputs")
    body = model.graph.node[1].attribute[0].g
    for holder in (model.graph.node[0], body.node[0], model.graph.value_info.add(name="a")):
        holder.metadata_props.add(key="pkg.torch.onnx.stack_trace", value=STACK)
        holder.metadata_props.add(key="namespace", value=": __main__.Net/conv: torch.nn.Conv2d")
        holder.metadata_props.add(key="lathe.pass", value="fold")
        holder.metadata_props.add(key="stage", value="1")
    model.graph.node[0].doc_string = "/usr/lib/python3/site-packages/torch/nn/conv.py(442): forward"
    model.graph.node[1].doc_string = "takes the brighter half"
    model.metadata_props.add(key="author", value="/home/me")
    model.doc_string = "made by /home/me/train.py:12"
    return model


def test_traces_are_left_out() -> None:
    model = traced()
    before = model.ByteSize()
    (note,) = prepare(model).notes
    text = str(model)
    for gone in ("secret", "conv.py", "__main__", "graph_signature"):
        assert gone not in text
    body = model.graph.node[1].attribute[0].g
    for holder in (model.graph.node[0], body.node[0], model.graph.value_info[0]):
        assert {entry.key: entry.value for entry in holder.metadata_props} == {
            "lathe.pass": "fold",
            "stage": "1",
        }
    assert model.graph.node[1].doc_string == "takes the brighter half"
    assert (model.metadata_props[0].value, model.doc_string) == ("/home/me", "made by /home/me/train.py:12")
    said = int(note.split()[0].replace(",", ""))
    assert 0 < said < before - model.ByteSize()


def test_traces_stay_when_asked() -> None:
    model, original = traced(), traced()
    assert not prepare(model, Wishes(keep_metadata=True)).notes
    assert model == original
    assert is_ready(model, Wishes(keep_metadata=True))
    assert not is_ready(model, Wishes())


@pytest.mark.parametrize(
    "text", ["/layer1/conv/Conv", "kept: 3 of 4", "C'est la vie", "https://example.org/a/b"]
)
def test_other_texts_of_nodes_stay(text: str) -> None:
    model = build("(float[2] x) => (float[2] y) { y = Relu(x) }")
    model.graph.node[0].metadata_props.add(key="scope", value=text)
    model.graph.node[0].doc_string = text
    assert not prepare(model).notes
    assert model.graph.node[0].doc_string == model.graph.node[0].metadata_props[0].value == text


UNSORTED = """g (float[2, 3] x, bool c) => (float[2, 3] y, float[2, 3] z) {
    [last] y = Add (d, b)
    [choice] z = If (c) <then_branch = t () => (float[2, 3] p) { q = Abs (b) p = Neg (q) },
                         else_branch = e () => (float[2, 3] r) { r = Relu (d) }>
    [second] d = Relu (b)
    [free] f = Tanh (x)
    [first] b = Neg (x)
}"""


def unsorted() -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 17]> {UNSORTED}')


def test_nodes_before_what_they_read_are_sorted() -> None:
    """ONNX Runtime runs such a file. What a body reads counts as read where the body's node stands."""
    model = unsorted()
    feeds = {"x": random(2, 3), "c": np.array(True)}
    expected = run(model, feeds)
    assert not is_sorted(model)
    assert not is_ready(model, Wishes())
    done = prepare(model)
    assert done.notes == ["nodes sorted: last stood before a node that it reads"]
    assert [node.name for node in model.graph.node] == ["free", "first", "second", "last", "choice"]
    onnx.checker.check_model(model, full_check=True)
    assert is_sorted(model)
    for name, value in run(model, feeds).items():
        np.testing.assert_array_equal(value, expected[name])


def test_a_circle_of_nodes_is_left_to_the_checker() -> None:
    head = '<ir_version: 10, opset_import: ["": 17]> g (float[2] x) => (float[2] y)'
    model = onnx.parser.parse_model(f"{head} {{ y = Add (x, z) z = Neg (y) }}")
    assert sort_nodes(model) is None
    assert not is_sorted(model)
