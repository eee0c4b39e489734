"""Sizes of inputs that a user names, and the batch: `--shape image=1x3x224x224`, `--batch 8`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.passes.graph.skeleton import runtime_inputs


@dataclass(frozen=True)
class Sizes:
    """`given`: by input. `batch` is that of inputs whose first axis is open; `samples` multiplies what is counted for
    one sample, of a model that takes no more at a time.
    """

    given: Mapping[str, Sequence[int]] = field(default_factory=dict)
    batch: int = 1
    samples: int = 1


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """NAME=1x3x224x224 -> sizes by name; "" for a model of one input. Raises UsageError."""
    found = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        words = sizes.split("x")
        if not all(word.isdecimal() and int(word) for word in words):
            raise UsageError(f"--shape takes NAME=1x3x224x224, not '{text}'")
        found[name] = tuple(map(int, words))
    return found


def sizes_of(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], batch: int | None) -> Sizes:
    """Raises UsageError for an input that is not there, and for sizes or a batch that it does not take."""
    inputs = {value.name: value.type.tensor_type.shape.dim for value in runtime_inputs(model)}
    given: dict[str, Sequence[int]] = {}
    for name, sizes in shapes.items():
        name = next(iter(inputs), "") if not name and len(inputs) == 1 else name
        if name not in inputs:
            raise UsageError(
                f"--shape: the model has no input '{name}'{nearest(name, inputs)}; it has {', '.join(inputs)}"
            )
        given[name] = _fitting(name, sizes, inputs[name])
    firsts = {name: dims[0].dim_value for name, dims in inputs.items() if dims and name not in given}
    if batch is None or batch == 1 or not firsts:
        return Sizes(given)
    if not all(firsts.values()):
        return Sizes(given, batch)
    if set(firsts.values()) == {1} and not given:
        return Sizes(given, 1, batch)
    name = next(name for name, size in firsts.items() if size != 1 or given)
    if set(firsts.values()) == {batch}:
        return Sizes(given)
    raise UsageError(
        f"--batch {batch}: input '{name}' takes {firsts[name]} at a time, no other number; leave it out"
    )


def _fitting(
    name: str, sizes: Sequence[int], dims: Sequence[onnx.TensorShapeProto.Dimension]
) -> Sequence[int]:
    fixed = "x".join(str(dim.dim_value or dim.dim_param or "?") for dim in dims)
    if len(sizes) != len(dims) or any(
        dim.dim_value not in (0, size) for dim, size in zip(dims, sizes, strict=True)
    ):
        raise UsageError(f"--shape: input '{name}' is {fixed}, not {'x'.join(map(str, sizes))}")
    return sizes
