"""equalize where it meets the data and the bounds: activation smoothing, Clip, bias absorption, and what
int8 gains by it.
"""

import numpy as np
import onnx
import pytest

from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.equalize.equalize import Equalize
from onnx_lathe.passes.numerics.quantization import affine
from onnx_lathe.passes.numerics.quantization.equalization import Matrices, Rule, balance
from tests.support.builders import build, random, run
from tests.support.equalizing import Observed, constants, difference, equalize, spread, uneven
from tests.support.int8 import Fixed, FixedCalibrator, quantize

IMAGE = "(float[N, 3, 8, 8] x) => (float[N, 5, H, W] y)"
CLIP = f"{IMAGE} {{ a = Conv (x, u, c) b = Clip (a, lo, hi) y = Conv (b, v) }}"
ABSORB = f"{IMAGE} {{{{ a = Conv (x, u, c) b = Relu (a) {{behind}} }}}}"


def layers() -> dict[str, np.ndarray]:
    return {"u": uneven(random(10, 3, 3, 3)), "c": random(10), "v": random(5, 10, 1, 1)}


def bounds(low: float, high: float) -> dict[str, np.ndarray]:
    return {"lo": np.float32(low), "hi": np.float32(high)}


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_activations_share_their_inequality_with_the_weights_by_alpha(alpha: float) -> None:
    model = build(
        f"{IMAGE} {{ a = Conv (x, u, c) b = Relu (a) y = Conv (b, v) }}",
        **layers() | {"v": uneven(random(5, 10, 1, 1), 1), "c": np.ones(10, np.float32)},
    )
    calibrator = Observed(random(3, 3, 8, 8), random(2, 3, 8, 8))
    result, report = equalize(model, calibrator, activations=True, alpha=alpha)
    size = np.max([batch["b"].max(axis=(0, 2, 3)) for batch in calibrator.observe(result, ["b"])], axis=0)
    read = np.abs(constants(result)["v"]).max(axis=(0, 2, 3))
    assert report.edits
    assert (
        spread(
            size ** (1 - alpha) if alpha == 1 else size**alpha / read ** (1 - alpha) if alpha == 0.5 else read
        )
        < 1.001
    )
    if alpha == 1:
        assert spread(size) < 1.001
    assert difference(model, result) < 1e-5


@pytest.mark.parametrize(
    "low, high, ops", [(0, 6, ["Relu", "Min"]), (-1, 1, ["Max", "Min"]), (-1, np.inf, ["Max"])]
)
def test_a_clip_gets_bounds_per_channel(low: float, high: float, ops: list[str]) -> None:
    model = build(CLIP, **layers(), **bounds(low, high))
    result, report = equalize(model, clip="channels")
    assert [node.op_type for node in result.graph.node] == ["Conv", *ops, "Conv"]
    assert difference(model, result) < 1e-5
    assert {edit.node for edit in report.edits} == {"Conv_0", "Clip_1"}
    again, _ = equalize(result, clip="channels")
    assert difference(model, again) < 1e-5


@pytest.mark.parametrize("opset", [7, 10])
def test_a_clip_with_its_bounds_in_attributes(opset: int) -> None:
    model = build(
        f"{IMAGE} {{ a = Conv (x, u, c) b = Clip <min = 0.0, max = 6.0> (a) y = Conv (b, v) }}",
        opset,
        **layers(),
    )
    result, report = equalize(model)
    assert not report.edits
    assert report.skips[0].reason.endswith(
        "Clip_1 clips all channels at 0 and 6; give clip=channels or clip=drop"
    )
    result, report = equalize(model, clip="channels")
    if opset < 8:  # Max and Min do not broadcast
        assert report.skips[0].reason.endswith(
            "Clip_1 cannot get bounds per channel below opset 8; give clip=drop"
        )
    else:
        assert [node.op_type for node in result.graph.node] == ["Conv", "Relu", "Min", "Conv"]
    assert difference(model, result) < 1e-5
    wide = build(
        f"{IMAGE} {{ a = Conv (x, u, c) b = Clip <min = 0.0, max = 10000.0> (a) y = Conv (b, v) }}",
        opset,
        **layers(),
    )
    result, _ = equalize(wide, Observed(random(2, 3, 8, 8)), clip="drop")
    assert [node.op_type for node in result.graph.node] == ["Conv", "Relu", "Conv"]
    assert difference(wide, result) < 1e-5


