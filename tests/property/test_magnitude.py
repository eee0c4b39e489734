"""Properties of the selection of smallest magnitudes, against a stable sort."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from passes.numerics.magnitude import smallest, with_zeros

FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0000001, 2.0, -3.0])  # many ties
ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=100, deadline=None)
@given(st.lists(arrays.arrays(np.float32, st.integers(1, 40), elements=st.one_of(FEW, ANY)), min_size=1, max_size=4), st.data())
def test_it_is_what_a_stable_sort_selects(parts: list[np.ndarray], data: st.DataObject) -> None:
    together = np.concatenate(parts)
    count = data.draw(st.integers(0, together.size))
    expected = together.copy()
    expected[np.argsort(np.abs(together), kind="stable")[:count]] = 0.0
    threshold = smallest(parts, count)
    pruned = []
    for part in parts:
        content, threshold = with_zeros(part, threshold)
        pruned.append(np.frombuffer(content, np.float32))
    assert np.concatenate(pruned).tobytes() == expected.tobytes()
    assert threshold.ties == 0


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 300_000))
def test_chunks_do_not_show(seed: int, count: int) -> None:
    values = np.random.default_rng(seed).integers(-50, 50, 300_000).astype(np.float32).reshape(300, 1000)
    content, _ = with_zeros(values, smallest([values], count))
    zeroed = np.frombuffer(content, np.float32).reshape(values.shape)
    expected = values.copy()
    expected.reshape(-1)[np.argsort(np.abs(values).reshape(-1), kind="stable")[:count]] = 0.0
    np.testing.assert_array_equal(zeroed, expected)
