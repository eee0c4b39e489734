"""The sizes that a model is compiled for: the chip's programs take one size of each input alone."""

from collections.abc import Mapping
from typing import Any

import onnx

from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.runtime.files.signature import InputSpec, model_inputs

Shape = tuple[int, ...]
USUAL, OTHERWISE = {4: 224}, 64
"""Sizes in examples, by the rank of an input."""


def parse_shapes(table: Mapping[str, int | str]) -> dict[str, Shape]:
    """Input -> the shape of `1x3x224x224`. Raises UsageError."""
    return {name: _shape(name, str(text)) for name, text in table.items()}


def _shape(name: str, text: str) -> Shape:
    try:
        sizes = tuple(int(size) for size in text.split("x"))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise UsageError(
            f"option shapes, '{name}': takes one shape, such as 1x3x224x224, not '{text}': a chip's program has one size"
        )
    return sizes


def text(shape: Shape) -> str:
    return "x".join(map(str, shape))


def check_given(model: onnx.ModelProto, given: Mapping[str, Shape]) -> None:
    """Raises UsageError for a shape of an input that the model has not, or that does not fit it."""
    inputs = {spec.name: spec for spec in model_inputs(model)}
    for name, shape in given.items():
        if name not in inputs:
            known = nearest(name, inputs) or "; it has " + ", ".join(inputs)
            raise UsageError(f"option shapes: the model has no input '{name}'{known}")
        dims = inputs[name].shape
        if inputs[name].ranked and (
            len(dims) != len(shape)
            or any(dim not in (None, size) for dim, size in zip(dims, shape, strict=True))
        ):
            wanted = ", ".join("?" if dim is None else str(dim) for dim in dims)
            raise UsageError(f"option shapes, '{name}': {text(shape)} does not fit [{wanted}]")


def following(model: onnx.ModelProto, given: Mapping[str, Shape]) -> dict[str, Shape]:
    """`given`, and the shapes of other inputs that follow from it: the model names a size of both alike."""
    named, names = _named(model, given), _names(model)
    found = dict(given)
    for spec in model_inputs(model):
        shape = tuple(
            size or named.get(name) for size, name in zip(spec.shape, names[spec.name], strict=True)
        )
        if spec.name not in given and shape != spec.shape and None not in shape[1:]:
            found[spec.name] = tuple(size or 1 for size in shape)
    return found


def _named(model: onnx.ModelProto, given: Mapping[str, Shape]) -> dict[str, int]:
    """What `given` says of the sizes that the model names."""
    names, found = _names(model), dict[str, int]()
    for name, shape in given.items():
        for dim, size in zip(names.get(name, ()), shape, strict=False):
            found.setdefault(dim, size)
    found.pop("", None)
    return found


def _names(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Of each input's sizes; empty for one without a name."""
    return {
        value.name: [dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in model.graph.input
    }


def of_data(
    model: onnx.ModelProto, given: Mapping[str, Shape], samples: Mapping[str, Shape], per_call: bool
) -> dict[str, Shape]:
    """Shapes of the inputs that neither the model nor `given` fixes, as far as the data has them: one sample.

    samples: shapes of the first samples by input; per_call: each sample is a call, whose first axis is no batch.
    """
    found = {}
    named, names, given = _named(model, given), _names(model), following(model, given)
    for spec in model_inputs(model):
        if spec.name in given or not is_open(spec) or spec.name not in samples:
            continue
        sample = samples[spec.name]
        said = [*(named.get(dim) for dim in names[spec.name]), *[None] * len(sample)]
        found[spec.name] = tuple(
            said[axis]
            or (1 if spec.ranked and axis == 0 and not per_call and spec.shape[0] is None else size)
            for axis, size in enumerate(sample)
        )
    return found


def is_open(spec: InputSpec) -> bool:
    return not spec.ranked or None in spec.shape


def undecided(model: onnx.ModelProto, given: Mapping[str, Shape]) -> list[str]:
    """Inputs whose size nobody says; a batch of 1 is understood."""
    given = following(model, given)
    return [
        spec.name
        for spec in model_inputs(model)
        if spec.name not in given and (not spec.ranked or None in spec.shape[1:])
    ]


def example(model: onnx.ModelProto, name: str) -> str:
    """What the option shapes may say of an input, with usual sizes in place of open ones."""
    spec = next(spec for spec in model_inputs(model) if spec.name == name)
    usual = USUAL.get(len(spec.shape), OTHERWISE)
    dims = [size or (usual if axis else 1) for axis, size in enumerate(spec.shape)]
    return f"shapes={{{name}: {text(tuple(dims) if spec.ranked else (1, 3, 224, 224))}}}"


def sizes(model: onnx.ModelProto, given: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shape of every input. Raises UsageError for one that nobody says."""
    check_given(model, given)
    if names := undecided(model, given):
        raise UsageError(
            f"input '{names[0]}' has sizes that are not fixed, and a chip's program has one size: give data, or "
            f"qnn({example(model, names[0])}) with the right one"
        )
    given = following(model, given)
    return {
        spec.name: given.get(spec.name, tuple(size or 1 for size in spec.shape))
        for spec in model_inputs(model)
    }


def declared(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> onnx.ModelProto:
    """A copy of the model with these shapes of its inputs in place of open ones; what follows from them is inferred by
    whoever loads it.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        if value.name in shapes:
            dims: Any = value.type.tensor_type.shape
            dims.Clear()
            for size in shapes[value.name]:
                dims.dim.add(dim_value=size)
    for value in copy.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 1:
                dim.Clear()
    del copy.graph.value_info[:]
    return copy
