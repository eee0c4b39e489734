"""fold: what becomes constant, what is taken out, and what must stay as it is."""

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.fold.fold import Fold
from onnx_lathe.passes.graph.model import import_model
from tests.support.builders import build, random, run
from tests.support.folding import BN, FILLED, ONE, constants, difference, fold, normalization, ops


def test_constant_nodes_become_initializers_bit_for_bit() -> None:
    odd = np.array([0x7FC00123, 0x80000000], np.uint32).view(np.float32)  # a NaN with a payload, and -0.0
    constant = "Constant <value = float[2] {0, 0}> ()"
    model = build(
        f"(float[2] x) => (float[2] y) {{ k = {constant} a = Add (x, k) f = Constant <value_float = 2.0> () y = Mul (a, f) }}"
    )
    model.graph.node[0].attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(odd))
    folded, report = fold(model)
    assert ops(folded) == ["Add", "Mul"]
    assert constants(folded)["k"].tobytes() == odd.tobytes()
    assert constants(folded)["f"] == np.float32(2)
    assert len(report.edits) == 2


def test_shape_arithmetic_folds_to_one_initializer() -> None:
    text = """(float[2, 3, 4] x) => (float[P, Q] y) {
        r = Relu (x)  s = Shape (r)  b = Gather (s, zero)  u = Unsqueeze (b, axes)
        m = Concat <axis = 0> (u, minus)  y = Reshape (r, m) }"""
    model = build(text, zero=np.array(0), axes=np.array([0]), minus=np.array([-1]))
    folded, report = fold(model)
    assert ops(folded) == ["Relu", "Reshape"]
    assert constants(folded)["m"].tolist() == [2, -1]
    assert len(report.edits) == 4
    assert difference(model, folded) == 0


@pytest.mark.parametrize("outputs", ["int64[2] y", "int64[2] y, float[7, 3] r"])
def test_a_shape_in_the_file_is_not_believed(outputs: str) -> None:
    model = build(
        f"(float[N, 3] x) => ({outputs}) {{ r = Relu (x)  s = Shape (r)  y = Mul (s, two) }}", two=np.array(2)
    )
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, [7, 3]))
    folded, report = fold(model)
    assert ops(folded) == ["Relu", "Shape", "Mul"]
    assert not report.edits


def test_an_output_computed_from_constants_stays_computed() -> None:
    model = build(
        "(float[2] x) => (float[2] y, float[2] k) { y = Relu (x)  n = Neg (c)  k = Exp (n) }",
        c=np.ones(2, np.float32),
    )
    folded, report = fold(model)
    assert ops(folded) == ["Relu", "Exp"]
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("Exp_2", "it computes an output of the model")
    ]
    assert difference(model, folded) == 0


def test_growth_is_limited_and_can_be_allowed() -> None:
    text = "(float[64, 64] x) => (float[64, 64] y) { r = Add (row, column)  y = Mul (x, r) }"
    model = build(text, row=random(1, 64), column=random(64, 1))
    kept, report = fold(model, growth=1000)
    assert ops(kept) == ["Add", "Mul"]
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("Add_0", "computed, it would add 15,872 bytes to the file; growth=15872 allows that")
    ]
    folded, report = fold(model, growth=15872)
    assert ops(folded) == ["Mul"]
    assert not report.skips
    assert difference(model, folded) == 0


def test_a_constant_with_another_reader_is_not_counted_as_freed() -> None:
    text = (
        "(float[2, 8] x) => (float[2, 8] y) {{ t = Transpose (w)  a = MatMul (x, t)  y = {op} (a, {other}) }}"
    )
    shared = build(text.format(op="MatMul", other="w"), w=random(8, 8))
    alone = build(text.format(op="Add", other="a"), w=random(8, 8))
    assert ops(fold(shared, growth=255)[0]) == ["Transpose", "MatMul", "MatMul"]
    assert ops(fold(shared, growth=256)[0]) == ["MatMul", "MatMul"]
    assert ops(fold(alone, growth=0)[0]) == ["MatMul", "Add"]


