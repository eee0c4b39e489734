"""Sizes of inputs that a user names, and the batch: `--shape image=1x3x224x224`, `--batch 8`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.macs import OpenShape
from onnx_lathe.passes.graph.skeleton import runtime_inputs
from onnx_lathe.runtime.files.signature import fixed_batch, takes_one_sample

LARGEST = 2**31 - 1
"""Of a size or a batch."""
ELEMENTS = 2**48
"""Of an input: what layers make of so many can be counted in 64 bits."""

NAMELESS = ("?", "None", "-1")
"""Exporters write them for any open size: two of them need not be equal."""

Dims = Sequence[onnx.TensorShapeProto.Dimension]
"""Of an input; `dim_value` is 0 where it leaves a size open, and `dim_param` what it calls that."""


@dataclass(frozen=True)
class Sizes:
    """`given`: by input, sizes that nobody names as the model has them. `batch` is that of inputs whose first axis is
    open; `samples` multiplies what is counted for one sample, of a model that takes no more at a time. `count`: samples
    that all figures are of.
    """

    given: Mapping[str, OpenShape] = field(default_factory=dict)
    batch: int = 1
    samples: int = 1
    count: int = 1


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """NAME=1x3x224x224 -> sizes by name; "" for a model of one input. Raises UsageError."""
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        words = sizes.split("x")
        if not all(word.isdecimal() and len(word) < 20 and int(word) for word in words):
            raise UsageError(f"--shape takes NAME=1x3x224x224, not '{text}'")
        if name in found:
            raise UsageError(f"--shape names the input '{name}' twice; once is enough")
        found[name] = tuple(map(int, words))
    return found


def check_batch(batch: Any) -> None:
    """Raises UsageError for what is no number of samples."""
    if batch is not None and (not _is_size(batch) or not 1 <= batch <= LARGEST):
        raise UsageError(f"batch takes a number from 1 on, up to {LARGEST:,}, not {batch!r}")


def _is_size(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def sizes_of(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], batch: int | None) -> Sizes:
    """A size that is named for one axis is that of every axis which the model gives the same name.

    Raises UsageError for an input that is not there, and for sizes or a batch that it does not take.
    """
    if not isinstance(shapes, Mapping):
        raise UsageError(f"shapes takes sizes by the inputs' names, not {type(shapes).__name__}")
    inputs = {value.name: _axes(value) for value in runtime_inputs(model)}
    given: dict[str, Sequence[int]] = {}
    for name, sizes in shapes.items():
        name = next(iter(inputs), "") if not name and len(inputs) == 1 else name
        if name not in inputs:
            raise UsageError(
                f"--shape: the model has no input '{name}'{nearest(name, inputs)}; it has {', '.join(inputs)}"
            )
        if name in given:
            raise UsageError(f"--shape names the input '{name}' twice; once is enough")
        given[name] = _fitting(name, sizes, inputs[name])
    named = _named(inputs, given)
    found = {name: _resolved(dims, given.get(name), named) for name, dims in inputs.items()}
    firsts = {name: dims[0].dim_value for name, dims in inputs.items() if dims}
    opened = [found[name][0] for name, size in firsts.items() if not size]
    if batch not in (None, 1) and opened == [] and {*firsts.values()} == {1}:
        return Sizes(found, 1, int(batch or 1), int(batch or 1))
    if batch is not None:
        _check_batch(batch, found, firsts)
    known = [size for size in opened if isinstance(size, int)]
    fill = batch or (known[0] if known and len({*known}) == 1 else 1)
    named |= {dims[0].dim_param: fill for name, dims in inputs.items() if dims and dims[0].dim_param} | named
    found = {name: _resolved(dims, given.get(name), named, fill) for name, dims in inputs.items()}
    return Sizes(found, fill, 1, _count(found, firsts))


def _axes(value: onnx.ValueInfoProto) -> Dims:
    found = [
        onnx.TensorShapeProto.Dimension.FromString(dim.SerializeToString())
        for dim in value.type.tensor_type.shape.dim
    ]
    for dim in found:
        if (
            dim.dim_value < 0 or dim.dim_param in NAMELESS
        ):  # PaddlePaddle's way to leave a size open, and others'
            dim.Clear()
    return found


def _named(inputs: Mapping[str, Dims], given: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Name of an axis in the model -> its size. Raises UsageError for one of two sizes."""
    found: dict[str, tuple[int, str]] = {}
    for name, sizes in given.items():
        for dim, size in zip(inputs[name], sizes, strict=True):
            if dim.dim_value or not dim.dim_param:
                continue
            other, where = found.setdefault(dim.dim_param, (size, name))
            if other != size:
                raise UsageError(
                    f"--shape: '{dim.dim_param}' is {other} in the input '{where}' and {size} in '{name}'; "
                    "the model has one size of that name"
                )
    return {name: size for name, (size, _) in found.items()}


