"""Dynamic inputs -> the sizes of an optimization profile: what a TensorRT engine must run (least, greatest)
and is tuned for.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from onnx_lathe.errors import UsageError, nearest

Shape = tuple[int, ...]

SEQUENCE_LENGTH = 128
USUAL_SIZES = {4: 224, 5: 32}
"""Rank -> what a message suggests for a size that is open: of pictures, of volumes; of others a length."""


@dataclass(frozen=True)
class Profile:
    """Three shapes of one input. Every size of `tuned` lies between that of `least` and that of `greatest`."""

    least: Shape
    tuned: Shape
    greatest: Shape


def parse_batch(value: int | str) -> Profile:
    """`8` or `1:1:32`, as shapes of one dimension. Raises UsageError."""
    return _ordered(
        "option batch", value, [_sizes("option batch", value, part) for part in str(value).split(":")], rank=1
    )


def parse_shapes(table: Mapping[str, int | str]) -> dict[str, Profile]:
    """Input -> `1x3x224x224` (one shape), or three of them with colons between. Raises UsageError."""
    return {
        name: _ordered(
            f"option shapes, '{name}':",
            value,
            [_sizes(f"option shapes, '{name}':", value, part) for part in str(value).split(":")],
        )
        for name, value in table.items()
    }


def _sizes(what: str, value: Any, text: str) -> Shape:
    try:
        sizes = tuple(int(size) for size in text.split("x"))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        example = "1:8:32" if what == "option batch" else "1x3x32x32:1x3x64x64:8x3x128x128"
        raise UsageError(
            f"{what} takes positive sizes as MIN:OPT:MAX or one for all, such as {example}, not '{value}'"
        )
    return sizes


def _ordered(what: str, value: Any, shapes: list[Shape], rank: int | None = None) -> Profile:
    shapes = shapes * 3 if len(shapes) == 1 else shapes
    ranks = {len(shape) for shape in shapes} | ({rank} if rank else set())
    if len(shapes) != 3 or len(ranks) != 1:
        raise UsageError(f"{what} takes one value, or three of equal rank as MIN:OPT:MAX, not '{value}'")
    if any(not low <= middle <= high for low, middle, high in zip(*shapes, strict=True)):
        raise UsageError(f"{what} '{value}' must not fall from MIN to OPT to MAX")
    return Profile(*shapes)


def profiles(model: onnx.ModelProto, batch: Profile, shapes: Mapping[str, Profile]) -> dict[str, Profile]:
    """A profile for every dynamic input. First dimensions that are not fixed are `batch`, and so are those
    of the same name elsewhere.

    Raises UsageError naming the input and the dimension that neither `batch` nor `shapes` gives a size.
    """
    wanted = fit_given(model, shapes)
    batch_names = _batch_names(wanted)
    found = {}
    for name, dims in wanted.items():
        if name in shapes:
            found[name] = _fitting(name, dims, shapes[name])
        elif dims is None:
            raise UsageError(
                f"input '{name}' has no shape; give one with shapes={{{name}: MIN:OPT:MAX}}, such as 1x3x32x32"
            )
        elif any(isinstance(dim, str) for dim in dims):
            found[name] = _batched(name, dims, batch, batch_names)
    return found


def fit_given(model: onnx.ModelProto, shapes: Mapping[str, Profile]) -> dict[str, list[int | str] | None]:
    """The model's inputs with their dimensions. Raises UsageError where `shapes` contradict them."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in stored}
    for name in shapes.keys() - inputs.keys():
        raise UsageError(
            f"option shapes: the model has no input '{name}'{nearest(name, inputs) or '; it has ' + ', '.join(inputs)}"
        )
    wanted = {name: _dimensions(value) for name, value in inputs.items()}
    for name, profile in shapes.items():
        _fitting(name, wanted[name], profile)
    return wanted


def from_data(
    model: onnx.ModelProto,
    batch: Profile,
    given: Collection[str],
    samples: Mapping[str, Shape],
    per_call: bool = False,
) -> dict[str, Profile]:
    """Profiles for the inputs that need more than `batch`, with the sizes that the data has.

    given: inputs whose shapes are known already; samples: shapes of the data by input. per_call: each sample is a
    call, so that first dimensions are no batch.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    wanted = {value.name: _dimensions(value) for value in inputs}
    batch_names = set() if per_call else _batch_names(wanted)
    first = 0 if per_call else 1
    found = {}
    for name, dims in wanted.items():
        sample = samples.get(name)
        if name in given or sample is None or (dims is not None and len(dims) != len(sample)):
            continue
        known: list[int | str] = dims if dims is not None else ["batch", *sample[1:]] if sample else []
        is_open = [_is_open(axis, dim, batch_names, first) for axis, dim in enumerate(known)]
        if dims is not None and not any(is_open):
            continue
        sizes = [
            size if is_open[axis] else dim for axis, (dim, size) in enumerate(zip(known, sample, strict=True))
        ]
        found[name] = _at_batch(sizes, batch)
    return found


def text(profile: Profile) -> str:
    """As the option shapes takes it: `1x3x64x64:4x3x64x64:8x3x64x64`."""
    return ":".join("x".join(map(str, shape)) for shape in (profile.least, profile.tuned, profile.greatest))


def _batch_names(wanted: Mapping[str, list[int | str] | None]) -> set[str]:
    return {dims[0] for dims in wanted.values() if dims and isinstance(dims[0], str) and dims[0]}


def _is_open(axis: int, dim: int | str, batch_names: Collection[str], first: int = 1) -> bool:
    """Whether neither the model nor the option batch, which is for axes before `first`, gives the dimension a size."""
    return isinstance(dim, str) and axis >= first and dim not in batch_names


def _at_batch(dims: Sequence[int | str], batch: Profile) -> Profile:
    least, tuned, greatest = (
        tuple(dim if isinstance(dim, int) else sizes[0] for dim in dims)
        for sizes in (batch.least, batch.tuned, batch.greatest)
    )
    return Profile(least, tuned, greatest)


def _dimensions(value: onnx.ValueInfoProto) -> list[int | str] | None:
    """Sizes; the name, or "" without one that says something, where the size is not fixed. None if even the rank is
    unknown.
    """
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else _name(dim.dim_param)
        for dim in tensor.shape.dim
    ]


def _name(dimension: str) -> str:
    """The lowering takes names away that converters give to sizes that they do not know, such as ?."""
    says_nothing = dimension in ("None", "unknown") or not any(letter.isalpha() for letter in dimension)
    return "" if says_nothing else dimension


def _batched(name: str, dims: list[int | str], batch: Profile, batch_names: Collection[str]) -> Profile:
    for axis, dim in enumerate(dims):
        if _is_open(axis, dim, batch_names):
            label = f"dimension {axis} ('{dim}')" if dim else f"dimension {axis}"
            usual = USUAL_SIZES.get(len(dims), SEQUENCE_LENGTH)
            example = [usual if _is_open(i, other, batch_names) else other for i, other in enumerate(dims)]
            raise UsageError(
                f"input '{name}': {label} is not fixed; give data, whose shape is taken, or three shapes with "
                f"shapes={{{name}: MIN:OPT:MAX}}, such as {text(_at_batch(example, batch))}"
            )
    return _at_batch(dims, batch)


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
