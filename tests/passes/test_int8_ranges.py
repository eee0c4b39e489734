"""Ranges of activations: thresholds near the true optimum, and sane for tensors of every kind."""

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_lathe import metadata
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.int8.int8 import Int8
from onnx_lathe.passes.int8.ranges import METHODS, choose_range
from onnx_lathe.passes.numerics.quantization.clipping import (
    BINS,
    FARTHEST,
    MOST_ERROR,
    Levels,
    LevelsOf,
    entropy_threshold,
    squared_error,
    squared_error_threshold,
    symmetric_levels,
    unsigned_levels,
)
from onnx_lathe.placement import CANONICAL
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from tests.support.builders import build
from tests.support.int8 import Rows
from tests.support.seeds import generator

COUNT = 200_000
NORMAL = generator().standard_normal(COUNT)
THRESHOLDS = ("entropy", "mse")


@dataclass
class Even:
    """Statistics of values by a histogram of even bins, with zero in a narrow one of its own."""

    values: np.ndarray
    bins: int = 4001

    @property
    def minimum(self) -> float:
        return float(self.values.min())

    @property
    def maximum(self) -> float:
        return float(self.values.max())

    def percentile(self, percent: float) -> tuple[float, float]:
        low, high = np.percentile(self.values, [(100 - percent) / 2, 50 + percent / 2])
        return float(low), float(high)

    def distribution(self) -> tuple[np.ndarray, np.ndarray]:
        largest = np.quantile(np.abs(self.values), 1 - 1e-4) * 1.5 + 1e-30
        outer = np.linspace(1e-9, 1, self.bins // 2) * largest
        edges = np.concatenate([-outer[::-1], outer])
        if self.maximum > edges[-1]:
            edges = np.append(edges, self.maximum)
        if self.minimum < edges[0]:
            edges = np.append(self.minimum, edges)
        counts, _ = np.histogram(self.values, edges)
        used = np.flatnonzero(counts)
        return edges[used[0] : used[-1] + 2].clip(self.minimum, self.maximum), counts[used[0] : used[-1] + 1]


def error(values: np.ndarray, levels: Levels) -> float:
    """Mean squared error of rounding the values themselves."""
    return float(
        np.mean((np.rint(values / levels.scale).clip(levels.first, levels.last) * levels.scale - values) ** 2)
    )


def error_of_range(values: np.ndarray, low: float, high: float, unsigned: bool) -> float:
    return error(values, (unsigned_levels if unsigned else symmetric_levels)(low, high))


def migacz(values: np.ndarray, largest: float, levels: int) -> float:
    """The threshold by Migacz's own loops over 2048 even bins, with the first bin as its neighbour."""
    counts, _ = np.histogram(np.abs(values), BINS, (0, largest))
    counts = counts.astype(float)
    counts[-1] += (np.abs(values) > largest).sum()
    counts[0] = counts[1]
    best, found = np.inf, 0
    for bins in range(levels, BINS + 1, 16):
        reference = counts[:bins].copy()
        reference[-1] += counts[bins:].sum()
        quantized = np.zeros(bins)
        for level in range(levels):
            first, end = level * bins // levels, (level + 1) * bins // levels
            used = [i for i in range(first, end) if counts[i]]
            for i in used:
                quantized[i] = counts[first:end].sum() / len(used)
        p, q = reference / reference.sum(), quantized / quantized.sum()
        present = p > 0
        if (q[present] > 0).all():
            loss = (p[present] * np.log(p[present] / q[present])).sum()
            if loss < best:
                best, found = loss, bins
    return largest * found / BINS


def seven_levels(low: float, high: float) -> Levels:
    return Levels(max(-low, high) / 7, -7, 7)


@pytest.mark.parametrize("levels_of", [symmetric_levels, unsigned_levels, seven_levels])
@pytest.mark.parametrize(
    "values",
    [
        NORMAL,
        np.maximum(NORMAL, 0),
        generator().laplace(size=COUNT),
        NORMAL / (1 + np.exp(-NORMAL)),
        generator().random(COUNT) - 0.1,
    ],
)
def test_no_threshold_has_a_smaller_squared_error(values: np.ndarray, levels_of: LevelsOf) -> None:
    def error_of(threshold: float) -> float:
        return error(values, levels_of(max(values.min(), -threshold), min(values.max(), threshold)))

    threshold = squared_error_threshold(*Even(values).distribution(), levels_of)
    least = min(map(error_of, np.abs(values).max() * np.geomspace(1 / 16, 1, 60)))
    assert error_of(threshold) <= 1.05 * least


@pytest.mark.parametrize("threshold", [0.3, 1.0, 2.5, 40.0])
@pytest.mark.parametrize("levels_of", [symmetric_levels, unsigned_levels])
def test_the_expected_squared_error_is_that_of_rounding(threshold: float, levels_of: LevelsOf) -> None:
    levels = levels_of(-threshold / 3, threshold)
    assert squared_error(*Even(NORMAL).distribution(), levels) == pytest.approx(
        error(NORMAL, levels), rel=0.02
    )


def test_the_error_of_a_bin_without_width_is_that_of_a_point() -> None:
    edges, levels = np.array([0.3, 0.3]), Levels(0.5, -2, 2)
    assert squared_error(edges, np.array([5.0]), levels) == pytest.approx(0.04)
    assert squared_error(-edges, np.array([5.0]), levels) == pytest.approx(0.04)
    assert squared_error(edges + 1, np.array([5.0]), levels) == pytest.approx(0.09)


@pytest.mark.parametrize(
    "values", [np.maximum(NORMAL, 0), np.maximum(generator().laplace(size=COUNT), 0), -np.abs(NORMAL)]
)
def test_levels_of_a_target_with_a_zero_point_are_those_it_has(values: np.ndarray) -> None:
    """Behind a ReLU the steps are half as wide: less is clipped."""
    signed, unsigned = (choose_range(Even(values), "mse", 0, unsigned) for unsigned in (False, True))
    assert max(-unsigned[0], unsigned[1]) > 1.02 * max(-signed[0], signed[1])
    assert error_of_range(values, *unsigned, True) < error_of_range(values, *signed, True)


@pytest.mark.parametrize("unsigned", [False, True])
def test_a_narrow_peak_does_not_move_the_entropy_threshold_far(unsigned: bool) -> None:
    """What a hard swish or a constant background makes: the measure alone would spend the levels on it."""
    values = np.append(np.abs(NORMAL), generator().normal(-0.05, 0.004, 20 * COUNT))
    entropy, mse = (choose_range(Even(values), method, 0, unsigned) for method in THRESHOLDS)
    assert error_of_range(values, *entropy, unsigned) <= 1.05 * MOST_ERROR * error_of_range(
        values, *mse, unsigned
    )


@pytest.mark.parametrize(
    "values",
    [NORMAL, np.maximum(NORMAL, 0), generator().laplace(size=COUNT), generator().standard_t(4, COUNT)],
)
def test_the_entropy_threshold_is_that_of_migacz(values: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = float(np.quantile(np.abs(values), 1 - FARTHEST))
    counts, edges = np.histogram(np.abs(values), 16 * BINS, (0, largest))
    counts[-1] += (np.abs(values) > largest).sum()
    monkeypatch.setattr("onnx_lathe.passes.numerics.quantization.clipping.MOST_ERROR", math.inf)
    assert entropy_threshold(edges, counts, symmetric_levels) == pytest.approx(
        migacz(values, largest, 128), rel=0.05
    )


def test_zeros_behind_a_relu_do_not_move_the_entropy_threshold() -> None:
    positive = np.abs(NORMAL)
    few = choose_range(Even(np.append(positive, np.zeros(COUNT // 2))), "entropy", 0)
    many = choose_range(Even(np.append(positive, np.zeros(9 * COUNT))), "entropy", 0)
    assert many[1] == pytest.approx(few[1], rel=0.15)
    assert many[1] > 2.5


@pytest.mark.parametrize("method", ["percentile", *THRESHOLDS])
@pytest.mark.parametrize("outlier", [1e4, -1e4, 1e8])
def test_one_huge_value_in_many_is_left_out(method: str, outlier: float) -> None:
    values = np.tile(NORMAL, 5)
    values[1234] = outlier
    low, high = choose_range(Even(values), method, 99.999)
    assert -8 < low < -2
    assert 2 < high < 8


def test_a_few_large_values_that_matter_are_kept() -> None:
    values = NORMAL.copy()
    values[::1000] = 40.0  # a thousandth of the values has four fifths of the energy
    assert choose_range(Even(values), "mse", 0)[1] > 30


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "values, expected",
    [
        (np.zeros(1000), (0.0, 0.0)),
        (np.full(1000, 3.0), (0.0, 3.0)),
        (np.full(1000, -3.0), (-3.0, 0.0)),
        (np.append(np.zeros(COUNT), [-1.0]), (-1.0, 0.0)),
        (np.tile([0.0, 1.0], 1000), (0.0, 1.0)),
        (np.tile(np.arange(128.0), 100), (0.0, 127.0)),
        (np.clip(6 * NORMAL, 0, 6), (0.0, 6.0)),
    ],
)
def test_ranges_of_special_tensors(values: np.ndarray, expected: tuple[float, float], method: str) -> None:
    assert choose_range(Even(values), method, 99.999) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_a_range_holds_zero(method: str) -> None:
    assert choose_range(Even(generator().uniform(5, 6, 5000)), method, 99.9) == (
        0.0,
        pytest.approx(6, abs=0.2),
    )
    assert choose_range(Even(generator().uniform(-6, -5, 5000)), method, 99.9) == (
        pytest.approx(-6, abs=0.2),
        0.0,
    )


@pytest.mark.parametrize("method", THRESHOLDS)
def test_the_smaller_side_ends_where_its_values_end(method: str) -> None:
    low, high = choose_range(Even(np.maximum(NORMAL, 0.01 * NORMAL)), method, 0)
    assert low == pytest.approx(0.01 * NORMAL.min())
    assert high > 2


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30),
    st.sampled_from(METHODS),
    st.floats(50, 100),
    st.booleans(),
)
def test_any_range_is_between_the_extremes_and_holds_zero(
    values: list[float], method: str, percent: float, unsigned: bool
) -> None:
    statistics = Even(np.array(values))
    low, high = choose_range(statistics, method, percent, unsigned)
    assert min(statistics.minimum, 0) <= low <= 0 <= high <= max(statistics.maximum, 0)
    assert low < high or not np.any(values)


def test_int8_has_the_levels_of_its_targets_in_mind() -> None:
    """A MatMul behind a ReLU: the range for a target with a zero-point clips less than the canonical one."""
    x = generator().laplace(size=(4000, 8)).astype(np.float32)
    weight = generator().standard_normal((8, 4)).astype(np.float32)
    model = build("(float[N, 8] x) => (float[N, 4] y) { r = Relu (x)  y = MatMul (r, w) }", w=weight)
    ends = []
    for unsigned in (False, True):
        graph = import_model(model)
        context = Context(
            calibrator=StreamingCalibrator(Rows(x=x), limit=4000),
            placement=replace(CANONICAL, unsigned=unsigned),
        )
        configure(Int8, {"method": "mse", "bias_correction": False}).apply(graph, context)
        entries = {
            entry.key: entry.value for node in export_model(graph).graph.node for entry in node.metadata_props
        }
        ends.append(json.loads(entries[metadata.RANGE]))
    assert ends[0][0] == ends[1][0] == 0
    assert ends[1][1] > 1.02 * ends[0][1]
