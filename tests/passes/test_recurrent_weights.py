"""Weights of recurrent layers, embeddings and transposed convolutions: stored in less space by prune, codebook,
int8 and int4, and computed with as before.
"""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import import_model, sparse_tensors
from onnx_lathe.passes.numerics.quantization import affine
from onnx_lathe.placement import Placement
from tests.support.builders import build, random, run
from tests.support.int8 import FixedCalibrator
from tests.support.operator_case import floats
from tests.support.recurrent import GATES, recurrent_network

X = {"x": floats(4, 7, 16, seed=5)}


def applied(
    name: str, model: onnx.ModelProto, context: Context | None = None, **options: Any
) -> tuple[onnx.ModelProto, PassReport]:
    after, report = apply_pass(configure(find(name), options), model, context or Context())
    if report.edits:
        contract.check_structure(model, after, name)
    onnx.checker.check_model(after, full_check=True)
    return after, report


def stored(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def agreement_db(model: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> float:
    (before,), (now,) = run(model, feeds).values(), run(after, feeds).values()
    return affine.signal_to_noise_db(before, now)


def size(model: onnx.ModelProto) -> int:
    return model.ByteSize()


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    "name, options, least_db, share",
    [
        ("int8", {"activations": False}, 35, 0.45),
        ("int8", {"activations": False, "weights": "mse"}, 35, 0.45),
        ("int4", {"min_size": 1}, 10, 0.35),
        ("int4", {"min_size": 1, "group": 0}, 8, 0.35),
        ("int4", {"min_size": 1, "zero_points": True}, 10, 0.4),
        ("codebook", {"bits": 8}, 30, 0.65),
        ("codebook", {"bits": 4}, 8, 0.4),
        ("codebook", {"bits": 4, "share": "channel_group", "groups": 2}, 8, 0.5),
    ],
)
def test_a_recurrent_layer_is_stored_in_less_space(
    op: str, direction: str, name: str, options: dict[str, Any], least_db: float, share: float
) -> None:
    model = recurrent_network(op, direction, units=48, opset=21)
    after, report = applied(name, model, **options)
    edited = [edit.node for edit in report.edits]
    assert edited.count("recurrent") == 2  # W and R
    assert agreement_db(model, after, X) > least_db
    assert {"recurrent.w", "recurrent.r"}.isdisjoint(tensor.name for tensor in after.graph.initializer)
    if op == "LSTM":  # the smaller ones are half graph
        assert size(after) < share * size(model)


@pytest.mark.parametrize(
    "direction, shape, scales", [("forward", [1, 128, 32], 128), ("bidirectional", [256, 32], 256)]
)
def test_int8_has_a_scale_for_each_direction_and_row_of_gates(
    direction: str, shape: list[int], scales: int
) -> None:
    model = recurrent_network("LSTM", direction)
    after, _ = applied("int8", model, activations=False)
    levels, scale = stored(after, "recurrent.r_int8"), stored(after, "recurrent.r_scale")
    assert (list(levels.shape), levels.dtype, scale.shape) == (shape, np.int8, (scales,))
    rows = np.abs(stored(model, "recurrent.r")).reshape(scales, -1).max(1)
    np.testing.assert_allclose(scale, rows / 127, rtol=1e-6)


def test_int8_leaves_a_recurrent_layer_float_unless_it_is_asked_for() -> None:
    model = recurrent_network(opset=21)
    after, report = applied("int8", model, Context(FixedCalibrator()), bias_correction=False)
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("recurrent", "a recurrent layer stays float"),
    ]
    after, report = applied(
        "int8", model, Context(FixedCalibrator()), bias_correction=False, layers={"recurrent": True}
    )
    quantized = [node.input[0] for node in after.graph.node if node.op_type == "QuantizeLinear"]
    assert quantized == ["features"]  # not what the recurrent layer reads
    assert stored(after, "recurrent.w_int8").dtype == np.int8
    _again, report = applied("int8", after, activations=False)
    assert report.edits == []
    assert {skip.reason for skip in report.skips} == {"already quantized"}


@pytest.mark.parametrize("op", GATES)
def test_prune_counts_the_weights_of_a_recurrent_layer(op: str) -> None:
    model = recurrent_network(op)
    after, report = applied("prune", model, sparsity=0.75)
    for name in ("recurrent.w", "recurrent.r"):
        before, now = stored(model, name), stored(after, name)
        assert np.count_nonzero(now == 0) == round(0.75 * now.size)
        assert np.abs(now[now != 0]).min() >= np.abs(before[now == 0]).max()
    assert {"recurrent.w", "recurrent.r"} <= sparse_tensors(import_model(after)).keys()
    assert report.metrics["sparsity"] == pytest.approx(0.75, abs=0.01)


def test_what_is_stored_otherwise_is_refused_by_its_name() -> None:
    quantized, _ = applied("int8", recurrent_network(opset=21), activations=False)
    for name in ("prune", "codebook", "int4"):
        _, report = applied(name, quantized)
        reasons = {skip.reason for skip in report.skips if skip.node == "recurrent"}
        assert reasons == {f"its weight is stored as int8; {name} before int8"}
    shared, _ = applied("codebook", recurrent_network(opset=21))
    _, report = applied("int8", shared, activations=False, layers={"head": False})
    assert {skip.reason for skip in report.skips if skip.node == "recurrent"} == {
        "its weight is a codebook, which takes less space than INT8"
    }


