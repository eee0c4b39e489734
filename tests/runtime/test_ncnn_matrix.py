"""Gemm and MatMul as ncnn's layers, against ONNX Runtime."""

import numpy as np
import onnx
import pytest

from tests.support.builders import build, random
from tests.support.ncnn import agree, converted, refusals, types

ROWS = (1, 2, 3, 4, 8, 16, 17)
"""So that blobs of 4, 8 and 16 packed values are met, and rests."""


def floats(sizes: str) -> str:
    """The type of a tensor in the parser's syntax; a scalar's has no brackets."""
    return f"float[{sizes}]" if sizes else "float"


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("outputs", [1, 3, 4, 8, 16, 17])
def test_gemm_with_constant_weight(rows: int, outputs: int) -> None:
    text = f"(float[{rows}, 5] x) => (float[{rows}, {outputs}] y) {{ y = Gemm(x, w, b) }}"
    layers = agree(build(text, w=random(5, outputs), b=random(outputs)))
    assert types(layers) == ["InnerProduct" if rows == 1 else "Gemm"]


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("third", [(), (1,), (4,), (1, 4), (1, 1), "column", "whole"])
@pytest.mark.parametrize("attributes", ["", "transB = 1, alpha = 0.5, beta = -2.0"])
def test_gemm_with_every_third_operand(rows: int, third: tuple[int, ...] | str, attributes: str) -> None:
    shape = {"column": (rows, 1), "whole": (rows, 4)}.get(third, third) if isinstance(third, str) else third
    text = f"(float[{rows}, 5] x) => (float[{rows}, 4] y) {{ y = Gemm <{attributes}> (x, w, c) }}"
    weight = random(4, 5) if "transB" in attributes else random(5, 4)
    agree(build(text.replace("<>", ""), w=weight, c=random(*shape)))


@pytest.mark.parametrize("rows", [1, 3, 4, 8, 16])
@pytest.mark.parametrize("columns", [3, 4, 8, 16])
@pytest.mark.parametrize("attributes", ["transA = 0", "transA = 1", "transB = 1", "transA = 1, transB = 1"])
def test_gemm_of_three_tensors_that_are_computed(rows: int, columns: int, attributes: str) -> None:
    left = f"6, {rows}" if "transA = 1" in attributes else f"{rows}, 6"
    right = f"{columns}, 6" if "transB" in attributes else f"6, {columns}"
    for third in (f"{columns}", f"{rows}, 1", f"{rows}, {columns}", "1"):
        text = f"""(float[{left}] a, float[{right}] b, float[{third}] c) => (float[{rows}, {columns}] y) {{
            y = Gemm <alpha = 0.5, beta = 3.0, {attributes}> (a, b, c)
        }}"""
        agree(build(text))


def test_gemm_transposes_what_it_multiplies_with_a_constant() -> None:
    for rows in ROWS:
        text = f"(float[5, {rows}] x) => (float[{rows}, 4] y) {{ y = Gemm <transA = 1> (x, w) }}"
        assert types(agree(build(text, w=random(5, 4))))[0] == "Gemm"


@pytest.mark.parametrize(
    "source, weight, result",
    [
        ("5", (5, 4), "4"),
        ("1, 5", (5, 4), "1, 4"),
        ("7, 5", (5, 4), "7, 4"),
        ("1, 1, 5", (5, 4), "1, 1, 4"),
        ("1, 7, 5", (5, 4), "1, 7, 4"),
        ("7, 1, 5", (5, 4), "7, 1, 4"),
        ("2, 7, 5", (5, 4), "2, 7, 4"),
        ("1, 2, 7, 5", (5, 4), "1, 2, 7, 4"),
        ("3, 2, 7, 5", (5, 4), "3, 2, 7, 4"),
        ("1, 2, 3, 7, 5", (5, 4), "1, 2, 3, 7, 4"),
        ("7, 5", (1, 5, 4), "1, 7, 4"),
        ("5", (1, 5, 4), "1, 4"),
        ("5", (5,), ""),
        ("7, 5", (5,), "7"),
        ("1, 7, 5", (5,), "1, 7"),
        ("2, 7, 5", (5,), "2, 7"),
        ("1, 7, 5", (5, 1), "1, 7, 1"),
        ("2, 7, 1", (1, 4), "2, 7, 4"),
        ("1, 2, 7, 5", (2, 5, 4), "1, 2, 7, 4"),
        ("7, 5", (2, 5, 4), "2, 7, 4"),
        ("5", (2, 5, 4), "2, 4"),
        ("5", (3, 2, 5, 4), "3, 2, 4"),
    ],
)
def test_matmul_with_constant_weight(source: str, weight: tuple[int, ...], result: str) -> None:
    agree(build(f"(float[{source}] x) => ({floats(result)} y) {{ y = MatMul(x, w) }}", w=random(*weight)))


