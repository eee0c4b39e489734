"""Weights in Core ML's own forms: which one is taken, what it takes, and that the package holds them bit for bit."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.errors import TargetError
from onnx_lathe.runtime.targets.coreml import writing
from onnx_lathe.runtime.targets.coreml.form import Form
from onnx_lathe.runtime.targets.coreml.sub_byte import packed
from onnx_lathe.runtime.targets.coreml.weights import Stored
from tests.support.builders import build, random
from tests.support.coreml import agree, converted, kinds, refusals

pytest.importorskip("coremltools")

SIXTEEN, SEVENTEEN, EIGHTEEN = (Form(name) for name in ("iOS16", "iOS17", "iOS18"))
HALF = Form("iOS17", "float16")
CONV = "(float[1, 16, 8, 8] x) => (float[1, 32, 6, 6] y) {{ {made} y = Conv(x, w) }}"
SHAPE = (32, 16, 3, 3)


def plain(weight: np.ndarray) -> onnx.ModelProto:
    return build(CONV.format(made=""), w=weight)


def codebook(count: int, zeros: float = 0.0) -> onnx.ModelProto:
    codes = np.random.default_rng(0).integers(0, count, SHAPE).astype(np.uint8)
    table = np.sort(random(count))
    if zeros:
        table[0] = 0
        codes[np.random.default_rng(1).random(SHAPE) < zeros] = 0
    made = "i = Cast <to = 6> (codes) w = Gather(table, i)"
    return build(CONV.format(made=made), table=table, codes=codes)


def quantized(bits: int = 8, zero: int = 0, opset: int = 21, zeros: float = 0.0) -> onnx.ModelProto:
    limit = 2 ** (bits - 1) - 1
    codes = np.random.default_rng(0).integers(-limit, limit + 1, SHAPE)
    codes[np.random.default_rng(1).random(SHAPE) < zeros] = 0
    kind = np.int8 if bits == 8 else ml_dtypes.int4
    stored = {"codes": codes.astype(kind), "zero": np.full(32, zero).astype(kind)}
    made = "w = DequantizeLinear <axis = 0> (codes, scale, zero)"
    return build(CONV.format(made=made), opset, scale=np.abs(random(32)) + np.float32(0.01), **stored)


def share(model: onnx.ModelProto, form: Form, tmp_path: Path) -> float:
    """Bytes of the package's weights, of those of the float model's."""
    sizes = []
    for number, (one, how) in enumerate(((model, form), (plain(random(*SHAPE)), Form("iOS16")))):
        package = tmp_path / f"{number}.mlpackage"
        writing.write(converted(one, form=how), how, package, None, {})
        sizes.append(writing.weight_bytes(package))
    return sizes[0] / sizes[1]


LOOKUP, SPARSE = "constexpr_lut_to_dense", "constexpr_sparse_to_dense"
FORMS = [
    ("a codebook of 16", codebook(16), SIXTEEN, [LOOKUP], 0.14),
    ("a codebook of 16", codebook(16), EIGHTEEN, [LOOKUP], 0.14),
    ("a codebook of 12", codebook(12), SEVENTEEN, [LOOKUP], 0.14),
    ("a codebook of 8", codebook(8), SEVENTEEN, [LOOKUP], 0.14),
    ("a codebook of 8", codebook(8), EIGHTEEN, [LOOKUP], 0.11),
    ("a codebook of 256", codebook(256), SIXTEEN, [LOOKUP], 0.32),
    ("a codebook of 16 in half", codebook(16), HALF, [LOOKUP], 0.14),
    ("a sparse codebook", codebook(16, 0.8), EIGHTEEN, ["constexpr_lut_to_sparse", SPARSE], 0.08),
    ("a sparse codebook", codebook(16, 0.8), SEVENTEEN, [LOOKUP], 0.14),
    ("INT8", quantized(), SIXTEEN, ["constexpr_affine_dequantize"], 0.28),
    ("INT8", quantized(), EIGHTEEN, ["constexpr_blockwise_shift_scale"], 0.28),
    ("INT8 with zero-points", quantized(zero=3), SIXTEEN, ["constexpr_affine_dequantize"], 0.28),
    ("INT8 with zero-points", quantized(zero=3), EIGHTEEN, ["constexpr_blockwise_shift_scale"], 0.28),
    ("INT8 in half", quantized(), HALF, ["constexpr_affine_dequantize"], 0.28),
    ("sparse INT8", quantized(zeros=0.8), EIGHTEEN, ["constexpr_sparse_blockwise_shift_scale", SPARSE], 0.12),
    ("INT4", quantized(bits=4), EIGHTEEN, ["constexpr_blockwise_shift_scale"], 0.15),
    ("INT4", quantized(bits=4), SEVENTEEN, ["constexpr_affine_dequantize"], 0.28),
]  # fmt: skip


@pytest.mark.parametrize(
    "what, model, form, wanted, most", FORMS, ids=[f"{one[0]}-{one[2].deployment}" for one in FORMS]
)
def test_a_weight_keeps_its_form(
    what: str, model: onnx.ModelProto, form: Form, wanted: list[str], most: float, tmp_path: Path
) -> None:
    written = agree(model, form=form, package=True, tolerance=1e-4 if form.precision == "float32" else 1e-2)
    assert [kind for kind in kinds(written) if kind.startswith("constexpr_")] == wanted
    assert share(model, form, tmp_path) <= most


@pytest.mark.parametrize("form", [SIXTEEN, EIGHTEEN, HALF], ids=str)
def test_zeros_are_left_out(form: Form, tmp_path: Path) -> None:
    weight = random(*SHAPE)
    weight[np.random.default_rng(0).random(SHAPE) < 0.75] = 0
    written = agree(
        plain(weight), form=form, package=True, tolerance=1e-4 if form.precision == "float32" else 1e-2
    )
    assert SPARSE in kinds(written)
    assert share(plain(weight), form, tmp_path) <= 0.32


def test_few_zeros_are_left_out_where_the_model_says_that_they_are_meant() -> None:
    weight = random(*SHAPE)
    weight[np.random.default_rng(0).random(SHAPE) < 0.2] = 0
    model = plain(weight)
    assert SPARSE not in kinds(agree(model))
    entry = model.metadata_props.add()
    entry.key, entry.value = metadata.SPARSE, metadata.format_sparse({"w": "unstructured"})
    assert SPARSE in kinds(agree(model, package=True))


def test_a_negative_zero_is_no_zero() -> None:
    weight = np.zeros(SHAPE, np.float32)
    weight.reshape(-1)[::7] = -0.0
    weight.reshape(-1)[::5] = 1.5
    written = agree(plain(weight), package=True)  # which compares bit for bit
    (kept,) = [one for one in written.kept if one.name == "w"]
    assert np.signbit(kept.values.reshape(-1)[7])


def test_a_matrix_is_turned_in_its_own_form() -> None:
    """MIL's `linear` has a row for each output, MatMul a column."""
    codes = np.random.default_rng(0).integers(0, 16, (64, 48)).astype(np.uint8)
    text = "(float[1, 64] x) => (float[1, 48] y) { i = Cast <to = 6> (codes) w = Gather(table, i) y = MatMul(x, w) }"
    written = agree(build(text, table=random(16), codes=codes), package=True)
    assert kinds(written) == [LOOKUP, "linear", "identity"]


