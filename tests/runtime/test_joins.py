"""Where outputs are joined: found behind what moves and scales values, as detectors of several kinds end."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnx_lathe.runtime.running.joins import Join, joins


def model(text: str, **initializers: np.ndarray) -> onnx.ModelProto:
    graph = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')
    graph.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in initializers.items()
    )
    return graph


BOXES = "(float[N, 4, 50] b, float[N, 2, 50] s)"
SHAPE = np.array([0, 6, 10, 5], np.int64)


@pytest.mark.parametrize(
    "text, axis, sizes",
    [
        ("=> (float[N, 6, 50] y) { t = Sigmoid (s)  y = Concat <axis = 1> (b, t) }", 1, (4, 2)),
        (
            "=> (float[N, 50, 6] y) { j = Concat <axis = -2> (b, s)  y = Transpose <perm = [0, 2, 1]> (j) }",
            2,
            (4, 2),
        ),
        ("=> (float[N, 6, 50] y) { j = Concat <axis = 1> (b, s)  y = Mul (j, two) }", 1, (4, 2)),
        ("=> (float[N, 6, 10, 5] y) { j = Concat <axis = 1> (b, s)  y = Reshape (j, shape) }", 1, (4, 2)),
    ],
)
def test_a_join(text: str, axis: int, sizes: tuple[int, ...]) -> None:
    found = joins(model(f"{BOXES} {text}", two=np.float32([2]), shape=SHAPE))
    assert found == {"y": [Join(axis, sizes)]}


def test_levels_that_are_joined_alike() -> None:
    """As YOLOX ends: each level is boxes and scores, the levels are joined along the other axis."""
    text = """(float[N, 4, 9] b0, float[N, 2, 9] s0, float[N, 4, 4] b1, float[N, 2, 4] s1) => (float[N, 13, 6] y) {
        l0 = Concat <axis = 1> (b0, s0)
        l1 = Concat <axis = 1> (b1, s1)
        l = Concat <axis = 2> (l0, l1)
        y = Transpose <perm = [0, 2, 1]> (l)
    }"""
    assert joins(model(text)) == {"y": [Join(1, (9, 4)), Join(2, (4, 2))]}


@pytest.mark.parametrize(
    "text",
    [
        "=> (float[N, 4, 50] y) { y = Relu (b) }",
        "=> (float[N, 4, 50] y) { j = Concat <axis = 0> (b, b)  k = Concat <axis = 0> (b, b)  y = Add (j, k) }",
        "=> (float[N, 300] y) { j = Concat <axis = 1> (b, s)  y = Flatten (j) }",
        "=> (float[N, 6] y) { j = Concat <axis = 1> (b, s)  y = ReduceMax <axes = [2], keepdims = 0> (j) }",
    ],
)
def test_no_join(text: str) -> None:
    assert joins(model(f"{BOXES} {text}")) == {}


def test_an_operator_that_is_not_known_ends_the_search() -> None:
    unknown = model(f"{BOXES} => (float[N, 6, 50] y) {{ j = Concat <axis = 1> (b, s)  y = Relu (j) }}")
    unknown.graph.node[1].op_type, unknown.graph.node[1].domain = "Magic", "mine"
    unknown.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    assert joins(unknown) == {}


def test_a_deep_network_is_walked_without_recursion() -> None:
    nodes = "".join(f"r{index + 1} = Relu (r{index})  " for index in range(1500))
    deep = model(
        f"(float[N, 6] r0) => (float[N, 6] y) {{ {nodes} y = Add (r1500, two) }}", two=np.float32([2])
    )
    assert joins(deep) == {}


def test_what_is_joined_of_itself_again_and_again_ends() -> None:
    nodes = "".join(f"r{index + 1} = Concat <axis = 1> (r{index}, r{index})  " for index in range(16))
    found = joins(model(f"(float[N, 1, 2] r0) => (float[N, 65536, 2] y) {{ {nodes} y = Relu (r16) }}"))
    assert Join(1, (32768, 32768)) in found["y"]
