"""Models that no exporter writes: each ends in one line, or does what it says."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.files import proportion
from onnx_lathe.runtime.files.functions import check_functions
from onnx_lathe.runtime.running import ort
from tests.support.bounded import bounded
from tests.support.builders import build, random

DEEP = 1000


def layer(**weights: np.ndarray) -> onnx.ModelProto:
    return build(
        "(float[N, 16] x) => (float[N, 4] y) { a = MatMul(x, w) y = Relu(a) }", w=random(16, 4), **weights
    )


def gigantic_input() -> onnx.ModelProto:
    model = layer()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1 << 60
    return model


def gigantic_weight() -> onnx.ModelProto:
    """Its data is a few bytes."""
    model = layer()
    model.graph.initializer[0].dims[:] = [1 << 31, 1 << 31]
    return model


def gigantic_constant() -> onnx.ModelProto:
    """What fold would compute has 16 TB."""
    return build(
        "(float[N, 16] x) => (float[a, b] y) { z = ConstantOfShape(shape) y = Add(x, z) }",
        shape=np.array([1 << 21, 1 << 21]),
    )


def gigantic_range() -> onnx.ModelProto:
    return build(
        "(int64[N] x) => (int64[M] y) { r = Range(zero, end, one) y = Add(x, r) }",
        zero=np.int64(0),
        end=np.int64(1 << 50),
        one=np.int64(1),
    )


def gigantic_tile() -> onnx.ModelProto:
    return build(
        "(float[N] x) => (float[M] y) { t = Tile(w, times) y = Add(x, t) }",
        w=random(16),
        times=np.array([1 << 40]),
    )


def negative_dimension() -> onnx.ModelProto:
    model = layer()
    model.graph.initializer[0].dims[:] = [-16, -4]
    return model


def negative_input() -> onnx.ModelProto:
    model = layer()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -16
    return model


def circle() -> onnx.ModelProto:
    model = layer()
    model.graph.node[0].input[0] = "y"
    return model


def own_input() -> onnx.ModelProto:
    model = layer()
    model.graph.node[1].input[0] = "y"
    return model


def two_nodes_write_one_name() -> onnx.ModelProto:
    model = layer()
    model.graph.node.add().CopyFrom(model.graph.node[1])
    return model


def two_weights_of_one_name() -> onnx.ModelProto:
    model = layer()
    model.graph.initializer.add().CopyFrom(numpy_helper.from_array(random(16, 4), "w"))
    return model


def two_inputs_of_one_name() -> onnx.ModelProto:
    model = layer()
    model.graph.input.add().CopyFrom(model.graph.input[0])
    return model


def two_outputs_of_one_name() -> onnx.ModelProto:
    model = layer()
    model.graph.output.add().CopyFrom(model.graph.output[0])
    return model


def body(inside: onnx.GraphProto | None, depth: int) -> onnx.GraphProto:
    if inside is None:
        node = helper.make_node("Identity", ["x"], [f"o{depth}"])
    else:
        node = helper.make_node("If", ["flag"], [f"o{depth}"], then_branch=inside, else_branch=inside)
    output = helper.make_tensor_value_info(f"o{depth}", TensorProto.FLOAT, [2])
    return helper.make_graph([node], f"body{depth}", [], [output])


def nested(depth: int) -> onnx.ModelProto:
    """An If in one branch of an If, and so on."""
    inside = body(None, 0)
    for level in range(1, depth):
        node = helper.make_node(
            "If", ["flag"], [f"o{level}"], then_branch=inside, else_branch=body(None, -level)
        )
        output = helper.make_tensor_value_info(f"o{level}", TensorProto.FLOAT, [2])
        inside = helper.make_graph([node], f"body{level}", [], [output])
    inside.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]))
    inside.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    return helper.make_model(inside, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def nested_bodies() -> onnx.ModelProto:
    return nested(30)


def functions(calls: Callable[[int], list[int]], count: int) -> onnx.ModelProto:
    """Functions f0, f1, ..., of which number n calls those of `calls(n)` one after another."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    made = []
    for number in range(count):
        called = calls(number)
        names = ["a", *(f"t{place}" for place in range(len(called) - 1)), "b"]
        nodes = [
            helper.make_node(f"f{one}", [names[place]], [names[place + 1]], domain="own")
            for place, one in enumerate(called)
        ] or [helper.make_node("Relu", ["a"], ["b"])]
        made.append(helper.make_function("own", f"f{number}", ["a"], ["b"], nodes, opsets))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("f0", ["x"], ["y"], domain="own")],
        "calling",
        [value("x", TensorProto.FLOAT, [2])],
        [value("y", TensorProto.FLOAT, [2])],
    )
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=made)


def function_calls_itself() -> onnx.ModelProto:
    return functions(lambda number: [number], 1)


def functions_in_a_circle() -> onnx.ModelProto:
    return functions(lambda number: [(number + 1) % 3], 3)


def doubling_functions() -> onnx.ModelProto:
    """Each calls the next twice, 40 deep: 2^40 nodes when inlined."""
    return functions(lambda number: [number + 1] * 2 if number < 40 else [], 41)


def chained_functions() -> onnx.ModelProto:
    return functions(lambda number: [number + 1] if number < DEEP else [], DEEP + 1)


def nan_weight() -> onnx.ModelProto:
    model = layer()
    weight = random(16, 4)
    weight[0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    return model


def infinite_weight() -> onnx.ModelProto:
    model = layer()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((16, 4), -np.inf, np.float32), "w"))
    return model


