"""Dynamic inputs -> the sizes of optimization profiles: what a TensorRT engine must run (least, greatest) and is
tuned for. Several profiles are several such ranges in one engine, each with kernels of its own.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import onnx

from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.runtime.targets.tensorrt.dimensions import (
    Dimensions,
    Shape,
    batch_names_of,
    dimensions_of,
    is_open,
    unequal_names,
    usual_size,
)

Pattern = tuple[int | None, ...]
"""A shape in which None stands for the batch."""

USUAL_BATCH = "1:1:32"
BATCH = "N"
"""In the option shapes: the sizes of the option batch."""
BETWEEN = "|"
"""Between what is for one profile and what is for the next."""


@dataclass(frozen=True)
class Profile:
    """Three shapes of one input. Every size of `tuned` lies between that of `least` and that of `greatest`."""

    least: Shape
    tuned: Shape
    greatest: Shape


@dataclass(frozen=True)
class Sizes:
    """Three shapes of one input as the option shapes says them."""

    least: Pattern
    tuned: Pattern
    greatest: Pattern

    def at(self, batch: Profile) -> Profile:
        """`batch` has one dimension."""
        return Profile(
            _filled(self.least, batch.least[0]),
            _filled(self.tuned, batch.tuned[0]),
            _filled(self.greatest, batch.greatest[0]),
        )


def _filled(pattern: Pattern, batch: int) -> Shape:
    return tuple(batch if size is None else size for size in pattern)


def parse_batch(value: int | str | None) -> list[Profile]:
    """`8` or `1:1:32`, as shapes of one dimension, one for each profile; None is the usual one. Raises UsageError."""
    what = "option batch"
    parts = str(USUAL_BATCH if value is None else value).split(BETWEEN)
    found = [_ordered(what, part, [_sizes(what, part, one) for one in part.split(":")], 1) for part in parts]
    return [Profile(_filled(one.least, 0), _filled(one.tuned, 0), _filled(one.greatest, 0)) for one in found]


def parse_shapes(table: Mapping[str, int | str]) -> dict[str, list[Sizes]]:
    """Input -> for each profile `1x3x224x224` (one shape), or three of them with colons between. Raises UsageError."""
    found = {}
    for name, value in table.items():
        what, parts = f"option shapes, '{name}':", str(value).split(BETWEEN)
        found[name] = [
            _ordered(what, part, [_sizes(what, part, one, BATCH) for one in part.split(":")])
            for part in parts
        ]
    return found


def _sizes(what: str, value: str, text: str, batch: str = "") -> Pattern:
    """`batch`: what stands for the batch, if anything does."""
    try:
        sizes = tuple(None if batch and size == batch else int(size) for size in text.split("x"))
    except ValueError:
        sizes = ()
    if not sizes or any(size is not None and size < 1 for size in sizes):
        example = "1x3x32x32:1x3x64x64:8x3x128x128" if batch else "1:8:32"
        raise UsageError(
            f"{what} takes positive sizes as MIN:OPT:MAX or one for all, such as {example}, not '{value}'"
        )
    return sizes


def _ordered(what: str, value: str, shapes: list[Pattern], rank: int | None = None) -> Sizes:
    shapes = shapes * 3 if len(shapes) == 1 else shapes
    ranks = {len(shape) for shape in shapes} | ({rank} if rank else set())
    if len(shapes) != 3 or len(ranks) != 1:
        raise UsageError(f"{what} takes one value, or three of equal rank as MIN:OPT:MAX, not '{value}'")
    for sizes in zip(*shapes, strict=True):
        known = [size for size in sizes if size is not None]
        if len(known) not in (0, 3):
            raise UsageError(
                f"{what} '{value}' has {BATCH} in one place and a size in the same place of another"
            )
        if known != sorted(known):
            raise UsageError(f"{what} '{value}' must not fall from MIN to OPT to MAX")
    return Sizes(*shapes)


def profiles(
    model: onnx.ModelProto, batch: Sequence[Profile], shapes: Mapping[str, Sequence[Sizes]]
) -> list[dict[str, Profile]]:
    """For each profile the shapes of every dynamic input; none where all sizes are fixed. First dimensions that are not
    fixed are `batch`, and so are those of the same name elsewhere. What is given once is the same in all profiles.

    Raises UsageError naming the input and the dimension that neither `batch` nor `shapes` gives a size.
    """
    inputs = fit_given(model, batch, shapes)
    count = _count(batch, shapes)
    found: list[dict[str, Profile]] = []
    for index in range(count):
        sizes = {name: every[index % len(every)] for name, every in shapes.items()}
        one = _profile(inputs, batch[index % len(batch)], sizes)
        if one and one not in found:
            found.append(one)
    return found


def fit_given(
    model: onnx.ModelProto,
    batch: Sequence[Profile],
    shapes: Mapping[str, Sequence[Sizes]],
    asked: bool = False,
) -> dict[str, list[int | str] | None]:
    """The model's inputs with their dimensions. Raises UsageError where `shapes` contradict them, and where `batch` was
    `asked` for and no input takes it.
    """
    inputs = dimensions_of(model)
    for name in shapes.keys() - inputs.keys():
        raise UsageError(
            f"option shapes: the model has no input '{name}'{nearest(name, inputs) or '; it has ' + ', '.join(inputs)}"
        )
    for index in range(_count(batch, shapes)):
        for name, every in shapes.items():
            _fitting(name, inputs[name], every[index % len(every)].at(batch[index % len(batch)]))
    if asked and not _takes_batch(inputs, batch, shapes):
        raise UsageError(
            "option batch: no input takes it, since first dimensions are fixed in the model, or given in the option "
            f"shapes without {BATCH}; leave batch out, or export the model with an open first dimension"
        )
    return inputs


def _takes_batch(
    inputs: Dimensions,
    batch: Sequence[Profile],
    shapes: Mapping[str, Sequence[Sizes]],
) -> bool:
    """Whether an input has a place for the batch, or is fixed at that very size."""
    names = batch_names_of(inputs)
    asked = {one for profile in batch for one in (*profile.least, *profile.greatest)}
    for name, dims in inputs.items():
        if name in shapes:
            said = {one[:1] for sizes in shapes[name] for one in (sizes.least, sizes.greatest)}
            taken = any(None in sizes.least for sizes in shapes[name]) or {(one,) for one in asked} == said
        else:
            taken = dims is None or any(
                isinstance(dim, str) and not is_open(axis, dim, names) for axis, dim in enumerate(dims)
            )
        if taken or (dims and asked == {dims[0]}):
            return True
    return False


def _count(batch: Sequence[Profile], shapes: Mapping[str, Sequence[Sizes]]) -> int:
    """Of profiles. Raises UsageError where they do not agree on it."""
    given = {"option batch": len(batch)} | {
        f"option shapes of '{name}'": len(every) for name, every in shapes.items()
    }
    count = max(given.values())
    for what, number in given.items():
        if number not in (1, count):
            most = next(what for what, number in given.items() if number == count)
            raise UsageError(f"{most} is for {count} profiles, {what} for {number}: give one, or {count}")
    return count


def given_shapes(batch: Sequence[Profile], shapes: Mapping[str, Sequence[Sizes]]) -> dict[str, str]:
    """Input -> the three shapes of each profile, all with sizes: `1x3x8x8:4x3x8x8:8x3x8x8|...`.
    Raises UsageError where numbers of profiles do not agree.
    """
    count = _count(batch, shapes)
    found = {}
    for name, every in shapes.items():
        each = [every[index % len(every)].at(batch[index % len(batch)]) for index in range(count)]
        found[name] = BETWEEN.join(":".join(map(_text, (one.least, one.tuned, one.greatest))) for one in each)
    return found


def _profile(inputs: Dimensions, batch: Profile, shapes: Mapping[str, Sizes]) -> dict[str, Profile]:
    batch_names, found = batch_names_of(inputs), {}
    for name, dims in inputs.items():
        if name in shapes:
            found[name] = _fitting(name, dims, shapes[name].at(batch))
        elif dims is None:
            raise UsageError(
                f"input '{name}' has no shape; give one with shapes={{{name}: MIN:OPT:MAX}}, such as 1x3x32x32"
            )
        elif any(isinstance(dim, str) for dim in dims):
            _refuse_open(name, dims, batch_names)
            found[name] = _patterned(dims).at(batch)
    return found


def sizes_of_names(
    model: onnx.ModelProto, shapes: Mapping[str, Sequence[Sizes]]
) -> dict[str, list[tuple[int, int, int]]]:
    """Name of a dimension -> the least, the tuned and the greatest size that `shapes` say of it, for each profile. The
    batch is none of them.
    """
    inputs = dimensions_of(model)
    found: dict[str, list[tuple[int, int, int]]] = {}
    for name, every in shapes.items():
        for axis, dim in enumerate(inputs.get(name) or ()):
            if isinstance(dim, str) and dim and all(len(sizes.least) > axis for sizes in every):
                said = [(sizes.least[axis], sizes.tuned[axis], sizes.greatest[axis]) for sizes in every]
                numbers = [(a, b, c) for a, b, c in said if a is not None and b is not None and c is not None]
                if len(numbers) == len(said):
                    found.setdefault(dim, numbers)
    return found


def from_data(
    model: onnx.ModelProto,
    given: Collection[str],
    samples: Mapping[str, Shape],
    per_call: bool = False,
    named: Mapping[str, Sequence[tuple[int, int, int]]] = MappingProxyType({}),
    asked: bool = False,
) -> dict[str, str]:
    """Input -> what the option shapes is to say of it, for inputs that need more than a batch: the sizes that the data
    has.

    given: inputs whose shapes are known already; samples: shapes of the data by input. per_call: each sample is a
    call, so that first dimensions are no batch, unless the option batch is `asked` for and they are 1 in the data.
    named: dimension -> its sizes where the given shapes say them, in each profile, which those of the same name have
    too.
    """
    inputs = dimensions_of(model)
    ones = {name: dims for name, dims in inputs.items() if asked and samples.get(name, ())[:1] == (1,)}
    batch_names = batch_names_of(ones if per_call else inputs) - unequal_names(inputs, samples)
    found = {}
    for name, dims in inputs.items():
        sample = samples.get(name)
        if name in given or sample is None or (dims is not None and len(dims) != len(sample)):
            continue
        known: list[int | str] = dims if dims is not None else ["batch", *sample[1:]] if sample else []
        first = 0 if per_call and name not in ones else 1
        open_axes = [is_open(axis, dim, batch_names, first) for axis, dim in enumerate(known)]
        if dims is not None and not any(open_axes):
            continue
        sizes = [
            size if open_axes[axis] else dim
            for axis, (dim, size) in enumerate(zip(known, sample, strict=True))
        ]
        of_axes = {
            axis: named[dim]
            for axis, dim in enumerate(known)
            if open_axes[axis] and isinstance(dim, str) and dim in named
        }
        found[name] = _text_of_profiles(sizes, of_axes)
    return found


def _text_of_profiles(dims: Sequence[int | str], sizes: Mapping[int, Sequence[tuple[int, int, int]]]) -> str:
    """Of a shape whose axes in `sizes` have three sizes for each profile."""
    profiles = []
    for index in range(max((len(every) for every in sizes.values()), default=1)):
        patterns = [list(_patterned(dims).tuned) for _ in range(3)]
        for axis, every in sizes.items():
            for pattern, size in zip(patterns, every[index % len(every)], strict=True):
                pattern[axis] = size
        profiles.append(text(Sizes(*map(tuple, patterns))))
    return BETWEEN.join(profiles)


def text(sizes: Sizes | Profile) -> str:
    """As the option shapes takes it: `Nx3x64x64`, or `1x3x64x64:4x3x64x64:8x3x64x64`."""
    written = [_text(shape) for shape in (sizes.least, sizes.tuned, sizes.greatest)]
    return written[0] if len(set(written)) == 1 else ":".join(written)


def _text(shape: Pattern) -> str:
    return "x".join(BATCH if size is None else str(size) for size in shape)


def _patterned(dims: Sequence[int | str]) -> Sizes:
    pattern = tuple(dim if isinstance(dim, int) else None for dim in dims)
    return Sizes(pattern, pattern, pattern)


def _refuse_open(name: str, dims: list[int | str], batch_names: Collection[str]) -> None:
    for axis, dim in enumerate(dims):
        if is_open(axis, dim, batch_names):
            label = f"dimension {axis} ('{dim}')" if dim else f"dimension {axis}"
            example = [
                usual_size(dims) if is_open(i, other, batch_names) else other for i, other in enumerate(dims)
            ]
            raise UsageError(
                f"input '{name}': {label} is not fixed; give data, whose shape is taken, or one or three shapes with "
                f"shapes={{{name}: MIN:OPT:MAX}}, such as {text(_patterned(example))}"
            )


def _fitting(name: str, dims: list[int | str] | None, profile: Profile) -> Profile:
    if dims is None:
        return profile
    if len(dims) != len(profile.least):
        raise UsageError(
            f"option shapes: input '{name}' has {len(dims)} dimensions, not {len(profile.least)}"
        )
    for axis, dim in enumerate(dims):
        if isinstance(dim, int) and not profile.least[axis] == dim == profile.greatest[axis]:
            raise UsageError(f"option shapes: dimension {axis} of input '{name}' is fixed at {dim}")
    return profile
