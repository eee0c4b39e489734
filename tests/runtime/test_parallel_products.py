"""Products cut along M, N and K at once."""

import pytest

from onnx_lathe.runtime.training.parallel.costs import CHANNELS, WHOLE, Group, cost_of, move
from onnx_lathe.runtime.training.parallel.geometry import Axis, Layer
from onnx_lathe.runtime.training.parallel.products import cuts

LATE = Layer("3x3 512 at 7", "conv", 512, 512, (Axis(7, 7, 3, before=1),) * 2, reads=(0,))
FC = Layer("fc", "gemm", 4096, 4096, reads=(0,))


def test_a_cut_along_one_is_data_filters_or_channels() -> None:
    found = {(cut.m, cut.n, cut.k): cut.sent for cut in cuts(LATE, 4, 32)}
    assert len(found) == 6
    assert found[4, 1, 1] == cost_of(LATE, "data", Group(4, 32)).sent
    assert found[1, 4, 1] == move(LATE.input_size, CHANNELS, WHOLE, Group(4, 32)).sent
    assert found[1, 1, 4] == cost_of(LATE, "channel", Group(4, 32)).sent


def test_a_grid_by_hand() -> None:
    """2 x 2 x 1 of 4096 x 4096 weights, 256 samples: half of the weights' half, and of the inputs' half."""
    found = {(cut.m, cut.n, cut.k): cut for cut in cuts(FC, 4, 256)}
    assert found[2, 2, 1].sent == 4 * (2 / 2 * 4096 * 4096 / 2 + 2 / 2 * 256 * 4096 / 2)
    assert found[2, 1, 2].sent == 4 * (2 / 2 * 4096 * 4096 / 2 + 4 / 2 * 256 * 4096 / 2)
    assert found[2, 2, 1].memory == 4 * 3 * 4096 * 4096 / 2
    assert (found[2, 2, 1].m, str(found[2, 2, 1])) == (2, "2 x 2 x 1")


def test_the_best_grid_mixes_where_weights_and_inputs_are_alike() -> None:
    """W = I = O: sixteen workers send least in a grid, 4 x 4 x 1 and 2 x 4 x 2 alike, not along one axis."""
    found = {(cut.m, cut.n, cut.k): cut.sent for cut in cuts(FC, 16, 4096)}
    assert found[4, 4, 1] == found[2, 4, 2] == min(found.values()) == 4 * 3 / 4 * 4096 * 4096
    assert found[16, 1, 1] == found[1, 16, 1] == 2.5 * min(found.values())


def test_biases_belong_to_the_results() -> None:
    biased = Layer("fc", "gemm", 4096, 4096, vectors=4096, reads=(0,))
    more = {
        (one.m, one.n, one.k): one.sent - two.sent
        for one in cuts(biased, 4, 256)
        for two in cuts(FC, 4, 256)
        if (one.m, one.n, one.k) == (two.m, two.n, two.k)
    }
    assert more[4, 1, 1] == more[1, 1, 4] == more[2, 1, 2] == 4 * 2 * 3 / 4 * 4096
    assert more[1, 4, 1] == 0
    assert more[1, 2, 2] == 4 * 2 * 1 / 2 * 2048
    assert cost_of(biased, "channel", Group(4, 256)).sent == next(
        cut.sent for cut in cuts(biased, 4, 256) if cut.k == 4
    )


@pytest.mark.parametrize(("workers", "batch"), [(4, 2), (64, 1)])
def test_no_part_is_empty(workers: int, batch: int) -> None:
    found = cuts(Layer("c", "conv", 3, 8, (Axis(4, 4),), reads=(0,)), workers, batch)
    assert all(cut.m <= batch and cut.n <= 8 and cut.k <= 3 for cut in found)
    assert bool(found) == (workers == 4)


def test_groups_do_not_add_up_and_pools_are_no_products() -> None:
    grouped = Layer("g", "conv", 8, 8, (Axis(4, 4, 3),), groups=2, reads=(0,))
    assert {cut.k for cut in cuts(grouped, 4, 8)} == {1}
    assert cuts(Layer("p", "pool", 8, 8, (Axis(4, 2, 2, 2),)), 4, 8) == []