def _resolved(
    dims: Dims, sizes: Sequence[int] | None, named: Mapping[str, int], first: int | None = None
) -> OpenShape:
    """The sizes of an input, as far as they are known."""
    if sizes is not None:
        return tuple(sizes)
    known = [dim.dim_value or named.get(dim.dim_param) or dim.dim_param or "?" for dim in dims]
    if known and not isinstance(known[0], int) and first is not None:
        known[0] = first
    return tuple(known)


def _check_batch(batch: int, found: Mapping[str, OpenShape], firsts: Mapping[str, int]) -> None:
    """Raises UsageError for a batch that an input does not take, or that --shape contradicts."""
    if not firsts and batch != 1:
        raise UsageError(f"--batch {batch}: the model has no input with an axis of samples; leave it out")
    for name, size in firsts.items():
        first = found[name][0]
        if not size and isinstance(first, int) and first != batch:
            raise UsageError(
                f"--batch {batch}: --shape gives the input '{name}' {first} at a time; leave one out"
            )
    if all(firsts.values()) and batch != 1 and {*firsts.values()} != {batch}:
        name = next(name for name, size in firsts.items() if size != batch)
        raise UsageError(
            f"--batch {batch}: input '{name}' takes {firsts[name]} at a time, no other number; leave it out"
        )


def _count(found: Mapping[str, OpenShape], firsts: Mapping[str, int]) -> int:
    """Samples of a call: the first axes that the model leaves open say it, else those that are fixed."""
    opened = {found[name][0] for name, size in firsts.items() if not size}
    if opened:
        size = opened.pop()
        return size if isinstance(size, int) and not opened else 1
    shapes = [*found.values()]
    return 1 if takes_one_sample(shapes) else fixed_batch(shapes) or 1


def _fitting(name: str, sizes: Any, dims: Dims) -> Sequence[int]:
    if isinstance(sizes, str) or not isinstance(sizes, Sequence | np.ndarray):
        raise UsageError(f"--shape: input '{name}' takes a list of sizes, not {sizes!r}")
    fixed = "x".join(str(dim.dim_value or dim.dim_param or "?") for dim in dims)
    said = "x".join(map(str, sizes))
    if wrong := [size for size in sizes if not _is_size(size) or not 1 <= size <= LARGEST]:
        raise UsageError(
            f"--shape: input '{name}': a size is a number from 1 to {LARGEST:,}, not {wrong[0]!r}"
        )
    sizes = tuple(map(int, sizes))
    if len(sizes) != len(dims) or any(
        dim.dim_value not in (0, size) for dim, size in zip(dims, sizes, strict=True)
    ):
        raise UsageError(f"--shape: input '{name}' is {fixed}, not {said}")
    if math.prod(sizes) > ELEMENTS:
        raise UsageError(f"--shape: input '{name}' of {said} has too many elements; give smaller sizes")
    return sizes
