"""Properties of the packed container: random models come back bit for bit."""

import math

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnx_lathe.runtime.pack import container, pack, unpack
from onnx_lathe.runtime.pack.coders import static, varint
from onnx_lathe.runtime.pack.coders.adaptive import count_class
from tests.support import pack_reference, packing

DTYPES = [np.float32, np.float64, np.float16, np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint16, np.uint64, np.bool_, np.complex64,
          ml_dtypes.bfloat16, ml_dtypes.uint4, ml_dtypes.int4, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fn]  # fmt: skip
SHAPES = st.one_of(
    st.just(()), st.tuples(st.integers(0, 300)), st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.sampled_from([1, 3, 5])),
)  # fmt: skip


@st.composite
def tensors(draw: st.DrawFn) -> TensorProto:
    """A tensor of any type and shape: random bits, few values, many zeros, or a narrow range; as raw data
    or in a typed field.
    """
    shape, dtype = draw(SHAPES), np.dtype(draw(st.sampled_from(DTYPES)))
    generator = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    size = math.prod(shape)
    kind = draw(st.sampled_from(["bits", "few", "zeros", "narrow", "blocks"]))
    if kind == "bits" and dtype.itemsize * size:
        values = np.frombuffer(generator.bytes(dtype.itemsize * size), dtype)
        values = (
            generator.integers(0, 2, size).astype(dtype)
            if dtype == np.bool_ or dtype.name.endswith("int4")
            else values
        )
    else:
        values = generator.normal(0, draw(st.sampled_from([0.3, 2, 30])), size)
        if kind in ("few", "zeros"):
            values = np.round(values)
        if kind in ("zeros", "blocks"):
            values[generator.random(size) < draw(st.floats(0.3, 0.99))] = 0
        values = (
            np.clip(values, -7, 7)
            if dtype.name == "int4"
            else np.clip(np.abs(values), 0, 15)
            if dtype.kind == "u"
            else values
        )
        values = (
            values.astype(np.int64).astype(dtype)
            if dtype.kind in "iub" or "int4" in dtype.name
            else values.astype(dtype)
        )
    array = values.reshape(shape)
    name = f"{dtype.name}{shape}"
    if dtype == np.float32 and draw(st.booleans()):
        return helper.make_tensor(name, TensorProto.FLOAT, shape, array.ravel())
    return numpy_helper.from_array(array, name)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(tensors(), max_size=5), st.booleans())
def test_random_models_come_back(parts: list[TensorProto], small: bool) -> None:
    content = packing.model(parts)
    budget, container.ADAPTIVE_BUDGET = container.ADAPTIVE_BUDGET, container.ADAPTIVE_BUDGET if small else 0
    try:
        packed = pack(content)
    finally:
        container.ADAPTIVE_BUDGET = budget
    assert unpack(packed) == content
    assert onnx.load_from_string(unpack(packed)) == onnx.load_from_string(content)
    assert len(packed) <= len(content) + 20 + 2 * len(parts)


@settings(max_examples=25, deadline=None)
@given(st.lists(tensors(), min_size=1, max_size=2))
def test_the_independent_decoder_agrees(parts: list[TensorProto]) -> None:
    content = packing.model(parts)
    assert pack_reference.decode(pack(content)) == content


@given(st.integers(0, (1 << 63) - 1))
def test_varints(value: int) -> None:
    reader = varint.Reader(varint.write(value))
    assert reader.varint() == value
    assert reader.at == reader.end


@given(st.lists(st.booleans(), max_size=900), st.integers(0, 700))
def test_gaps(mask: list[bool], zeros: int) -> None:
    whole = np.array([False] * zeros + mask, bool)
    back = np.zeros_like(whole)
    static.from_gaps(static.to_gaps(whole), back)
    assert np.array_equal(back, whole)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=300).filter(any))
def test_histograms_keep_what_occurs(counts: list[int]) -> None:
    frequencies = static.Histogram.of(np.array(counts)).frequencies
    assert frequencies.sum() == 1 << 16
    assert ((frequencies > 0) == (np.array(counts) > 0)).all()
    back = static.Histogram.read(varint.Reader(static.Histogram(frequencies).write()), 300).frequencies
    assert np.array_equal(back, frequencies)


@given(st.integers(1, 1 << 21))
def test_count_classes_are_half_octaves(count: int) -> None:
    assert 2 ** (count_class(np.array(count)) - 1) <= count * count < 2 ** int(count_class(np.array(count)))
