"""Operators that give the elements of a tensor another shape, or another order of axes."""

from collections.abc import Mapping, Sequence

from onnx_lathe.passes.graph import Tensor
from onnx_lathe.passes.lowering.litert_layout import memory
from onnx_lathe.passes.lowering.litert_layout.axes import set_axes
from onnx_lathe.passes.lowering.litert_layout.rules import Frames, Rule, Site, rule
from onnx_lathe.passes.lowering.litert_layout.storage import (
    Frame,
    Size,
    Storage,
    channels_last,
    image_frame,
    plain,
    transposed_frame,
)


class View(Rule):
    """Reshape and the like: the result has a storage in which its elements lie as those of the source do."""

    def shapes(self, site: Site) -> tuple[Sequence[Size], Sequence[Size]] | None:
        """Of source and result, with the same names for sizes that are the same."""
        source, result = site.shape(site.node.inputs[0]), site.shape(site.node.outputs[0])
        return None if source is None or result is None else (source, result)

    def frames(self, site: Site, tensor: Tensor, frame: Frame, known: Mapping[int, Frame]) -> Frames | None:
        source, result = site.node.inputs[0], site.node.outputs[0]
        shapes = self.shapes(site)
        if shapes is None or not (tensor is source or tensor is result):
            return None
        other = result if tensor is source else source
        if id(other) in known:
            candidates = [known[id(other)]]
        else:
            candidates = _candidates(site, frame, shapes, forward=tensor is source)
        for candidate in candidates:
            pair = (frame, candidate) if tensor is source else (candidate, frame)
            if all(self._fits(site, shapes, *storages) for storages in zip(*pair, strict=True)):
                return {id(source): pair[0], id(result): pair[1]}
        return None

    def _fits(
        self, site: Site, shapes: tuple[Sequence[Size], Sequence[Size]], stored: Storage, wanted: Storage
    ) -> bool:
        if stored.is_plain and wanted.is_plain:
            return True
        return memory.is_same(shapes[0], stored, shapes[1], wanted) and (
            memory.target(shapes[0], stored, shapes[1], wanted) is not None
            or self.keeps_form(site, stored, wanted)
        )

    def keeps_form(self, site: Site, stored: Storage, wanted: Storage) -> bool:
        """Whether the node stays what it is, with other axes."""
        return False

    def rewrite(self, site: Site, seen: Mapping[int, Storage]) -> None:
        node, shapes = site.node, self.shapes(site)
        stored, wanted = (
            seen.get(id(one), plain(site.rank(one) or 0)) for one in (node.inputs[0], node.outputs[0])
        )
        if stored.is_plain and wanted.is_plain:
            return
        if self.keeps_form(site, stored, wanted):
            self.keep_form(site, stored, wanted)
            return
        target = None if shapes is None else memory.target(shapes[0], stored, shapes[1], wanted)
        node.op, node.attrs = "Reshape", {}
        node.inputs = [node.inputs[0], site.work.integers(f"{node.name}_shape", target or ())]

    def keep_form(self, site: Site, stored: Storage, wanted: Storage) -> None:
        """Changes the axes."""


def _candidates(
    site: Site, frame: Frame, shapes: tuple[Sequence[Size], Sequence[Size]], forward: bool
) -> list[Frame]:
    """Frames that the tensor at the other end may have, best first: one that asks for nothing is best."""
    rank = len(shapes[1] if forward else shapes[0])
    found: list[Frame] = [(plain(rank), plain(rank))]
    if rank > 2:
        found += [image_frame(rank), transposed_frame(rank)]
    found += _carried(frame, *(shapes if forward else shapes[::-1]))
    if forward:
        source = shapes[0]
        sizes = [size for size in source[1:] if isinstance(size, int)]
        if rank == 2 and len(source) > 2 and len(sizes) == len(source) - 1:
            flat = Storage((0, 1), tuple(sizes))
            if frame[1] == channels_last(len(source)):
                found.append((plain(2), flat))
    return found


def _carried(frame: Frame, source: Sequence[Size], result: Sequence[Size]) -> list[Frame]:
    """The axes of the result in the order in which their parts lie in the source; axes of size 1 stay behind the axis
    before them.
    """
    parts = memory.factors(source, result)
    if parts is None:
        return []
    pair = []
    for storage in frame:
        if storage.flat:
            return []
        places = {part: place for place, axis in enumerate(storage.order) for part in parts[0][axis]}
        keys: list[int] = []
        for own in parts[1]:
            keys.append(places[own[0]] if own else keys[-1] if keys else -1)
        pair.append(Storage(tuple(sorted(range(len(result)), key=lambda axis: (keys[axis], axis)))))
    return [(pair[0], pair[1])]


