"""Operators that name axes, or have a number for each."""

from collections.abc import Mapping, Sequence

import numpy as np

from onnx_lathe.passes.graph import Tensor
from onnx_lathe.passes.graph.constants import value
from onnx_lathe.passes.lowering.litert_layout.rules import Frames, Rule, Site, Uniform, rule
from onnx_lathe.passes.lowering.litert_layout.storage import (
    Frame,
    Storage,
    image_frame,
    plain,
    transposed_frame,
)

REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
)


def set_axes(site: Site, axes: Sequence[int], index: int = 1) -> None:
    """Writes the axes where the node has them: an input that is constant, or an attribute."""
    node = site.node
    if site.given(index) is not None:
        node.inputs[index] = site.work.integers(f"{node.name}_axes", axes)
    else:
        node.attrs["axes"] = list(axes)


class AxisAttribute(Uniform):
    """An operator along the axis of its attribute `axis`."""

    default = 0

    def axis(self, site: Site) -> int:
        return int(site.node.attrs.get("axis", self.default))

    def act_on(self, site: Site, storage: Storage) -> None:
        site.node.attrs["axis"] = storage.axis(self.axis(site))


@rule("Concat")
class Concat(AxisAttribute):
    def flows(self, site: Site) -> list[Tensor] | None:
        return [*(one for one in site.node.inputs if not site.work.is_operand(one)), *site.results]

    def act_on(self, site: Site, storage: Storage) -> None:
        super().act_on(site, storage)
        for index, tensor in enumerate(site.node.inputs):
            if site.work.is_operand(tensor):
                site.node.inputs[index] = site.work.stored_constant(tensor, storage)


@rule("Split", "Hardmax", "LpNormalization")
class AlongAxis(AxisAttribute):
    def axis(self, site: Site) -> int:
        default = {"Split": 0, "Hardmax": -1 if site.opset >= 13 else 1}.get(site.node.op, -1)
        return int(site.node.attrs.get("axis", default))

    def accepts(self, site: Site, storage: Storage) -> bool:
        return not storage.flat and (site.node.op != "Hardmax" or site.opset >= 13)


@rule("TopK")
class TopK(AxisAttribute):
    default = -1

    def moves(self, site: Site, storage: Storage) -> int | None:
        return 0 if storage.axis(self.axis(site)) == storage.rank - 1 else 2


@rule("Softmax", "LogSoftmax")
class Softmax(Uniform):
    """Up to opset 12 all axes from `axis` on are one; LiteRT has the last axis alone."""

    def act_on(self, site: Site, storage: Storage) -> None:
        site.node.attrs["axis"] = self._axis(site, storage)

    def accepts(self, site: Site, storage: Storage) -> bool:
        return not storage.flat and self._axis(site, storage) is not None

    def moves(self, site: Site, storage: Storage) -> int | None:
        return 0 if self._axis(site, storage) == storage.rank - 1 else 2

    def _axis(self, site: Site, storage: Storage) -> int | None:
        """The attribute for the storage; None if there is none that says the same."""
        axis = site.node.attrs.get("axis", -1 if site.opset >= 13 else 1) % storage.rank
        if site.opset >= 13:
            return storage.axis(axis)
        shape = site.shape(site.node.inputs[0]) or ()
        joined = {one for one in range(axis, storage.rank) if shape[one] != 1}
        for place in range(storage.rank - 1, -1, -1):
            if {one for one in storage.order[place:] if shape[one] != 1} == joined:
                return place
        return None


@rule("CumSum")
class CumulativeSum(Uniform):
    def accepts(self, site: Site, storage: Storage) -> bool:
        return not storage.flat and site.values(1) is not None

    def act_on(self, site: Site, storage: Storage) -> None:
        (axis,) = site.values(1) or (0,)
        known = np.asarray(value(site.node.inputs[1]))
        stored = np.full(known.shape, storage.axis(axis), known.dtype)
        site.node.inputs[1] = site.work.constant(f"{site.node.name}_axis", stored)


@rule("Slice")
class Slice(Uniform):
    """Starts and ends may be computed, axes not."""

    def accepts(self, site: Site, storage: Storage) -> bool:
        return not storage.flat and self._axes(site) is not None

    def _axes(self, site: Site) -> list[int] | None:
        if site.given(3) is not None:
            return site.values(3)
        count = site.shape(site.node.inputs[1])
        return list(range(count[0])) if count and isinstance(count[0], int) else None

    def act_on(self, site: Site, storage: Storage) -> None:
        axes = site.work.integers(f"{site.node.name}_axes", storage.axes(self._axes(site) or ()))
        if len(site.node.inputs) > 3:
            site.node.inputs[3] = axes
        else:
            site.node.inputs.append(axes)


class _PerAxis(Uniform):
    """An operator with an input that has a number, or two, for each axis."""

    def _vector(self, site: Site, index: int, storage: Storage, times: int = 1) -> None:
        """Puts the numbers in the order of the storage; they may be computed."""
        places = [run * storage.rank + axis for run in range(times) for axis in storage.order]
        site.node.inputs[index] = site.work.gathered(site.node.inputs[index], places)

    def _counts(self, site: Site, index: int, count: int) -> bool:
        """Whether the input is a vector of so many numbers."""
        tensor = site.given(index)
        return tensor is not None and site.shape(tensor) == (count,)


@rule("Pad")
class Pad(_PerAxis):
    def accepts(self, site: Site, storage: Storage) -> bool:
        if storage.flat:
            return False
        if site.given(3) is not None:
            return site.values(3) is not None
        return self._counts(site, 1, 2 * storage.rank)

    def act_on(self, site: Site, storage: Storage) -> None:
        if site.given(3) is not None:
            set_axes(site, storage.axes(site.values(3) or ()), 3)
        else:
            self._vector(site, 1, storage, 2)