CODEBOOK = "i = Cast <to = 6> (indices)  w = Gather <axis = 0> (codebook, i)"
STORED = {
    "codebook, 8 bit": (
        f"{CODEBOOK}  y = Conv (x, w)",
        {"indices": np.arange(54, dtype=np.uint8).reshape(2, 3, 3, 3) % 16},
    ),
    "codebook, 4 bit": (
        f"{CODEBOOK}  y = Conv (x, w)",
        {"indices": (np.arange(54) % 16).astype(ml_dtypes.uint4).reshape(2, 3, 3, 3)},
    ),
    "INT8": (
        "w = DequantizeLinear <axis = 0> (levels, scales)  y = Conv (x, w)",
        {
            "levels": np.arange(54, dtype=np.int8).reshape(2, 3, 3, 3),
            "scales": np.array([0.1, 0.2], np.float32),
        },
    ),
    "codebook, quantized": (
        f"{CODEBOOK}  q = QuantizeLinear (w, scale, zero)  d = DequantizeLinear (q, scale, zero)  y = Conv (x, d)",
        {
            "indices": np.arange(54, dtype=np.uint8).reshape(2, 3, 3, 3) % 16,
            "scale": np.array(0.1, np.float32),
            "zero": np.array(0, np.int8),
        },
    ),
    "half precision": (
        "w = Cast <to = 1> (half)  y = Conv (x, w)",
        {"half": np.ones((2, 3, 3, 3), np.float16)},
    ),
    "one value": (f"w = {FILLED} (dims)  y = Conv (x, w)", {"dims": np.array([2, 3, 3, 3])}),
    "INT8, transposed": (
        "f = DequantizeLinear (levels, scale)  w = Transpose <perm = [3, 2, 0, 1]> (f)  y = Conv (x, w)",
        {"levels": np.ones((3, 3, 3, 2), np.int8), "scale": np.array(0.1, np.float32)},
    ),
}


@pytest.mark.parametrize("name", STORED)
def test_compressed_storage_stays(name: str) -> None:
    nodes, stored = STORED[name]
    stored = stored | {"codebook": random(16)}
    model = build(f"(float[N, 3, 8, 8] x) => (float[N, 2, 6, 6] y) {{ {nodes} }}", opset=21, **stored)
    graph = import_model(model)
    report = Fold(Fold.Config(growth=1 << 30)).apply(graph, Context())
    assert not report.edits
    assert [node.op for node in graph.nodes] == ops(model)


NOOPS = {
    "Identity": "y = Identity (r)",
    "Dropout": "y = Dropout (r)",
    "Dropout, explicitly off": "y, mask = Dropout (r, ratio, off)",
    "Transpose": "y = Transpose <perm = [0, 1, 2]> (r)",
    "Reshape": "y = Reshape (r, same)",
    "Reshape with copied and left-over dimensions": "y = Reshape (r, left_over)",
    "Cast": "y = Cast <to = 1> (r)",
    "Pad": "y = Pad (r, none)",
    "Concat": "y = Concat <axis = 1> (r)",
}
NOOP_DATA = {
    "ratio": np.array(0.5, np.float32),
    "off": np.array(False),
    "same": np.array([-1, 3, 4]),
    "left_over": np.array([0, -1, 4]),
    "none": np.zeros(6, np.int64),
}


@pytest.mark.parametrize("name", NOOPS)
def test_what_returns_its_input_is_removed(name: str) -> None:
    between = (
        NOOPS[name].replace("y", "m", 1)
        if not name.startswith("Dropout,")
        else NOOPS[name].replace("y,", "m,", 1)
    )
    for text, left in [
        (f"(float[N, 3, 4] x) => (float[N, 3, 4] y) {{ r = Relu (x)  {NOOPS[name]} }}", ["Relu"]),
        (
            f"(float[N, 3, 4] x) => (float[N, 3, 4] y) {{ r = Relu (x)  {between}  y = Neg (m) }}",
            ["Relu", "Neg"],
        ),
        (f"(float[N, 3, 4] r) => (float[N, 3, 4] y) {{ {NOOPS[name]} }}", None),
    ]:
        model = build(text, **NOOP_DATA)
        folded, report = fold(model)
        assert ops(folded) == (left or ops(model))  # an output of the graph cannot be its input
        assert len(report.edits) == (1 if left else 0)
        assert difference(model, folded) == 0


def test_flatten_of_a_matrix_is_removed() -> None:
    model = build("(float[N, 3] x) => (float[N, 3] y) { f = Flatten (x)  y = Relu (f) }")
    assert ops(fold(model)[0]) == ["Relu"]


@pytest.mark.parametrize(
    "node",
    [
        "y = Transpose <perm = [0, 2, 1]> (r)",
        "y = Reshape (r, other)",
        "y = Reshape (r, guess)",
        "y = Cast <to = 1> (d)",
        "y = Pad (r, some)",
        "y = Concat <axis = 2> (r, r)",
        "y, mask = Dropout (r, ratio, on)",
    ],
)
def test_what_changes_its_input_stays(node: str) -> None:
    text = f"(float[N, 3, 3] x) => (float[A, B, C] y) {{ r = Relu (x)  d = Cast <to = 11> (r)  {node}  }}"
    more = {
        "other": np.array([3, -1, 3]),
        "guess": np.array([-1, 1, 9]),
        "some": np.array([0, 0, 0, 0, 0, 1]),
        "on": np.array(True),
    }
    folded, _ = fold(build(text, ratio=np.array(0.5, np.float32), **more))
    assert ops(folded)[-1] == node.split("= ")[1].split(" ")[0]


