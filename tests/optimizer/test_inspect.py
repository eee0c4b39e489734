"""What `inspect` says of small models that can be worked out by hand."""

import io
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from rich.console import Console

import onnx_lathe
from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.inspecting.rows import Gemm, Inspection, Row
from onnx_lathe.optimizer.report.columns import USUAL
from onnx_lathe.optimizer.report.inspection import show_inspection
from tests.support.bodies import branches, loop
from tests.support.builders import build, random
from tests.support.quantized import lenet


def looked_at(model: onnx.ModelProto | Path, **options: object) -> dict[str, Row]:
    found = onnx_lathe.inspect(model, everything=True, **options)  # type: ignore[arg-type]
    return {row.node: row for row in found.layers}


def by_op(model: onnx.ModelProto, **options: object) -> dict[str, Row]:
    return {row.op: row for row in looked_at(model, **options).values()}


def test_two_values_as_before() -> None:
    model = build("(float[N, 8] x) => (float[N, 4] y) { h = MatMul (x, w) y = Relu (h) }", w=random(8, 4))
    rows, whole = onnx_lathe.inspect(model)
    assert [row.node for row in rows] == ["MatMul_0"]
    assert (rows[0].parameters, rows[0].zeros, rows[0].macs, whole.macs) == (32, 0, 32, 32)


def test_a_result_counts_once_in_memory() -> None:
    """Sigmoid reads what Mul reads too, so its result is a new one; Relu overwrites, Flatten looks."""
    model = build(
        """(float[N, 3, 4, 4] x) => (float[N, 48] y) {
            h = Conv (x, w)  s = Sigmoid (h)  m = Mul (h, s)  r = Relu (m)  y = Flatten (r)
        }""",
        w=random(3, 3, 1, 1),
    )
    rows = by_op(model)
    assert {op: row.activations for op, row in rows.items()} == {
        "Input": 48, "Conv": 48, "Sigmoid": 48, "Mul": 48, "Relu": 0, "Flatten": 0,
    }  # fmt: skip
    assert rows["Relu"].memory_of == rows["Flatten"].memory_of == rows["Mul"].node
    assert rows["Mul"].input_bytes == 2 * 4 * 48
    assert onnx_lathe.inspect(model).whole.activation_bytes == 4 * 4 * 48


def test_an_output_is_not_overwritten() -> None:
    rows = by_op(
        build(
            "(float[N, 4] x) => (float[N, 4] h, float[N, 4] y) { h = MatMul (x, w) y = Relu (h) }",
            w=random(4, 4),
        )
    )
    assert rows["Relu"].activations == 4
    assert rows["Relu"].memory_of == ""


def test_of_a_pair_the_integers_count() -> None:
    """INT8 weights, and activations through Q/DQ: one byte each, products of 8-bit integers summed in 32 bits."""
    rows = looked_at(lenet(codebook=False))
    conv = rows["conv2"]
    assert (conv.bits, conv.weights, conv.weight_bytes) == (8, 8 * 8 * 9, 8 * 8 * 9 + 8 * (4 + 1))
    assert conv.input_bytes == 8 * 14 * 14
    assert conv.energy is not None
    assert conv.energy.arithmetic == pytest.approx((conv.macs or 0) * (0.2 + 0.1))
    pool = next(row for row in rows.values() if row.op == "MaxPool")
    assert (pool.activations, pool.activation_bytes) == (8 * 14 * 14, 8 * 14 * 14)


