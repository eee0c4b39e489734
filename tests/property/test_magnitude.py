"""Properties of the selection of smallest magnitudes and scores, against a stable sort."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from onnx_lathe.passes.numerics.sparsity.lamp import smallest_scores
from onnx_lathe.passes.numerics.sparsity.magnitude import kept, smallest, with_zeros

FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0000001, 2.0, -3.0])  # many ties
ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)
NORMAL = st.floats(-8, 8, width=32).filter(lambda value: value == 0 or abs(value) > 1e-6)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        arrays.arrays(np.float32, st.integers(1, 40), elements=st.one_of(FEW, ANY)), min_size=1, max_size=4
    ),
    st.data(),
)
def test_it_is_what_a_stable_sort_selects(parts: list[np.ndarray], data: st.DataObject) -> None:
    together = np.concatenate(parts)
    count = data.draw(st.integers(0, together.size))
    expected = together.copy()
    expected[np.argsort(np.abs(together), kind="stable")[:count]] = 0.0
    thresholds = smallest(parts, count)
    pruned = [
        np.frombuffer(with_zeros(part, threshold), np.float32)
        for part, threshold in zip(parts, thresholds, strict=True)
    ]
    assert np.concatenate(pruned).tobytes() == expected.tobytes()
    masks = [kept(part, threshold) for part, threshold in zip(parts, thresholds, strict=True)]
    assert int((~np.concatenate(masks)).sum()) == count
    assert all(
        np.array_equal(np.where(mask, part, 0), zeroed)
        for mask, part, zeroed in zip(masks, parts, pruned, strict=True)
    )


def scores(weights: np.ndarray) -> np.ndarray:
    """LAMP as the paper has it, one weight at a time."""
    squares = weights.astype(np.float64) ** 2
    return np.array([square and square / squares[squares >= square].sum() for square in squares])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        arrays.arrays(np.float32, st.integers(1, 40), elements=st.one_of(FEW, NORMAL)), min_size=1, max_size=4
    ),
    st.lists(st.sampled_from([1e-3, 1.0, 1e3]), min_size=4, max_size=4),
    st.data(),
)
def test_it_is_what_the_scores_select(
    parts: list[np.ndarray], scales: list[float], data: st.DataObject
) -> None:
    parts = [part * np.float32(scale) for part, scale in zip(parts, scales, strict=False)]
    count = data.draw(st.integers(0, sum(part.size for part in parts)))
    thresholds = smallest_scores(parts, count)
    remains = np.concatenate(
        [kept(part, threshold) for part, threshold in zip(parts, thresholds, strict=True)]
    )
    scored = np.concatenate([scores(part) for part in parts])
    assert int((~remains).sum()) == count
    if 0 < count < remains.size:
        assert scored[~remains].max() <= scored[remains].min() * (1 + 1e-12)


def test_scores_of_many_weights() -> None:
    generator = np.random.default_rng(0)
    parts = [
        generator.standard_normal(size).astype(np.float32) * np.float32(scale)
        for size, scale in ((200_000, 0.01), (3_000, 1), (50, 9))
    ]
    thresholds = smallest_scores(parts, 180_000)
    remains = [kept(part, threshold) for part, threshold in zip(parts, thresholds, strict=True)]
    order = [np.sort(np.abs(part.astype(np.float64)))[::-1] for part in parts]
    scored = [layer**2 / np.cumsum(layer**2) for layer in order]
    least = np.sort(np.concatenate(scored))[180_000]
    assert [int(mask.sum()) for mask in remains] == [int((one >= least).sum()) for one in scored]
    for mask, part in zip(remains[:2], parts, strict=False):
        assert np.abs(part[mask]).min() >= np.abs(part[~mask]).max()


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 300_000))
def test_chunks_do_not_show(seed: int, count: int) -> None:
    values = np.random.default_rng(seed).integers(-50, 50, 300_000).astype(np.float32).reshape(300, 1000)
    [threshold] = smallest([values], count)
    zeroed = np.frombuffer(with_zeros(values, threshold), np.float32).reshape(values.shape)
    expected = values.copy()
    expected.reshape(-1)[np.argsort(np.abs(values).reshape(-1), kind="stable")[:count]] = 0.0
    np.testing.assert_array_equal(zeroed, expected)
