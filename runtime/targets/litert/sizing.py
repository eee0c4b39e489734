"""The sizes that a file is written for: a batch stays open where the model has it open, and LiteRT can resize."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from onnx_lathe.errors import TargetError
from onnx_lathe.metadata import read_channels_last
from onnx_lathe.runtime.targets.core.branches import conditions, decided
from onnx_lathe.runtime.targets.core.facts import Shape
from onnx_lathe.runtime.targets.core.sizes import Sizes, parse, sizes_of
from onnx_lathe.runtime.targets.litert.convert import Conversion, convert

OTHER_BATCH = 7
"""The batch at which a model is looked at beside 1. What is equal in both does not depend on it; no axis of a network is
likely to have this size.
"""
OPEN = "on the size of the input"
"""Ends each reason that fixed sizes would do away with: one or several things depend on it."""


@dataclass(frozen=True)
class Fitted:
    """`batch`: whether that stays open. `reason`: why it does not where the model has it open."""

    conversion: Conversion
    sizes: Sizes
    batch: bool = False
    reason: str = ""


def fitted(
    model: onnx.ModelProto,
    shapes: Mapping[str, int | str],
    half: bool = False,
    batches: bool = True,
    fold_stem: bool = False,
) -> Fitted:
    """The network, with an open batch if it can be, and `batches` asks for it. Raises UsageError for shapes that do not fit the model, TargetError
    where ONNX Runtime cannot run the model at these sizes.
    """
    sizes = sizes_given(model, shapes)
    opened = with_open_batch(model, sizes)
    reason = ""
    if batches and opened.second != sizes.second:
        try:
            found = convert(model, opened.first, opened.second, half, fold_stem)
        except TargetError as error:
            reason = str(error)
        else:
            closed = next((one for one in found.refused if OPEN in one[2]), None)
            if closed is None:
                return Fitted(found, opened, True)
            reason = f"of node '{closed[0]}' ({closed[1]}) {closed[2]}"
    return Fitted(_converted(model, sizes, shapes, half, fold_stem), sizes, False, reason)


def sizes_given(model: onnx.ModelProto, shapes: Mapping[str, int | str]) -> Sizes:
    """`shapes` are the original model's; the lowered one has the channels of some inputs last."""
    last = read_channels_last(model.metadata_props)
    given = parse(shapes)
    turned = {
        name: (_channels_last(first), _channels_last(second))
        for name, (first, second) in given.items()
        if name in last
    }
    return sizes_of(model, given | turned)


def as_given(model: onnx.ModelProto, sizes: Sizes) -> dict[str, str]:
    """What the option shapes takes, of inputs that have axes."""
    last = read_channels_last(model.metadata_props)
    first, second = (
        {name: _channels_first(shape) if name in last else shape for name, shape in shapes.items()}
        for shapes in (sizes.first, sizes.second)
    )
    turned = Sizes(first, second)
    return {name: turned.text(name) for name, shape in first.items() if shape}


def _channels_last(shape: Shape) -> Shape:
    return (*shape[:1], *shape[2:], *shape[1:2])


def _channels_first(shape: Shape) -> Shape:
    return (*shape[:1], *shape[-1:], *shape[1:-1])


def _converted(
    model: onnx.ModelProto, sizes: Sizes, given: Mapping[str, int | str], half: bool, fold_stem: bool
) -> Conversion:
    try:
        return convert(model, sizes.first, sizes.second, half, fold_stem)
    except TargetError as error:
        if sizes.open and sizes.first.keys() - given.keys():
            name = next(name for name in sizes.first if sizes.is_open(name))
            raise TargetError(
                f"{error}; these are Lathe's own sizes for what the model leaves open: give data, or "
                f"litert(shapes={{{name}: {as_given(model, sizes.fixed())[name]}}}) with the right ones"
            ) from error
        raise


def with_open_batch(model: onnx.ModelProto, sizes: Sizes) -> Sizes:
    """The sizes, with another batch where the model has it open."""
    second: dict[str, Shape] = dict(sizes.second)
    values = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    names = {dims[0].dim_param for name, dims in values.items() if name in second and dims} - {""}
    for name, shape in second.items():
        dims = values[name]
        is_batch = [
            dim.dim_value <= 0 and (axis == 0 or dim.dim_param in names) for axis, dim in enumerate(dims)
        ]
        if is_batch and is_batch[0] and sizes.first[name][0] == 1:
            second[name] = tuple(
                OTHER_BATCH if batch else size for batch, size in zip(is_batch, shape, strict=True)
            )
    return Sizes(sizes.first, second)


def of_the_batch(model: onnx.ModelProto, shapes: Mapping[str, int | str]) -> list[str]:
    """Conditions of branches that go one way at a batch of 1, and either way where it stays open."""
    if not conditions(model.graph):
        return []
    sizes = sizes_given(model, shapes)
    opened = with_open_batch(model, sizes)
    if opened.second == sizes.second:
        return []
    of_one, of_any = (decided(model, one.first, one.second) for one in (sizes, opened))
    return sorted(of_one.keys() - of_any.keys())


def fixed(
    model: onnx.ModelProto, shapes: Mapping[str, int | str], reasons: list[tuple[str, str, str]]
) -> str:
    """What to do about sizes that cannot stay open; empty if fixed ones would change nothing."""
    if not any(OPEN in reason for _, _, reason in reasons):
        return ""
    texts = as_given(model, sizes_given(model, shapes).fixed())
    listed = ", ".join(f"{name}: {text}" for name, text in texts.items())
    return f"; fix it, such as with shapes={{{listed}}}"