def test_blocks_keep_their_scales() -> None:
    text = """(float[1, 64] x) => (float[1, 48] y) {
        w = DequantizeLinear <axis = 0, block_size = 32> (codes, scale) y = MatMul(x, w)
    }"""
    codes = np.random.default_rng(0).integers(-7, 8, (64, 48)).astype(np.int8)
    model = build(text, 21, codes=codes, scale=np.abs(random(2, 48)))
    assert kinds(agree(model, form=EIGHTEEN, package=True)) == [
        "constexpr_blockwise_shift_scale",
        "linear",
        "identity",
    ]
    assert kinds(agree(model, package=True)) == ["linear", "identity"]  # before iOS 18 there are no blocks


def test_a_weight_that_two_nodes_read_is_stored_once() -> None:
    text = (
        "(float[1, 64] x) => (float[1, 64] y) { a = Gemm <transB = 1> (x, w) y = Gemm <transB = 1> (a, w) }"
    )
    written = agree(build(text, w=random(64, 64)))
    assert [one.values.shape for one in written.kept] == [(64, 64)]


def test_activations_in_int8() -> None:
    text = """(float[1, 16, 8, 8] x) => (float[1, 32, 6, 6] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
        w = DequantizeLinear <axis = 0> (codes, scale) y = Conv(d, w)
    }"""
    codes = np.random.default_rng(0).integers(-127, 128, SHAPE).astype(np.int8)
    stored = {"codes": codes, "scale": np.abs(random(32)), "s": np.float32(0.0237), "z": np.int8(0)}
    model = build(text, **stored)
    written = agree(model, package=True)
    assert kinds(written) == ["quantize", "dequantize", "constexpr_affine_dequantize", "conv", "identity"]
    assert "iOS 17" in refusals(model, form=SIXTEEN)[0][2]
    asymmetric = build(text.replace("y = Conv", "y = Conv"), **{**stored, "z": np.uint8(131)})
    assert "quantize" in kinds(agree(asymmetric))