@rule("Reshape")
class Reshape(View):
    def shapes(self, site: Site) -> tuple[Sequence[Size], Sequence[Size]] | None:
        shapes, target = super().shapes(site), site.values(1)
        if shapes is None or target is None or site.node.attrs.get("allowzero", 0):
            return shapes
        source, result = shapes
        return source, [source[i] if one == 0 else result[i] for i, one in enumerate(target)]


@rule("Flatten")
class Flatten(View):
    pass


class _Axes(View):
    """Squeeze and Unsqueeze."""

    def axes(self, site: Site) -> list[int] | None:
        """Axes of the longer shape that the shorter one lacks."""
        shapes = super().shapes(site)
        if shapes is None:
            return None
        rank = max(len(shape) for shape in shapes)
        found = site.values(1) if site.given(1) is not None else site.node.attrs.get("axes")
        if found is None and site.given(1) is None:
            found = [axis for axis, size in enumerate(shapes[0]) if size == 1]
        return None if found is None else [int(axis) % rank for axis in found]

    def shapes(self, site: Site) -> tuple[Sequence[Size], Sequence[Size]] | None:
        shapes, axes = super().shapes(site), self.axes(site)
        if shapes is None or axes is None or abs(len(shapes[0]) - len(shapes[1])) != len(axes):
            return None
        longer = 0 if len(shapes[0]) > len(shapes[1]) else 1
        full = [1 if axis in axes else size for axis, size in enumerate(shapes[longer])]
        short = [size for axis, size in enumerate(full) if axis not in axes]
        return (full, short) if longer == 0 else (short, full)

    def keep_form(self, site: Site, stored: Storage, wanted: Storage) -> None:
        longer = max(stored, wanted, key=lambda storage: storage.rank)
        set_axes(site, sorted(longer.axes(self.axes(site) or ())))

    def keeps_form(self, site: Site, stored: Storage, wanted: Storage) -> bool:
        axes = self.axes(site) or []
        longer, shorter = sorted((stored, wanted), key=lambda storage: -storage.rank)
        return not longer.flat and not shorter.flat and longer.without(axes) == shorter


@rule("Squeeze")
class Squeeze(_Axes):
    pass


@rule("Unsqueeze")
class Unsqueeze(_Axes):
    pass


@rule("Transpose")
class Transpose(Rule):
    """With the memory of its source left as it is, or on its own between two storages that others have chosen."""

    def order(self, site: Site) -> tuple[int, ...] | None:
        rank = site.rank(site.node.inputs[0])
        if rank is None:
            return None
        return tuple(site.node.attrs.get("perm") or reversed(range(rank)))

    def frames(self, site: Site, tensor: Tensor, frame: Frame, known: Mapping[int, Frame]) -> Frames | None:
        source, result, order = site.node.inputs[0], site.node.outputs[0], self.order(site)
        if order is None or any(storage.flat for storage in frame):
            return None
        if tensor is source:
            pair = frame, (frame[0].transposed(order), frame[1].transposed(order))
        else:
            back = tuple(order.index(axis) for axis in range(len(order)))
            pair = (frame[0].transposed(back), frame[1].transposed(back)), frame
        other = pair[1] if tensor is source else pair[0]
        if not any(storage.is_plain for storage in other):
            return None
        return {id(source): pair[0], id(result): pair[1]}

    def takes_any(self, site: Site, tensor: Tensor, frame: Frame) -> bool:
        return not any(storage.flat for storage in frame)

    def rewrite(self, site: Site, seen: Mapping[int, Storage]) -> None:
        node, order = site.node, self.order(site) or ()
        stored, wanted = (seen.get(id(one), plain(len(order))) for one in (node.inputs[0], node.outputs[0]))
        steps = stored.transposed(order).steps_to(wanted)
        if steps == tuple(range(len(steps))):
            node.op, node.attrs = "Identity", {}
        else:
            node.attrs["perm"] = list(steps)


@rule("Shape")
class ShapeOf(Rule):
    """Its numbers are put in the original order."""

    def takes_any(self, site: Site, tensor: Tensor, frame: Frame) -> bool:
        return True

    def rewrite(self, site: Site, seen: Mapping[int, Storage]) -> None:
        work, node = site.work, site.node
        storage, result = seen[id(node.inputs[0])], node.outputs[0]
        if storage.flat:
            return
        places = storage.axes(range(storage.rank))[node.attrs.get("start", 0) : node.attrs.get("end")]
        node.attrs = {}
        found = work.variable(f"{result.name}_nhwc", result, [storage.rank])
        node.outputs[0] = found
        indices = work.integers(f"{result.name}_order", places)
        work.node("Gather", f"{node.name}_Gather", [found, indices], [result], axis=0)


@rule("Size")
class SizeOf(Rule):
    def takes_any(self, site: Site, tensor: Tensor, frame: Frame) -> bool:
        return True
