"""When a Reshape of what is stored moves nothing, against NumPy."""

import itertools

import numpy as np
import pytest

from onnx_lathe.passes.lowering.litert_layout.memory import is_same, target
from onnx_lathe.passes.lowering.litert_layout.storage import Storage, channels_last, plain

PAIRS = [
    ((2, 6, 4, 3), (2, 6, 12)),
    ((2, 6, 4, 3), (2, 2, 3, 4, 3)),
    ((2, 6, 4, 3), (2, 24, 3)),
    ((2, 6, 1, 1), (2, 6)),
    ((2, 1, 4, 3), (2, 4, 3)),
    ((2, 6, 4), (2, 6, 1, 4)),
    ((2, 6, 4), (8, 6)),
    ((2, 2, 2, 2), (4, 4)),
]


def moves_nothing(source: tuple[int, ...], stored: Storage, result: tuple[int, ...], wanted: Storage) -> bool:
    values = np.arange(np.prod(source))
    first = values.reshape(source).transpose(stored.order).reshape(-1)
    return np.array_equal(first, values.reshape(result).transpose(wanted.order).reshape(-1))


@pytest.mark.parametrize(("source", "result"), PAIRS)
def test_every_pair_of_orders(source: tuple[int, ...], result: tuple[int, ...]) -> None:
    orders = [map(Storage, itertools.permutations(range(len(shape)))) for shape in (source, result)]
    for stored, wanted in itertools.product(*orders):
        assert is_same(source, stored, result, wanted) == moves_nothing(source, stored, result, wanted)


def test_a_flattened_image_has_its_places_before_its_channels() -> None:
    values = np.arange(2 * 6 * 4 * 3).reshape(2, 72)
    flat = Storage((0, 1), (6, 4, 3))
    assert is_same((2, 6, 4, 3), channels_last(4), (2, 72), flat)
    assert not is_same((2, 6, 4, 3), plain(4), (2, 72), flat)
    image = values.reshape(2, 6, 4, 3).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(flat.array(values), image.reshape(2, 72))


def test_sizes_that_are_open_are_equal_by_name_only() -> None:
    last = channels_last(4)
    assert is_same(("n", 6, "h", "w"), last, ("n", 6, "l"), channels_last(3))
    assert not is_same(("n", 6, "h", "w"), last, ("m", 6, "l"), channels_last(3))
    assert not is_same(("n", "c", "h", "w"), last, ("n", "l"), plain(2))


def test_one_size_of_the_target_may_be_open() -> None:
    last = channels_last(4)
    assert target(("n", 6, 4, 3), last, ("n", 6, 12), channels_last(3)) == [-1, 12, 6]
    assert target(("n", 6, "h", "w"), last, ("n", 6, "l"), channels_last(3)) == [0, -1, 6]
    assert target(("n", 6, "h", "w"), last, ("m", 6, "l"), channels_last(3)) is None