def test_a_dropout_whose_mask_is_read_stays() -> None:
    model = build(
        "(float[N, 3] x) => (float[N, 3] y, bool[N, 3] mask) { r = Relu (x)  y, mask = Dropout (r) }"
    )
    assert ops(fold(model)[0]) == ["Relu", "Dropout"]


def test_two_outputs_keep_their_names() -> None:
    model = build("(float[N, 3] x) => (float[N, 3] y, float[N, 3] z) { y = Relu (x)  z = Identity (y) }")
    folded, report = fold(model)
    assert [value.name for value in folded.graph.output] == ["y", "z"]
    assert ops(folded) == ["Relu", "Identity"]
    assert not report.edits


def test_dead_nodes_and_what_only_they_read_are_removed() -> None:
    model = build(
        "(float[N, 3] x) => (float[N, 3] y) { a = MatMul (x, w)  b = Relu (a)  y = Neg (x) }", w=random(3, 3)
    )
    model.metadata_props.add(key=metadata.SPARSE, value=metadata.format_sparse({"w": "unstructured"}))
    folded, report = fold(model)
    assert ops(folded) == ["Neg"]
    assert not constants(folded)
    assert metadata.read_sparse(folded.metadata_props) == {}
    assert {edit.node for edit in report.edits} == {"MatMul_0", "Relu_1"}


def test_a_tensor_named_in_sparse_is_not_computed_away() -> None:
    model = build(
        "(float[N, 3] x) => (float[N, 2] y) { t = Transpose (w)  y = MatMul (x, t) }", w=random(2, 3)
    )
    assert ops(fold(model)[0]) == ["MatMul"]
    model.metadata_props.add(key=metadata.SPARSE, value=metadata.format_sparse({"w": "unstructured"}))
    assert ops(fold(model)[0]) == ["Transpose", "MatMul"]


def test_a_renamed_sparse_weight_takes_its_entry_along() -> None:
    model = build(
        "(float[N, 3] x) => (float[N, 2] y) { v = Identity (w)  y = MatMul (x, v) }", w=random(3, 2)
    )
    model.metadata_props.add(key=metadata.SPARSE, value=metadata.format_sparse({"v": "2:4"}))
    folded, _ = fold(model)
    assert ops(folded) == ["MatMul"]
    assert metadata.read_sparse(folded.metadata_props) == {"w": "2:4"}


def test_what_a_subgraph_reads_keeps_its_name() -> None:
    text = """(float[2] x, bool c) => (float[2] y) {
        a = Identity (x)  k = Constant <value_floats = [1.0, 2.0]> ()  s = Add (k, k)
        y = If (c) <then_branch = t () => (float[2] u) { u = Add (a, s) }, else_branch = e () => (float[2] v) { v = Mul (a, k) }> }"""
    model = build(text)
    folded, report = fold(model)
    assert ops(folded) == ["Identity", "Constant", "Add", "If"]
    assert not report.edits
    for condition in (True, False):
        feeds = {"x": np.array([3, 4], np.float32), "c": np.array(condition)}
        np.testing.assert_array_equal(run(folded, feeds)["y"], run(model, feeds)["y"])


def test_an_output_does_not_take_the_place_of_what_a_subgraph_reads() -> None:
    text = """(float[2] x, bool c) => (float[2] y, float[2] z) {
        r = Relu (x)  z = Identity (r)
        y = If (c) <then_branch = t () => (float[2] u) { u = Neg (r) }, else_branch = e () => (float[2] v) { v = Exp (r) }> }"""
    folded, report = fold(build(text))
    assert ops(folded) == ["Relu", "Identity", "If"]
    assert not report.edits


def test_a_model_without_anything_to_fold_comes_back_bit_for_bit() -> None:
    weight = random(4, 3)
    weight[0, 0], weight[1, 1] = np.nan, -0.0
    model = build(
        "(float[N, 3] x) => (float[N, 4] y) { g = Gemm <transB = 1> (x, w, b)  y = Relu (g) }",
        w=weight,
        b=random(4),
    )
    folded, report = fold(model)
    assert report == PassReport()
    assert folded.graph.initializer == model.graph.initializer
    assert ops(folded) == ops(model)


def test_folding_twice_changes_nothing_more() -> None:
    scaled = "k = Constant <value_float = 2.0> () m = Sqrt (k) y = Mul (n, m)"
    text = f"{ONE} {{ i = Identity (x) c = Conv (i, w) {BN.replace('y =', 'n =')} {scaled} }}"
    once, report = fold(build(text, w=random(6, 4, 3, 3), **normalization(6)))
    assert ops(once) == ["Conv"]
    twice, report = fold(once)
    assert not report.edits
    assert twice == once