@pytest.mark.parametrize(
    "left, right, result",
    [
        ("5", "5", ""),
        ("5", "5, 4", "4"),
        ("7, 5", "5", "7"),
        ("7, 5", "5, 4", "7, 4"),
        ("8, 16", "16, 8", "8, 8"),
        ("1, 7, 5", "1, 5, 4", "1, 7, 4"),
        ("2, 7, 5", "2, 5, 4", "2, 7, 4"),
        ("2, 7, 5", "5, 4", "2, 7, 4"),
        ("7, 5", "2, 5, 4", "2, 7, 4"),
        ("1, 4, 8, 16", "1, 4, 16, 8", "1, 4, 8, 8"),
        ("1, 3, 7, 5", "1, 1, 5, 4", "1, 3, 7, 4"),
        ("2, 3, 7, 5", "2, 3, 5, 4", "2, 3, 7, 4"),
        ("2, 3, 7, 5", "3, 5, 4", "2, 3, 7, 4"),
        ("2, 1, 7, 5", "3, 5, 4", "2, 3, 7, 4"),
        ("7, 5", "2, 3, 5, 4", "2, 3, 7, 4"),
        ("2, 3, 7, 5", "5", "2, 3, 7"),
        ("5", "2, 3, 5, 4", "2, 3, 4"),
        ("1, 3, 1, 5", "1, 3, 5, 1", "1, 3, 1, 1"),
    ],
)
def test_matmul_of_two_tensors_that_are_computed(left: str, right: str, result: str) -> None:
    model = build(f"(float[{left}] a, float[{right}] b) => ({floats(result)} y) {{ y = MatMul(a, b) }}")
    agree(model)


@pytest.mark.parametrize(
    "left, result", [((7, 5), "1, 2, 7, 4"), ((2, 7, 5), "1, 2, 7, 4"), ((5,), "1, 2, 4")]
)
def test_matmul_with_a_constant_on_the_left(left: tuple[int, ...], result: str) -> None:
    text = f"(float[1, 2, 5, 4] x) => (float[{result}] y) {{ y = MatMul(w, x) }}"
    assert "MatMul" in types(agree(build(text, w=random(*left))))


@pytest.mark.parametrize("rows", [("T", "1, {}, 5"), ("2, T", "1, 2, {}, 5")])
def test_rows_may_be_open(rows: tuple[str, str]) -> None:
    text = f"(float[1, {rows[0]}, 5] x) => (float[1, {rows[0]}, 4] y) {{ y = MatMul(x, w) }}"
    sizes = [tuple(int(size) for size in rows[1].format(count).split(",")) for count in (7, 16)]
    agree(build(text, w=random(5, 4)), {"x": sizes[0]}, {"x": sizes[1]})


def test_several_dimensions_of_rows_may_be_open() -> None:
    text = "(float[1, H, W, 5] x) => (float[1, H, W, 4] y) { y = MatMul(x, w) }"
    model = build(text, w=random(5, 4))
    for sizes in ((8, 4), (9, 21)):  # thrice as large: either could be a multiple of the other, or not
        layers = agree(model, {"x": (1, 3, 7, 5)}, {"x": (1, *sizes, 5)})
        assert "Gemm" in types(layers) or types(layers) == ["MemoryData", "MatMul"]


def test_rows_along_more_dimensions_than_ncnn_has() -> None:
    text = """(float[1, 12, 5, 6] x) => (float[12, 5, 4] z) {
        r = Reshape(x, apart)
        t = Transpose <perm = [0, 1, 3, 2, 4, 5]> (r)
        y = MatMul(t, w)
        z = Reshape(y, together)
    }"""
    apart, together = np.array([1, 2, 3, 2, 5, 6]), np.array([12, 5, 4])
    assert "Gemm" in types(agree(build(text, w=random(6, 4), apart=apart, together=together)))


def test_what_is_summed_over_may_be_open() -> None:
    text = "(float[1, 3, 7, K] a, float[1, 3, K, 4] b) => (float[1, 3, 7, 4] y) { y = MatMul(a, b) }"
    sizes = [{"a": (1, 3, 7, count), "b": (1, 3, count, 4)} for count in (5, 16)]
    agree(build(text), *sizes)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("op", ["MatMul", "Gemm <transB = 1, alpha = 2.0>"])
def test_a_codebook_stays_one(rows: int, op: str) -> None:
    text = f"""(float[{rows}, 5] x) => (float[{rows}, 4] y) {{
        codes = Cast <to = 6> (indices)
        w = Gather(table, codes)
        y = {op} (x, w)
    }}"""
    shape = (4, 5) if "transB" in op else (5, 4)
    indices = np.random.default_rng(0).integers(0, 16, shape).astype(np.uint8)
    layer = agree(build(text, indices=indices, table=random(16)))[-1]
    assert layer.weights[0].stored.table is not None
    assert layer.weights[0].stored.values.dtype == np.uint8


