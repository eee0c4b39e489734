"""Every operator that fold computes: the reference implementation against ONNX Runtime, in value, shape and
element type.
"""

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_lathe.passes.graph import Node, Variable
from onnx_lathe.passes.graph.constants import FOLDABLE, compute
from onnx_lathe.passes.graph.model import import_model
from tests.support.builders import run

OPSET = 17
FLOAT = np.array([[-2.5, -0.5, 0.0], [0.5, 1.5, 3.25]], np.float32)
POSITIVE = np.abs(FLOAT) + np.float32(0.25)
LONG = np.array([[-7, -1, 2], [3, 7, 8]])
SMALL = np.array([2, -2, 3])
TRUTH = np.array([[True, False, True], [False, False, True]])

Case = tuple[dict[str, object], tuple[np.ndarray | None, ...]]
UNARY = "Abs Ceil Cos Erf Exp Floor Neg Reciprocal Round Sigmoid Sign Sin Tanh NonZero Shape Size Transpose"
BINARY = "Add Sub Mul Div Max Min Mean Sum Equal Greater GreaterOrEqual Less LessOrEqual"
REDUCE = "ReduceMax ReduceMean ReduceMin ReduceProd"
CASES: dict[str, list[Case]] = {
    **{op: [({}, (FLOAT,))] for op in UNARY.split()},
    **{op: [({}, (FLOAT, POSITIVE)), ({}, (FLOAT, FLOAT[0]))] for op in BINARY.split()},
    **{op: [({"axes": [1]}, (FLOAT,)), ({"keepdims": 0}, (FLOAT,))] for op in REDUCE.split()},
    **{op: [({}, (TRUTH, TRUTH[::-1]))] for op in ("And", "Or", "Xor")},
    "Log": [({}, (POSITIVE,))],
    "Sqrt": [({}, (POSITIVE,))],
    "Not": [({}, (TRUTH,))],
    "Cast": [({"to": 7}, (FLOAT,)), ({"to": 1}, (LONG,)), ({"to": 9}, (LONG,)), ({"to": 10}, (FLOAT,))],
    "CastLike": [({}, (LONG, FLOAT))],
    "Concat": [({"axis": -1}, (LONG, LONG))],
    "ConstantOfShape": [({"value": helper.make_tensor("", 7, [1], [4])}, (np.array([2, 3]),))],
    "Expand": [({}, (SMALL, np.array([2, 1])))],
    "Flatten": [({"axis": 2}, (LONG.reshape(1, 2, 3),))],
    "Gather": [({"axis": 1}, (LONG, np.array([[-1, 0]])))],
    "GatherElements": [({"axis": 1}, (LONG, np.array([[0, -1], [2, 2]])))],
    "GatherND": [({"batch_dims": 1}, (LONG, np.array([[2], [0]]))), ({}, (LONG, np.array([[1, -1]])))],
    "Gemm": [({"transB": 1, "alpha": 0.5, "beta": 2.0}, (FLOAT, POSITIVE, FLOAT[:, :1].reshape(-1)))],
    "MatMul": [({}, (FLOAT, POSITIVE.T)), ({}, (FLOAT, POSITIVE[0]))],
    "Mod": [({}, (LONG, SMALL)), ({"fmod": 1}, (FLOAT, POSITIVE))],
    "Pow": [({}, (POSITIVE, FLOAT)), ({}, (LONG, np.array(2)))],
    "Range": [
        ({}, (np.array(3), np.array(-4), np.array(-2))),
        ({}, (np.float32(0), np.float32(1), np.float32(0.25))),
    ],
    "ReduceSum": [
        ({}, (FLOAT, np.array([-1]))),
        ({"keepdims": 0}, (LONG,)),
        ({"noop_with_empty_axes": 1}, (LONG,)),
    ],
    "Reshape": [({}, (LONG, np.array([0, -1, 1]))), ({"allowzero": 1}, (LONG[:0], np.array([0, 9])))],
    "ScatterND": [({}, (LONG, np.array([[1], [0]]), LONG[::-1]))],
    "Slice": [
        ({}, (LONG, np.array([5]), np.array([-9]), np.array([1]), np.array([-2]))),
        ({}, (LONG, np.array([-1]), np.array([9]))),
    ],
    "Split": [({"axis": 1}, (LONG, np.array([1, 2])))],
    "Squeeze": [({}, (LONG[:1], np.array([0]))), ({}, (LONG[:1],))],
    "Tile": [({}, (SMALL, np.array([2])))],
    "Unsqueeze": [({}, (SMALL, np.array([0, -1])))],
    "Where": [({}, (TRUTH, FLOAT, POSITIVE[0]))],
}
ALL = [(op, attrs, arrays, OPSET) for op, cases in CASES.items() for attrs, arrays in cases]
ALL += [(op, {}, (LONG, SMALL), OPSET) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Equal", "Less")]
ALL += [  # where an attribute became an input
    ("Squeeze", {"axes": [0]}, (LONG[:1],), 11),
    ("Unsqueeze", {"axes": [0, 3]}, (LONG,), 11),
    ("ReduceSum", {"axes": [1], "keepdims": 0}, (FLOAT,), 11),
    ("Split", {"axis": 1, "split": [1, 2]}, (LONG,), 11),
    ("ReduceMean", {}, (FLOAT, np.array([0])), 18),
    ("Split", {"axis": 1, "num_outputs": 2}, (LONG,), 18),
]


def test_every_foldable_operator_has_a_case() -> None:
    assert CASES.keys() == FOLDABLE


@pytest.mark.parametrize(
    "op, attrs, arrays, opset", ALL, ids=[f"{op}-{index}" for index, (op, *_) in enumerate(ALL)]
)
def test_agrees_with_onnx_runtime(
    op: str, attrs: dict[str, object], arrays: tuple[np.ndarray, ...], opset: int
) -> None:
    feeds = {f"i{index}": np.asarray(array) for index, array in enumerate(arrays)}
    outputs = ["o0", "o1"] if op == "Split" else ["o0"]
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in feeds.items()
    ]
    node = helper.make_node(op, list(feeds), outputs, **attrs)
    graph = helper.make_graph([node], "g", inputs, [onnx.ValueInfoProto(name=name) for name in outputs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    expected = run(model, feeds)

    constant = import_model(model).nodes[0]
    for tensor in constant.inputs:
        tensor.to_constant(feeds[tensor.name])
    found = compute(constant, opset)
    assert not isinstance(found, str), found
    for name, value in zip(outputs, found, strict=True):
        assert value.dtype == expected[name].dtype
        assert value.shape == expected[name].shape
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-7)


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    node = Node(
        "Gather",
        "n",
        inputs=[Variable("a").to_constant(SMALL), Variable("b").to_constant(np.array(9))],
        outputs=[Variable("y")],
    )
    assert str(compute(node, OPSET)).startswith("it cannot be computed: index 9 is out of bounds")
