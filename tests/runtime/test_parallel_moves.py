"""Layouts and moves, without processes: what every worker has together, and that each backward pass is the adjoint."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onnx_lathe.errors import PassError
from onnx_lathe.runtime.torch_bridge.members import Members
from onnx_lathe.runtime.training.parallel.layout import Layout, Ranges, Split, clipped, even, meeting, needed
from onnx_lathe.runtime.training.parallel.moves import Traffic, mover, summed
from onnx_lathe.runtime.training.parallel.rules.table import Mesh
from tests.support.parallel import in_threads

SHAPE = (2, 5, 7, 6)
LAYOUTS: dict[str, Layout] = {
    "whole": None,
    "channels": Split(1, (0, 2, 5)),
    "rows": Split(2, even(7, 2)),
    "other rows": Split(2, (0, 5, 7)),
    "columns": Split(3, even(6, 2)),
}
TARGETS: dict[str, Layout | Ranges] = {
    **LAYOUTS,
    "halo": Ranges(2, ((-1, 5), (2, 8))),
    "apart": Ranges(2, ((5, 7), (0, 3))),
}


@given(st.integers(0, 200), st.integers(1, 12))
def test_even_ranges_cover_everything_once(size: int, parts: int) -> None:
    ranges = Split(0, even(size, parts)).ranges
    assert [row for first, end in ranges for row in range(first, end)] == list(range(size))
    assert max(end - first for first, end in ranges) - min(end - first for first, end in ranges) <= 1


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.integers(1, 4), st.integers(-1, 4), st.integers(1, 4), st.integers(1, 3),
)  # fmt: skip
def test_ranges_hold_every_tap_of_their_windows_and_no_more(
    lengths: Sequence[int], stride: int, before: int, kernel: int, dilation: int
) -> None:
    bounds = (0, *itertools.accumulate(lengths))
    ranges = needed(bounds, stride, before, (kernel - 1) * dilation + 1)
    for (first, end), (window, last) in zip(ranges, itertools.pairwise(bounds), strict=True):
        taps = [
            one * stride - before + tap * dilation for one in range(window, last) for tap in range(kernel)
        ]
        assert (min(taps), max(taps) + 1) == (first, end)


@given(*[st.tuples(st.integers(-5, 20), st.integers(-5, 20)) for _ in range(2)], st.integers(0, 15))
def test_what_ranges_have_in_common(one: tuple[int, int], other: tuple[int, int], size: int) -> None:
    common = set(range(*one)) & set(range(*other))
    found = meeting(one, other)
    assert set(range(*found)) == common if found else not common
    assert set(range(*clipped([one], size)[0])) == set(range(*one)) & set(range(size))


def local(whole: torch.Tensor, layout: Layout | Ranges, rank: int) -> torch.Tensor:
    if layout is None:
        return whole.clone()
    first, end = layout.ranges[rank]
    size = whole.shape[layout.axis]
    taken = whole.narrow(layout.axis, max(first, 0), min(end, size) - max(first, 0))
    before, after = (
        [*taken.shape[: layout.axis], rows, *taken.shape[layout.axis + 1 :]]
        for rows in (max(-first, 0), max(end - size, 0))
    )
    return torch.cat([taken.new_zeros(before), taken, taken.new_zeros(after)], layout.axis)


@pytest.mark.parametrize("new", TARGETS)
@pytest.mark.parametrize("old", LAYOUTS)
def test_a_move_gives_each_worker_its_range_and_its_backward_pass_is_the_adjoint(old: str, new: str) -> None:
    if isinstance(TARGETS[new], Ranges) and LAYOUTS[old] is not None and LAYOUTS[old].axis != 2:  # type: ignore[union-attr]
        return  # the placer moves to rows first
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    given = [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(4)]

    def work(mesh: Mesh) -> Any:
        move = mover(LAYOUTS[old], TARGETS[new], SHAPE, mesh.model, Traffic()) or (lambda x: x.view_as(x))
        rank = mesh.model.rank
        exact = torch.equal(move(local(whole, LAYOUTS[old], rank)), local(whole, TARGETS[new], rank))
        x = local(given[rank], LAYOUTS[old], rank).requires_grad_()
        y = move(x)
        v = local(given[2 + rank], TARGETS[new], rank)
        (back,) = torch.autograd.grad(y, x, v)
        return exact, float((y * v).detach().sum()), float((x * back).detach().sum())

    results = in_threads(2, work)
    assert all(exact for exact, _, _ in results)
    assert sum(one for _, one, _ in results) == pytest.approx(
        sum(other for _, _, other in results), rel=1e-12
    )


def test_a_sum_is_its_own_adjoint_and_counted_as_a_ring_sends_it() -> None:
    def work(mesh: Mesh) -> Any:
        traffic = Traffic()
        x = torch.full((4, 6), float(mesh.model.rank + 1), requires_grad=True)
        y = summed(x, mesh.model, traffic)
        (back,) = torch.autograd.grad(y, x, torch.full_like(y, 10.0 * (mesh.model.rank + 1)))
        return y.unique().tolist(), back.unique().tolist(), dict(traffic.sent)

    for found in in_threads(3, work):
        assert found == ([6.0], [60.0], {("sum", "forward"): 128, ("sum", "backward"): 128})


def test_bytes_of_a_halo_are_the_rows_that_others_need() -> None:
    def work(mesh: Mesh) -> Any:
        traffic = Traffic()
        move = mover(
            Split(2, even(9, 3)), Ranges(2, ((-1, 4), (2, 7), (5, 10))), (2, 5, 9, 6), mesh.model, traffic
        )
        assert move is not None
        x = torch.ones(2, 5, 3, 6, requires_grad=True)
        move(x).sum().backward()
        with torch.no_grad():
            move(x)
        return dict(traffic.sent)

    row = 2 * 5 * 6 * 4
    for found, neighbours in zip(in_threads(3, work), (1, 2, 1), strict=True):
        assert found == {("halo", "forward"): neighbours * row, ("halo", "backward"): neighbours * row}


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.bfloat16])
def test_other_types_move_too(kind: torch.dtype) -> None:
    whole = (torch.arange(24).reshape(2, 3, 4) % 2).to(kind)

    def work(mesh: Mesh) -> bool:
        move = mover(Split(2, (0, 1, 4)), None, whole.shape, mesh.model, Traffic())
        assert move is not None
        return torch.equal(move(whole[..., slice(0, 1) if mesh.model.rank == 0 else slice(1, 4)]), whole)

    assert in_threads(2, work) == [True, True]


def test_memory_format_stays() -> None:
    def work(mesh: Mesh) -> bool:
        move = mover(Split(2, (0, 4, 8)), Ranges(2, ((0, 5), (3, 8))), (2, 4, 8, 6), mesh.model, Traffic())
        assert move is not None
        x = torch.ones(2, 4, 4, 6).to(memory_format=torch.channels_last)
        return move(x).is_contiguous(memory_format=torch.channels_last)

    assert in_threads(2, work) == [True, True]


def test_a_tensor_of_another_size_than_planned_is_refused() -> None:
    cut = mover(None, Split(2, (0, 8)), (2, 3, 8, 8), Members(), Traffic())
    assert cut is not None
    assert cut(torch.ones(5, 3, 8, 4)).shape == (5, 3, 8, 4)
    with pytest.raises(PassError, match="axis 2 of a tensor is 9 in place of 8; give samples of one size"):
        cut(torch.ones(2, 3, 9, 8))
