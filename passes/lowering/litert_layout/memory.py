"""Whether a Reshape of what is stored moves any element, and what its target shape is."""

from collections.abc import Sequence

from onnx_lathe.passes.lowering.litert_layout.storage import Size, Storage

Parts = list[list[int]]
"""For each axis the factors that it is made of, by number; axes of size 1 have none."""


def is_same(source: Sequence[Size], stored: Storage, result: Sequence[Size], wanted: Storage) -> bool:
    """Whether a Reshape from shape `source` to `result` of the original tensors is a Reshape of the stored ones too,
    which have the same elements in the same order.
    """
    if stored.is_plain and wanted.is_plain:
        return True
    if stored.flat and source and isinstance(source[-1], int):
        source = (*source[:-1], *stored.flat)
        stored = _unfolded(stored)
    if wanted.flat and result and isinstance(result[-1], int):
        result = (*result[:-1], *wanted.flat)
        wanted = _unfolded(wanted)
    parts = factors(source, result)
    if parts is None:
        return False
    first = [one for axis in stored.order for one in parts[0][axis]]
    second = [one for axis in wanted.order for one in parts[1][axis]]
    return first == second


def _unfolded(storage: Storage) -> Storage:
    """Of the tensor whose flattened last axis is the axes that it was made of."""
    rest, count = storage.rank - 1, len(storage.flat)
    return Storage((*storage.order[:-1], *range(rest + 1, rest + count), rest))


def factors(source: Sequence[Size], result: Sequence[Size]) -> tuple[Parts, Parts] | None:
    """Factors of which both shapes are made, in the same order; None if they cannot be told.

    Equal sizes at either end are one factor each, and known sizes divide each other in between. What is then left of
    one axis is made of all that is left on the other side.
    """
    sizes = list(source), list(result)
    left, right = ([axis for axis, size in enumerate(shape) if size != 1] for shape in sizes)
    pairs: list[tuple[int, int]] = []
    tail: list[tuple[int, int]] = []
    while len(left) > 1 and len(right) > 1 and source[left[-1]] == result[right[-1]]:
        tail.insert(0, (left.pop(), right.pop()))
    while len(left) > 1 and len(right) > 1:
        one, other = sizes[0][left[0]], sizes[1][right[0]]
        pairs.append((left[0], right[0]))
        if one == other:
            left.pop(0)
            right.pop(0)
        elif not isinstance(one, int) or not isinstance(other, int) or not one or not other:
            return None
        elif one % other == 0:
            sizes[0][left[0]] = one // other
            right.pop(0)
        elif other % one == 0:
            sizes[1][right[0]] = other // one
            left.pop(0)
        else:
            return None
    if bool(left) != bool(right):
        return None
    pairs += [(i, j) for i in left for j in right] + tail
    parts: tuple[Parts, Parts] = [[] for _ in source], [[] for _ in result]
    for number, (i, j) in enumerate(pairs):
        parts[0][i].append(number)
        parts[1][j].append(number)
    return parts


def target(
    source: Sequence[Size], stored: Storage, result: Sequence[Size], wanted: Storage
) -> list[int] | None:
    """The shape input of a Reshape between the stored tensors, with 0 and -1 where sizes are open; None if more than
    one is.
    """
    given, asked = stored.sizes(source), wanted.sizes(result)
    unknown = [size for size in asked if not isinstance(size, int)]
    if len(unknown) == 1:
        return [size if isinstance(size, int) else -1 for size in asked]
    found = [
        size if isinstance(size, int) else 0 if axis < len(given) and given[axis] == size else -1
        for axis, size in enumerate(asked)
    ]
    return found if found.count(-1) <= 1 and 0 not in asked else None