def test_a_clip_loses_its_upper_bound_where_it_may() -> None:
    model = build(CLIP, **layers(), **bounds(0, 1e4))
    calibrator = Observed(random(2, 3, 8, 8))
    result, _ = equalize(model, calibrator, clip="drop")
    assert [node.op_type for node in result.graph.node] == ["Conv", "Relu", "Conv"]
    unbounded = build(CLIP, **constants(model) | bounds(0, np.inf))
    assert difference(unbounded, result) < 1e-5
    _, report = equalize(build(CLIP, **layers(), **bounds(-1, 1)), calibrator, clip="drop")
    assert not report.edits
    assert "Clip_1 does not become a Relu without its upper bound" in report.skips[0].reason


def test_a_clip_keeps_an_upper_bound_that_the_data_meets() -> None:
    model = build(CLIP, **layers(), **bounds(0, 6))
    calibrator = Observed(random(2, 3, 8, 8), random(1, 3, 8, 8))
    values = np.concatenate([batch["a"] for batch in calibrator.observe(model, ["a"])])
    share = np.mean(values > 6)
    result, report = equalize(model, calibrator, clip="drop")
    assert share > 1e-4
    assert [node.op_type for node in result.graph.node] == ["Conv", "Clip", "Conv"]
    assert {skip.node: skip.reason for skip in report.skips}["Conv_0"] == (
        f"its channels keep their scale: Clip_1 keeps its upper bound, 6: {share:.2%} of the calibration values are above"
    )


@pytest.mark.parametrize(
    "behind, extra",
    [
        ("y = Conv (b, v, d)", {"v": random(5, 10, 3, 3), "d": random(5)}),
        ("y = Conv <group = 5> (b, v)", {"v": random(5, 2, 1, 1)}),
        ("p = MaxPool <kernel_shape = [2, 2]> (b) e = Conv (p, v) f = Conv (p, v2, d) y = Add (e, f)",)
        + ({"v": random(5, 10, 1, 1), "v2": random(5, 10, 1, 1), "d": random(5)},),
        (
            "g = GlobalAveragePool (b) f = Flatten (g) h = Gemm <alpha = 0.5, beta = 2.0> (f, v, d) y = Reshape (h, s)",
        )
        + ({"v": random(10, 5), "d": random(5), "s": np.array([-1, 5, 1, 1])},),
    ],
    ids=["biased", "grouped", "two readers", "gemm"],
)
def test_a_high_bias_is_absorbed_by_the_next_layer(behind: str, extra: dict[str, np.ndarray]) -> None:
    bias = np.linspace(-20, 60, 10, dtype=np.float32)
    model = build(ABSORB.format(behind=behind), u=random(10, 3, 3, 3), c=bias, **extra)
    data = np.clip(random(4, 3, 8, 8), -2, 2)
    calibrator = Observed(data[:2], data[2:])
    least = np.min([batch["a"].min(axis=(0, 2, 3)) for batch in calibrator.observe(model, ["a"])], axis=0)
    result, report = equalize(model, calibrator, absorb=True, min_scale=1e4)
    np.testing.assert_allclose(constants(result)["c"], bias - np.maximum(least, 0), rtol=1e-5, atol=1e-4)
    moved = np.count_nonzero(least > 0)
    assert 0 < moved < 10
    assert report.edits[0].what.startswith(f"biases of {moved} channels moved on")
    before, after = run(model, {"x": data})["y"], run(result, {"x": data})["y"]
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())


@pytest.mark.parametrize(
    "behind, reason",
    [
        ("y = Conv <pads = [1, 1, 1, 1]> (b, v)", "Conv_2 pads it with zeros"),
        ("s = Sigmoid (b) y = Conv (s, v)", "Sigmoid_2 (Sigmoid) reads it"),
        ("y = ConvTranspose (b, t)", "ConvTranspose_2 (ConvTranspose) reads it"),
    ],
    ids=lambda value: value,
)
def test_a_bias_stays_where_the_next_layer_cannot_take_it(behind: str, reason: str) -> None:
    values = {
        "u": random(10, 3, 3, 3),
        "c": np.full(10, 50, np.float32),
        "v": random(5, 10, 1, 1),
        "t": random(10, 5, 1, 1),
    }
    _, report = equalize(
        build(ABSORB.format(behind=behind), **values),
        Observed(random(2, 3, 8, 8)),
        absorb=True,
        min_scale=1e4,
    )
    assert not report.edits
    assert f"its bias stays: {reason}" in [skip.reason for skip in report.skips if skip.node == "Conv_0"]