def zero_size_weight() -> onnx.ModelProto:
    return build("(float[N, 16] x) => (float[N, 0] y) { y = MatMul(x, w) }", w=np.zeros((16, 0), np.float32))


def string_weight() -> onnx.ModelProto:
    model = layer()
    model.graph.initializer.append(
        helper.make_tensor("text", TensorProto.STRING, [2], [b"a" * 9000, b"\xff\xfe"])
    )
    model.graph.node.append(helper.make_node("Identity", ["text"], ["said"], name="say"))
    model.graph.output.append(helper.make_tensor_value_info("said", TensorProto.STRING, [2]))
    return model


def string_input() -> onnx.ModelProto:
    return build("(string[N] x) => (string[N] y) { y = Identity(x) }")


def everything_dead() -> onnx.ModelProto:
    """An output that is an input, and nodes that nobody reads."""
    model = layer()
    model.graph.output[0].CopyFrom(model.graph.input[0])
    return model


REFUSED = [
    gigantic_weight, negative_dimension, circle, own_input, two_nodes_write_one_name, two_weights_of_one_name,
    function_calls_itself, functions_in_a_circle, doubling_functions, gigantic_range, gigantic_tile,
    two_inputs_of_one_name, chained_functions,
]  # fmt: skip
EITHER = [
    gigantic_input, gigantic_constant, negative_input,
    two_outputs_of_one_name, nested_bodies, nan_weight, infinite_weight, zero_size_weight, string_weight, string_input, everything_dead,
]  # fmt: skip
"""May be compiled, and then compute what they did."""


@pytest.mark.parametrize("make", [*REFUSED, *EITHER], ids=lambda make: make.__name__)
def test_it_ends_in_one_line_or_well(
    make: Callable[[], onnx.ModelProto], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "out"
    path.write_bytes(make().SerializeToString())
    size = path.stat().st_size
    inspected = bounded(capfd, ["inspect", path], size)
    options = ["--out", out, "--quiet", "--no-latency", "--no-html"]
    compiled = bounded(capfd, [path, "--passes", "fold,prune(sparsity=0),codebook(bits=8)", *options], size)
    built = bounded(
        capfd, ["build", path, "--target", "ncnn,litert", "--quiet", "--out", tmp_path / "built"], size
    )
    if make in REFUSED:
        assert (inspected.code, compiled.code) == (2, 2)
        assert built.code == 2
    if compiled.code == 0:
        session = ort.session(path)
        feeds = ort.random_feeds(session) if make is not string_input else {"x": np.array(["a", "b"])}
        for name, expected in ort.run(session, feeds).items():
            np.testing.assert_allclose(
                ort.run(ort.session(out / "model.onnx"), feeds)[name], expected, rtol=1e-5
            ) if (expected.dtype.kind == "f") else np.testing.assert_array_equal(
                ort.run(ort.session(out / "model.onnx"), feeds)[name], expected
            )


def field(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def test_a_message_nested_beyond_any_limit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Graph in attribute in node in graph, 3,000 deep, which only bytes can say."""
    graph = b""
    for _ in range(DEEP):
        graph = field(1, field(5, field(6, graph)))
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x09" + field(7, graph) + field(8, b"\x10\x11"))
    for arguments in (["inspect", path], ["pack", path, "--out", tmp_path / "p"]):
        ended = bounded(capfd, arguments, path.stat().st_size)
        assert ended.code == 2
        assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("number", [1, 5, 11, 13], ids=["nodes", "weights", "inputs", "values"])
def test_a_million_empty_messages(number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two bytes each in the file."""
    path = tmp_path / "model.onnx"
    graph = layer().graph.SerializeToString() + field(number, b"") * 1_000_000
    path.write_bytes(b"\x08\x09" + field(7, graph) + field(8, b"\x10\x11"))
    ended = bounded(capfd, ["inspect", path], path.stat().st_size)
    assert ended.code == 2


def test_a_convolution_of_no_groups(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    model = build("(float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) { y = Conv(x, w) }", w=random(4, 4, 1, 1))
    model.graph.node[0].attribute.append(helper.make_attribute("group", 0))
    path.write_bytes(model.SerializeToString())
    assert bounded(capfd, ["inspect", path], path.stat().st_size).code in (0, 2)


def test_the_count_of_calls_grows_with_the_file() -> None:
    """A chain of functions, the first written last in the file: a look at all of them per link took its square."""
    taken = []
    for count in (500, 4_000):
        model = functions(lambda number, last=count: [number + 1] if number < last else [], count + 1)
        began = time.process_time()
        check_functions(model)
        taken.append(time.process_time() - began)
    assert taken[1] < 24 * max(taken[0], 0.01)


def test_what_messages_take_is_counted_before_they_are_parsed() -> None:
    """And graphs that were exported are not near the limit, however large: estimates grow with their bytes."""
    model = layer()
    model.graph.node.extend(
        helper.make_node("Relu", [f"t{number}"], [f"t{number + 1}"], name=f"relu_{number}")
        for number in range(2_000)
    )
    model.graph.value_info.extend(
        helper.make_tensor_value_info(f"t{number}", TensorProto.FLOAT, ["N", 4]) for number in range(2_000)
    )
    content = model.SerializeToString()
    assert proportion._cost(content, 1 << 60) < proportion.MOST_RATIO * len(content)
    shape = field(8, b"w") + field(1, b"\1" * 20_000_000)
    with pytest.raises(ModelError, match=r"than a file of 20\.0 MB should"):
        proportion.check_proportion(b"\x08\x09" + field(7, field(5, shape)))