@rule("Tile")
class Tile(_PerAxis):
    def accepts(self, site: Site, storage: Storage) -> bool:
        return not storage.flat and self._counts(site, 1, storage.rank)

    def act_on(self, site: Site, storage: Storage) -> None:
        self._vector(site, 1, storage)


@rule("Expand")
class Expand(_PerAxis):
    def accepts(self, site: Site, storage: Storage) -> bool:
        return not storage.flat and self._counts(site, 1, storage.rank)

    def act_on(self, site: Site, storage: Storage) -> None:
        self._vector(site, 1, storage)


@rule("Resize")
class Resize(_PerAxis):
    """Of images, with scales or sizes for all axes or for some."""

    def seeds(self, site: Site) -> bool:
        rank = site.rank(site.node.inputs[0])
        return rank == 4 and set(self._resized(site, 4)) <= {2, 3} and self.accepts(site, plain(4))

    def moves(self, site: Site, storage: Storage) -> int | None:
        """LiteRT resizes the two middle axes of four."""
        places = storage.axes(self._resized(site, storage.rank))
        return 0 if all(0 < place < storage.rank - 1 for place in places) else None

    def _resized(self, site: Site, rank: int) -> list[int]:
        """The axes that change; where that is not known now, those behind the channels."""
        if site.node.attrs.get("axes") is not None:
            return [int(axis) % rank for axis in site.node.attrs["axes"]]
        scales = None if site.given(2) is None else value(site.node.inputs[2])
        if scales is not None and scales.size == rank:
            return [axis for axis, scale in enumerate(scales.reshape(-1)) if scale != 1]
        sizes, shape = site.values(3), site.shape(site.node.inputs[0])
        if sizes is not None and shape is not None and len(sizes) == rank:
            return [axis for axis, size in enumerate(sizes) if size != shape[axis]]
        return list(range(2, rank))

    def accepts(self, site: Site, storage: Storage) -> bool:
        attrs = site.node.attrs
        if storage.flat or attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
            return False
        if attrs.get("mode") == "cubic":  # ONNX Runtime has it for channels first alone, LiteRT not at all
            return False
        if attrs.get("axes") is not None:
            return True
        return any(self._counts(site, index, storage.rank) for index in (2, 3))

    def act_on(self, site: Site, storage: Storage) -> None:
        if site.node.attrs.get("axes") is not None:
            site.node.attrs["axes"] = storage.axes(site.node.attrs["axes"])
            return
        for index in (2, 3):
            if self._counts(site, index, storage.rank):
                self._vector(site, index, storage)


class Dropping(Rule):
    """An operator whose result may lack axes of its input."""

    def dropped(self, site: Site, rank: int) -> list[int] | None:
        """The axes of the input that the result has not; None if the node's form is not known here."""
        raise NotImplementedError

    def frames(self, site: Site, tensor: Tensor, frame: Frame, known: Mapping[int, Frame]) -> Frames | None:
        source, results = site.node.inputs[0], site.results
        rank = site.rank(source)
        gone = None if rank is None else self.dropped(site, rank)
        if rank is None or gone is None or any(site.rank(one) != rank - len(gone) for one in results):
            return None
        if tensor is source:
            candidates = [frame]
        elif any(tensor is one for one in results):
            candidates = [image_frame(rank), transposed_frame(rank)] if gone else [frame]
        else:
            return None
        for candidate in candidates:
            if any(storage.flat for storage in candidate):
                return None
            left = (candidate[0].without(gone), candidate[1].without(gone))
            if tensor is source or left == frame:
                return {id(source): candidate, **{id(one): left for one in results}}
        return None


class _Reducing(Dropping):
    def axes(self, site: Site, rank: int) -> list[int] | None:
        raise NotImplementedError

    def dropped(self, site: Site, rank: int) -> list[int] | None:
        axes = self.axes(site, rank)
        if axes is None or not site.node.attrs.get("keepdims", 1):
            return axes
        return []


@rule(*REDUCTIONS)
class Reduction(_Reducing):
    def axes(self, site: Site, rank: int) -> list[int] | None:
        if site.given(1) is not None:
            found = site.values(1)
        else:
            found = [int(axis) for axis in site.node.attrs.get("axes") or ()]
        if found is not None and not found and not site.node.attrs.get("noop_with_empty_axes", 0):
            found = list(range(rank))
        return None if found is None else [axis % rank for axis in found]

    def rewrite(self, site: Site, seen: Mapping[int, Storage]) -> None:
        storage = seen[id(site.node.inputs[0])]
        axes = self.axes(site, storage.rank) or []
        if axes and len(axes) < storage.rank:
            set_axes(site, sorted(storage.axes(axes)))


@rule("ArgMax", "ArgMin")
class Argument(_Reducing):
    def axes(self, site: Site, rank: int) -> list[int] | None:
        return [site.node.attrs.get("axis", 0) % rank]

    def rewrite(self, site: Site, seen: Mapping[int, Storage]) -> None:
        storage = seen[id(site.node.inputs[0])]
        site.node.attrs["axis"] = storage.axis(site.node.attrs.get("axis", 0))


@rule("Gather")
class Gather(Dropping):
    """Along one axis, by one index or a vector of them."""

    def dropped(self, site: Site, rank: int) -> list[int] | None:
        indices = site.rank(site.node.inputs[1])
        if indices not in (0, 1) or site.work.is_operand(site.node.inputs[0]):
            return None
        return [] if indices else [site.node.attrs.get("axis", 0) % rank]

    def rewrite(self, site: Site, seen: Mapping[int, Storage]) -> None:
        storage = seen[id(site.node.inputs[0])]
        site.node.attrs["axis"] = storage.axis(site.node.attrs.get("axis", 0))
