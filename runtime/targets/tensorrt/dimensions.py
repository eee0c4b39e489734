"""What the inputs of a model say of their dimensions: which are fixed, which have a name in common, and which only data or
the option shapes can say.
"""

from collections.abc import Collection, Mapping, Sequence

import onnx

from onnx_lathe.engines import says_nothing

Shape = tuple[int, ...]
Dimensions = Mapping[str, list[int | str] | None]
"""Input -> its sizes, and names where these are not fixed; None where even the rank is unknown."""

SEQUENCE_LENGTH = 128
USUAL_SIZES = {4: 224, 5: 32}
"""Rank -> a usual size where one is open: of pictures, of volumes; of others a length."""


def dimensions_of(model: onnx.ModelProto) -> dict[str, list[int | str] | None]:
    stored = {tensor.name for tensor in model.graph.initializer}
    return {value.name: _dimensions(value) for value in model.graph.input if value.name not in stored}


def _dimensions(value: onnx.ValueInfoProto) -> list[int | str] | None:
    """Sizes; the name, or "" without one that says something, where the size is not fixed. None if even the rank is
    unknown.
    """
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [
        dim.dim_value
        if dim.HasField("dim_value") and dim.dim_value > 0
        else ("" if says_nothing(dim.dim_param) else dim.dim_param)
        for dim in tensor.shape.dim
    ]


def batch_names_of(inputs: Dimensions) -> set[str]:
    return {dims[0] for dims in inputs.values() if dims and isinstance(dims[0], str) and dims[0]}


def unequal_names(inputs: Dimensions, samples: Mapping[str, Shape]) -> set[str]:
    """Names of dimensions that the samples give several sizes, such as a batch and a height: to the exporter, they had
    one by chance.
    """
    sizes: dict[str, set[int]] = {}
    for name, dims in inputs.items():
        for dim, size in zip(dims or (), samples.get(name, ()), strict=False):
            if isinstance(dim, str):
                sizes.setdefault(dim, set()).add(size)
    return {dim for dim, found in sizes.items() if len(found) > 1}


def is_open(axis: int, dim: int | str, batch_names: Collection[str], first: int = 1) -> bool:
    """Whether neither the model nor the option batch, which is for axes before `first`, gives the dimension a size."""
    return isinstance(dim, str) and axis >= first and dim not in batch_names


def leaves_open(model: onnx.ModelProto, given: Collection[str]) -> bool:
    """Whether an input that is not among the `given` has a size that only data or the option shapes can say."""
    inputs = dimensions_of(model)
    batch_names = batch_names_of(inputs)
    return any(
        is_open(axis, dim, batch_names)
        for name, dims in inputs.items()
        if name not in given
        for axis, dim in enumerate(dims or ())
    )


def shares_batch(model: onnx.ModelProto, given: Collection[str]) -> bool:
    """Whether an input that is not among the `given` names another dimension as the batch."""
    inputs = dimensions_of(model)
    batch_names = batch_names_of(inputs)
    return any(
        batch_names.intersection(dims[1:]) for name, dims in inputs.items() if dims and name not in given
    )


def usual_shapes(
    model: onnx.ModelProto,
    size: int | None,
    named: Mapping[str, Sequence[tuple[int, int, int]]],
    apart: bool = False,
) -> dict[str, Shape]:
    """Shapes of one sample, with a usual size, or `size`, where one is open and not `named`; of inputs whose rank is
    known. apart: dimensions behind the first are open, too, where they have the name of the batch.
    """
    inputs = dimensions_of(model)
    batch_names = set() if apart else batch_names_of(inputs)

    def one(axis: int, dim: int | str, dims: Sequence[int | str]) -> int:
        if isinstance(dim, int):
            return dim
        if dim in named:
            return named[dim][0][1]
        return size or usual_size(dims) if is_open(axis, dim, batch_names) else 1

    return {
        name: tuple(one(axis, dim, dims) for axis, dim in enumerate(dims))
        for name, dims in inputs.items()
        if dims is not None
    }


def usual_size(dims: Sequence[int | str]) -> int:
    return USUAL_SIZES.get(len(dims), SEQUENCE_LENGTH)