EMBEDDING = "(int64[N, 6] x) => (float[N, 6, 24] y) { e = Gather (table, x)  y = MatMul (e, w) }"


@pytest.mark.parametrize(
    "name, options, least_db, share",
    [
        ("int8", {"activations": False}, 35, 0.35),
        ("int4", {}, 17, 0.25),
        ("codebook", {}, 17, 0.2),
    ],
)
def test_a_table_is_stored_in_less_space(
    name: str, options: dict[str, Any], least_db: float, share: float
) -> None:
    model = build(EMBEDDING, 21, table=random(400, 64), w=random(64, 24))
    feeds = {"x": np.arange(24).reshape(4, 6) * 16}
    after, _ = applied(name, model, **options)
    assert "table" not in {tensor.name for tensor in after.graph.initializer}
    assert agreement_db(model, after, feeds) > least_db
    assert size(after) < share * size(model)


def test_a_table_is_pruned_only_if_it_is_named() -> None:
    model = build(EMBEDDING, 21, table=random(400, 64), w=random(64, 24))
    after, report = applied("prune", model)
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("Gather_0", "a table is looked up, not multiplied with; the option layers can name it")
    ]
    after, _ = applied("prune", model, layers={"table": 0.5})
    assert np.count_nonzero(stored(after, "table")) == 200 * 64


def test_numbers_that_are_looked_up_with_constants_are_no_table() -> None:
    model = build(
        "(float[N, 4] x) => (float[2, 16] y) { i = Constant <value = int64[2] {0, 3}> ()  y = Gather (table, i) }",
        21, table=random(64, 16),
    )  # fmt: skip
    _, report = applied("codebook", model, min_size=1)
    assert report.edits == []
    assert [skip.reason for skip in report.skips] == [
        "its table is an embedding, which this pass does not change"
    ]


def transposed(groups: int = 1) -> onnx.ModelProto:
    text = f"(float[N, 32, 5, 5] x) => (float[N, 16, 10, 10] y) {{ y = ConvTranspose <strides = [2, 2], kernel_shape = [4, 4], pads = [1, 1, 1, 1], group = {groups}> (x, w, b) }}"
    weight = (
        random(32, 16 // groups, 4, 4) * np.linspace(0.1, 2, 16 // groups, dtype=np.float32)[:, None, None]
    )
    return build(text, 21, w=weight, b=random(16))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "name, options, least_db, share",
    [
        ("int8", {"activations": False}, 35, 0.3),
        ("int4", {}, 16, 0.25),
        ("int4", {"group": 0}, 14, 0.25),
        ("int4", {"zero_points": True}, 16, 0.3),
        ("codebook", {}, 17, 0.2),
        ("prune", {"sparsity": 0.5}, 8, 1.1),
    ],
)
def test_a_transposed_convolution_is_stored_in_less_space(
    name: str, options: dict[str, Any], least_db: float, share: float, groups: int
) -> None:
    model = transposed(groups)
    after, report = applied(name, model, **options)
    assert len(report.edits) == 1
    assert agreement_db(model, after, {"x": random(2, 32, 5, 5)}) > least_db
    assert size(after) < share * size(model)


def test_int8_of_a_transposed_convolution_has_a_scale_for_each_output_channel() -> None:
    model = transposed()
    after, _ = applied("int8", model, activations=False)
    weight = np.abs(stored(model, "w")).max((0, 2, 3))
    np.testing.assert_allclose(stored(after, "w_scale"), weight / 127, rtol=1e-6)
    assert [
        attribute.i
        for node in after.graph.node
        if node.op_type == "DequantizeLinear"
        for attribute in node.attribute
    ] == [1]


@pytest.mark.parametrize("group", [8, 16, 0])
def test_int4_groups_inputs_of_one_output_channel_alone(group: int) -> None:
    """A block of inputs never reaches into the next group of a grouped one, which has other channels."""
    after, report = applied("int4", transposed(2), group=group, min_size=1)
    node = next(node for node in after.graph.node if node.op_type == "DequantizeLinear")
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    assert attributes == {"axis": 0, "block_size": group or 16}
    assert list(stored(after, "w_scale").shape) == [32 // (group or 16), 8 * 16]
    assert f"a scale for {group or 16} inputs" in report.edits[0].what


@pytest.mark.parametrize("name", ["svd", "tensor_train", "tucker", "prune_nm"])
def test_a_pass_that_has_nothing_for_recurrent_layers_names_them(name: str) -> None:
    reason = "its weights are those of a recurrent layer, which this pass does not change"
    options = {"method": "weight"} if name == "svd" else {}
    _, report = applied(name, recurrent_network(), **options)
    assert ("recurrent", reason) in [(skip.node, skip.reason) for skip in report.skips]


def test_a_codebook_below_opset_21_raises_it_for_recurrent_layers_too() -> None:
    after, report = applied("codebook", recurrent_network("LSTM", units=48, opset=17), bits=4)
    assert [edit.node for edit in report.edits].count("recurrent") == 2
    assert next(one.version for one in after.opset_import if not one.domain) == 21


@pytest.mark.parametrize("op", GATES)
def test_weights_that_are_stored_alone_need_no_room_for_sums(op: str) -> None:
    """A target that adds products in 16 bits has no say in what is multiplied in float."""
    model = recurrent_network(op, "bidirectional", units=48, opset=21)
    after, _ = applied("int8", model, Context(placement=Placement(pairs=True)), activations=False)
    assert agreement_db(model, after, X) > 35