def quantized(op: str, source: str, result: str, shape: tuple[int, ...], axis: int) -> onnx.ModelProto:
    """x -> Q -> DQ -> op with a weight in INT8 -> y."""
    text = f"""(float[{source}] x) => (float[{result}] y) {{
        q = QuantizeLinear(x, scale, zero)
        d = DequantizeLinear(q, scale, zero)
        w = DequantizeLinear <axis = {axis}> (codes, scales)
        y = {op}
    }}"""
    generator = np.random.default_rng(0)
    return build(
        text,
        scale=np.float32(0.05),  # nothing reaches 128 steps, which ncnn has not
        zero=np.int8(0),
        codes=generator.integers(-127, 128, shape).astype(np.int8),
        scales=generator.uniform(0.001, 0.01, shape[axis]).astype(np.float32),
        b=random(shape[axis]),
    )


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("outputs", [3, 8, 16])
def test_int8(rows: int, outputs: int) -> None:
    cases = [
        ("Gemm(d, w, b)", f"{rows}, 20", f"{rows}, {outputs}", (20, outputs), 1),
        ("Gemm <transB = 1, alpha = 2.0> (d, w, b)", f"{rows}, 20", f"{rows}, {outputs}", (outputs, 20), 0),
        ("MatMul(d, w)", f"1, {rows}, 20", f"1, {rows}, {outputs}", (20, outputs), 1),
        ("MatMul(d, w)", f"1, 2, {rows}, 20", f"1, 2, {rows}, {outputs}", (20, outputs), 1),
    ]
    for case in cases:
        # the values are the same integers, and float32 adds the bias in another order
        layers = agree(quantized(*case), tolerance=2e-6)
        (layer,) = [one for one in layers if one.type == "InnerProduct"]
        assert layer.params[8] == 2
        assert layer.weights[0].stored.values.dtype == np.int8


def test_int8_with_scales_along_the_inputs_is_computed_in_float() -> None:
    # numbers are not compared: ONNX Runtime 1.32 takes these scales for those of the outputs
    (layer,) = converted(quantized("MatMul(d, w)", "1, 20", "1, 20", (20, 20), 0)).layers[-1:]
    assert (layer.type, 8 in layer.params) == ("InnerProduct", False)


def test_an_alpha_of_zero_is_refused() -> None:
    text = "(float[1, 5] x) => (float[1, 4] y) { [layer] y = Gemm <alpha = 0.0> (x, w) }"
    ((node, _, reason),) = refusals(build(text, w=random(5, 4)))
    assert node == "layer"
    assert "alpha is 0" in reason


def test_weights_in_float16() -> None:
    text = "(float[7, 5] x) => (float[7, 4] y) { y = Gemm(x, w, b) }"
    agree(build(text, w=random(5, 4), b=random(4)), half_weights=True, tolerance=1e-3)


@pytest.mark.parametrize(
    "equation, left, right, result",
    [
        ("ij,jk->ik", "7, 5", "5, 4", "7, 4"),
        ("ij,jk", "7, 5", "5, 4", "7, 4"),
        ("ij,kj->ki", "7, 5", "4, 5", "4, 7"),
        ("bij, bjk -> bik", "1, 7, 5", "1, 5, 4", "1, 7, 4"),
        ("bhqd,bhkd->bhqk", "1, 3, 7, 5", "1, 3, 8, 5", "1, 3, 7, 8"),
        ("bhqk,bkhd->bqhd", "1, 3, 7, 5", "1, 5, 3, 4", "1, 7, 3, 4"),
        ("bqhd,bkhd->bhqk", "1, 7, 3, 5", "1, 8, 3, 5", "1, 3, 7, 8"),
        ("bchw,bkc->bkhw", "1, 5, 3, 4", "1, 6, 5", "1, 6, 3, 4"),
        ("bhwc,hkc->bhwk", "1, 3, 4, 5", "3, 6, 5", "1, 3, 4, 6"),
        ("nctkv,kvw->nctw", "1, 2, 3, 4, 5", "4, 5, 6", "1, 2, 3, 6"),
        ("i,j->ij", "7", "5", "7, 5"),
        ("i,i->", "7", "7", ""),
    ],
)
def test_einsum(equation: str, left: str, right: str, result: str) -> None:
    call = f'y = Einsum <equation = "{equation}"> (a, b)'
    shape = tuple(int(size) for size in right.split(","))
    if left.count(",") < 4:
        agree(build(f"(float[{left}] a, float[{right}] b) => ({floats(result)} y) {{ {call} }}"))
        agree(build(f"(float[{left}] a) => ({floats(result)} y) {{ {call} }}", b=random(*shape)))
    shape = tuple(int(size) for size in left.split(","))
    agree(build(f"(float[{right}] b) => ({floats(result)} y) {{ {call} }}", a=random(*shape)))


@pytest.mark.parametrize(
    "equation, left, right, reason",
    [
        ("ii,ij->j", "5, 5", "5, 4", "label twice"),
        ("ij,k->k", "7, 5", "4", "sums one operand"),
        ("...j,jk->...k", "7, 5", "5, 4", "dots"),
    ],
)
def test_einsum_that_is_no_product_is_refused(equation: str, left: str, right: str, reason: str) -> None:
    text = f'(float[{left}] a, float[{right}] b) => (float[M] y) {{ y = Einsum <equation = "{equation}"> (a, b) }}'
    text = text.replace("float[M]", "float[M, N]" if "." in equation else "float[M]")
    ((_, _, found),) = refusals(build(text))
    assert reason in found