@pytest.mark.parametrize(("opset", "bits", "stored"), [(21, 4, 648 // 2), (17, 8, 648)])
def test_a_codebook_has_the_bits_of_its_indices(opset: int, bits: int, stored: int) -> None:
    conv = by_op(_codebook(opset, 3))["Conv"]
    assert (conv.bits, conv.distinct, conv.weights) == (bits, 3, 648)
    assert conv.weight_bytes == stored + 4 * 16
    assert conv.energy is not None
    assert conv.energy.arithmetic == pytest.approx((conv.macs or 0) * 4.6)


def _codebook(opset: int, used: int) -> onnx.ModelProto:
    """16 entries, of which so many are in use."""
    indices = (np.arange(648) % used).reshape(8, 9, 3, 3).astype(np.uint8)
    return build(
        """(float[N, 9, 6, 6] x) => (float[N, 8, 4, 4] y) {
            i = Cast <to = 6> (indices)  w = Gather (codebook, i)  y = Conv (x, w)
        }""",
        opset,
        codebook=np.arange(16, dtype=np.float32),
        indices=indices.astype(ml_dtypes.uint4) if opset >= 21 else indices,
    )


def test_float16_and_bfloat16() -> None:
    text = "({0}[N, 8] x) => ({0}[N, 4] y) {{ y = MatMul (x, w) }}"
    half = by_op(build(text.format("float16"), w=random(8, 4).astype(np.float16)))["MatMul"]
    assert (half.bits, half.activation_bytes) == (16, 8)
    assert half.energy is not None
    assert half.energy.arithmetic == pytest.approx(32 * (1.1 + 0.4))
    found = onnx_lathe.inspect(build(text.format("bfloat16"), w=random(8, 4).astype(ml_dtypes.bfloat16)))
    assert found.layers[0].energy is None
    assert "energies of MatMul_0" in found.whole.uncounted["energies"]


def test_products_of_groups_and_of_transposed_convolutions() -> None:
    model = build(
        """(float[N, 8, 6, 6] x) => (float[N, 5, 13, 13] y) {
            h = Conv <group = 8, pads = [1, 1, 1, 1]> (x, depthwise)
            y = ConvTranspose <strides = [2, 2]> (h, up)
        }""",
        depthwise=random(8, 1, 3, 3),
        up=random(8, 5, 3, 3),
    )
    rows = by_op(model)
    assert rows["Conv"].gemm == Gemm(8, 1, 9, 36)
    assert rows["Conv"].redundancy == 9
    assert rows["Conv"].winograd == {}
    assert rows["ConvTranspose"].gemm == Gemm(1, 5 * 9, 8, 36)
    for row in rows.values():
        if row.gemm is not None:
            assert row.macs == row.gemm.groups * row.gemm.d * row.gemm.k2c * row.gemm.n


def test_products_of_activations() -> None:
    model = build("(float[2, 3, 5, 7] x, float[2, 3, 7, 4] z) => (float[2, 3, 5, 4] y) { y = MatMul (x, z) }")
    assert by_op(model)["MatMul"].gemm == Gemm(6, 4, 7, 5)


@pytest.mark.parametrize("attributes", ["strides = [2, 2]", "dilations = [2, 2]", "group = 4"])
def test_winograd_is_for_plain_convolutions(attributes: str) -> None:
    inputs = 1 if "group" in attributes else 4
    size = {"s": 3, "d": 4, "g": 6}[attributes[0]]
    model = build(
        f"(float[1, 4, 8, 8] x) => (float[1, 4, {size}, {size}] y) {{ y = Conv <{attributes}> (x, w) }}",
        w=random(4, inputs, 3, 3),
    )
    assert by_op(model)["Conv"].winograd == {}


def test_sizes_that_a_model_leaves_open() -> None:
    model = build(
        "(float[N, 3, H, W] x) => (float[N, 2, H, W] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w) }",
        w=random(2, 3, 3, 3),
    )
    found = onnx_lathe.inspect(model)
    assert found.layers[0].activations is None
    assert found.whole.macs is None
    assert "activations of x (Input), " not in found.whole.uncounted["activations"]
    assert found.whole.uncounted["activations"].startswith("activations of x (Input) are not counted")
    assert any("x=1x3xHxW" in note and "--shape" in note for note in found.whole.notes)
    found = onnx_lathe.inspect(model, shapes={"x": (2, 3, 10, 20)})
    assert found.whole.macs == 2 * 2 * 200 * 27
    assert found.whole.activations == 2 * (3 + 2) * 200
    assert found.whole.uncounted == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": {"z": (1, 8)}}, "no input 'z'; it has x"),
        ({"shapes": {"x": (1, 9)}}, "input 'x' is Nx8, not 1x9"),
        ({"shapes": {"x": (8,)}}, "input 'x' is Nx8, not 8"),
        ({"optimizer": "adma"}, "did you mean 'adam'"),
        ({"batch": 0}, "from 1 on"),
    ],
)
def test_sizes_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        looked_at(
            build("(float[N, 8] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=random(8, 4)), **options
        )


def test_a_batch_of_the_model_s_own() -> None:
    model = build("(float[4, 8] x) => (float[4, 4] y) { y = MatMul (x, w) }", w=random(8, 4))
    assert looked_at(model, batch=4)["MatMul_0"].macs == 4 * 32
    with pytest.raises(UsageError, match="input 'x' takes 4 at a time"):
        looked_at(model, batch=8)


def test_of_one_sample_at_a_time() -> None:
    model = build("(float[1, 8] x) => (float[1, 4] y) { y = MatMul (x, w) }", w=random(8, 4))
    row = looked_at(model, batch=8)["MatMul_0"]
    assert (row.macs, row.activations, row.gemm) == (8 * 32, 8 * 4, Gemm(1, 4, 8, 8))


def test_bodies() -> None:
    """Seven turns of a Loop multiply seven times; their results lie in the same memory."""
    row = next(row for row in looked_at(loop(trips=7)).values() if row.op == "MatMul")
    assert row.place == "body of Loop_0"
    assert row.activations is not None
    assert row.macs == 7 * 32 * row.activations
    assert row.intensity == pytest.approx(row.macs / (7 * (4 * 32 * 32 + 2 * 4 * row.activations)))
    rows = [row for row in looked_at(branches()).values() if row.op == "MatMul"]
    assert {row.place for row in rows} == {"", "then_branch of If_1", "else_branch of If_1"}
    assert all(row.activations for row in rows)


def test_functions_are_looked_into() -> None:
    double = helper.make_function(
        "own", "Twice", ["a", "w"], ["c"],
        [helper.make_node("MatMul", ["a", "w"], ["b"]), helper.make_node("MatMul", ["b", "w"], ["c"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    model = build("(float[N, 8] x) => (float[N, 8] y) { y = Identity (x) }")
    model.graph.node[0].CopyFrom(helper.make_node("Twice", ["x", "w"], ["y"], "twice", domain="own"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(random(8, 8), "w"))
    model.functions.append(double)
    model.opset_import.append(helper.make_opsetid("own", 1))
    rows, whole = onnx_lathe.inspect(model)
    assert [row.gemm for row in rows] == [Gemm(1, 8, 8, 1)] * 2
    assert (whole.macs, whole.parameters, dict(whole.operators)) == (2 * 64, 64, {"MatMul": 2})


def test_different_values() -> None:
    weight = np.zeros((8, 4), np.float32)
    weight[:3] = [[1], [2], [-0.0]]
    row = looked_at(build("(float[N, 8] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=weight))["MatMul_0"]
    assert (row.distinct, row.sparsity) == (3, 24 / 32)


def external(folder: Path, keep: int | None) -> Path:
    """Weights in another file, of which only the first bytes are there; None for no file."""
    model = build(
        "(float[N, 64] x) => (float[N, 32] y) { h = Reshape (x, shape) y = MatMul (h, w) }",
        w=random(64, 32),
        shape=np.array([-1, 64]),
    )
    path = folder / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights", size_threshold=1024)
    data = (folder / "weights").read_bytes()
    (folder / "weights").unlink()
    if keep is not None:
        (folder / "weights").write_bytes(data[:keep])
    return path


@pytest.mark.parametrize("keep", [None, 0, 4000])
def test_a_file_of_weights_that_is_missing_or_cut_off(tmp_path: Path, keep: int | None) -> None:
    path = external(tmp_path, keep)
    row = looked_at(path, weights=False)["MatMul_1"]
    assert (row.parameters, row.weight_bytes, row.macs, row.zeros, row.bits) == (2048, 8192, 2048, None, 32)
    with pytest.raises(onnx_lathe.ModelError, match="weights"):
        looked_at(path)


def test_small_values_in_another_file_are_read(tmp_path: Path) -> None:
    """Shapes depend on them: exporters put even a shape of two numbers there."""
    model = build("(float[N, 64] x) => (float[N, M] y) { y = Reshape (x, shape) }", shape=np.array([-1, 64]))
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    assert looked_at(path, weights=False)["Reshape_0"].output_shape == (1, 64)


def test_a_quantized_weight_in_a_file_that_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = lenet(codebook=True)
    onnx.save_model(model, path, save_as_external_data=True, location="weights", size_threshold=1024)
    read = looked_at(path)
    (tmp_path / "weights").unlink()
    for name, row in looked_at(path, weights=False).items():
        assert (row.parameters, row.bits, row.weight_bytes) == (
            read[name].parameters, read[name].bits, read[name].weight_bytes,
        )  # fmt: skip


def shown(found: Inspection, width: int, **options: object) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, highlight=False, color_system=None)
    show_inspection(found, console, USUAL, **options)  # type: ignore[arg-type]
    return stream.getvalue().splitlines()


def test_a_narrow_terminal_gets_fewer_columns() -> None:
    model = build("(float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) { y = Conv (x, w) }", w=random(4, 3, 3, 3))
    found = onnx_lathe.inspect(model, everything=True)
    wide, narrow = shown(found, 200), shown(found, 60)
    assert any("MACs/byte" in line for line in wide)
    assert not any("too narrow" in line for line in wide)
    said = " ".join(" ".join(narrow).split())
    assert said.index("too narrow for") < said.index("choose with --columns")
    table = narrow[next(at for at, line in enumerate(narrow) if "layer" in line and "op" in line) :]
    assert "MACs/byte" not in table[0]
    assert all(len(line) <= 60 for line in table)


def test_unknown_tensor_types_are_named() -> None:
    """A sequence has no bytes that could be counted."""
    model = build("(float[N, 4] x) => (int64 n) { s = SplitToSequence (x) n = SequenceLength (s) }")
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.INT64
    assert "SplitToSequence" in onnx_lathe.inspect(model).whole.uncounted["activations"]


def test_sizes_that_only_values_tell() -> None:
    """Shape inference does not follow pads through Abs; fold does."""
    model = build(
        "(float[N, 4] x) => (float[N, M] y) { p = Abs (pads) y = Pad (x, p) }",
        pads=np.array([0, -1, 0, 1], np.int64),
    )
    assert any("optimize MODEL --passes fold" in note for note in onnx_lathe.inspect(model).whole.notes)
    folded = onnx_lathe.inspect(onnx_lathe.rewrite(model, "fold"), everything=True)
    assert (folded.whole.notes, folded.whole.activations) == ((), 4 + 6)


def test_a_node_whose_first_result_nobody_reads() -> None:
    model = build(
        "(float[7, 1, 5] x) => (float[1, 1, 6] h) { y, h = LSTM <hidden_size = 6> (x, w, r) }",
        w=random(1, 24, 5),
        r=random(1, 24, 6),
    )
    model.graph.node[0].output[0] = ""
    row = by_op(model)["LSTM"]
    assert row.output_shape == (1, 1, 6)
    assert row.energy is not None
    assert row.energy.arithmetic == pytest.approx(7 * 24 * (5 + 6) * 4.6)
