"""What inspect, tables and gates count, on models that can be counted by hand."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_lathe.optimizer.inspect import Table, layer_table
from tests.support.bodies import branches, loop, scan
from tests.support.builders import build, random


def half_zero(*shape: int) -> np.ndarray:
    """Random values, the first half of which, rounded down, are zero."""
    values = random(*shape).reshape(-1)
    values[: values.size // 2] = 0
    return values.reshape(shape)


def macs_of(table: Table, op: str) -> list[int | None]:
    return [row.macs for row in table.rows if row.op == op]


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers(op: str, gates: int, directions: int) -> None:
    """7 steps of 5 inputs and 6 states: every gate multiplies both, in each direction."""
    direction = "bidirectional" if directions == 2 else "forward"
    model = build(
        f'(float[7, N, 5] x) => (float[7, {directions}, N, 6] y) {{ y = {op} <hidden_size = 6, direction = "{direction}"> (x, w, r, b) }}',
        w=half_zero(directions, gates * 6, 5),
        r=random(directions, gates * 6, 6),
        b=random(directions, 2 * gates * 6),
    )
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    table = layer_table(model)
    inputs, states = directions * gates * 6 * 5, directions * gates * 6 * 6
    assert table.size.macs == 7 * (inputs + states)
    assert table.size.parameters == inputs + states + directions * gates * 12
    assert table.size.sparsity == pytest.approx(inputs // 2 / table.size.parameters)
    assert table.size.weight_bytes == 4 * table.size.parameters
    assert [row.op for row in table.rows] == [op]


def test_an_embedding_has_weights_and_no_macs() -> None:
    model = build(
        "(int64[N, 3] x) => (float[N, 3, 2] y) { e = Gather (table, x) y = MatMul (e, w) }",
        table=half_zero(10, 4),
        w=random(4, 2),
    )
    table = layer_table(model)
    assert [(row.op, row.parameters, row.zeros, row.macs) for row in table.rows] == [
        ("Gather", 40, 20, 0),
        ("MatMul", 8, 0, 3 * 4 * 2),
    ]
    assert table.size.sparsity == pytest.approx(20 / 48)


def test_an_embedding_that_is_stored_as_a_codebook() -> None:
    model = build(
        """(int64[N, 3] x) => (float[N, 3, 4] y) {
            wide = Cast <to = 6> (indices) table = Gather (codebook, wide) y = Gather (table, x)
        }""",
        codebook=np.array([0, 1, -1], np.float32),
        indices=np.arange(40, dtype=np.uint8).reshape(10, 4) % 3,
    )
    (row,) = layer_table(model).rows
    assert (row.weight_shape, row.parameters, row.zeros, row.weight_bytes) == ((10, 4), 40, 14, 40 + 12)


def test_an_int8_weight_counts_as_what_it_is_decoded_to() -> None:
    levels = np.tile(np.array([0, 1, 2, 3], np.int8), (6, 1))
    model = build(
        "(float[N, 6] x) => (float[N, 4] y) { w = DequantizeLinear <axis = 1> (levels, scale) y = MatMul (x, w) }",
        levels=levels,
        scale=np.ones(4, np.float32),
    )
    size = layer_table(model).size
    assert (size.parameters, size.sparsity, size.macs) == (24, 0.25, 24)


def test_integer_operators() -> None:
    model = build(
        "(uint8[1, 6] x) => (int32[1, 4] y) { y = MatMulInteger (x, w, xz, wz) }",
        w=np.tile(np.array([7, 1, 2, 7], np.uint8), (6, 1)),
        xz=np.array(3, np.uint8),
        wz=np.array(7, np.uint8),
    )
    size = layer_table(model).size
    assert (size.parameters, size.sparsity, size.macs) == (24, 0.5, 24)


def test_a_constant_counts_in_any_position_and_layout_once() -> None:
    model = build(
        """(float[N, 4, 5] x) => (float[N, 3, 5] y, float[N, 5, 3] z) {
            y = MatMul (w, x)
            turned = Transpose <perm = [1, 0]> (w)
            flipped = Transpose <perm = [0, 2, 1]> (x)
            z = MatMul (flipped, turned)
        }""",
        w=half_zero(3, 4),
    )
    table = layer_table(model)
    assert [(row.parameters, row.macs) for row in table.rows] == [(12, 3 * 5 * 4), (0, 5 * 3 * 4)]
    assert table.size.sparsity == 0.5


def test_constant_nodes_and_normalizations_count() -> None:
    model = build(
        """(float[N, 2, 8, 8] x) => (float[N, 3, 8, 8] y) {
            b = Constant <value = float[3] {0.0, 0.0, 1.0}> ()
            c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            y = BatchNormalization (c, scale, bias, mean, variance)
        }""",
        w=random(3, 2, 3, 3),
        scale=np.ones(3, np.float32),
        bias=np.zeros(3, np.float32),
        mean=np.zeros(3, np.float32),
        variance=np.ones(3, np.float32),
    )
    table = layer_table(model)
    assert [(row.op, row.parameters, row.zeros, row.macs) for row in table.rows] == [
        ("Conv", 57, 0, 3 * 64 * 18),
        ("BatchNormalization", 12, 0, 0),
    ]
    assert table.size.weight_bytes == 4 * 69


def test_transposed_and_grouped_convolutions() -> None:
    model = build(
        """(float[N, 4, 5, 5] x) => (float[N, 6, 11, 11] y) {
            c = Conv <group = 2, pads = [1, 1, 1, 1]> (x, w) y = ConvTranspose <strides = [2, 2]> (c, t)
        }""",
        w=random(4, 2, 3, 3),
        t=random(4, 6, 3, 3),
    )
    assert [row.macs for row in layer_table(model).rows] == [4 * 25 * 2 * 9, 4 * 25 * 6 * 9]


@pytest.mark.parametrize(
    ("equation", "shape", "macs"),
    [("bti,io->bto", (4, 6), 3 * 4 * 6), ("bti,oi->bto", (6, 4), 3 * 4 * 6), ("...i,io->...o", (4, 6), 72)],
)
def test_einsum(equation: str, shape: tuple[int, ...], macs: int) -> None:
    model = build(
        f'(float[N, 3, 4] x) => (float[N, 3, 6] y) {{ y = Einsum <equation = "{equation}"> (x, w) }}',
        w=half_zero(*shape),
    )
    size = layer_table(model).size
    assert (size.macs, size.parameters, size.sparsity) == (macs, 24, 0.5)


def test_a_product_of_activations_counts() -> None:
    model = build("(float[N, 3, 4] x, float[N, 4, 5] z) => (float[N, 3, 5] y) { y = MatMul (x, z) }")
    (row,) = layer_table(model).rows
    assert (row.macs, row.parameters, row.weight_shape) == (3 * 5 * 4, 0, ())


def test_attention() -> None:
    """2 heads of 4: 5 queries, 7 keys and values."""
    model = build(
        "(float[N, 5, 8] q, float[N, 7, 8] k, float[N, 7, 8] v) => (float[N, 5, 8] y) { y = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v) }",
        23,
    )
    assert layer_table(model).size.macs == 2 * 5 * 7 * (4 + 4)


def test_of_an_if_the_larger_branch_counts() -> None:
    table = layer_table(branches())
    assert [(row.place, row.parameters, row.macs) for row in table.rows] == [
        ("", 1024, 1024),
        ("then_branch of If_1", 1024, 1024),
        ("else_branch of If_1", 0, 1024),
        ("else_branch of If_1", 1024, 1024),
    ]
    assert (table.size.parameters, table.size.macs) == (3072, 3072)
    assert table.size.weight_bytes == 3 * 4096


def test_a_body_counts_as_often_as_it_runs() -> None:
    table = layer_table(loop(trips=7))
    assert (table.size.macs, table.size.parameters) == (7 * 1024, 1024)
    assert macs_of(table, "MatMul") == [7 * 1024]
    assert layer_table(scan()).size.macs == 5 * 1024


def test_a_loop_whose_end_is_not_known() -> None:
    model = loop()
    model.graph.input.append(helper.make_tensor_value_info("trips", TensorProto.INT64, []))
    del model.graph.initializer[0]
    size = layer_table(model).size
    assert size.macs is None
    assert size.uncounted == {
        "macs": "MACs of Loop_0 (Loop) are not counted: how often its body runs is known only when it runs"
    }
    assert set(size.as_metrics()) == {"weights", "sparsity", "parameters"}


def test_a_loop_that_data_may_end() -> None:
    model = build(
        """(float[N, 4] x) => (float[N, 4] y) { y = Loop (trips, yes, x) <
            body = step (int64 i, bool on, float[N, 4] h) => (bool more, float[N, 4] next) {
                next = MatMul (h, w) m = ReduceMax <keepdims = 0> (next) more = Less (m, limit)
            }> }""",
        trips=np.array(3),
        yes=np.array(True),
        w=random(4, 4),
        limit=np.array(1, np.float32),
    )
    assert "may end it early" in layer_table(model).size.uncounted["macs"]


def test_what_a_loop_grows_has_no_known_shape() -> None:
    model = build(
        """(float[1, 4] x) => (float[K, 4] y) { y = Loop (trips, yes, x) <
            body = step (int64 i, bool on, float[K, 4] h) => (bool more, float[L, 4] next) {
                s = MatMul (h, w) next = Concat <axis = 0> (h, s) more = Identity (on)
            }> }""",
        trips=np.array(3),
        yes=np.array(True),
        w=random(4, 4),
    )
    size = layer_table(model).size
    assert size.macs is None
    assert "Loop_0/body/MatMul_0 (MatMul) are not counted: a size" in size.uncounted["macs"]


def test_a_loop_without_products_hides_nothing() -> None:
    model = build(
        """(float[N, 4] x, int64 trips) => (float[N, 4] y) { h = MatMul (x, w) y = Loop (trips, yes, h) <
            body = step (int64 i, bool on, float[N, 4] h0) => (bool more, float[N, 4] next) {
                next = Add (h0, h0) more = Identity (on)
            }> }""",
        yes=np.array(True),
        w=random(4, 4),
    )
    assert layer_table(model).size.macs == 16


def test_functions_count() -> None:
    block = helper.make_function(
        "net",
        "Block",
        ["a", "w"],
        ["o"],
        [helper.make_node("Conv", ["a", "w"], ["t"], pads=[1] * 4), helper.make_node("Relu", ["t"], ["o"])],
        [helper.make_opsetid("", 17)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Block", ["x", "w0"], ["h"], domain="net"),
            helper.make_node("Block", ["h", "w1"], ["y"], domain="net"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5, 4, 4])],
        [
            onnx.numpy_helper.from_array(half_zero(5, 3, 3, 3), "w0"),
            onnx.numpy_helper.from_array(random(5, 5, 3, 3), "w1"),
        ],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("net", 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=[block], ir_version=9)
    size = layer_table(model).size
    assert size.macs == 16 * 5 * 9 * (3 + 5)
    assert size.parameters == 45 * (3 + 5)
    assert size.sparsity == pytest.approx(67 / 360)


def test_foreign_operators_are_named() -> None:
    model = build("(float[N, 4] x) => (float[N, 4] y) { h = MatMul (x, w) y = Relu (h) }", w=random(4, 4))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node[1].CopyFrom(
        helper.make_node("MatMulNBits", ["h", "packed", "scales"], ["y"], domain="com.microsoft", name="tiny")
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((4, 1, 8), np.uint8), "packed"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "scales"))
    size = layer_table(model).size
    assert (
        size.uncounted["macs"]
        == "MACs of tiny (MatMulNBits) are not counted: it is no operator of the ONNX standard"
    )
    assert size.uncounted["sparsity"].startswith(
        "weights of tiny (MatMulNBits) are not counted: com.microsoft"
    )
    assert set(size.as_metrics()) == {"weights"}


def test_a_branch_inside_a_loop_counts_as_often_as_that_runs() -> None:
    model = build(
        """(float[N, 4] x, bool c) => (float[N, 4] y) { y = Loop (trips, yes, x) <
            body = step (int64 i, bool on, float[N, 4] h) => (bool more, float[N, 4] next) {
                more = Identity (on)
                next = If (c) < then_branch = t () => (float[N, 4] p) { p = MatMul (h, w) },
                                else_branch = e () => (float[N, 4] q) { s = MatMul (h, v) q = MatMul (s, v) } >
            }> }""",
        trips=np.array(3),
        yes=np.array(True),
        w=random(4, 4),
        v=random(4, 4),
    )
    table = layer_table(model)
    assert [row.place for row in table.rows][1:] == ["else_branch of Loop_0/body/If_1"] * 2
    assert [row.macs for row in table.rows] == [3 * 16] * 3
    assert (table.size.macs, table.size.parameters) == (3 * 2 * 16, 32)