def test_float16_is_what_the_program_computes_in() -> None:
    written = agree(plain(random(*SHAPE)), form=HALF, tolerance=1e-2, package=True)
    assert kinds(written)[0] == "cast"
    assert {one.values.dtype.name for one in written.kept} == {"float16"}
    assert [(port.kind) for port in (*written.inputs, *written.outputs)] == ["float32", "float32"]


def test_a_weight_beyond_float16_is_refused() -> None:
    found = refusals(plain(random(*SHAPE) * 1e5), form=HALF)
    assert "precision=float32" in found[0][2]


@pytest.mark.parametrize("damage", ["weight", "name", "operation"])
def test_a_package_with_other_contents_fails_the_build(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit of one weight is enough; nothing is left behind."""
    written = converted(codebook(16))
    if damage == "weight":
        (kept,) = [one for one in written.kept if one.kind == LOOKUP]
        kept.values.view(np.uint32).reshape(-1)[5] ^= 1
    elif damage == "name":
        object.__setattr__(written.inputs[0], "name", "other")
        monkeypatch.setattr(writing, "_input", lambda port, image: _as_it_was(port))
    else:
        monkeypatch.setattr(writing, "read_back", lambda package: converted(plain(random(*SHAPE))).program)
    with pytest.raises(TargetError, match="nothing is written"):
        writing.write(written, SEVENTEEN, tmp_path / "out.mlpackage", None, {})
    assert not list(tmp_path.iterdir())


def _as_it_was(port: object) -> object:
    import coremltools

    return coremltools.TensorType(name="x", shape=(1, 16, 8, 8))


def test_two_builds_are_alike(tmp_path: Path) -> None:
    contents, model = [], codebook(16)
    for name in ("one", "two"):
        package = tmp_path / f"{name}.mlpackage"
        writing.write(converted(model), SEVENTEEN, package, None, {})
        contents.append({path.relative_to(package): path.read_bytes() for path in writing.files_of(package)})
    assert len(contents[0]) == 3
    assert contents[0] == contents[1]


def test_codes_lie_lowest_bits_first() -> None:
    """coremltools' own example: indices 0 3 2 1 3 of 2 bits are 01 10 11 00, xx xx xx 11."""
    assert packed(np.array([0, 3, 2, 1, 3], np.uint8), 2).tolist() == [0b01101100, 0b11]


def test_scales_of_blocks_follow_a_turned_weight() -> None:
    scales = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    values = np.arange(24, dtype=np.float32).reshape(8, 3)
    found = Stored(values, values.astype(np.int8), None, scales, None, 8).moved(np.transpose)
    assert found.scales is not None
    np.testing.assert_array_equal(found.scales, scales.T)