def test_a_shared_bias_is_not_written_into() -> None:
    text = f"{IMAGE} {{ a = Conv (x, u, c) b = Relu (a) e = Conv (b, v) f = Conv (x, u, c) g = Conv (f, v) y = Add (e, g) }}"
    model = build(text, u=random(10, 3, 3, 3), c=np.full(10, 50, np.float32), v=random(5, 10, 1, 1))
    data = np.clip(random(4, 3, 8, 8), -2, 2)
    result, report = equalize(model, Observed(data), absorb=True, min_scale=1e4)
    assert [edit.node for edit in report.edits] == ["Conv_0"]
    np.testing.assert_array_equal(constants(result)["c"], constants(model)["c"])
    before, after = run(model, {"x": data})["y"], run(result, {"x": data})["y"]
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())


def test_channels_that_a_reshape_makes_one_unit_move_by_what_all_of_them_can_spare() -> None:
    """Channels i and i + 5 lie side by side behind the Reshape, so the reader sees one unit; the biases of
    both move by the lesser.
    """
    shuffle = (
        "d = Reshape (b, p) e = Transpose <perm = [0, 2, 1, 3, 4]> (d) f = Reshape (e, q) y = Conv (f, v)"
    )
    values = {
        "u": random(10, 3, 3, 3),
        "v": random(5, 10, 1, 1),
        "p": np.array([-1, 2, 5, 6, 6]),
        "q": np.array([-1, 10, 6, 6]),
    }
    model = build(ABSORB.format(behind=shuffle), c=np.linspace(30, 80, 10, dtype=np.float32), **values)
    data = np.clip(random(4, 3, 8, 8), -2, 2)
    result, report = equalize(model, Observed(data), absorb=True, min_scale=1e4)
    moved = constants(model)["c"] - constants(result)["c"]
    assert report.edits
    np.testing.assert_allclose(moved[:5], moved[5:], rtol=1e-4)
    before, after = run(model, {"x": data})["y"], run(result, {"x": data})["y"]
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())


def test_int8_of_uneven_channels_becomes_as_good_as_of_even_ones() -> None:
    """One scale serves all values of an activation. With channels 2^-6 to 2^6 apart, the network computes
    the same, but INT8 does not.
    """
    even = {"u": random(10, 3, 3, 3), "v": random(5, 10, 1, 1), "c": random(10)}
    factors = np.exp2(np.random.default_rng(0).uniform(-6, 6, 10)).astype(np.float32)
    apart = {
        "u": even["u"] * factors.reshape(-1, 1, 1, 1),
        "v": even["v"] / factors.reshape(1, -1, 1, 1),
        "c": even["c"] * factors,
    }
    text = f"{IMAGE} {{ a = Conv (x, u, c) b = Relu (a) y = Conv (b, v) }}"
    first, second = build(text, **even), build(text, **apart)
    assert difference(first, second) < 1e-5
    data = random(16, 3, 8, 8)
    wanted = run(first, {"x": data})["y"]

    def quality(model: onnx.ModelProto) -> float:
        """Signal to noise of the output in dB, after int8 with exact ranges."""
        ranges = {"x": Fixed(float(data.min()), float(data.max()))}
        largest = max(float(batch["b"].max()) for batch in Observed(data).observe(model, ["b"]))
        quantized, _ = quantize(model, FixedCalibrator(**ranges, b=Fixed(0.0, largest)))
        return affine.signal_to_noise_db(wanted, run(quantized, {"x": data})["y"])

    equalized, _ = equalize(second, min_scale=4.0)
    smoothed, _ = equalize(second, Observed(data), activations=True, min_scale=4.0)
    assert quality(second) < quality(first) - 10
    assert quality(equalized) > quality(first) - 3
    assert quality(smoothed) > quality(first) - 3


def test_kernel_equalizes_a_chain_of_three() -> None:
    weights = [
        Matrices(np.array([[[8.0], [1.0]]]), np.array([[0, 1]]), np.array([[-1]])),
        Matrices(np.array([[[2.0]], [[1.0]]]), np.array([[2], [3]]), np.array([[0], [1]])),
        Matrices(np.array([[[1.0, 4.0]]]), np.array([[-1]]), np.array([[2, 3]])),
    ]
    free = np.ones(4, bool)
    scale, rounds = balance(weights, np.array([0, 0, 2, 2]), free, None, Rule(0.5, 1.0, 1e4, 50))
    ranges = (
        weights[0].row_ranges(np.append(scale, 1))[0] / scale[:2],
        np.array([2, 1]) * scale[:2] / scale[2:],
        np.array([1, 4]) * scale[2:],
    )
    assert 1 < rounds < 20
    relative = [one / one[0] for one in ranges]
    np.testing.assert_allclose(relative, np.broadcast_to(relative[0], (3, 2)), rtol=0.02)
    still, _ = balance(weights, np.array([0, 0, 2, 2]), free, None, Rule(0.5, 1e3, 1e4, 50))
    assert (still == 1).all()
    assert configure(Equalize, {}).config.min_scale == 4
