"""Symmetric INT8 arithmetic: the numbers of ONNX QuantizeLinear and DequantizeLinear."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnx_lathe.passes.numerics.quantization import affine
from tests.support.builders import run


def test_the_wider_side_of_a_range_is_level_127() -> None:
    assert affine.range_scale(-1.0, 254.0) == np.float32(2)
    assert affine.range_scale(-254.0, 1.0) == np.float32(2)
    assert affine.range_scale(0.0, 0.0) == affine.SMALLEST_SCALE
    assert affine.range_scale(-1.0, 3.0).dtype == np.float32


def test_each_channel_has_its_own_scale_and_a_dead_one_a_positive_scale() -> None:
    weight = np.array([[127, -1], [0, 0], [-254, 3]], np.float32)
    np.testing.assert_array_equal(affine.channel_scale(weight, 0), np.array([1, 1e-8, 2], np.float32))
    np.testing.assert_array_equal(affine.channel_scale(weight, 1), np.array([2, 3 / 127], np.float32))
    np.testing.assert_array_equal(affine.channel_scale(weight, -1), affine.channel_scale(weight, 1))
    assert not affine.quantize(weight, affine.channel_scale(weight, 0), 0)[1].any()


def test_halves_go_to_even_and_the_ends_saturate() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.4, 300, -127.6, -300], np.float32)
    levels = affine.quantize(values, np.float32(1))
    assert levels.tolist() == [0, 2, 2, 0, -2, 126, 127, 127, -128, -128]
    assert levels.dtype == np.int8


def test_signal_to_noise() -> None:
    signal = np.array([3.0, 4.0], np.float32)
    assert affine.signal_to_noise_db(signal, signal) == float("inf")
    assert affine.signal_to_noise_db(signal, signal + np.float32(0.5)) == pytest.approx(
        10 * np.log10(25 / 0.5)
    )
    assert affine.signal_to_noise_db(np.zeros(2, np.float32), signal) == float("-inf")


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_equals_onnx_runtime_to_the_bit(axis: int | None) -> None:
    values = np.random.default_rng(0).standard_normal((5, 700)).astype(np.float32)
    scale = np.float32(values.max() / 150) if axis is None else affine.channel_scale(values, axis)
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], **attributes),
    ]
    shapes = {"x": (1, [5, 700]), "q": (3, [5, 700]), "y": (1, [5, 700])}
    infos = {name: helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in shapes.items()}
    stored = [
        numpy_helper.from_array(np.asarray(scale), "scale"),
        numpy_helper.from_array(np.zeros(np.shape(scale), np.int8), "zero"),
    ]
    graph = helper.make_graph(nodes, "g", [infos["x"]], [infos["q"], infos["y"]], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    found = run(model, {"x": values})
    levels = affine.quantize(values, scale, axis)
    np.testing.assert_array_equal(levels, found["q"])
    np.testing.assert_array_equal(affine.dequantize(levels, scale, axis), found["y"])


def test_a_large_weight_is_quantized_without_copies_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what comes out, one copy in float32 at most, and none in float64."""
    monkeypatch.setattr(affine, "CHUNK", 1 << 12)
    weight = np.random.default_rng(0).standard_normal((1024, 512)).astype(np.float32)

    def peak(compute: Callable[[], object]) -> float:
        tracemalloc.start()
        try:
            compute()
            return tracemalloc.get_traced_memory()[1] / weight.nbytes
        finally:
            tracemalloc.stop()

    scale = affine.channel_scale(weight, 1)
    levels = affine.quantize(weight, scale, 1)
    restored = affine.dequantize(levels, scale, 1)
    np.testing.assert_array_equal(scale, np.abs(weight).max(axis=0) / np.float32(127))
    np.testing.assert_array_equal(levels, np.rint(weight / scale).clip(-128, 127))
    np.testing.assert_array_equal(restored, levels.astype(np.float32) * scale)
    assert peak(lambda: affine.channel_scale(weight, 1)) < 0.1
    assert peak(lambda: affine.quantize(weight, scale, 1)) < 1.3
    assert peak(lambda: affine.dequantize(levels, scale, 1)) < 1.1
    assert peak(lambda: affine.signal_to_noise_db(weight, restored)) < 0.1
